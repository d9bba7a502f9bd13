"""The published samplers of masked-token generators, with their own clamps, orders and schedules.

The toolkit's step is ``masked_decoding.masked_decoding_step``; these are what the authors of MaskGIT, MAGE, Halton-MaskGIT
and aMUSEd run themselves, so that a policy can be compared with their own baselines (``--policy fixed:maskgit``,
``fixed:mage``, ``fixed:halton``, ``fixed:halton-confidence``, ``fixed:amused``).

A sampler is two things: a table of knobs, one row a step (:meth:`PublishedSampler.schedule`), and a step that takes such a
row, noise and logits (:meth:`PublishedSampler.decide`, the signature of ``masked_decoding_step`` and the grid). Knobs have
the toolkit's units, so the published numbers are converted: Halton's softmax temperature multiplies the logits, hence
``token_temperature`` is its inverse; aMUSEd's guidance scale g means ``guidance`` g - 1. Noise is injected and every
sample is independent of the others, with the one exception that a published sampler has and an option keeps.

=================  =============================  =========================  ================================
sampler            cells masked again             which                      confidence of a drawn token
=================  =============================  =========================  ================================
maskgit            floor(U r) in [1, unknown-1]   strictly below the cut     log p + noise
mage               floor(U r) in [1, unknown-1]   up to and including it     log p + noise
amused             floor(U r) in [1, unknown-1]   strictly below the cut     log max(p, 1e-20) + noise
halton             all but the first N_i          by the Halton order        none
halton-confidence  all but the best N_i           strictly below the N_i-th  log p at the token temperature + noise
=================  =============================  =========================  ================================

U is the number of cells to fill: all of them, or those that masked editing may change. aMUSEd masks nothing after its last
step; the other clamped ones keep one cell masked then, which does not matter, as the image is the last full draw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from .actions import ActionSpace
from .errors import ConfigError, nearest
from .interfaces import TokenGenerator, TokenState
from .masked_decoding import StepKnobs, StepNoise, StepResult, draw_tokens, guide
from .schedules import linear

# --- schedules --------------------------------------------------------------------------------------------------------


def mask_schedule(ratio: Tensor, method: str, total: int) -> Tensor:
    """Masked share after a share ``ratio`` of the steps (MaskGIT section 3.3), clipped to [1e-6, 1].

    Args:
        ratio: (T,) float32 in (0, 1], (t + 1) / T.
        method: ``uniform``, ``cosine``, ``log``, ``exp`` or ``pow`` with its exponent, as ``pow2.5``.
        total: number of cells to fill (``log`` and ``exp`` depend on it).

    Raises:
        ConfigError: unknown method.
    """
    known = ("uniform", "cosine", "pow2", "log", "exp")
    bits = math.log2(total) if total > 1 else 1.0
    if method == "uniform":
        value = 1 - ratio
    elif method == "cosine":
        value = torch.cos(math.pi / 2 * ratio)
    elif method == "log":
        value = -torch.log2(ratio) / bits
    elif method == "exp":
        value = 1 - torch.exp2(-bits * (1 - ratio))
    elif method.startswith("pow"):
        try:
            exponent = float(method.removeprefix("pow"))
        except ValueError:
            raise ConfigError(f"mask schedule {method!r} has no exponent; write pow2 or pow2.5.") from None
        value = 1 - ratio**exponent
    else:
        raise ConfigError(f"unknown mask schedule {method!r}{nearest(method, known)} Known: {', '.join(known)}.")
    return value.clamp(1e-6, 1.0)


def step_ratios(steps: int) -> Tensor:
    """(t + 1) / T for t = 0..T-1, (T,) float32."""
    return torch.tensor([(t + 1) / steps for t in range(steps)], dtype=torch.float64).float()


def mask_counts(steps: int, total: int, method: str = "cosine") -> Tensor:
    """floor(total * share): cells to mask after each step before any clamp, (T,) int64."""
    return torch.floor(total * mask_schedule(step_ratios(steps), method, total)).long()


def clamp_count(count: Tensor, unknown: Tensor) -> Tensor:
    """At least one cell stays masked and at least one is revealed: max(1, min(count, unknown - 1))."""
    return torch.minimum(count, unknown - 1).clamp_min(1)


def clamped_counts(steps: int, total: int, method: str = "cosine") -> Tensor:
    """Cells masked after each step of a decoder that clamps, from all masked, (T,) int64."""
    unknown, out = torch.tensor(total), []
    for count in mask_counts(steps, total, method):
        unknown = clamp_count(count, unknown)
        out.append(int(unknown))
    return torch.tensor(out)


def halton_counts(steps: int, total: int) -> Tensor:
    """Cumulative number of revealed cells of the Halton sampler, (T,) int64, at most ``total``.

    N_i = max(i + 1, int(total (1 - arccos((i + 1) / T) / (pi / 2)))), in float32 as published: the rounding decides.
    """
    share = 1 - torch.arccos(step_ratios(steps)) / (math.pi * 0.5)
    counts = torch.maximum((share * total).long(), torch.arange(1, steps + 1))
    return counts.clamp_max(total)


def confidence_counts(steps: int, total: int, mode: str = "arccos", *, clamp: bool = True) -> Tensor:
    """Cumulative number of revealed cells of Halton-MaskGIT's confidence sampler, (T,) int64.

    Args:
        mode: ``root``, ``linear``, ``square``, ``cosine`` or ``arccos``.
        clamp: raise each entry i to at least i + 1 (the first one is 0 without it).

    Raises:
        ConfigError: unknown mode.
    """
    if steps == 1:
        return torch.tensor([total])
    r = torch.linspace(0, 1, steps)
    curves = {
        "root": r**0.5,
        "linear": r,
        "square": r**2,
        "cosine": 1 - torch.cos(r * math.pi * 0.5),
        "arccos": 1 - torch.arccos(r) / (math.pi * 0.5),
    }
    if mode not in curves:
        raise ConfigError(f"unknown mode {mode!r}{nearest(mode, curves)} Known: {', '.join(curves)}.")
    counts = (curves[mode] * total).long()
    return torch.maximum(counts, torch.arange(1, steps + 1)).clamp_max(total) if clamp else counts


def radical_inverse(base: int, count: int) -> Tensor:
    """The van der Corput sequence 1..count of a base, in (0, 1): digits mirrored at the point, (count,) float64."""
    index, value, scale = torch.arange(1, count + 1), torch.zeros(count, dtype=torch.float64), 1.0
    while int(index.max()) > 0:
        scale /= base
        value += (index % base) * scale
        index = index // base
    return value


@lru_cache(maxsize=16)
def halton_order(grid: tuple[int, int], points: int = 10_000) -> Tensor:
    """Cells in the order in which the points of the 2-D Halton sequence (bases 2 and 3) first visit them.

    Args:
        grid: (h, w). points: how many points are drawn; the published number leaves cells of very large grids unvisited,
            so more are drawn until all are (the order of those visited earlier does not change).

    Returns:
        (h * w,) int64, row * w + column.
    """
    h, w = grid
    # The published code scales in float32: at cell borders the rounding decides.
    row = torch.floor(radical_inverse(2, points).float() * h).long()
    column = torch.floor(radical_inverse(3, points).float() * w).long()
    seen = dict.fromkeys((row * w + column).tolist())
    return torch.tensor(list(seen)) if len(seen) == h * w else halton_order(grid, 2 * points)


# --- steps ------------------------------------------------------------------------------------------------------------


def ranks(order: Tensor, editable: Tensor) -> Tensor:
    """Position of each cell in ``order`` among the editable ones, (B, N) int64 (meaningless at the others).

    Args:
        order: (N,) int64 cells. editable: (B, N) bool.
    """
    position = editable[:, order].cumsum(1) - 1
    return torch.empty_like(position).scatter_(1, order.expand_as(position), position)


def keep_top(logits: Tensor, k: int) -> Tensor:
    """Logits below the k-th largest of their cell set to minus infinity."""
    return logits.masked_fill(logits < logits.topk(k, dim=-1).values[..., -1:], float("-inf"))


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax at a token a cell: (B, N, V), (B, N) -> (B, N); ids outside the vocabulary read its nearest entry."""
    chosen = logits.gather(-1, tokens.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
    return chosen - torch.logsumexp(logits, dim=-1)


class PublishedSampler(ABC):
    """A published baseline: a table of knobs and the step they belong to. Instances are immutable."""

    name: ClassVar[str]
    source: ClassVar[str]
    steps: ClassVar[int]
    """The number of steps the authors use by default."""

    @abstractmethod
    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        """Physical values of the knobs the sampler sets, one a step, in the toolkit's units."""

    @abstractmethod
    def decide(
        self,
        tokens: Tensor,
        conditional: Tensor,
        unconditional: Tensor | None,
        knobs: StepKnobs,
        noise: StepNoise,
        mask_id: int,
        editable: Tensor | None = None,
        *,
        grid: tuple[int, int],
    ) -> StepResult:
        """One step: the arguments and the result are those of ``masked_decoding.masked_decoding_step``.

        ``grid`` (h, w) gives the cells their places. Nothing depends on the number of the step: it is in the knobs.
        """

    def schedule(self, space: ActionSpace, steps: int, cells: int) -> Tensor:
        """The sampler's knob table for a generator: (T, len(space.knobs)) float64 physical values.

        Knobs that the sampler has and the generator lacks are left out (no guidance for MAGE); knobs that the sampler does
        not set have their neutral value.

        Raises:
            ConfigError: fewer than one step.
        """
        if steps < 1:
            raise ConfigError(f"steps is {steps}; a schedule needs at least 1 step.")
        values = self.knob_values(steps, cells)
        columns = [values.get(knob.name, [knob.neutral] * steps) for knob in space.knobs]
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()

    def step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise, generator: TokenGenerator) -> StepResult:
        """Replaces ``TokenGenerator.decoding_step`` for a generator whose prediction is in ``state``."""
        assert state.prediction is not None
        return self.decide(
            state.tokens, state.prediction[0], state.null_logits, knobs, noise, generator.mask_id, state.editable,
            grid=generator.grid,
        )


