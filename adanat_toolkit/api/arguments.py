"""What an argument must be: the message names it, what was given, and what is needed."""

from __future__ import annotations

from typing import Any

from ..core import Generator
from ..errors import ConfigError

NEEDS_GENERATOR = 'a Generator, such as adanat_toolkit.load_generator("maskgit") returns'


def wrong(argument: str, value: object, wanted: str) -> ConfigError:
    """The error of an argument of the wrong type."""
    found = f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__} {_short(value)}"
    return ConfigError(f"{argument} must be {wanted}; it is {found}.")


def require_generator(value: Any) -> Generator:
    """
    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, Generator):
        raise wrong("generator", value, NEEDS_GENERATOR)
    return value


def require_count(argument: str, value: Any, least: int = 1) -> int:
    """
    Raises:
        ConfigError: no whole number, or below ``least``.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong(argument, value, "a whole number")
    if value < least:
        raise ConfigError(f"{argument} = {value}; it must be at least {least}.")
    return value


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
