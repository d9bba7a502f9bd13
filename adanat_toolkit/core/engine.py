"""Contract of engines: what trains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
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
    def __init__(self, config: Any, generator: Any = None, reward: Any = None, data: Any = None) -> None:
        """Load everything that a ``training.RunConfig`` names, and check all that can be checked before any work.

        Args:
            generator, reward, data: objects in place of what ``config`` names, or None (see ``training.Trainer``). An engine
                that takes none refuses them.

        Raises:
            ConfigError, PluginError, WeightsError, DataError: something does not fit.
        """

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """Sizes and memory, for ``--dry-run``."""

    @abstractmethod
    def run(
        self,
        out: Path,
        *,
        callbacks: Sequence[Any] = (),
        on_iteration: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Train to the end, from scratch or from the newest checkpoint in ``out``.

        Args:
            callbacks: of ``training.Callback``: told of the start, of each row of metrics, and of the end. on_iteration: a
                function that is given each row.

        Returns:
            The last row of metrics.
        """