class _ClampedSampler(PublishedSampler):
    """What MaskGIT, MAGE and aMUSEd share: draw at the token temperature, mask the least confident, clamp the count."""

    inclusive: ClassVar[bool] = False
    """Cells equal to the cut-off are masked too, and the cut-off is one entry lower."""
    floor: ClassVar[float] = float("-inf")
    """Smallest log-probability that enters the confidence."""

    def counts(self, count: Tensor, unknown: Tensor, knobs: StepKnobs) -> Tensor:
        """Cells to mask per sample, (B,) int64, from the unclamped number."""
        return clamp_count(count, unknown)

    def decide(self, tokens, conditional, unconditional, knobs, noise, mask_id, editable=None, *, grid):  # type: ignore[no-untyped-def]
        unknown = tokens == mask_id
        logits = guide(conditional, unconditional, knobs.guidance)
        proposal = torch.where(unknown, draw_tokens(logits, knobs.token_temperature, noise.token), tokens)
        log_prob = token_log_prob(logits, proposal)
        confidence = log_prob.clamp_min(self.floor) + knobs.mask_temperature[:, None] * noise.remask
        confidence = confidence.masked_fill(~unknown, float("inf"))
        cells = tokens.shape[1] if editable is None else editable.sum(1)
        count = self.counts(torch.floor(knobs.mask_ratio * cells).long(), unknown.sum(1), knobs)
        index = (count - 1).clamp_min(0) if self.inclusive else count.clamp_max(tokens.shape[1] - 1)
        cutoff = confidence.sort(dim=1).values.gather(1, index[:, None])
        below = confidence <= cutoff if self.inclusive else confidence < cutoff
        # Where every cell is known the cut-off is infinite, and an inclusive comparison would mask them all.
        masked = below & unknown & (count > 0)[:, None]
        return StepResult(proposal, proposal.masked_fill(masked, mask_id), log_prob)


