"""Options of plug-ins: parsed, and errors in words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import ConfigError, nearest

if TYPE_CHECKING:
    from ..core import PluginOptions

O = TypeVar("O", bound="PluginOptions")


def parse_options(owner: str, model: type[O], values: Mapping[str, Any]) -> O:
    """Validate options of a plug-in as an object of the class ``model``.

    Raises:
        ConfigError: an unknown key (with the nearest ones) or a value that does not fit.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, model, f"options of {owner}")) from None


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """A validation error in one sentence a fault: the key, the value, what is expected."""
    parts = []
    for fault in error.errors():
        key = ".".join(str(p) for p in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _fields(model, fault["loc"][:-1])
            parts.append(f"unknown key {key!r}{nearest(str(fault['loc'][-1]), known)} Known: {', '.join(known)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            whole = isinstance(fault["input"], Mapping | BaseModel)  # settings that contradict each other
            parts.append(": ".join(filter(None, [key, message])) if whole else f"{key} = {fault['input']!r}: {message}")
    return f"{where}: " + "; ".join(parts) + "."


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


class Settings(BaseModel):
    """Base of every part of a configuration: frozen, unknown keys are rejected, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GeneratorConfig(Settings):
    name: str = "maskgit"
    """``NAME`` or ``NAME:VARIANT``."""
    options: dict[str, Any] = {}


def parse_override(text: str, *, flag: str = "--set", example: str = "ppo.learning_rate=1e-4") -> dict[str, Any]:
    """``a.b=c`` -> {"a": {"b": c}}, with c read as YAML. ``flag`` and ``example`` are for the error.

    Raises:
        ConfigError: no ``=``, no key, or a value that is not YAML.
    """
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise ConfigError(f"{flag} {text!r} must be written KEY=VALUE, for example {example}.")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"{flag} {text!r}: the value is not valid YAML: {error}") from None
    if isinstance(parsed, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            parsed = float(parsed)
    for key in reversed(path.split(".")):
        parsed = {key: parsed}
    return parsed
