"""Errors that a user can act on. Every message names the value, the constraint and the remedy."""

from __future__ import annotations

import difflib
import errno
import traceback
from collections.abc import Iterable

LONGEST_MESSAGE = 4_000
"""Characters; a message quotes names and values that others gave, and the middle of a longer one is left out."""


def printable(text: str, keep: str = "") -> str:
    """A text of others as a terminal may show it: what it would take for a command is written as an escape.

    Args:
        keep: characters that stay, though they do not print.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class AdaNATError(Exception):
    """Base class. The command line prints the message alone (no traceback) and exits with code 1.

    What a terminal would take for a command (escapes, marks that turn the writing around) is shown as an escape.
    """

    def __str__(self) -> str:
        text = super().__str__()
        if len(text) > LONGEST_MESSAGE:
            text = f"{text[: LONGEST_MESSAGE // 2]} [...] {text[-LONGEST_MESSAGE // 2 :]}"
        return printable(text, keep="\n\xa0")


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
    """What a user can act on in an error that nobody expected, as one of ours: a file that ends too early, memory that does not
    suffice, or something else that the system refuses.

    None for any other error, and for a reader of our output that went away.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    where, line = frames[-1] if frames else ("", 0)
    if isinstance(error, EOFError):
        return DataError(
            f"something that was read ends too early: {error or type(error).__name__} ({where}, line {line}). Look for a file "
            "that was cut short; ADANAT_DEBUG=1 shows which one was being read."
        )
    if isinstance(error, MemoryError):
        return AdaNATError(
            f"this machine's memory does not suffice{f': {error}' if str(error) else ''} ({where}, line {line}). Lower "
            "--micro-batch or the number of images, or look for a file that says to be larger than it should be."
        )
    if not isinstance(error, OSError) or error.errno in (None, errno.EPIPE):
        return None
    if error.filename is None:  # while a file is read or written: a damaged disk, a network disk that went away
        return AdaNATError(
            f"the system refused something: {error.strerror or error} ({where}, line {line}). Look for a disk or file that "
            "cannot be read or written; ADANAT_DEBUG=1 shows which one it was."
        )
    return AdaNATError(
        f"{error.filename}: {error.strerror or error}. Give another path, or change what the system allows there."
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'a' or 'b'?"`` for the closest known names, or the full stop that ends the sentence without."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