@dataclass(frozen=True)
class MaskGITSampler(_ClampedSampler):
    """The original parallel decoder (google-research/maskgit; MaskGIT section 3.2): no guidance.

    Attributes:
        choice_temperature: noise on the confidence falls linearly from nearly this to 0.
        method: see :func:`mask_schedule`.
    """

    choice_temperature: float = 4.5
    method: str = "cosine"
    name: ClassVar[str] = "maskgit"
    source: ClassVar[str] = "google-research/maskgit, Chang et al., CVPR 2022"
    steps: ClassVar[int] = 16

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        ratios = step_ratios(steps)
        return {
            "mask_ratio": mask_schedule(ratios, self.method, cells).tolist(),
            "mask_temperature": (self.choice_temperature * (1 - ratios)).tolist(),
        }


@dataclass(frozen=True)
class MAGESampler(_ClampedSampler):
    """MAGE's unconditional decoder (LTH14/mage; Li et al., CVPR 2023): MaskGIT's, with ties masked and a cosine only.

    Attributes:
        choice_temperature: as in MaskGIT.
        shared_count: as published, the first sample's number of masked cells is used for the whole batch. Off by default,
            as a sample then depends on the batch it is made with. From an all-masked start both give the same unless
            confidences tie.
    """

    choice_temperature: float = 4.5
    shared_count: bool = False
    name: ClassVar[str] = "mage"
    source: ClassVar[str] = "LTH14/mage, Li et al., CVPR 2023"
    steps: ClassVar[int] = 12
    inclusive: ClassVar[bool] = True

    def counts(self, count: Tensor, unknown: Tensor, knobs: StepKnobs) -> Tensor:
        clamped = clamp_count(count, unknown)
        return clamped[:1].expand_as(clamped) if self.shared_count else clamped

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        ratios = step_ratios(steps)
        return {
            "mask_ratio": torch.cos(math.pi / 2 * ratios).clamp_min(0).tolist(),
            "mask_temperature": (self.choice_temperature * (1 - ratios)).tolist(),
        }


