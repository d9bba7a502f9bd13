"""What a training run keeps: opening or resuming its folder, writing checkpoints, and the state of optimisers and modules.

Only the main process reads and writes the folder; the others are given what it read, so that machines need not share a disk
and no process sees a folder that is being tidied up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from ..policies import SamplingPolicy, export_policy
from ..runtime import distributed
from ..storage import RunFolder, load_checkpoint, prepare_folder, save_tensors, write_json
from .config import RunConfig, differences, merge

if TYPE_CHECKING:
    from .trainer import Trainer

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

BEFORE = {"ppo": {"adam_epsilon": 1e-8}}
"""What earlier versions did, for settings that their ``config.json`` does not name."""


def save_run(trainer: Trainer, folder: RunFolder) -> None:
    """Write a checkpoint and the exported policy. Called in the main process."""
    facts = {
        "iteration": trainer.iteration,
        "seed": trainer.config.seed,
        "generator": trainer.generator.fingerprint,
        "real_images": trainer.real.fingerprint if trainer.real is not None else None,
    }
    config = trainer.config
    # The policy first: a run that is killed in between goes on from the older checkpoint and exports it again.
    export_policy(
        folder.path / "policy",
        SamplingPolicy(trainer.policy, trainer.space),
        trainer.average if config.policy.average else trainer.policy.state_dict(),
        options=config.policy.options,
        generator=trainer.generator,
        facts={
            "trajectories": trainer.iteration * config.batch,
            "reward": config.reward.name,
            "seed": config.seed,
            "engine": config.engine,
        },
    )
    save_tensors(folder.checkpoint(trainer.iteration), "state", trainer.state(), facts)
    folder.prune(config.keep_checkpoints)


def open_run(trainer: Trainer, folder: RunFolder) -> None:
    """Start a new run folder, or bring the trainer to where the one that is there stopped. All processes call it.

    Raises:
        OutputError: it cannot be written. CheckpointError: what is there is damaged or belongs to another run; nothing is
            changed then.
    """
    known = distributed.is_main() and folder.config is not None
    found = distributed.from_main(_read(trainer, folder) if distributed.is_main() else None)
    assert found is not None
    epsilon, saved = found
    trainer.config = with_epsilon(trainer.config, epsilon)
    for group in trainer.optimiser.param_groups:
        group["eps"] = epsilon
    if saved is None and (trainer.used or trainer.iteration):
        saved = trainer.initial, 0
    if saved is not None:
        tensors, trainer.iteration = saved
        trainer.load_state(tensors)
    if known:
        folder.recover()
        folder.truncate_metrics(trainer.iteration)


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


def _read(trainer: Trainer, folder: RunFolder) -> tuple[float, tuple[dict[str, Tensor], int] | None]:
    """Adam's epsilon of the run, and its newest checkpoint and iteration (None for a run that has none), once everything
    fits."""
    config = trainer.config.model_dump(mode="json")
    epsilon = trainer.config.ppo.adam_epsilon
    prepare_folder(folder.path)
    stored = folder.config
    if stored is None:
        if folder.checkpoints():
            raise CheckpointError(f"{folder.path} has checkpoints but no config.json; choose another --out.")
        write_json(folder.path / "config.json", config)
        return epsilon, None
    stored = merge(BEFORE, stored)
    if "adam_epsilon" not in trainer.config.ppo.model_fields_set:  # nobody asked for another one: as it was begun
        epsilon = float(stored["ppo"]["adam_epsilon"])
        config["ppo"]["adam_epsilon"] = epsilon
    changed = [d for d in differences(stored, config) if d.partition(":")[0] not in IGNORED_ON_RESUME]
    if changed:
        raise CheckpointError(
            f"{folder.path} holds a run with other settings ({'; '.join(changed)}). Give the same settings to resume it, "
            "or another --out to start anew. Nothing was changed."
        )
    saved = folder.checkpoints()
    if not saved:
        return epsilon, None
    tensors, facts = load_checkpoint(folder.checkpoint(saved[-1]))
    for key, own in (
        ("generator", trainer.generator.fingerprint),
        ("real_images", trainer.real.fingerprint if trainer.real is not None else None),
    ):
        if facts.get(key) != own:
            raise CheckpointError(
                f"{folder.checkpoint(saved[-1])} was made with another {key.replace('_', ' ')} "
                f"({facts.get(key)}, now {own}). Use the original one, or another --out. Nothing was changed."
            )
    return epsilon, (tensors, int(facts["iteration"]))


def optimiser_state(optimiser: torch.optim.Optimizer, prefix: str = "") -> dict[str, Tensor]:
    """An optimiser's state as flat tensors, ``{prefix}{parameter index}.{name}``; hyper-parameters belong to the config."""
    return {
        f"{prefix}{index}.{name}": torch.as_tensor(value)
        for index, entry in optimiser.state_dict()["state"].items()
        for name, value in entry.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
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
