"""Errors that a user can act on. Every message names the value, the constraint and the remedy."""

from __future__ import annotations

import difflib
import errno
import traceback
from collections.abc import Iterable


class AdaNATError(Exception):
    """Base class. The command line prints the message alone (no traceback) and exits with code 1."""


class ConfigError(AdaNATError):
    """A setting is unknown, out of range, or contradicts another one."""


class PluginError(AdaNATError):
    """A plug-in is unknown, could not be loaded, or breaks its contract."""


class DataError(AdaNATError):
    """Images, captions or statistics cannot be read or do not fit the generator."""


class WeightsError(AdaNATError):
    """A weights file is missing, damaged, or does not fit the network."""


class CheckpointError(AdaNATError):
    """A checkpoint or policy is damaged, or belongs to another run or generator."""


class ReplacedError(CheckpointError):
    """A folder was replaced by a newer one while it was read; reading it again helps."""


class NotFiniteError(AdaNATError):
    """NaN or infinity where a run would learn from it or keep it."""


class OutputError(AdaNATError):
    """The output folder cannot be written."""


class InUseError(OutputError):
    """Another process is writing what this one is asked to write."""


def explained(error: BaseException) -> AdaNATError | None:
    """What a user can act on in an error that nobody expected, as one of ours: a file that ends too early, or one that the
    system refuses. None for any other error, and for a reader of our output that went away."""
    if isinstance(error, EOFError):
        frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
        where, line = frames[-1] if frames else ("", 0)
        return DataError(
            f"something that was read ends too early: {error or type(error).__name__} ({where}, line {line}). Look for a file "
            "that was cut short; ADANAT_DEBUG=1 shows which one was being read."
        )
    if isinstance(error, OSError) and error.filename is not None and error.errno != errno.EPIPE:
        return AdaNATError(
            f"{error.filename}: {error.strerror or error}. Give another path, or change what the system allows there."
        )
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the closest known names, or the full stop that ends the sentence without."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
