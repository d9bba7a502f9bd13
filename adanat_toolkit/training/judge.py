"""The reward of a trained run, as its newest checkpoint has it: a discriminator that can judge further images."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core import REWARD, Context, Generator, ImageSource, RewardModel, RewardSpec, derive
from ..errors import ConfigError, DataError
from ..images import images_for
from ..registry import create_reward, not_followed, reward_class, shown_options
from ..runtime import float32_by_default
from ..storage import RunFolder, load_checkpoint
from .checkpoint import require_made_with, stored_config
from .config import RewardConfig
from .reward_update import load_into


@float32_by_default()
def load_judge(
    run: str | os.PathLike[str],
    generator: Generator,
    *,
    own: RewardConfig | None = None,
    real: ImageSource | None = None,
    offline: bool = False,
) -> tuple[RewardModel, str]:
    """The reward that a run's newest checkpoint holds, and in words what it is.

    Sources that the run's options name are not followed: the folder may come from someone else.

    Args:
        own: settings of the reward, where the caller has them: they count instead of the folder's, with their sources.
        real: the real images that it learned from; None: those that ship.

    Raises:
        ConfigError: no run with a checkpoint is there, it was of another generator, its reward was an object of the caller's,
            or its options name sources. CheckpointError: damaged files, or its config.json is not that of the checkpoint.
        PluginError, WeightsError: of the reward.
    """
    folder = RunFolder(Path(run))
    config = stored_config(folder) if os.path.isdir(run) else None
    saved = folder.checkpoints()
    if config is None or not saved:
        raise ConfigError(
            f"{os.fspath(run)} is no run folder with a checkpoint, so there is no reward to judge candidates by; give the "
            "folder of a training (--judge RUN)."
        )
    tensors, facts = load_checkpoint(folder.checkpoint(saved[-1]))
    require_made_with(folder, saved[-1], facts, config)
    if facts.get("generator") != generator.fingerprint:
        raise ConfigError(
            f"the reward of {os.fspath(run)} judged images of {config.generator.name}, this generator is {generator.name} "
            "(or has other weights); give a run of this generator."
        )
    settings = config.reward if own is None else own
    declared = reward_class(RewardSpec.parse(settings.name))[0].Options
    named = not_followed(declared, settings.options) if own is None else {}
    if named:
        raise ConfigError(
            f"the reward of {os.fspath(run)} was made with {shown_options(named)}. What a folder names is not followed; give a "
            "run whose reward needs no such option."
        )
    reward = create_reward(
        settings.name,
        settings.options,
        generator=generator,
        real=real or images_for(generator, None) or _NoImages(generator.name),
        device=generator.device,
        seed=derive(config.seed, REWARD),
        offline=offline,
    )
    load_into(reward, reward_state(tensors, generator.device))
    return reward, f"{settings.name} of {Path(run).resolve().name}, iteration {saved[-1]}"


def reward_state(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """What a checkpoint's tensors hold of the reward."""
    prefix = "reward."
    return {key.removeprefix(prefix): value.to(device) for key, value in tensors.items() if key.startswith(prefix)}


class _NoImages:
    """Real images for a reward that needs them only to learn."""

    fingerprint = "none"

    def __init__(self, name: str) -> None:
        self.name = name

    def __len__(self) -> int:
        return 0

    def images(self, index: Tensor) -> Tensor:
        raise DataError(f"this reward needs real images to judge by, and {self.name} ships none; take another run.")

    def contexts(self, index: Tensor) -> Context:
        raise DataError(f"this reward needs real images to judge by, and {self.name} ships none; take another run.")
