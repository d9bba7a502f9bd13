"""Where output goes: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


def stderr(*, wrap: bool = True) -> Console:
    """Console for errors (``wrap``: long lines are left to the terminal) and for live displays (cropped to its width)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=wrap)


def stdout() -> Console:
    """Console for results meant for people."""
    from rich.console import Console

    return Console(highlight=False)


def note(text: str, *, quiet: bool = False) -> None:
    """One line on stderr."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout; numbers that JSON does not know (NaN, infinity) become null."""
    print(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
