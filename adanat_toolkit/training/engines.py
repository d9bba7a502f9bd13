"""What runs PPO: the toolkit's own loop, or another one, by the name of its plug-in."""

from __future__ import annotations

from ..core import Engine
from ..registry import load
from .config import RunConfig


def create_trainer(config: RunConfig) -> Engine:
    """The trainer of the configured engine; all of them keep the contract :class:`Engine`.

    Raises:
        PluginError: the engine is unknown or does not load.
    """
    return load("engine", config.engine)(config)
