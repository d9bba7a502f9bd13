"""Options of plug-ins: parsed, and errors in words."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field, ValidationError

from ..errors import ConfigError
from ..settings import CheckedModel
from ..storage import MAX_YAML, parse_yaml, shortened
from .faults import explain

if TYPE_CHECKING:
    from ..core import PluginOptions

O = TypeVar("O", bound="PluginOptions")


def parse_options(owner: str, model: type[O], values: Mapping[str, Any]) -> O:
    """Validate options of a plug-in as an object of the class ``model``.

    Raises:
        ConfigError: an unknown key (with the nearest ones) or a value that does not fit.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(explain(error, model, f"options of {owner}")) from None


def parse_stored_options(owner: str, model: type[O], values: Mapping[str, Any], *, where: str) -> O:
    """:func:`parse_options` of what a folder holds, which may come from someone else.

    Raises:
        ConfigError: as there; or an option names a source, which ``owner`` would open.
    """
    options = parse_options(owner, model, values)
    # Of the parsed ones: a plug-in may take an option under a second name.
    found = {name: getattr(options, name) for name in model.sources()}
    named = not_followed(model, {name: value for name, value in found.items() if value != model.model_fields[name].default})
    if named:
        raise ConfigError(
            f"{where} says where {owner} takes something from: {shown_options(named)}. What a folder names is not followed; "
            "a policy that is to be stored keeps what it needs beside its weights."
        )
    return options


def not_followed(declared: type[PluginOptions], values: Mapping[str, Any]) -> dict[str, str]:
    """What of the options that a folder holds cannot be taken as it is, because it names sources or holds free text: names
    and values as they can be shown."""
    return {
        shortened(key)[1:-1]: shortened(value, 200)
        for key, value in values.items()
        if value is not None and not declared.harmless(key, value)
    }


def shown_options(options: Mapping[str, str]) -> str:
    """``key = value, key = value``."""
    return ", ".join(f"{key} = {value}" for key, value in options.items())


EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|[-+]?\.[0-9]+[eE][-+]?[0-9]+")


class GeneratorConfig(CheckedModel):
    name: str = "maskgit"
    """``NAME`` or ``NAME:VARIANT``."""
    options: dict[str, Any] = Field(default_factory=dict)


MOST_KEYS = 16
"""Keys inside each other in an override; the deepest of ours have 3."""


def parse_override(text: str, *, flag: str = "--set", example: str = "ppo.learning_rate=1e-4") -> dict[str, Any]:
    """``a.b=c`` -> {"a": {"b": c}}, with c read as YAML. ``flag`` and ``example`` are for the error.

    Raises:
        ConfigError: no ``=``, no key, or a value that is not YAML.
    """
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise ConfigError(f"{flag} {shortened(text)} must be written KEY=VALUE, for example {example}.")
    if path.count(".") >= MOST_KEYS:
        raise ConfigError(f"{flag} {shortened(text)} names more than {MOST_KEYS} keys; write it like {example}.")
    if len(value) > MAX_YAML:
        raise ConfigError(f"{flag} {shortened(text)} has {len(value):,} characters, at most {MAX_YAML:,} are read.")
    parsed = parse_yaml(
        value, where=f"the value of {flag} {shortened(text)}", error=ConfigError, remedy=f"Write it like {example}."
    )
    if isinstance(parsed, str) and EXPONENT.fullmatch(parsed):  # YAML 1.1 reads 1e-4 as text
        parsed = float(parsed)
        if not math.isfinite(parsed):
            raise ConfigError(f"the value of {flag} {shortened(text)} is too large a number; write it like {example}.")
    for key in reversed(path.split(".")):
        parsed = {key: parsed}
    return parsed
