"""The three contracts: Generator, RewardModel, Policy. Everything else in the toolkit is written against these.

Shapes: B samples, N = h * w cells of the generator's grid, D feature channels, A acted knobs, K knobs, T steps.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from .actions import ActionSpace
from .errors import ConfigError
from .masked_decoding import StepKnobs, StepNoise, StepResult, masked_decoding_step
from .noise import REMASK, TOKEN, Noise

ContextKind = Literal["class", "text", "none"]


class PluginOptions(BaseModel):
    """Base of every plug-in's ``Options``: frozen, unknown keys are rejected with suggestions."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Context:
    """What a batch of images is conditioned on. Only the fields of the generator's kind are set.

    Attributes:
        size: B.
        classes: (B,) int64 class ids, for ``class`` generators.
        states: (B, L, C) float, the text encoder's token states, for ``text`` generators.
        pooled: (B, P) float, the text encoder's projected embedding (before normalisation); discriminators and CLIP scores
            read it.
        prompts: the B prompts.
    """

    size: int
    classes: Tensor | None = None
    states: Tensor | None = None
    pooled: Tensor | None = None
    prompts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.size

    def select(self, index: Tensor | slice) -> Context:
        """Some of the samples, in the order of ``index``."""
        positions = torch.arange(self.size)[index.cpu() if isinstance(index, Tensor) else index]

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        prompts = None if self.prompts is None else tuple(self.prompts[i] for i in positions.tolist())
        return Context(len(positions), pick(self.classes), pick(self.states), pick(self.pooled), prompts)

    def to(self, device: torch.device | str) -> Context:
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(self, classes=move(self.classes), states=move(self.states), pooled=move(self.pooled))

    @staticmethod
    def cat(parts: Sequence[Context]) -> Context:
        """One context from several of the same kind."""

        def join(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            return None if values[0] is None else torch.cat(values)

        prompts = None if parts[0].prompts is None else tuple(x for p in parts for x in p.prompts or ())
        return Context(sum(map(len, parts)), join("classes"), join("states"), join("pooled"), prompts)

    def distinct(self) -> tuple[Tensor, Tensor]:
        """(first, inverse): indices of the first sample of each distinct context, and for each sample which one is its own."""
        if self.classes is not None:
            keys: list[Any] = self.classes.tolist()
        elif self.prompts is not None:
            keys = list(self.prompts)
        elif self.states is None:
            keys = [0] * self.size
        else:
            keys = list(range(self.size))
        order: dict[Any, int] = {}
        first, inverse = [], []
        for position, key in enumerate(keys):
            if key not in order:
                order[key] = len(order)
                first.append(position)
            inverse.append(order[key])
        return torch.tensor(first), torch.tensor(inverse)

    def describe(self, index: int) -> dict[str, Any]:
        """JSON-able context of one sample."""
        out: dict[str, Any] = {}
        if self.classes is not None:
            out["class"] = int(self.classes[index])
        if self.prompts is not None:
            out["prompt"] = self.prompts[index]
        return out


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
    default_schedule: str
    """Schedule text of the best known hand-made baseline (see ``schedules.parse_schedule``)."""
    device: torch.device
    dtype: torch.dtype
    """Compute dtype of the network; logits and features are returned in float32."""
    fingerprint: str
    """Hash of weights and architecture; policies and checkpoints record it."""

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

    def parameters_count(self) -> dict[str, int]:
        """Parameter counts by part, for ``--dry-run``."""
        return {}

    def compile(self) -> None:
        """Make its networks faster with ``torch.compile``, for generators with the option ``compile``; results change by
        rounding."""
        raise ConfigError(f"{self.name} cannot be compiled; leave the option compile out.")

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

    # --- one image ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def reset(self, context: Context, noise: Noise, steps: int) -> Any:
        """The state before the first of ``steps`` steps."""

    @abstractmethod
    def observe(self, state: Any, *, guided: bool = True) -> Tensor:
        """Features of the state: (B, N, D) float32. ``guided`` False promises that the next step has guidance 0."""

    @abstractmethod
    def step(self, state: Any, action: Tensor, noise: Noise) -> Any:
        """Advance by one step.

        Args:
            action: (B, K) float32, physical values in the order of ``action_space.knobs``.
            noise: the samples' noise; nothing else random may be used.
        """

    @abstractmethod
    def decode(self, state: Any) -> Tensor:
        """Images (B, 3, H, W) float32 in [0, 1] of the last step's result."""

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


class DecodingRule(Protocol):
    """A step that replaces ``masked_decoding_step`` for one rollout (see ``published_samplers``)."""

    def step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise, generator: TokenGenerator) -> StepResult:
        """The result of one step; the generator's prediction for ``state`` is in it."""
        ...