@dataclass(frozen=True)
class AmusedSampler(_ClampedSampler):
    """aMUSEd's scheduler and pipeline defaults (diffusers ``AmusedScheduler``; Patil et al. 2024).

    Attributes:
        first_temperature, last_temperature: noise on the confidence, linear over the steps.
        guidance_scale: g of uncond + g (cond - uncond), at least 1 (none): the knob is g - 1.
        method: ``cosine`` or ``uniform`` (diffusers calls it linear).
    """

    first_temperature: float = 2.0
    last_temperature: float = 0.0
    guidance_scale: float = 10.0
    method: str = "cosine"
    name: ClassVar[str] = "amused"
    source: ClassVar[str] = "diffusers AmusedScheduler and AmusedPipeline, Patil et al. 2024"
    steps: ClassVar[int] = 12
    floor: ClassVar[float] = math.log(1e-20)

    def counts(self, count: Tensor, unknown: Tensor, knobs: StepKnobs) -> Tensor:
        return torch.where(knobs.mask_ratio > 0, clamp_count(count, unknown), 0)

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        share = mask_schedule(step_ratios(steps), self.method, cells)
        share[-1] = 0  # Nothing is masked after the last step.
        # torch.linspace gives the first value to a single step; it has no effect, as nothing is masked.
        return {
            "mask_ratio": share.tolist(),
            "mask_temperature": linear(self.first_temperature, self.last_temperature, steps),
            "guidance": [max(self.guidance_scale - 1, 0.0)] * steps,
        }


@dataclass(frozen=True)
class HaltonSampler(PublishedSampler):
    """Cells are revealed in the order of the 2-D Halton sequence and never masked again (Halton-MaskGIT, ICLR 2025).

    No confidence is computed, so the mask temperature has no effect. The published code redraws cells by place, so that one
    that drew the mask id stays masked for good; here the mask cannot be drawn, as generators cut its column.

    Attributes:
        guidance: constant w of (1 + w) cond - w uncond. The model cards use 0.5 (large) to 1.5 (tiny).
        temperature_first, temperature_last, temperature_power: linear over the steps, then raised to the power, it
            MULTIPLIES the logits; ``warmup_steps`` first steps use half of it.
        top_k: draw among the k most likely codes; 0 means all.
        rotate: start the order at a random cell per image.
    """

    guidance: float = 0.5
    temperature_first: float = 1.0
    temperature_last: float = 1.0
    temperature_power: float = 1.0
    warmup_steps: int = 0
    top_k: int = 0
    rotate: bool = False
    name: ClassVar[str] = "halton"
    source: ClassVar[str] = "valeoai/Halton-MaskGIT HaltonSampler, Besnier et al., ICLR 2025"
    steps: ClassVar[int] = 32

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        span = torch.linspace(self.temperature_first, self.temperature_last, steps, dtype=torch.float64)
        factors = [float(f) * (0.5 if i < self.warmup_steps else 1.0) for i, f in enumerate(span**self.temperature_power)]
        return {
            "mask_ratio": (1 - halton_counts(steps, cells).double() / cells).tolist(),
            "token_temperature": [1 / f for f in factors],
            "guidance": [self.guidance] * steps,
        }

    def decide(self, tokens, conditional, unconditional, knobs, noise, mask_id, editable=None, *, grid):  # type: ignore[no-untyped-def]
        unknown = tokens == mask_id
        logits = guide(conditional, unconditional, knobs.guidance)
        pool = keep_top(logits, self.top_k) if 0 < self.top_k < logits.shape[-1] else logits
        drawn = draw_tokens(pool, knobs.token_temperature, noise.token)
        proposal = torch.where(unknown, drawn, tokens)
        free = torch.ones_like(unknown) if editable is None else editable
        cells = free.sum(1)
        rank = ranks(halton_order(grid).to(tokens.device), free)
        if self.rotate:
            rank = (rank - self._start(rank, unknown, free, noise)[:, None]) % cells.clamp_min(1)[:, None]
        known = cells - torch.round(knobs.mask_ratio * cells).long()
        masked = unknown & (rank >= known[:, None])
        return StepResult(proposal, proposal.masked_fill(masked, mask_id), token_log_prob(logits, proposal))

    @staticmethod
    def _start(rank: Tensor, unknown: Tensor, free: Tensor, noise: StepNoise) -> Tensor:
        """Rank at which each image's order starts, (B,) int64.

        Drawn before the first step, from the noise that this sampler has no other use for; afterwards it is read off the
        tokens: the cells revealed so far follow one another in the order, and the start is the one whose predecessor is
        still unknown.
        """
        cells = free.sum(1).clamp_min(1)
        uniform = torch.exp(-torch.exp(-noise.remask[:, 0]))
        drawn = (uniform * cells).long().clamp_max(cells - 1)
        done = torch.zeros_like(unknown).scatter_(1, rank.clamp_min(0), free & ~unknown)
        # Editable cells have the ranks 0..cells-1; the predecessor of rank 0 is the last of them.
        place = torch.arange(rank.shape[1], device=rank.device)
        before = done.gather(1, (place - 1) % cells[:, None])
        first = done & ~before & (place < cells[:, None])
        return torch.where(first.any(1), first.int().argmax(1), drawn)


