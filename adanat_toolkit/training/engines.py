"""What runs PPO: the toolkit's own loop, or another one, by the name of its plug-in."""

from __future__ import annotations

from ..registry import load
from .config import RunConfig
from .trainer import Trainer


def create_trainer(config: RunConfig) -> Trainer:
    """The trainer of the configured engine; all of them have the methods and the run folder of :class:`Trainer`.

    Raises:
        PluginError: the engine is unknown or does not load.
    """
    return load("engine", config.engine)(config)
