"""What runs PPO: the toolkit's own loop, or another one, by the name of its plug-in."""

from __future__ import annotations

import os

from ..core import Generator, ImageSource, RewardModel
from ..registry import load
from .config import RunConfig
from .objects import RewardFunction
from .trainer import Trainer


def create_trainer(
    config: RunConfig,
    generator: Generator | str | None = None,
    reward: RewardModel | RewardFunction | str | None = None,
    data: ImageSource | str | os.PathLike[str] | None = None,
) -> Trainer:
    """The trainer of the configured engine; all of them are made and run as ``core.Engine`` says.

    Raises:
        PluginError: the engine is unknown or does not load.
    """
    return load("engine", config.engine)(config, generator, reward, data)
