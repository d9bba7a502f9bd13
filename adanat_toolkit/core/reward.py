"""Contract of rewards.

Shapes: B images of 3 x H x W.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import PluginError
from .context import Context
from .generator import Generator, ImageSource
from .options import PluginOptions


class RewardModel(ABC):
    """Scores images; higher is better. Plug-ins of the group ``adanat.rewards``.

    The simplest reward writes :meth:`score` alone. ``embed`` and ``score_embedded`` split it so that what is expensive is
    computed once an image, in micro-batches, and serves both the score and the update of a reward that learns:
    ``score(images, context) == score_embedded(embed(images, context), context)``.

    A set-level reward (FID) overrides ``score_embedded`` and documents how it credits samples; it is given all samples of
    an iteration at once (of all processes).
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    needs: frozenset[str] = frozenset()
    """What it reads of the context or the run: any of ``"prompts"``, ``"classes"``, ``"real_images"``. What a class says
    holds before anything is loaded; an object may need less or more."""
    set_level: bool = False
    """True when a sample's score depends on the other samples it is scored with."""
    compares_sets: bool = False
    """True when generated images are held against real ones as they are, or against figures of such (FID): they must then be
    the generator's own, not those of a distilled decoder."""
    learns: bool = False
    """True when :meth:`update` is to be called after each iteration. A class may say so, or an object once its options are
    known."""
    reads_latents: bool = False
    """True when generated images need not be decoded: a rollout then calls :meth:`embed_latents` in place of
    :meth:`embed`."""
    thread_safe: bool = False
    """True when :meth:`embed` and :meth:`score` may be called from several threads at once. :meth:`update`
    then runs in another thread than the main one, while the policy is updated."""
    made_as: str | None = None
    """What it was asked for as, where the registry made it; for messages."""
    real_per_update: int = 0
    """How many real images (of all processes together) one call of :meth:`update` reads; the trainer draws them where
    ``needs`` has ``"real_images"``."""

    @classmethod
    def create(
        cls,
        options: Any,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool,
    ) -> RewardModel:
        """Build the reward. One that may download overrides this, because the constructor does not see ``offline``.

        Args:
            options: an object of the class's ``Options``. real: set when ``needs`` has ``"real_images"``.
            seed: initialises what the reward learns. offline: nothing may be downloaded.

        Raises:
            ConfigError: an option does not fit. WeightsError: a file is missing or does not fit.
        """
        return cls(options, generator=generator, real=real, device=device, seed=seed)

    def __init__(
        self, options: Any, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        """See :meth:`create`."""

    @abstractmethod
    def score(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B,) float32, higher is better. The images must stay as they are."""

    def embed(self, images: Tensor, context: Context) -> Tensor:
        """What :meth:`score_embedded` and :meth:`update` need of the images, which must stay as they are: (B, ...)."""
        return images

    def embed_latents(self, latents: Tensor, context: Context) -> Tensor:
        """:meth:`embed` of generated images that were not decoded: (B, C, h, w) from ``Generator.latents``."""
        raise NotImplementedError(f"{type(self).__name__} reads images")

    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        """(B, ...) from :meth:`embed` -> (B,) float32."""
        return self.score(embedded, context)

    def terms(self) -> dict[str, Tensor]:
        """Named parts of the last scores, each (B,), for the log of a mixed reward."""
        return {}

    @property
    def reads(self) -> frozenset[str]:
        """Feature protocols whose network the score depends on: figures under these flatter a policy that it has trained."""
        return frozenset()

    def embed_real(self, images: Tensor, context: Context) -> Tensor:
        """What :meth:`update` needs of real images; the same as :meth:`embed` unless that does more than an update reads."""
        return self.embed(images, context)

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """Train on embedded real images and on the embedded images that the policy just made; called where it ``learns``.

        Args:
            real: outputs of :meth:`embed_real`. fake: outputs of :meth:`embed`. Both are this process's share.
            seed: the only source of randomness.

        Returns:
            Figures for the log (``loss``, ``accuracy_real``, ...), averaged over processes.
        """
        raise NotImplementedError(f"{type(self).__name__} learns nothing")

    def parameters_count(self) -> dict[str, int]:
        """Parameter counts by part, for ``--dry-run``."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Everything a resumed run needs (networks, optimisers, counters), as tensors. Empty for a frozen reward."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            CheckpointError: a tensor is missing or misshapen.
        """


def called(reward: RewardModel) -> str:
    """What messages call a reward: as it was asked for, by a name of its own, or by its class."""
    return reward.made_as or str(getattr(reward, "name", type(reward).__name__))


@contextmanager
def unchanged(images: Tensor, who: str) -> Iterator[None]:
    """Sees that ``who`` leaves the images, or what was made of them, as they are: others read the same tensor.

    Raises:
        PluginError: it changed them.
    """
    before = None if images.is_inference() else images._version
    yield
    if before is not None and images._version != before:
        raise PluginError(
            f"{who} changed the images that it was given, which others read too; let it work on a copy (images.clone()) "
            "instead of functions such as mul_."
        )


class LearnedReward(RewardModel):
    """A reward that is always trained in alternation with the policy on real images (a discriminator)."""

    needs = frozenset({"real_images"})
    learns = True

    @abstractmethod
    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """See :meth:`RewardModel.update`."""
