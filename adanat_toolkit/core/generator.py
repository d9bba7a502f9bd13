"""Contract of generators and of real images.

Shapes: B samples, N = h * w cells of the generator's grid, D feature channels, K knobs, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from .actions import ActionSpace
from .context import Context, ContextKind
from .noise import Noise
from .options import PluginOptions
from .schedules import parse_schedule


class ImageSource(Protocol):
    """Real images with the contexts they belong to, at the generator's resolution."""

    fingerprint: str
    """Hash of the content: names, order, pixels' origin and preprocessing. Statistics and checkpoints record it."""

    def __len__(self) -> int: ...

    def images(self, index: Tensor) -> Tensor:
        """(n, 3, H, W) float32 in [0, 1] on the CPU for (n,) int64 indices."""
        ...

    def contexts(self, index: Tensor) -> Context:
        """Contexts of the same images (on the CPU)."""
        ...


@runtime_checkable
class Labelled(Protocol):
    """Real images that know their classes."""

    labels: Tensor | None
    """(M,) int64."""


class Generator(ABC):
    """A frozen model that makes an image in T steps; it is never trained here.

    Subclasses are plug-ins (group ``adanat.generators``). A state is opaque to everyone else; it is created by ``reset``,
    read by ``observe``, advanced by ``step`` and turned into an image by ``decode``. All methods run without gradients.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    """What ``--set generator.options.KEY=VALUE`` accepts."""

    name: str
    """``family:variant``, e.g. ``maskgit:emoji64``."""
    action_space: ActionSpace
    """The knobs it obeys (unbound: no schedule)."""
    grid: tuple[int, int]
    feature_dim: int
    image_size: tuple[int, int]
    """(H, W) in pixels."""
    context_kind: ContextKind
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    released_sampler: str | None = None
    """The sampler that its authors published (a name in ``decoding.PUBLISHED_SAMPLERS``), where there is one."""
    default_schedule: str
    """Schedule text of the best known hand-made baseline (see ``schedules.parse_schedule``)."""
    default_steps: int = 4
    """T of a hand-made schedule where nobody says another."""
    free_actions: int = 0
    """Actions of an image that cost no forward of its own: one where first states are shared, or where it chooses where to
    start before anything is predicted."""
    device: torch.device
    dtype: torch.dtype
    """Compute dtype of the network; logits and features are returned in float32."""
    fingerprint: str
    """Hash of weights and architecture; policies and checkpoints record it."""
    thread_safe: bool = False
    """True when ``reset``, ``observe``, ``statistics``, ``step`` and ``decode`` may be called from several threads at once,
    each with states of its own: nothing of a sample is kept in the object between calls. On a CPU samples then go side by
    side."""

    @classmethod
    @abstractmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> Generator:
        """Build the generator. ``variant`` None means the default one.

        Raises:
            ConfigError: unknown variant or option. WeightsError: a file is missing or does not fit.
        """

    @classmethod
    @abstractmethod
    def variants(cls) -> tuple[str, ...]:
        """Names of the variants, the default first."""

    @classmethod
    def preset_settings(cls, preset: str, variant: str | None) -> dict[str, Any]:
        """Settings of a training preset that are this family's own, nested as in a configuration; most have none."""
        return {}

    def parameters_count(self) -> dict[str, int]:
        """Parameter counts by part, for ``--dry-run``."""
        return {}

    def compile(self) -> None:
        """Make its networks faster with ``torch.compile``, for generators with the option ``compile``; results change by
        rounding."""
        raise ConfigError(f"{self.name} cannot be compiled; leave the option compile out.")

    # --- actions ------------------------------------------------------------------------------------------------------

    def decisions(self, steps: int) -> int:
        """How many actions make an image in ``steps`` steps; the rows of its schedule.

        Raises:
            ConfigError: it makes no image in so many steps.
        """
        return steps

    def bind(
        self,
        schedule: str | None,
        steps: int,
        *,
        acted: Sequence[str] | None = None,
        residual: bool = True,
        smoothing: float = 0.0,
    ) -> ActionSpace:
        """Its action space bound to a schedule text (None: its own) for ``steps`` steps; see ``ActionSpace.bind``.

        Raises:
            ConfigError: of ``parse_schedule`` and ``ActionSpace.bind``.
        """
        if steps < 1:
            raise ConfigError(f"steps is {steps}; an image needs at least 1 step.")
        table = parse_schedule(schedule or self.default_schedule, self.action_space, self.decisions(steps))
        return self.action_space.bind(table, acted=acted, residual=residual, smoothing=smoothing, steps=steps)

    def real_images(self) -> ImageSource | None:
        """The data the generator was trained on, where it ships with it."""
        return None

    # --- contexts -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def sample_contexts(self, noise: Noise) -> Context:
        """One context a seed, from the distribution of the training data. Deterministic in the seeds."""

    def encode_classes(self, classes: Sequence[int]) -> Context:
        """Contexts of class ids.

        Raises:
            ConfigError: not a class-conditional generator, or an id outside 0..num_classes-1.
        """
        if self.context_kind != "class" or self.num_classes is None:
            raise ConfigError(f"{self.name} is not class-conditional, so --classes does not apply; leave it out.")
        for value in classes:
            if not 0 <= value < self.num_classes:
                raise ConfigError(f"class id {value} is outside 0..{self.num_classes - 1}, the classes of {self.name}.")
        return Context(len(classes), classes=torch.tensor(list(classes), dtype=torch.int64, device=self.device))

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Contexts of prompts.

        Raises:
            ConfigError: not a text-conditional generator.
        """
        raise ConfigError(f"{self.name} is not text-conditional, so prompts do not apply; leave them out.")

    @property
    def context_dim(self) -> int:
        """P, the width of :meth:`context_vectors`; 0 for a generator without context, or whose texts have no embedding."""
        if self.context_kind == "text":
            probe = self.encode_prompts([""])
            return self.context_vectors(probe).shape[1] if probe.embeds else 0
        return self.num_classes or 0

    def context_vectors(self, context: Context) -> Tensor:
        """Contexts as vectors of length 1, (B, P) float32: one a class, or the direction of the text's embedding."""
        if context.classes is not None:
            assert self.num_classes is not None
            return F.one_hot(context.classes, self.num_classes).float()
        return F.normalize(context.embedding().float(), dim=1)

    # --- one image ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset(self, context: Context, noise: Noise, steps: int) -> Any:
        """The state before the first of the ``decisions(steps)`` actions of an image of ``steps`` steps."""

    @abstractmethod
    def observe(self, state: Any, *, guided: bool = True) -> Tensor:
        """Features of the state: (B, N, D) float32. ``guided`` False promises that the next step has guidance 0."""

    @abstractmethod
    def step(self, state: Any, action: Tensor, noise: Noise) -> Any:
        """Advance by one action.

        Args:
            action: (B, K) float32, physical values in the order of ``action_space.knobs``.
            noise: the samples' noise; nothing else random may be used.
        """

    @abstractmethod
    def decode(self, state: Any) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of the last step's result."""

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The K names of what :meth:`statistics` gives; empty for a generator without them."""
        return ()

    @property
    def statistic_ranges(self) -> tuple[tuple[float, float], ...]:
        """(usual value, usual spread) of each statistic: roughly, to bring them to one scale."""
        return ((0.0, 1.0),) * len(self.statistic_names)

    def statistics(self, state: Any) -> Tensor:
        """A few numbers of the prediction for the next step, (B, K) float32 in the order of ``statistic_names``.

        It observes the state (guided), so that nothing is computed twice where features are read too.

        Raises:
            ConfigError: the generator has none.
        """
        raise ConfigError(
            f"{self.name} gives no statistics of its prediction; use something that reads features, the context or the "
            "step alone (policies adaptive, context, shared)."
        )

    def latents(self, state: Any) -> Tensor:
        """What :meth:`decode` makes images of, (B, C, h, w) float32, for rewards that do without images.

        Raises:
            ConfigError: the generator has no such thing.
        """
        raise ConfigError(f"{self.name} gives no latents; use a reward that reads images.")

    def encode_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> the latents (B, C, h, w) float32 that come nearest to them.

        Raises:
            ConfigError: the generator has no latents, or no encoder.
        """
        raise ConfigError(f"{self.name} gives no latents; use a reward that reads images.")

    # --- distilled decoders -------------------------------------------------------------------------------------------

    @property
    def tokenizer_fingerprint(self) -> str | None:
        """16 hex digits that tell the networks between images and :meth:`latents` from any others, the same in every compute
        type; None where nobody says it, so that no distilled decoder fits."""
        return None

    @property
    def distilled_decoder(self) -> Path | None:
        """The file of a distilled decoder that ships for this generator (see ``decoding.DistilledDecoder``)."""
        return None

    def real_latents(self, real: ImageSource, index: Tensor) -> Tensor:
        """:meth:`encode_latents` of the images ``index`` (n,) int64 of a source. Generators that know them look them up.

        Raises:
            ConfigError: of :meth:`encode_latents`.
        """
        return self.encode_latents(real.images(index).to(self.device))
