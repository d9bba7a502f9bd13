"""What a training run keeps: opening or resuming its folder, writing checkpoints, and the state of optimisers and modules.

Only the main process reads and writes the folder; the others are given what it read, so that machines need not share a disk
and no process sees a folder that is being tidied up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..runtime import DTYPES, Adam, distributed
from ..storage import RunFolder, load_checkpoint, prepare_folder, save_tensors, shortened, write_json
from .config import FitConfig, RunConfig, differences, merge, validate
from .same_run import IGNORED_ON_RESUME, MOST_SHOWN, compared_settings, course, require_same_run

BEFORE = {
    "ppo": {"adam_epsilon": 1e-8, "group_baseline": "mean", "context_baseline": False, "critic_statistics": False},
    "policy": {"smoothing": 0.0},
    "decoder": "own",
    "fit": FitConfig().model_dump(),
}
"""What earlier versions did, for settings that their ``config.json`` does not name."""


@dataclass(frozen=True)
class Found:
    """What a run folder holds.

    Attributes:
        adam_epsilon: of the run, which may be older than the setting. iteration: of the newest checkpoint, 0 for none.
        state: its tensors. new_config: what config.json must say from now on, None where it says so already.
    """

    adam_epsilon: float
    iteration: int
    state: dict[str, Tensor] | None
    new_config: dict[str, Any] | None


def open_run(folder: RunFolder, config: RunConfig, facts: Mapping[str, str | None]) -> Found:
    """What is there to go on from, once everything fits; nothing is changed. All processes call it.

    Args:
        facts: fingerprints that a checkpoint must have been made with (``generator``, ``real_images``).

    Raises:
        OutputError: it cannot be written. CheckpointError: what is there is damaged or belongs to another run.
    """
    found = distributed.from_main(_read(folder, config, facts) if distributed.is_main() else None)
    assert found is not None
    return found


def as_begun(config: RunConfig, folder: RunFolder) -> RunConfig:
    """``config``; where its compute type is ``auto``, in that of the run which ``folder`` holds, if it holds one.

    What ``auto`` means depends on the machine and on the version, and a run goes on as it was begun. All processes call it.
    """
    if config.dtype != "auto":
        return config
    stored = distributed.from_main((folder.config or {}).get("dtype") if distributed.is_main() else None)
    # A damaged one is left to ``open_run``, which says what differs.
    return config.model_copy(update={"dtype": stored}) if stored in list(DTYPES) else config


def stored_config(folder: RunFolder) -> RunConfig | None:
    """What the run of a folder was begun with; None for a folder without one.

    Raises:
        CheckpointError: its config.json is damaged, or does not fit this version.
    """
    stored = folder.config
    if stored is None:
        return None
    try:
        return validate(merge(BEFORE, stored))
    except ConfigError as error:
        file = folder.path / "config.json"
        raise CheckpointError(f"{file} does not fit this version of adanat-toolkit: {error}") from None


def settle(folder: RunFolder, found: Found) -> None:
    """Make the folder what its newest checkpoint stands for. Called in the main process, once the state fits."""
    folder.recover()  # before there is a config.json: in a folder that held no run, nothing is of a run
    if found.new_config is not None:
        write_json(folder.path / "config.json", found.new_config)
    folder.truncate_metrics(found.iteration)


def save_checkpoint(
    folder: RunFolder, iteration: int, state: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: int
) -> None:
    """Write a checkpoint and remove all but the newest ``keep``. Called in the main process."""
    target = folder.checkpoint(iteration)
    target.parent.mkdir(exist_ok=True)
    save_tensors(target, "state", state, {"iteration": iteration, **facts})
    folder.prune(keep)


def same_in_all_processes(config: RunConfig) -> None:
    """All processes call it together, and all raise together.

    Raises:
        ConfigError: names the settings that differ.
    """
    message = None
    first, *others = distributed.gather_on_main(config.model_dump(mode="json"))
    for rank, other in enumerate(others, 1):
        apart = [
            d for d in differences(first, other) if d.partition(":")[0] not in ("device", "micro_batch", "offline")
        ]
        if apart and message is None:
            message = (
                f"ranks 0 and {rank} were given other settings ({'; '.join(apart)}); start all with the same command."
            )
    message = distributed.from_main(message)
    if message is not None:
        raise ConfigError(message)


def with_epsilon(config: RunConfig, epsilon: float) -> RunConfig:
    return config.model_copy(update={"ppo": config.ppo.model_copy(update={"adam_epsilon": epsilon})})


def made_with(config: RunConfig, iteration: int) -> dict[str, Any]:
    """What a checkpoint records of its settings: nothing but this holds them against a ``config.json`` that was changed."""
    return {
        "seed": config.seed,
        "dtype": config.dtype,
        "adam_epsilon": config.ppo.adam_epsilon,
        "settings": compared_settings(config),
        "course": course(config, iteration),
    }


def require_made_with(folder: RunFolder, iteration: int, card: Mapping[str, Any], config: RunConfig) -> None:
    """Checkpoints of earlier versions record less; what they record is compared.

    Raises:
        CheckpointError: the folder's newest checkpoint was made with other settings than ``config``, which are those of its
            config.json.
    """
    for key, now in made_with(config, iteration).items():
        then = card.get(key)
        if then is None or then == now:
            continue
        told = f"{key} = {then}, and now it is {now}"
        if isinstance(now, Mapping):
            filled = merge(BEFORE, then) if key == "settings" else then
            apart = differences({name: filled[name] for name in filled if name != "decoder"}, now)  # known by its fingerprint
            if not apart:
                continue
            more = f"; and {len(apart) - MOST_SHOWN} more" if len(apart) > MOST_SHOWN else ""
            told = f"other settings ({'; '.join(apart[:MOST_SHOWN])}{more})"
        raise CheckpointError(
            f"{folder.path / 'config.json'} was changed, or {folder.checkpoint(iteration)} is of another run: it was made with "
            f"{told}. Restore it, or choose another --out. Nothing was changed."
        )


def _stored_epsilon(folder: RunFolder, stored: Mapping[str, Any]) -> float:
    ppo = stored["ppo"]
    found = ppo.get("adam_epsilon") if isinstance(ppo, Mapping) else ppo
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise CheckpointError(
            f"{folder.path / 'config.json'} was changed or damaged: ppo.adam_epsilon is {shortened(found)}, no number above 0. "
            "Restore it or choose another --out. Nothing was changed."
        )
    return float(found)


def _read(folder: RunFolder, config: RunConfig, facts: Mapping[str, str | None]) -> Found:
    prepare_folder(folder.path)
    folder.refuse_links(*config.tracker)  # trackers write to folders of their names
    stored = folder.config
    if stored is None:
        kept = folder.without_config()
        if kept is not None:  # config.json is the first that a run writes: these are another program's, or lost theirs
            raise CheckpointError(
                f"{folder.path} has {kept} but no config.json; choose another --out, or restore it. Nothing was changed."
            )
        return Found(config.ppo.adam_epsilon, 0, None, config.model_dump(mode="json"))
    complete = merge(BEFORE, stored)
    saved = folder.checkpoints()
    tensors: dict[str, Tensor] | None = None
    card: dict[str, Any] = {}
    iteration = 0
    if saved:
        tensors, card = load_checkpoint(folder.checkpoint(saved[-1]))
        iteration = int(card["iteration"])
    epsilon = config.ppo.adam_epsilon
    if "adam_epsilon" not in config.ppo.model_fields_set:  # nobody asked for another one: as it was begun
        epsilon = _stored_epsilon(folder, complete)
    config = with_epsilon(config, epsilon)
    try:
        require_same_run(str(folder.path), complete, config, iteration=iteration, sources=card.get("sources"))
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if saved:
        require_made_with(folder, iteration, card, config)
        for key, own in facts.items():
            if card.get(key) != own:
                raise CheckpointError(
                    f"{folder.checkpoint(iteration)} was made with another {key.replace('_', ' ')} "
                    f"({card.get(key)}, now {own}). Use the original one, or another --out. Nothing was changed."
                )
        folder.check_metrics(iteration, card.get("metrics"))
    now = config.model_dump(mode="json")
    renewed = any(d.partition(":")[0] not in IGNORED_ON_RESUME for d in differences(complete, now))
    return Found(epsilon, iteration, tensors, now if renewed else None)


@torch.no_grad()
def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of every tensor, where it is; nearly all of them in one call."""
    plain = [key for key, value in state.items() if value.dtype == torch.float32]
    copies = dict(zip(plain, torch._foreach_mul([state[key] for key in plain], 1.0) if plain else (), strict=True))
    return {key: copies[key] if key in copies else value.clone() for key, value in state.items()}


