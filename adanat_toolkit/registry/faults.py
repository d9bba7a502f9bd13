"""What is wrong with settings and options, in words: what was found, what is needed, and what to write instead."""

from __future__ import annotations

import json
import shlex
import typing
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any

from pydantic import BaseModel, ValidationError

from ..errors import nearest
from ..storage import shortened

MOST_FAULTS = 5
"""Faults of a configuration that one error tells."""

_OTHER_TYPE = ("_type", "_parsing", "_from_float", "literal_error")
"""How pydantic's names of the faults end whose value is of another type than is needed."""

_PLACEHOLDERS: dict[Any, Any] = {str: "TEXT", int: 1, float: 0.5, bool: True}
"""Of settings without a default."""


def explain(error: ValidationError, model: type[BaseModel], where: str, *, settings: bool = False) -> str:
    """A validation error in one sentence a fault: the key, the value, what is expected.

    Args:
        model: what was validated. settings: whether ``--set`` sets its values, so that this is said too.
    """
    parts = []
    faults = error.errors()
    for fault in faults[:MOST_FAULTS]:
        loc, value = fault["loc"], fault["input"]
        key = ".".join(str(p)[:100] for p in loc if p != "[key]")
        if fault["type"] in ("extra_forbidden", "invalid_key"):
            known = _fields(model, loc[:-1])
            last = str(loc[-1])[:100]
            inside = [f"{name}.{last}" for name in model.model_fields if last in _fields(model, (name,))]
            meant = inside if len(loc) == 1 and inside else known
            parts.append(f"unknown key {shortened(key, 200)}{nearest(last, meant)} Known: {', '.join(known) or 'none'}")
            continue
        annotation, default = _setting(model, loc)
        if annotation is not None and fault["type"].endswith(_OTHER_TYPE):
            parts.append(f"{key} = {shortened(value, 200)}: {_other_type(loc, annotation, default, value, settings)}")
            continue
        message = fault["msg"].removeprefix("Value error, ")
        whole = isinstance(value, Mapping | BaseModel)  # settings that contradict each other
        shown = key if whole else f"{key} = {shortened(value, 200)}"
        parts.append(": ".join(filter(None, [shown, message])))
    if len(faults) > MOST_FAULTS:
        parts.append(f"and {len(faults) - MOST_FAULTS} more faults")
    return f"{where}: " + "; ".join(parts) + "."


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


def _setting(model: type[BaseModel], loc: Sequence[int | str]) -> tuple[Any, Any]:
    """Type and default of what stands at ``loc``: a setting, an entry of its list, or a key of its mapping; the type is
    None where it cannot be told."""
    annotation: Any = None
    default: Any = None
    at: Any = model
    for part in loc:
        if isinstance(at, type) and issubclass(at, BaseModel) and part in at.model_fields:
            field = at.model_fields[str(part)]
            annotation = _without_none(field.annotation)
            default = None if field.is_required() else field.get_default(call_default_factory=True)
        elif typing.get_origin(at) is tuple and isinstance(part, int):
            annotation = _without_none(typing.get_args(at)[0])
            default = default[part] if isinstance(default, tuple) and part < len(default) else None
        elif part == "[key]" or (typing.get_origin(at) is dict and loc[-1] == "[key]"):
            annotation, default = str, None
        else:
            return None, None
        at = annotation
    return (annotation, default) if _needed(annotation) else (None, None)


def _without_none(annotation: Any) -> Any:
    """Of ``X | None`` the X."""
    args = [each for each in typing.get_args(annotation) if each is not NoneType]
    union = typing.get_origin(annotation) in (UnionType, typing.Union)
    return args[0] if union and len(args) == 1 else annotation


def _needed(annotation: Any) -> str:
    """What a value of this type is called; empty where there is no name for it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping of settings"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple:
        entries = {str: "texts", int: "whole numbers", float: "numbers"}.get(args[0])
        return f"a list of {entries}" if entries else ""
    if annotation is dict or origin is dict:
        return "a mapping of names to values"
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}.get(annotation, "")


def _found(value: Any) -> str:
    """What a value is called."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true or false"  # which YAML also reads yes, no, on and off as
    if isinstance(value, int):
        return "a whole number"
    if isinstance(value, float):
        return "a number with a fraction"
    if isinstance(value, str):
        return "text"
    if isinstance(value, Mapping | BaseModel):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


def _other_type(loc: Sequence[int | str], annotation: Any, default: Any, value: Any, settings: bool) -> str:
    """What is needed, what was found, and how it is written: in YAML, and for ``--set``."""
    instead = _instead(annotation, default, value)
    quoted = annotation is str and isinstance(value, bool | int | float)
    listed: Any = instead
    path = [part for part in loc if part != "[key]"]
    if loc[-1] == "[key]":
        path, listed = path[:-1], {str(value): "VALUE"}
    while path and isinstance(path[-1], int):
        path, listed = path[:-1], [listed]
    nested = listed
    for part in reversed(path[1:]):
        nested = {part: nested}
    said = f"needed is {_needed(annotation)}"
    if typing.get_origin(annotation) is tuple and isinstance(value, list | tuple):
        said += ", found one with true or false in it"
    elif not (typing.get_origin(annotation) is typing.Literal and isinstance(value, str)):
        said += f", found {_found(value)}"
    said += f"; write {path[0]}: {_flow(nested)}"
    if settings:
        where, flat = list(path), listed
        while isinstance(flat, dict) and len(flat) == 1:  # --set names each setting of a mapping
            (name, flat), = flat.items()
            where.append(name)
        text = f"{'.'.join(map(str, where))}={_flow(flat)}"
        said += f", or --set {shlex.quote(text)}"
    return said + (" (text that reads as something else stands in quotes)" if quoted else "")


def _instead(annotation: Any, default: Any, value: Any) -> Any:
    """A value that fits: what was probably meant, else the default, else a placeholder."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if "name" in fields:
            return {"name": value if isinstance(value, str) and value else fields["name"].default}
        name, field = next(iter(fields.items()))
        kind = _without_none(field.annotation)
        meant = value if kind is str and isinstance(value, str) else None
        return {name: _instead(kind, field.get_default(call_default_factory=True), meant)}
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        if not isinstance(value, bool) and isinstance(value, str | int | float if args[0] is str else args[0]):
            return [args[0](value)]
        return list(default) if default else [_PLACEHOLDERS[args[0]]]
    if annotation is dict or origin is dict:
        return dict(default) if default else {"NAME": "VALUE"}
    if annotation is str:
        if isinstance(value, list | tuple) and len(value) == 1:
            value = value[0]
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str | int | float):
            return str(value)
    if default is not None:
        return default
    return args[0] if origin is typing.Literal else _PLACEHOLDERS[annotation]


def _flow(value: Any) -> str:
    """A value as YAML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value)


def _text(value: str) -> str:
    """A text as YAML, in quotes where it needs them."""
    plain = value.isascii() and value[:1].isalpha() and value.replace("_", "").replace("-", "").isalnum()
    reserved = value.lower() in ("true", "false", "yes", "no", "on", "off", "null", "y", "n")
    return value if plain and not reserved else json.dumps(value if len(value) <= 200 else f"{value[:200]}...")
