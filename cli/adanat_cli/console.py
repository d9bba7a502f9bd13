"""Where output goes: results to stdout, progress and errors to stderr.

While a command works, stdout belongs to its results alone: what a plug-in or a library prints goes to stderr.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any

from typer.core import TyperCommand

from adanat_toolkit.errors import ConfigError, printable

if TYPE_CHECKING:
    from rich.console import Console


_results: IO[str] | None = None
"""Where results go while a command works; None: to stdout."""


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Inside, stdout is stderr for everything but results, also for libraries that write to the descriptor (nccl does)."""
    global _results
    before, visible = _results, sys.stdout
    with contextlib.ExitStack() as stack:
        visible.flush()
        try:
            own = os.dup(1) if visible.fileno() == 1 else None
        except (AttributeError, OSError, ValueError):  # a stream in memory
            own = None
        if own is None:
            _results = visible
        else:
            _results = stack.enter_context(open(own, "w", encoding=visible.encoding, errors=visible.errors))
            stack.callback(os.dup2, own, 1)
            stack.callback(visible.flush)
            with contextlib.suppress(OSError):  # stderr is closed
                os.dup2(2, 1)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        stack.callback(setattr, sys.modules[__name__], "_results", before)
        yield
        _results.flush()


class Command(TyperCommand):
    """A command whose stdout holds its results alone, and whose arguments say something."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        for before, text in zip(["", *args], args, strict=False):
            name, is_option, value = text.partition("=") if text.startswith("--") else (before, True, text)
            if is_option and not value and name != "--prompt":  # which may be empty
                raise ConfigError(
                    f"{name if name.startswith('-') else 'an argument'} is given an empty text, as by a variable of the shell "
                    "that is not set; give a value, or leave it out."
                )
        ctx.allow_extra_args = True
        super().parse_args(ctx, args)
        if ctx.args and not ctx.resilient_parsing:
            runs = any("--policy" in p.opts and "RUN" in str(p.metavar) for p in self.params)  # not a kind to train
            remedy = f"a policy or run is given with --policy {ctx.args[0]}" if runs else "leave it out, or name its option"
            ctx.fail(f"Unexpected: {' '.join(ctx.args)}; {remedy}.")
        return ctx.args

    def invoke(self, ctx: Any) -> Any:
        with results_alone():
            return super().invoke(ctx)


@contextlib.contextmanager
def handed_on() -> Iterator[None]:
    """Inside, processes that are started have our stdout for theirs, as before :func:`results_alone`."""
    try:
        own = None if _results is None else _results.fileno()
    except (OSError, ValueError):  # a stream in memory: the descriptor was left alone
        own = None
    if own is None:
        yield
        return
    now = os.dup(1)
    os.dup2(own, 1)
    try:
        yield
    finally:
        os.dup2(now, 1)
        os.close(now)


@contextlib.contextmanager
def results_to(stream: IO[str]) -> Iterator[None]:
    """Inside, results go to another stream."""
    global _results
    before, _results = _results, stream
    try:
        yield
    finally:
        _results = before


def results() -> IO[str]:
    """The stream of results."""
    return sys.stdout if _results is None else _results


def _console(**settings: Any) -> Console:
    """A console for texts that come from files, names of folders and the environment: brackets are brackets, and what a
    terminal would take for a command is shown as an escape. What has a style is a ``rich.text.Text``."""
    from rich.console import Console
    from rich.segment import Segment

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # before columns are measured
            return super().render_str(_told(text), **options)

        def render(self, *values: Any, **options: Any) -> Any:  # what is no plain str comes by here
            for text, style, control in super().render(*values, **options):
                yield Segment(text if control else _told(text), style, control)

    return Plain(highlight=False, markup=False, emoji=False, **settings)


def _told(text: str) -> str:
    return printable(text, keep="\n\t\xa0")


def stderr(*, wrap: bool = True) -> Console:
    """Console for errors (``wrap``: long lines are left to the terminal) and for live displays (cropped to its width)."""
    return _console(stderr=True, soft_wrap=wrap)


def stdout() -> Console:
    """Console for results meant for people."""
    return _console(file=results())


def note(text: str, *, quiet: bool = False) -> None:
    """One line on stderr."""
    if not quiet:
        print(_told(text), file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout; numbers that JSON does not know (NaN, infinity) become null."""
    print_result(json.dumps(_finite(value), indent=2))


def print_result(text: str, end: str = "\n") -> None:
    """Text on stdout."""
    print(text, end=end, file=results())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