@dataclass
class TokenState:
    """State of a token generator.

    Attributes:
        tokens: (B, N) int64 with ``mask_id`` at unknown cells. proposal: (B, N) int64, the last fully drawn sequence.
        step: index of the next step. editable: (B, N) bool or None (see ``masked_decoding_step``).
        prediction: cached conditional (logits, features) and unconditional logits of ``tokens``.
        sampler: the published sampler whose step this rollout takes; None for the toolkit's own.
    """

    context: Context
    steps: int
    tokens: Tensor
    proposal: Tensor
    step: int = 0
    editable: Tensor | None = None
    prediction: tuple[Tensor, Tensor] | None = None
    null_logits: Tensor | None = None
    sampler: DecodingRule | None = None


FIRST_STATES_ON_CPU = 128 * 2**20
"""Bytes of first states that are kept on a CPU."""
FIRST_STATES_ON_CUDA = 0.05
"""The same on a CUDA device, as a share of its memory: the 1,000 classes of a 16x16 grid take 1.8 GB."""


class TokenGenerator(Generator):
    """A masked-token generator: subclasses write :meth:`predict`, :meth:`decode_tokens` and a loader.

    The step itself is ``masked_decoding.masked_decoding_step``. Forwards that would not be used are not run: none after the
    last step, none unconditional where guidance is 0, and the first state (all mask) once per distinct context.
    """

    mask_id: int
    codebook_size: int
    first_state_cache_bytes: int | None = None
    """First-state predictions of class contexts are kept between batches where those of all classes fit into so many bytes;
    None: :data:`FIRST_STATES_ON_CPU`, or :data:`FIRST_STATES_ON_CUDA`."""

    @abstractmethod
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Logits and features of a partly masked sequence.

        Args:
            tokens: (B, N) int64, ``mask_id`` at unknown cells.

        Returns:
            logits (B, N, codebook_size) float32 and features (B, N, feature_dim) float32.
        """

    @abstractmethod
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N) int64 codes -> images (B, 3, H, W) float32 in [0, 1]."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> (B, N) int64 codes."""
        raise ConfigError(f"the tokenizer of {self.name} has no encoder, so images cannot be encoded.")

    def token_vectors(self, tokens: Tensor) -> Tensor:
        """(B, N) int64 codes -> the tokenizer's vectors of them, (B, C, h, w) float32."""
        raise ConfigError(f"{self.name} does not tell the vectors of its codes; use a reward that reads images.")

    def null_context(self, size: int) -> Context | None:
        """The context that guidance subtracts; None for a generator without the guidance knob."""
        return None

    @property
    def cells(self) -> int:
        return self.grid[0] * self.grid[1]

    def reset(
        self,
        context: Context,
        noise: Noise,
        steps: int,
        *,
        tokens: Tensor | None = None,
        editable: Tensor | None = None,
        sampler: DecodingRule | None = None,
    ) -> TokenState:
        """All mask; or, for masked editing, the given ``tokens`` (B, N) with ``mask_id`` where ``editable`` is True.

        ``sampler``: take a published sampler's steps instead of the toolkit's, in this rollout only.
        """
        if tokens is None:
            tokens = torch.full((len(context), self.cells), self.mask_id, dtype=torch.int64, device=self.device)
        return TokenState(context, steps, tokens, tokens, editable=editable, sampler=sampler)

    @torch.no_grad()
    def observe(self, state: TokenState, *, guided: bool = True) -> Tensor:
        wants_null = guided and state.null_logits is None and "guidance" in self.action_space.names
        if state.prediction is None:
            if state.step == 0 and state.editable is None:
                self._predict_first(state, wants_null)
            elif wants_null:
                null = self.null_context(len(state.context))
                assert null is not None
                both = Context.cat([state.context, null])
                logits, features = self.predict(torch.cat([state.tokens, state.tokens]), both)
                conditional, state.null_logits = logits.chunk(2)
                state.prediction = conditional, features[: len(state.context)]
            else:
                state.prediction = self.predict(state.tokens, state.context)
        assert state.prediction is not None
        return state.prediction[1]

    @torch.no_grad()
    def step(self, state: TokenState, action: Tensor, noise: Noise) -> TokenState:
        values = dict(zip(self.action_space.names, action.unbind(1), strict=True))
        guidance = values.get("guidance")
        # Asking whether all guidance is zero costs a device synchronisation, so it is asked only when nobody observed.
        guided = guidance is not None and (state.null_logits is not None or bool((guidance != 0).any()))
        self.observe(state, guided=guided)
        if guided and state.null_logits is None:
            null = self.null_context(len(state.context))
            assert null is not None
            state.null_logits = self.predict(state.tokens, null)[0]
        assert state.prediction is not None
        ones = torch.ones_like(action[:, 0])
        knobs = StepKnobs(
            values["mask_ratio"],
            values.get("mask_temperature", ones * 0),
            values.get("token_temperature", ones),
            ones * 0 if guidance is None else guidance,
        )
        drawn = StepNoise(
            noise.uniform(TOKEN, state.step, (self.cells,)), noise.gumbel(REMASK, state.step, (self.cells,))
        )
        result = self.decoding_step(state, knobs, drawn)
        return TokenState(
            state.context,
            state.steps,
            result.tokens,
            result.proposal,
            state.step + 1,
            state.editable,
            sampler=state.sampler,
        )

    def decoding_step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise) -> StepResult:
        """The step proper: the toolkit's, or that of the state's published sampler, with its own order and clamps."""
        assert state.prediction is not None
        if state.sampler is not None:
            return state.sampler.step(state, knobs, noise, self)
        return masked_decoding_step(
            state.tokens, state.prediction[0], state.null_logits, knobs, noise, self.mask_id, state.editable
        )

    @torch.no_grad()
    def decode(self, state: TokenState) -> Tensor:
        return self.decode_tokens(state.proposal)

    @torch.no_grad()
    def latents(self, state: TokenState) -> Tensor:
        return self.token_vectors(state.proposal)

    @torch.no_grad()
    def encode_latents(self, images: Tensor) -> Tensor:
        return self.token_vectors(self.encode_images(images))

    # --- the first state ----------------------------------------------------------------------------------------------

    def _predict_first(self, state: TokenState, wants_null: bool) -> None:
        """The all-mask state depends on the context alone: one forward per distinct context, kept for class contexts."""
        if self._keeps_first(state.context):
            state.prediction = self._kept_first(state.context)
        else:
            first, inverse = (index.to(self.device) for index in state.context.distinct())
            logits, features = self._predict_all_mask(state.context.select(first))
            state.prediction = logits[inverse], features[inverse]
        if wants_null:
            if not hasattr(self, "_null_first"):
                null = self.null_context(1)
                assert null is not None
                self._null_first = self._predict_all_mask(null)[0]
            state.null_logits = self._null_first.expand(len(state.context), -1, -1)

    def _keeps_first(self, context: Context) -> bool:
        """Whether the first states of all contexts of this kind fit."""
        limit = self.first_state_cache_bytes
        if limit is None:
            limit = FIRST_STATES_ON_CPU
            if self.device.type == "cuda":
                limit = int(FIRST_STATES_ON_CUDA * torch.cuda.get_device_properties(self.device).total_memory)
        number = self._first_states(context)
        return number is not None and number * 4 * self.cells * (self.codebook_size + self.feature_dim) <= limit

    def _first_states(self, context: Context) -> int | None:
        """How many first states there are in all, for contexts of this kind; None: as many as there are texts."""
        return self.num_classes if context.classes is not None else 1 if self.context_kind == "none" else None

    def _kept_first(self, context: Context) -> tuple[Tensor, Tensor]:
        """First states out of the table of all contexts, which is filled as they come."""
        keys = torch.zeros(len(context), dtype=torch.int64) if context.classes is None else context.classes
        if not hasattr(self, "_first"):
            number = self._first_states(context)
            assert number is not None
            with torch.inference_mode(False):  # the table outlives the mode that its maker may have set
                self._first: tuple[Tensor, ...] = tuple(
                    torch.empty(number, self.cells, width, device=self.device)
                    for width in (self.codebook_size, self.feature_dim)
                )
                self._is_known: Tensor = torch.zeros(number, dtype=torch.bool)
        if not self._is_known.all():  # once all are, no batch waits for the device
            wanted = keys.cpu().unique()
            missing = wanted[~self._is_known[wanted]]
            if len(missing):
                rows = missing.to(self.device)
                new = Context(len(rows), classes=None if context.classes is None else rows)
                for table, values in zip(self._first, self._predict_all_mask(new), strict=True):
                    table[rows] = values
                self._is_known[missing] = True
        logits, features = self._first
        keys = keys.to(self.device)
        return logits[keys], features[keys]

    def _predict_all_mask(self, context: Context) -> tuple[Tensor, Tensor]:
        tokens = torch.full((len(context), self.cells), self.mask_id, dtype=torch.int64, device=self.device)
        return self.predict(tokens, context)


