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

    def course(settings: RunConfig) -> list[tuple[float, float]]:
        ppo, total = settings.ppo, settings.iterations
        return [(ppo.sigma_at(i, total), ppo.learning_rate_at(i, total)) for i in range(done)]

    if course(old) == course(config):
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
