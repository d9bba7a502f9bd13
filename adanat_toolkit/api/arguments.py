"""What an argument must be: the message names it, what was given, and what is needed."""

from __future__ import annotations

import functools
import inspect
import operator
import os
import typing
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar

from ..core import Generator
from ..errors import ConfigError, explained
from ..limits import MOST_SEED

P = ParamSpec("P")
R = TypeVar("R")

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


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function of the public API whose plain arguments are what its signature says, before anything is loaded.

    Plain are whole numbers (of numpy and torch too, which become ``int``), switches, texts, paths and functions. A whole
    number is at least 1, a seed at least 0. Arguments that may be something else are left to the function. A file that the
    system refuses is one of our errors.

    Raises:
        ConfigError: an argument is something else.
    """
    signature = inspect.signature(function)

    @functools.cache
    def kinds() -> dict[str, set[Any]]:
        hints = typing.get_type_hints(function)
        return {name: _kinds(hints[name]) for name in signature.parameters if name in hints}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        for name, value in given.arguments.items():
            given.arguments[name] = _plain(name, value, kinds().get(name, set()))
        try:
            return function(*given.args, **given.kwargs)
        except (EOFError, MemoryError, OSError) as error:
            known = explained(error)
            if known is None:
                raise
            raise known from error

    return call


_NAMES = {int: "a whole number", bool: "True or False", str: "a text", os.PathLike: "a path", Callable: "a function"}


def _kinds(hint: Any) -> set[Any]:
    """The plain types of an annotation and NoneType; empty where it has others."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, UnionType) else (hint,)
    kinds = {typing.get_origin(part) or part for part in parts}
    return kinds if kinds <= {*_NAMES, NoneType} else set()


def _plain(name: str, value: Any, kinds: set[Any]) -> Any:
    """The value as it is used."""
    if not kinds or (value is None and NoneType in kinds):
        return value
    if os.PathLike in kinds and isinstance(value, str | os.PathLike):
        return _path(name, value)
    if str in kinds and isinstance(value, str):
        return value
    if bool in kinds and isinstance(value, bool):
        return value
    if Callable in kinds and callable(value) and not isinstance(value, type):
        return value
    if int in kinds and not isinstance(value, bool):
        try:
            number = operator.index(value)
        except TypeError:
            pass
        else:
            return _count(name, number)
    raise wrong(name, value, " or ".join(text for kind, text in _NAMES.items() if kind in kinds))


def _path(name: str, value: str | os.PathLike[Any]) -> Any:
    text = os.fspath(value)
    if not isinstance(text, str) or not text or "\0" in text:
        raise wrong(name, value, "a path that is a text without zero bytes, and not empty")
    return value


def _count(name: str, number: int) -> int:
    """A seed, or a number of something, whose upper limit is the function's to say."""
    least = 0 if name == "seed" else 1
    if number < least:
        raise ConfigError(f"{name} = {number}; it must be at least {least}.")
    if name == "seed" and number > MOST_SEED:
        raise ConfigError(f"{name} = {number}; it must be below 2^63.")
    return number


def _short(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
