"""Whether the settings of a command are those of a run that is there: paths are no settings, and a longer run goes on.

What a path leads to is compared, not what it is called: a run whose data or weights were moved goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from ..core import PluginOptions
from ..errors import AdaNATError, ConfigError
from ..registry import load
from ..storage import content_hash
from .config import RunConfig, differences, validate

IGNORED_ON_RESUME = (
    "device",
    "micro_batch",
    "keep_checkpoints",
    "checkpoint_every",
    "offline",
    "evaluate_every",
    "tracker",
)
"""Settings that a resumed run may change: they do not change what is computed (to rounding, for the device)."""
SCHEDULED = ("trajectories", "ppo.sigma_drop_at", "ppo.learning_rate_decay")
"""Settings that may change where the iterations that are done would have been the same under the new ones."""
MOST_SHOWN = 8
"""Settings that differ which a message names."""
FINGERPRINTED = ("data.", "generator.", "decoder")
"""Parts whose sources a checkpoint knows by the fingerprint of the images, of the generator and of the decoder."""


def is_source(setting: str, config: RunConfig) -> bool:
    """Whether a setting (``reward.options.weights``) says where something comes from: an option of the type ``Source``."""
    if setting in ("data.path", "decoder"):
        return True
    part, _, rest = setting.partition(".options.")
    if part not in ("generator", "reward", "policy") or not rest:
        return False
    name, option = getattr(config, part).name, rest
    if rest.startswith("options.") and rest.count(".") > 1:  # of a term of a mixture
        name, option = rest.removeprefix("options.").rsplit(".", 1)
    try:
        declared = getattr(load(part, name.partition(":")[0]), "Options", PluginOptions)
    except AdaNATError:  # an object's own name, or a mixture's
        return False
    return option in declared.sources()


def source_hashes(config: RunConfig) -> dict[str, str]:
    """Hashes of what the options of reward and policy name as sources, by the setting."""
    found = {}

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, Mapping):
                walk(f"{prefix}{key}.", value)
            elif isinstance(value, str) and is_source(f"{prefix}{key}", config):
                found[f"{prefix}{key}"] = content_hash(value)

    walk("reward.options.", config.reward.options)
    walk("policy.options.", config.policy.options)
    return found


def compared_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that every iteration's results depend on, nested as in ``config.json``: what a resumed run may change is
    left out, and so are sources, of which a checkpoint knows what they led to."""

    def walk(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: walk(f"{prefix}{key}.", value) if isinstance(value, Mapping) else value
            for key, value in values.items()
            if f"{prefix}{key}" not in (*IGNORED_ON_RESUME, *SCHEDULED) and not is_source(f"{prefix}{key}", config)
        }

    return walk("", config.model_dump(mode="json"))


def course(config: RunConfig, done: int) -> dict[str, Any]:
    """What :data:`SCHEDULED` settings come to in the first ``done`` iterations: the iterations in which sigma became another
    and what it became, and the learning rate of the last one (with it a linear fall is known)."""
    ppo, total = config.ppo, config.iterations
    marks = (at * total if at < 1 else at for at in ppo.sigma_drop_at)
    sigma: list[tuple[int, float]] = []
    for start in sorted({0, *(max(0, ceil(mark) + 1) for mark in marks)}):
        value = ppo.sigma_at(start, total)
        if start < done and (not sigma or sigma[-1][1] != value):
            sigma.append((start, value))
    return {
        "sigma": [list(change) for change in sigma],
        "learning_rate": ppo.learning_rate_at(done - 1, total) if done else None,
    }


def require_same_run(
    where: str, stored: Mapping[str, Any], config: RunConfig, *, iteration: int, sources: Mapping[str, str] | None
) -> None:
    """
    Args:
        stored: config.json. iteration: of the newest checkpoint, 0 for none. sources: what that checkpoint says that
            options led to (see :func:`source_hashes`).

    Raises:
        ConfigError: another run; names the settings that differ, and how to go on.
    """
    changed = {d.partition(":")[0]: d for d in differences(stored, config.model_dump(mode="json"))}
    hashes = source_hashes(config) if iteration else {}
    other = [] if sources is None else [key for key in hashes if key not in changed and hashes[key] != sources.get(key)]
    if other:  # the name is the same, what it leads to is not
        raise ConfigError(
            f"{where} holds a run that was made with another {other[0]}: what lies there was changed since. Restore it, or "
            "give another --out to start anew. Nothing was changed."
        )
    for setting in list(changed):
        moved = is_source(setting, config) and (
            not iteration  # nothing was learned with the old one
            or setting.startswith(FINGERPRINTED)  # compared by fingerprint
            or (setting in hashes and hashes[setting] == (sources or {}).get(setting))
        )
        if setting in IGNORED_ON_RESUME or moved:
            del changed[setting]
    how = ""
    if "trajectories" in changed and changed.keys() <= set(SCHEDULED):
        how = _longer(stored, config, iteration)
        if not how:
            return
    if changed:
        shown = [*changed.values()][:MOST_SHOWN]
        more = f"; and {len(changed) - len(shown)} more" if len(changed) > len(shown) else ""
        raise ConfigError(
            f"{where} holds a run with other settings ({'; '.join(shown)}{more}). Give the same settings to resume it, "
            f"or another --out to start anew. Nothing was changed.{how}"
        )


def _longer(stored: Mapping[str, Any], config: RunConfig, done: int) -> str:
    """Empty where ``done`` iterations under both totals are the same; else why they are not, and what helps."""
    old = validate(stored)
    if config.iterations < done:
        return f" {done} iterations of {config.batch} trajectories are done already."

    if course(old, done) == course(config, done):
        return ""
    if "linear" in (old.ppo.learning_rate_decay, config.ppo.learning_rate_decay):
        return (
            " A run with ppo.learning_rate_decay = 'linear' cannot be made longer: its learning rate falls to zero at the end "
            "it was begun with."
        )
    marks = [at if at >= 1 or at == 0 else max(1, ceil(at * old.iterations)) for at in old.ppo.sigma_drop_at]
    text = ",".join(f"{mark:g}" for mark in marks)
    return (
        " To make it longer, keep sigma's schedule where it was, which is a share of the total: "
        f"--set 'ppo.sigma_drop_at=[{text}]'."
    )