def optimiser_state(optimiser: Adam | torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """An optimiser's state as flat tensors, ``{prefix}{parameter index}.{name}``; hyper-parameters belong to the config."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_optimiser(optimiser: Adam | torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    """Inverse of :func:`optimiser_state` (without prefix)."""
    nested: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        index, _, name = key.partition(".")
        # Adam counts its steps in a CPU tensor unless it is capturable.
        nested.setdefault(int(index), {})[name] = value.cpu().clone() if name == "step" else value.clone()
    optimiser.load_state_dict({"state": nested, "param_groups": optimiser.state_dict()["param_groups"]})


def load_module(module: nn.Module, state: dict[str, Tensor], what: str) -> None:
    """Load a module's state.

    Raises:
        CheckpointError: naming the tensors that are missing, extra or misshapen.
    """
    own = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    given = {key: tuple(value.shape) for key, value in state.items()}
    wrong = sorted(key for key in own.keys() | given.keys() if own.get(key) != given.get(key))
    if wrong:
        first = wrong[0]
        raise CheckpointError(
            f"the checkpoint does not fit: {len(wrong)} tensors differ, first {what}{first} "
            f"(expected {own.get(first)}, found {given.get(first)}). It belongs to another configuration."
        )
    module.load_state_dict(state)


def load_sums(sums: dict[str, Tensor], state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Running sums from a checkpoint's state: copies, where ``sums`` are.

    Raises:
        CheckpointError: one is missing, or of another shape or type.
    """
    out = {}
    for name, value in sums.items():
        found = state.get(prefix + name)
        if found is None or found.shape != value.shape or found.dtype != value.dtype:
            raise CheckpointError(
                f"the checkpoint does not hold {prefix}{name}. It is damaged or of another engine or configuration."
            )
        out[name] = found.to(value.device, copy=True)
    return out
