"""Errors that a user can act on. Every message names the value, the constraint and the remedy."""

from __future__ import annotations

import difflib
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


class NotFiniteError(AdaNATError):
    """NaN or infinity where a run would learn from it or keep it."""


class OutputError(AdaNATError):
    """The output folder cannot be written."""


class InUseError(OutputError):
    """Another process is writing what this one is asked to write."""


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the closest known names, or the full stop that ends the sentence without."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
