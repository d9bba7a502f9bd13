"""Where ``adanat`` and ``python -m adanat_cli`` start: before anything that takes time is imported."""

from __future__ import annotations

import codecs
import os
import signal
import sys


def start() -> None:
    """Run the command line of this process.

    Ctrl-C ends the process at once while it starts and while it stops; in between, a command says where it stands. What the
    terminal's encoding does not have is written as an escape.
    """
    codecs.register_error("adanat", _escaped)
    _open_closed()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="adanat")
    if os.environ.get("COLUMNS") == "0":  # what a terminal of no size says; rich would print nothing at all
        del os.environ["COLUMNS"]
    handled = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # and not ignored, as behind nohup
    if handled:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import app

    if handled:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app(prog_name="adanat")
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _open_closed() -> None:
    """Streams that were closed (``>&-``, a daemon) lead nowhere. Python has None in their place, and the first file that is
    opened would get their number: what a library writes to its stderr must not end up there."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: the stream's own
        if null == number:
            os.set_inheritable(null, True)
        setattr(sys, name, open(null, "r" if number == 0 else "w", closefd=False))  # noqa: SIM115


def _escaped(error: UnicodeError) -> tuple[str | bytes, int]:
    """``backslashreplace``, but for the mark of what was cut, whose place in a table is one column wide."""
    if isinstance(error, UnicodeEncodeError) and error.object[error.start] == "…":
        return ".", error.start + 1
    return codecs.backslashreplace_errors(error)


if __name__ == "__main__":
    start()
