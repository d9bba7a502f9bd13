"""Contracts of feature protocols, prompt scorers and trackers.

Shapes: B images of 3 x H x W, D features.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .generator import ImageSource
from .options import PluginOptions


class FeatureExtractor(ABC):
    """A named feature protocol for metrics. Plug-ins of the group ``adanat.features``."""

    protocol: str
    """Identity of the whole recipe: network, hash of weights, resize, rounding, range."""
    Options: ClassVar[type[PluginOptions]] = PluginOptions
    """What :meth:`create` takes; unknown ones are refused."""
    card: dict[str, str]
    """The recipe in words: network, weights, resize, rounding, range, licence, source."""
    feature_dim: int = 0
    """D. On a class 0 where the options decide it."""

    @classmethod
    @abstractmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> FeatureExtractor:
        """Build the extractor.

        Args:
            options: an object of the class's ``Options``. offline: nothing may be downloaded.

        Raises:
            ConfigError: an option does not fit.
            WeightsError: its weights are missing.
        """

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, feature_dim) float32."""

    def probabilities(self, images: Tensor) -> Tensor | None:
        """(B, classes) class probabilities for the Inception Score, where the network has a classifier."""
        return None


class Tracker(ABC):
    """Receives logged figures. Plug-ins of the group ``adanat.trackers``."""

    @classmethod
    @abstractmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> Tracker:
        """Open the tracker for a run folder."""

    @abstractmethod
    def log(self, figures: dict[str, float], trajectories: int) -> None:
        """One row of figures at a number of trajectories."""

    def close(self) -> None:
        """Flush and release."""


@runtime_checkable
class PromptScorer(Protocol):
    """A network that tells how well images fit their prompts (the feature protocol ``clip`` is one).

    Attributes:
        protocol: which network and recipe, as for feature protocols.
    """

    protocol: str

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) images, float in [0, 1], and B prompts -> (B,) scores in 0..100."""
        ...


@runtime_checkable
class JointExtractor(Protocol):
    """An extractor that gives features and class probabilities of one forward."""

    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]: ...


@runtime_checkable
class PrecomputedExtractor(Protocol):
    """An extractor that ships the features of some data sets."""

    def precomputed(self, source: ImageSource) -> Tensor | None:
        """(M, D) float32 features of ``source``, or None where it is not one of them."""
        ...
