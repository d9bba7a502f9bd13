"""Contract of policies.

Shapes: B samples, N cells of the generator's grid, D feature channels, A acted knobs, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .actions import ActionSpace
from .options import PluginOptions


class Policy(nn.Module, ABC):
    """Chooses raw actions. Plug-ins of the group ``adanat.policies``.

    The network gives the mean of a Gaussian; its fixed standard deviation belongs to the trainer's schedule. Sampling uses
    the mean.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    kind: ClassVar[str]
    needs_features: bool = True
    """Whether it sees anything but the step."""
    reads: Literal["features", "statistics", "context"] = "features"
    """What it sees (``core.see``): the generator's features; statistics of its prediction; or the contexts' vectors. With
    the latter two N is 1, and ``grid`` and ``feature_dim`` are (1, 1) and the number of statistics or the vectors' width."""
    trainable: ClassVar[bool] = True
    feature_dtype: torch.dtype = torch.float32
    """Type in which a rollout keeps what the policy sees for the epochs of PPO. The network is given float32, rounded to it."""
    rounds_features: ClassVar[bool] = False
    """True when its networks, the critic's too, round what they see to that type themselves, and take it in that type as well:
    no copy is made for them then."""

    def __init__(self, options: PluginOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        """Mean raw action.

        Args:
            features: (B, N, D) float32, what it ``reads``, or None when ``needs_features`` is False.
            step: (B,) int64, the decision 0..space.decisions - 1; not all generators have as many as steps.

        Returns:
            (B, A) float32.
        """

    def make_critic(self) -> nn.Module:
        """A value network of the same kind: called with (features, step), gives (B, 1)."""
        raise ConfigError(f"policy {self.kind!r} cannot be trained.")

    def penalty(self) -> Tensor | None:
        """A scalar that is added to the loss of training, a function of the weights; None for nothing."""
        return None
