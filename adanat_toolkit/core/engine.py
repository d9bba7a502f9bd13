"""Contract of engines: what runs PPO."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .generator import Generator
from .reward import RewardModel


class Engine(ABC):
    """A training run. Plug-ins of the group ``adanat.engines``; most extend ``adanat_toolkit.training.Trainer``."""

    device: torch.device
    generator: Generator
    reward: RewardModel

    @abstractmethod
    def __init__(self, config: Any) -> None:
        """Load everything that a ``training.RunConfig`` names, and check all that can be checked before any work."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Sizes and memory, for ``--dry-run``."""

    @abstractmethod
    def run(self, out: Path, *, on_iteration: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end, from scratch or from the newest checkpoint in ``out``.

        Returns:
            The last row of metrics.
        """
