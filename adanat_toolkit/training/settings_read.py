"""Which settings an engine reads: what it would pass over in silence is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from .config import BY_POLICY, PRESETS, FitConfig, PPOConfig, RunConfig

Reads = Mapping[str, frozenset[str]]
"""Names of the settings below ``ppo`` and ``fit`` that an engine reads."""

SIGMA = frozenset({"sigma", "sigma_drop", "sigma_drop_at", "sigma_floor"})
READ_BY_PPO: Reads = {"ppo": frozenset(PPOConfig.model_fields), "fit": frozenset()}
_OWNERS = {
    "fit.memory": ("of engine 'slopes' alone", "slopes"),
    "fit.repeats": ("of engine 'offline' alone", "offline"),
    "fit.keep": ("of engine 'offline' alone", "offline"),
    "fit": ("of the engines 'offline' and 'slopes'", "offline"),
    "ppo": ("PPO's", "adanat"),
}
"""Whose a setting is, and an engine that reads it."""
_FOR_ALL = ("default", "demo", "gpu")
"""Presets that go with every engine; what they set is no wish of the user's."""


def refuse_unread(config: RunConfig, reads: Reads) -> None:
    """
    Raises:
        ConfigError: a setting that the engine does not read has a value that neither is the default nor comes from a preset
            that goes with every engine.
    """
    for part, kind in (("ppo", PPOConfig), ("fit", FitConfig)):
        for name, field in kind.model_fields.items():
            value, default = getattr(getattr(config, part), name), field.default
            if name in reads[part] or value == default or value in _of_presets(part, name):
                continue
            whose, other = _OWNERS.get(f"{part}.{name}", _OWNERS[part])
            raise ConfigError(
                f"{part}.{name} = {value!r} is {whose} and has no meaning for engine {config.engine!r}; leave it at "
                f"{default!r}, or use engine {other!r}."
            )


def _of_presets(part: str, name: str) -> list[Any]:
    """What presets set a setting to."""
    settings: list[Mapping[str, Any]] = [PRESETS[preset] for preset in _FOR_ALL]
    settings += [own for preset in _FOR_ALL for own in BY_POLICY.get(preset, {}).values()]
    return [found[part][name] for found in settings if name in found.get(part, {})]
