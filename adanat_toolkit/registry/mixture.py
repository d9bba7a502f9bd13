"""A weighted sum of rewards, each standardised over the batch: what ``adversarial:1,clip-score:0.3`` stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..core import Context, PluginOptions, RewardModel, RewardSpec, derive, unchanged
from ..errors import CheckpointError, ConfigError, nearest
from ..runtime import checked_figures, plugin_call, require_each, require_rows, require_tensors
from .discovery import load
from .factories import create_reward

Form = tuple[torch.Size, torch.dtype]
"""Shape of an image's embedding, and its type."""
HOLDS = {torch.int16: torch.float32, torch.int32: torch.float64, torch.int64: torch.float64}
"""Floating point types that hold whole numbers exactly, which ``promote_types`` does not see to: it gives float32."""


class MixOptions(PluginOptions):
    """Options of a mixture."""

    terms: str
    """The mixture as :class:`RewardSpec` writes it: ``NAME[:VARIANT][:WEIGHT]``, separated by commas; the weight is 1 where
    none is written."""
    options: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of the terms, by the name written in ``terms``."""


class MixReward(RewardModel):
    """sum_k w_k (s_k - mean(s_k)) / std(s_k), with mean and standard deviation over the whole batch of all processes.

    Rewards live on scales of their own (a probability, a cosine, a distance); standardised, a weight says how much a
    term counts, whatever its unit and however far training has moved it. A term that is the same for all samples counts
    nothing. A sample's score thus depends on the batch, so the mixture is set-level; a term's raw score
    (:meth:`terms`) depends on it only where the term is itself set-level.

    It learns where a term does; each term learns as it would alone.
    """

    Options: ClassVar[type[PluginOptions]] = MixOptions
    set_level = True

    @classmethod
    def create(cls, options: Any, *, seed: int, **made_for: Any) -> RewardModel:
        spec = RewardSpec.parse(options.terms)
        names = [str(term) for term in spec.terms]
        if any(issubclass(load("reward", term.name), MixReward) for term in spec.terms):
            raise ConfigError(f"mixture {options.terms!r} contains a mixture; write all its terms in one.")
        for name in options.options:
            if name not in names:
                raise ConfigError(
                    f"options are given for {name!r}, which is no term of the mixture"
                    f"{nearest(name, names)} Terms: {', '.join(names)}."
                )
        rewards = {
            name: create_reward(name, options.options.get(name), seed=derive(seed, position), **made_for)
            for position, name in enumerate(names)
        }
        return cls(rewards, dict(zip(names, spec.weights or (1.0,), strict=True)))

    def __init__(self, rewards: Mapping[str, RewardModel], weights: Mapping[str, float]) -> None:
        """
        Args:
            rewards: the terms by what names them. weights: of the same names.

        Raises:
            ConfigError: a term reads latents.
        """
        for name, reward in rewards.items():
            if reward.reads_latents:
                raise ConfigError(
                    f"term {name!r} reads latents, and the terms of a mixture share the decoded images; give it another "
                    "backbone, or train with it alone."
                )
        self.rewards, self.weights = dict(rewards), dict(weights)
        self.learners = {name: reward for name, reward in rewards.items() if reward.learns}
        self.learns = bool(self.learners)
        self.thread_safe = all(reward.thread_safe for reward in rewards.values())
        self.compares_sets = any(reward.compares_sets for reward in rewards.values())
        self.needs = frozenset().union(*(reward.needs for reward in rewards.values()))
        self._layout: dict[str, Form] = {}
        self._real_layout: dict[str, Form] = {}
        """Of what :meth:`embed_real` gives, where a term may leave out what only its score reads."""
        self._scores: dict[str, Tensor] = {}

    # --- embedding: the terms' embeddings side by side ----------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Tensor, context: Context) -> Tensor:
        """(B, sum of the terms' sizes). A frozen per-sample term is scored at once, and only its score is kept."""
        parts = {name: self._embed_term(name, images, context) for name in self.rewards}
        self._layout = forms(parts)
        return pack(parts)

    def _embed_term(self, name: str, images: Tensor, context: Context) -> Tensor:
        reward = self.rewards[name]
        if reward.set_level or reward.learns:
            return _embedded(name, reward, images, context, "embed")
        with plugin_call(f"term {name!r}", "score"), unchanged(images, f"term {name!r}"):
            scores = reward.score(images, context)
        require_each(f"the scores of the term {name!r}", scores, len(context))
        return scores[:, None]

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        total = embedded.new_zeros(len(embedded), dtype=torch.float32)
        self._scores = {}
        for name, part in unpack(embedded, self._layout).items():
            reward = self.rewards[name]
            kept = reward.set_level or reward.learns
            scores = (_scores(name, reward, part, context) if kept else part[:, 0]).float()
            self._scores[name] = scores
            if kept:
                with plugin_call(f"term {name!r}", "terms"):
                    terms = reward.terms()
                require_tensors(f"terms() of the term {name!r}", terms)
                self._scores |= {f"{name}/{key}": value for key, value in terms.items()}
            total += self.weights[name] * standardise(scores).to(total.device)
        return total

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def terms(self) -> dict[str, Tensor]:
        """Each term's raw scores by its name, and its own parts as ``NAME/PART``."""
        return dict(self._scores)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset().union(*(reward.reads for reward in self.rewards.values()))

    # --- what belongs to the terms ------------------------------------------------------------------------------------

    def parameters_count(self) -> dict[str, int]:
        return {
            f"{name}: {key}": value
            for name, reward in self.rewards.items()
            for key, value in reward.parameters_count().items()
        }

    def state(self) -> dict[str, Tensor]:
        """The terms' states, ``NAME/KEY``."""
        states: dict[str, Tensor] = {}
        for name, reward in self.rewards.items():
            with plugin_call(f"term {name!r}", "state"):
                own = reward.state()
            require_tensors(f"what state of the term {name!r} returns", own)
            states |= {f"{name}/{key}": value for key, value in own.items()}
        return states

    def load_state(self, state: dict[str, Tensor]) -> None:
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.rewards}
        for key, value in state.items():
            name, _, rest = key.partition("/")
            if name not in parts:
                raise CheckpointError(
                    f"the checkpoint has state of reward {name!r}, which is no term of this mixture "
                    f"({', '.join(parts)}). Resume with the mixture that the run was started with."
                )
            parts[name][rest] = value
        for name, part in parts.items():
            with plugin_call(f"term {name!r}", "load_state"):
                self.rewards[name].load_state(part)

    # --- the terms that learn -------------------------------------------------------------------------------------------

    @property
    def real_per_update(self) -> int:  # type: ignore[override]
        return max((reward.real_per_update for reward in self.learners.values()), default=0)

    @torch.no_grad()
    def embed_real(self, images: Tensor, context: Context) -> Tensor:
        """What the terms that learn read of real images, side by side as in :meth:`embed`."""
        parts = {
            name: _embedded(name, reward, images, context, "embed_real") for name, reward in self.learners.items()
        }
        if not parts:
            return self.embed(images, context)
        self._real_layout = forms(parts)
        return pack(parts)

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """Update every term that learns, on as many of the real images as it asks for.

        Returns:
            The terms' figures as ``NAME/FIGURE``.
        """
        # One that reads no real images is given none of the generated ones in their place.
        real_layout = self._real_layout if "real_images" in self.needs and self._real_layout else self._layout
        real_parts = unpack(real, real_layout)
        fake_parts = unpack(fake, self._layout)
        figures: dict[str, float] = {}
        wanted = {name: reward.real_per_update for name, reward in self.learners.items()}  # an update may change it
        most = max(1, *wanted.values())
        for position, (name, reward) in enumerate(self.learners.items()):
            rows = slice(0, -(-len(real) * wanted[name] // most))
            with plugin_call(f"term {name!r}", "update"):
                found = reward.update(
                    real_parts[name][rows],
                    real_context.select(rows),
                    fake_parts[name],
                    fake_context,
                    seed=derive(seed, position),
                )
            own = checked_figures(f"the term {name!r}", found)
            figures |= {f"{name}/{key}": value for key, value in own.items()}
        return figures


def _embedded(name: str, reward: RewardModel, images: Tensor, context: Context, method: str) -> Tensor:
    """What a term keeps of the images, seen to be one entry an image."""
    with plugin_call(f"term {name!r}", method), unchanged(images, f"term {name!r}"):
        embedded: Tensor = getattr(reward, method)(images, context)
    require_rows(f"{method} of the term {name!r}", embedded, len(context))
    return embedded


def _scores(name: str, reward: RewardModel, embedded: Tensor, context: Context) -> Tensor:
    with plugin_call(f"term {name!r}", "score"), unchanged(embedded, f"term {name!r}"):
        scores = reward.score_embedded(embedded, context)
    require_each(f"the scores of the term {name!r}", scores, len(context))
    return scores


def forms(parts: Mapping[str, Tensor]) -> dict[str, Form]:
    return {name: (part.shape[1:], part.dtype) for name, part in parts.items()}


def pack(parts: Mapping[str, Tensor]) -> Tensor:
    """(B, ...) of each term -> (B, sum of their sizes), in a type that holds all of them exactly.

    Raises:
        ConfigError: whole numbers beyond 2**53 beside floating point ones: no type holds both.
    """
    mixed = any(part.is_floating_point() for part in parts.values())
    dtype: torch.dtype | None = None
    for name, part in parts.items():
        own = part.dtype
        if mixed and not part.is_floating_point() and own in HOLDS:
            own = HOLDS[own]
            if own == torch.float64 and part.numel() and int(part.abs().max()) > 2**53:
                raise ConfigError(
                    f"term {name!r} embeds images as {part.dtype} with numbers above 2**53, which cannot stand beside the "
                    "floating point numbers of other terms; let it embed smaller numbers, or use it alone."
                )
        dtype = own if dtype is None else torch.promote_types(dtype, own)
    return torch.cat([part.flatten(1).to(dtype) for part in parts.values()], dim=1)


def unpack(packed: Tensor, layout: Mapping[str, Form]) -> dict[str, Tensor]:
    """Inverse of :func:`pack`."""
    columns = packed.split([shape.numel() for shape, _ in layout.values()], dim=1)
    return {
        name: part.reshape(len(packed), *shape).to(dtype)
        for part, (name, (shape, dtype)) in zip(columns, layout.items(), strict=True)
    }


def standardise(scores: Tensor) -> Tensor:
    """(B,) -> (B,) float32 of mean 0 and (unbiased) standard deviation 1; zeros where all are equal to rounding."""
    if len(scores) < 2:
        return torch.zeros_like(scores)
    values = scores.double()
    std = values.std()
    flat = std <= 1e-6 * values.abs().max()
    return torch.where(flat, torch.zeros_like(values), (values - values.mean()) / std).float()