class RewardModel(ABC):
    """Scores images; higher is better. Plug-ins of the group ``adanat.rewards``.

    The simplest reward writes :meth:`score` alone. ``embed`` and ``score_embedded`` split it so that what is expensive is
    computed once an image, in micro-batches, and serves both the score and the update of a reward that learns:
    ``score(images, context) == score_embedded(embed(images, context), context)``.

    A set-level reward (FID) overrides ``score_embedded`` and documents how it credits samples; it is given all samples of
    an iteration at once (of all processes).
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    needs: ClassVar[frozenset[str]] = frozenset()
    """What it reads of the context or the run: any of ``"prompts"``, ``"classes"``, ``"real_images"``."""
    set_level: ClassVar[bool] = False
    """True when a sample's score depends on the other samples it is scored with."""
    reads_latents: bool = False
    """True when generated images need not be decoded: a rollout then calls :meth:`embed_latents` in place of
    :meth:`embed`."""

    def __init__(
        self, options: PluginOptions, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        """``seed`` initialises what the reward learns; ``real`` is set when ``needs`` has ``"real_images"``."""

    @abstractmethod
    def score(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B,) float32, higher is better."""

    def embed(self, images: Tensor, context: Context) -> Tensor:
        """What :meth:`score_embedded` and :meth:`LearnedReward.update` need of the images: (B, ...)."""
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


class LearnedReward(RewardModel):
    """A reward that is trained in alternation with the policy (a discriminator)."""

    needs = frozenset({"real_images"})
    real_per_update: int
    """How many real images (of all processes together) one call of :meth:`update` reads; the trainer draws them."""

    def embed_real(self, images: Tensor, context: Context) -> Tensor:
        """What :meth:`update` needs of real images; the same as :meth:`embed` unless that does more than an update reads."""
        return self.embed(images, context)

    @abstractmethod
    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """Train on embedded real images and on the embedded images that the policy just made.

        Args:
            real, fake: outputs of :meth:`embed`, this process's share. seed: the only source of randomness.

        Returns:
            Figures for the log (``loss``, ``accuracy_real``, ...), averaged over processes.
        """


class Policy(nn.Module, ABC):
    """Chooses raw actions. Plug-ins of the group ``adanat.policies``.

    The network gives the mean of a Gaussian; its fixed standard deviation belongs to the trainer's schedule. Sampling uses
    the mean.
    """

    Options: ClassVar[type[PluginOptions]] = PluginOptions
    kind: ClassVar[str]
    needs_features: ClassVar[bool] = True
    trainable: ClassVar[bool] = True
    sampler: DecodingRule | None = None
    """The published sampler whose steps the generator takes under this policy; None for the toolkit's own."""

    def __init__(self, options: PluginOptions, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__()

    @abstractmethod
    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        """Mean raw action.

        Args:
            features: (B, N, D) float32, or None when ``needs_features`` is False.
            step: (B,) int64, the step index 0..T-1.

        Returns:
            (B, A) float32.
        """

    def make_critic(self) -> nn.Module:
        """A value network of the same kind: called with (features, step), gives (B, 1)."""
        raise ConfigError(f"policy {self.kind!r} cannot be trained.")


class FeatureExtractor(ABC):
    """A named feature protocol for metrics. Plug-ins of the group ``adanat.features``."""

    protocol: str
    """Identity of the whole recipe: network, hash of weights, resize, rounding, range."""
    card: dict[str, str]
    """The recipe in words: network, weights, resize, rounding, range, licence, source."""
    feature_dim: int

    @classmethod
    @abstractmethod
    def create(cls, options: dict[str, Any], *, device: torch.device, offline: bool) -> FeatureExtractor:
        """Build the extractor.

        Raises:
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