@dataclass(frozen=True)
class HaltonConfidenceSampler(PublishedSampler):
    """The confidence sampler that Halton-MaskGIT compares its order with.

    Guidance grows linearly from 0 to ``guidance``; confidence is the log-probability at the token temperature plus noise
    that falls linearly from ``choice_temperature`` to 0 (``noisy`` False: none).

    Attributes:
        mode: see :func:`confidence_counts`.
        redraw_known: as published, cells that are known already take a new draw too at every step; False keeps them.
            Cells that masked editing must not change are kept in either case.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    choice_temperature: float = 4.5
    noisy: bool = True
    mode: str = "arccos"
    redraw_known: bool = True
    name: ClassVar[str] = "halton-confidence"
    source: ClassVar[str] = "valeoai/Halton-MaskGIT ConfidenceSampler, Besnier et al., ICLR 2025"
    steps: ClassVar[int] = 12

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        noise = linear(self.choice_temperature, 0.0, steps)
        return {
            "mask_ratio": (1 - confidence_counts(steps, cells, self.mode).double() / cells).tolist(),
            "mask_temperature": noise if self.noisy else [0.0] * steps,
            "token_temperature": [1 / self.temperature] * steps,
            "guidance": linear(0.0, self.guidance, steps),
        }

    def decide(self, tokens, conditional, unconditional, knobs, noise, mask_id, editable=None, *, grid):  # type: ignore[no-untyped-def]
        unknown = tokens == mask_id
        logits = guide(conditional, unconditional, knobs.guidance)
        drawn = draw_tokens(logits, knobs.token_temperature, noise.token)
        free = torch.ones_like(unknown) if editable is None else editable
        proposal = torch.where(unknown | free if self.redraw_known else unknown, drawn, tokens)
        tempered = logits / knobs.token_temperature.clamp_min(1e-6)[:, None, None]
        confidence = token_log_prob(tempered, proposal) + knobs.mask_temperature[:, None] * noise.remask
        confidence = confidence.masked_fill(~unknown, float("inf"))
        cells = free.sum(1)
        # The N_i-th largest among the cells to fill; cells that are not to be changed are infinite and come before them.
        target = (cells - torch.round(knobs.mask_ratio * cells).long()).clamp_min(1) + (~free).sum(1)
        ordered = confidence.sort(dim=1, descending=True).values
        cutoff = ordered.gather(1, (target - 1).clamp_max(tokens.shape[1] - 1)[:, None])
        masked = unknown & (confidence < cutoff)
        return StepResult(proposal, proposal.masked_fill(masked, mask_id), token_log_prob(logits, proposal))


PUBLISHED_SAMPLERS: dict[str, type[PublishedSampler]] = {
    sampler.name: sampler
    for sampler in (MaskGITSampler, MAGESampler, HaltonSampler, HaltonConfidenceSampler, AmusedSampler)
}


def published_sampler(name: str, **options: Any) -> PublishedSampler:
    """The sampler of a name (``maskgit``, ``mage``, ``halton``, ``halton-confidence``, ``amused``).

    Args:
        options: the sampler's attributes, for instance ``guidance=1.0``.

    Raises:
        ConfigError: unknown sampler or option.
    """
    if name not in PUBLISHED_SAMPLERS:
        known = ", ".join(PUBLISHED_SAMPLERS)
        raise ConfigError(f"no published sampler {name!r}{nearest(name, PUBLISHED_SAMPLERS)} Known: {known}.")
    kind = PUBLISHED_SAMPLERS[name]
    names = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in names:
            raise ConfigError(
                f"sampler {name!r} has no option {option!r}{nearest(option, names)} Its options: {', '.join(names)}."
            )
    return kind(**options)
