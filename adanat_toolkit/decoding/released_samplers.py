"""The published samplers of masked-token generators, with their own clamps, orders and schedules.

The toolkit's step is ``masked_decoding.masked_decoding_step``; these are what the authors of MaskGIT, MAGE,
Halton-MaskGIT and aMUSEd run themselves, so that a policy can be compared with their own baselines (``--policy
fixed:maskgit``, ``fixed:mage``, ``fixed:halton``, ``fixed:halton-confidence``, ``fixed:amused``).

A sampler is two things: a table of knobs, one row a step (:meth:`PublishedSampler.schedule`), and a step that takes
such a row, noise and logits (:meth:`PublishedSampler.decide`: the signature of ``masked_decoding_step``, and the grid).
Knobs have the toolkit's units, so the published numbers are converted: Halton's softmax temperature multiplies the
logits, hence ``token_temperature`` is its inverse; aMUSEd's guidance scale g means ``guidance`` g - 1. Noise is
injected, and samples are independent of each other (MAGE's published exception is an option).

=================  =============================  =========================  ================================
sampler            cells masked again             which                      confidence of a drawn token
=================  =============================  =========================  ================================
maskgit            floor(U r) in [1, unknown-1]   strictly below the cut     log p + noise
mage               floor(U r) in [1, unknown-1]   up to and including it     log p + noise
amused             floor(U r) in [1, unknown-1]   strictly below the cut     log max(p, 1e-20) + noise
halton             all but the first N_i          by the Halton order        none
halton-confidence  all but the best N_i           strictly below the N_i-th  log p at the token temperature + noise
=================  =============================  =========================  ================================

U is the number of cells to fill: all of them, or those that masked editing may change. aMUSEd masks nothing after its
last step; the other clamped ones keep one cell masked then, which does not matter: the image is the last full draw.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from ..core import ActionSpace, linear
from ..errors import ConfigError, nearest
from ..limits import check_steps
from .draws import MIN_TOKEN_TEMPERATURE, draw_tokens, guide, token_log_prob
from .masked_decoding import StepKnobs, StepNoise, StepResult
from .released_counts import clamp_count, confidence_counts, halton_counts, halton_order, mask_schedule, step_ratios
from .token_generator import TokenGenerator, TokenState


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


class Draw(NamedTuple):
    """What a sampler decides on.

    Attributes:
        logits: (B, N, V) guided. proposal: (B, N) int64. log_prob: (B, N) of the proposal at temperature one.
        unknown: (B, N) bool, masked before the step.
        free: (B, N) bool, cells to fill: all but those that masked editing keeps.
        grid: (h, w).
    """

    logits: Tensor
    proposal: Tensor
    log_prob: Tensor
    unknown: Tensor
    free: Tensor
    grid: tuple[int, int]


class PublishedSampler(ABC):
    """A published baseline: a table of knobs and the step they belong to. Instances are immutable."""

    name: ClassVar[str]
    source: ClassVar[str]
    default_steps: ClassVar[int]
    """The number of steps the authors use by default."""

    @abstractmethod
    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        """Physical values of the knobs the sampler sets, one a step, in the toolkit's units."""

    @abstractmethod
    def remask(self, draw: Draw, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        """Cells that are masked after the step, (B, N) bool; entries of known cells are ignored."""

    def propose(self, logits: Tensor, tokens: Tensor, unknown: Tensor, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        """The full sequence after the draw, (B, N) int64: known cells keep their code."""
        return torch.where(unknown, draw_tokens(logits, knobs.token_temperature, noise.token), tokens)

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
        unknown = tokens == mask_id
        free = torch.ones_like(unknown) if editable is None else editable
        logits = guide(conditional, unconditional, knobs.guidance)
        proposal = self.propose(logits, tokens, unknown, knobs, noise)
        proposal = torch.where(free | unknown, proposal, tokens)
        log_prob = token_log_prob(logits, proposal)
        masked = self.remask(Draw(logits, proposal, log_prob, unknown, free, grid), knobs, noise) & unknown
        return StepResult(proposal, proposal.masked_fill(masked, mask_id), log_prob)

    def step(self, state: TokenState, knobs: StepKnobs, noise: StepNoise, generator: TokenGenerator) -> StepResult:
        """Replaces ``TokenGenerator.decoding_step`` for a generator whose prediction is in ``state``."""
        assert state.prediction is not None
        return self.decide(
            state.tokens,
            state.prediction[0],
            state.null_logits,
            knobs,
            noise,
            generator.mask_id,
            state.editable,
            grid=generator.grid,
        )

    def schedule(self, space: ActionSpace, steps: int, cells: int) -> Tensor:
        """The sampler's knob table for a generator: (T, len(space.knobs)) float64 physical values.

        Knobs that the sampler has and the generator lacks are left out (no guidance for MAGE); knobs that the sampler
        does not set have their neutral value.

        Raises:
            ConfigError: fewer than one step.
        """
        check_steps(steps)
        values = self.knob_values(steps, cells)
        columns = [values.get(knob.name, [knob.neutral] * steps) for knob in space.knobs]
        return torch.tensor(columns, dtype=torch.float64).T.contiguous()


class ClampedSampler(PublishedSampler):
    """What MaskGIT, MAGE and aMUSEd share: the least confident cells are masked again, at least one and not all."""

    inclusive: ClassVar[bool] = False
    """Cells equal to the cut-off are masked too, and the cut-off is one entry lower."""
    smallest_log_prob: ClassVar[float] = float("-inf")

    def counts(self, wanted: Tensor, unknown: Tensor, knobs: StepKnobs) -> Tensor:
        """Cells to mask, from the unclamped number and the unknown ones: (B,) int64 each."""
        return clamp_count(wanted, unknown)

    def remask(self, draw: Draw, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        log_prob = draw.log_prob.clamp_min(self.smallest_log_prob)
        confidence = log_prob + knobs.mask_temperature[:, None] * noise.remask
        confidence = confidence.masked_fill(~draw.unknown, float("inf"))
        wanted = torch.floor(knobs.mask_ratio * draw.free.sum(1)).long()
        count = self.counts(wanted, draw.unknown.sum(1), knobs)
        index = (count - 1).clamp_min(0) if self.inclusive else count.clamp_max(confidence.shape[1] - 1)
        cutoff = confidence.sort(dim=1).values.gather(1, index[:, None])
        return confidence <= cutoff if self.inclusive else confidence < cutoff


@dataclass(frozen=True)
class MaskGITSampler(ClampedSampler):
    """The original parallel decoder (MaskGIT section 3.2): no guidance.

    Attributes:
        choice_temperature: noise on the confidence falls linearly from nearly this to 0.
        method: see ``released_counts.mask_schedule``.
    """

    choice_temperature: float = 4.5
    method: str = "cosine"
    name: ClassVar[str] = "maskgit"
    source: ClassVar[str] = "google-research/maskgit; Chang et al., CVPR 2022"
    default_steps: ClassVar[int] = 16

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        ratios = step_ratios(steps)
        return {
            "mask_ratio": mask_schedule(ratios, self.method, cells).tolist(),
            "mask_temperature": (self.choice_temperature * (1 - ratios)).tolist(),
        }


@dataclass(frozen=True)
class MAGESampler(ClampedSampler):
    """MAGE's unconditional decoder: MaskGIT's with the cosine schedule, and cells that tie at the cut-off are masked.

    Attributes:
        choice_temperature: as in MaskGIT.
        shared_count: as published, the first sample's number of masked cells is used for the whole batch. Off by
            default, since a sample then depends on the batch it is made with; from an all-masked start both give the
            same unless confidences tie.
    """

    choice_temperature: float = 4.5
    shared_count: bool = False
    name: ClassVar[str] = "mage"
    source: ClassVar[str] = "LTH14/mage; Li et al., CVPR 2023"
    default_steps: ClassVar[int] = 12
    inclusive: ClassVar[bool] = True

    def counts(self, wanted: Tensor, unknown: Tensor, knobs: StepKnobs) -> Tensor:
        clamped = clamp_count(wanted, unknown)
        return clamped[:1].expand_as(clamped) if self.shared_count else clamped

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        ratios = [(t + 1) / steps for t in range(steps)]
        wanted = [math.floor(cells * math.cos(math.pi / 2 * r)) for r in ratios]
        return {
            "mask_ratio": [(count + 0.5) / cells if count else 0.0 for count in wanted],  # half a cell: away from rounding
            "mask_temperature": [self.choice_temperature * (1 - r) for r in ratios],
        }


@dataclass(frozen=True)
class AmusedSampler(ClampedSampler):
    """aMUSEd's scheduler with the defaults of its pipeline.

    Attributes:
        first_temperature, last_temperature: noise on the confidence, linear over the steps.
        guidance_scale: g of uncond + g (cond - uncond), at least 1 (none): the knob is g - 1.
        method: ``cosine``, or ``uniform`` (which diffusers calls linear).
    """

    first_temperature: float = 2.0
    last_temperature: float = 0.0
    guidance_scale: float = 10.0
    method: str = "cosine"
    name: ClassVar[str] = "amused"
    source: ClassVar[str] = "diffusers AmusedScheduler and AmusedPipeline; Patil et al. 2024"
    default_steps: ClassVar[int] = 12
    smallest_log_prob: ClassVar[float] = math.log(1e-20)

    def remask(self, draw: Draw, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        # Nothing is masked after the last step, whose ratio is zero.
        return super().remask(draw, knobs, noise) & (knobs.mask_ratio > 0)[:, None]

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        return {
            "mask_ratio": [*mask_schedule(step_ratios(steps), self.method, cells)[:-1].tolist(), 0.0],
            "mask_temperature": linear(self.first_temperature, self.last_temperature, steps),
            "guidance": [max(self.guidance_scale - 1, 0.0)] * steps,
        }


def require_positive(sampler: PublishedSampler, *options: str) -> None:
    """Refuse temperatures that divide by nothing.

    Raises:
        ConfigError: one of the options is not above 0.
    """
    for option in options:
        value = getattr(sampler, option)
        if not value > 0:
            raise ConfigError(f"sampler {sampler.name!r} has {option} = {value:g}; it must be above 0, such as 1.")


@dataclass(frozen=True)
class HaltonSampler(PublishedSampler):
    """Cells are revealed in the order of the 2-D Halton sequence and never masked again.

    No confidence is computed, so the mask temperature has no effect. In the published code a cell can draw the mask
    itself; here it cannot, as generators cut its column.

    Attributes:
        guidance: constant w of (1 + w) cond - w uncond. The authors use 0.5 (large) to 1.5 (tiny).
        first_temperature, last_temperature, power: linear over the steps, then raised to the power; it MULTIPLIES the
            logits. The ``warmup_steps`` first steps use half of it.
        top_k: draw among the k most likely codes; 0 means all.
        rotate: start the order at a random cell, one an image.
    """

    guidance: float = 0.5
    first_temperature: float = 1.0
    last_temperature: float = 1.0
    power: float = 1.0
    warmup_steps: int = 0
    top_k: int = 0
    rotate: bool = False
    name: ClassVar[str] = "halton"
    source: ClassVar[str] = "valeoai/Halton-MaskGIT, HaltonSampler; Besnier et al., ICLR 2025"
    default_steps: ClassVar[int] = 32

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        require_positive(self, "first_temperature", "last_temperature")
        first, last = self.first_temperature, self.last_temperature
        try:
            factors = [(first + (last - first) * i / max(steps - 1, 1)) ** self.power for i in range(steps)]
        except OverflowError:
            factors = [math.inf]
        if not all(0 < 0.5 * f < math.inf and math.isfinite(1 / f) for f in factors):
            raise ConfigError(
                f"sampler {self.name!r}: temperatures from {first:g} to {last:g} to the power of {self.power:g} leave the "
                "range of numbers; give a smaller power."
            )
        warm = [0.5 * f if i < self.warmup_steps else f for i, f in enumerate(factors)]
        return {
            "mask_ratio": (1 - halton_counts(steps, cells).clamp_max(cells).double() / cells).tolist(),
            "token_temperature": [1 / f for f in warm],
            "guidance": [self.guidance] * steps,
        }

    def propose(self, logits: Tensor, tokens: Tensor, unknown: Tensor, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        pool = keep_top(logits, self.top_k) if 0 < self.top_k < logits.shape[-1] else logits
        return super().propose(pool, tokens, unknown, knobs, noise)

    def remask(self, draw: Draw, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        cells = draw.free.sum(1)
        rank = ranks(halton_order(draw.grid).to(draw.free.device), draw.free)
        if self.rotate:
            rank = (rank - self._start(rank, draw, noise)[:, None]) % cells.clamp_min(1)[:, None]
        known = cells - torch.round(knobs.mask_ratio * cells).long()
        return rank >= known[:, None]

    @staticmethod
    def _start(rank: Tensor, draw: Draw, noise: StepNoise) -> Tensor:
        """Rank at which each image's order starts, (B,) int64.

        Drawn before the first step, from the noise that this sampler has no other use for; afterwards it is read off
        the tokens: the cells revealed so far follow one another in the order, and the start is the one whose
        predecessor is still unknown.
        """
        cells = draw.free.sum(1).clamp_min(1)
        uniform = torch.exp(-torch.exp(-noise.remask[:, 0]))
        drawn = (uniform * cells).long().clamp_max(cells - 1)
        done = torch.zeros_like(rank).scatter_add_(1, rank.clamp_min(0), (draw.free & ~draw.unknown).long()) > 0
        place = torch.arange(rank.shape[1], device=rank.device)
        before = done.gather(1, (place - 1) % cells[:, None])
        first = done & ~before
        return torch.where(first.any(1), first.int().argmax(1), drawn)


@dataclass(frozen=True)
class HaltonConfidenceSampler(PublishedSampler):
    """The confidence sampler that Halton-MaskGIT compares its order with.

    Guidance grows linearly from 0; confidence is the log-probability at the token temperature plus noise that falls
    linearly to 0.

    Attributes:
        guidance: w of (1 + w) cond - w uncond at the last step.
        temperature: multiplies the logits.
        choice_temperature: noise at the first step; 0 for none.
        mode: see ``released_counts.confidence_counts``.
        redraw_known: as published, cells that are known already take a new draw too at every step; False keeps them.
            Cells that masked editing must not change are kept in either case.
    """

    guidance: float = 3.0
    temperature: float = 1.0
    choice_temperature: float = 4.5
    mode: str = "arccos"
    redraw_known: bool = True
    name: ClassVar[str] = "halton-confidence"
    source: ClassVar[str] = "valeoai/Halton-MaskGIT, ConfidenceSampler; Besnier et al., ICLR 2025"
    default_steps: ClassVar[int] = 12

    def knob_values(self, steps: int, cells: int) -> dict[str, list[float]]:
        require_positive(self, "temperature")
        counts = confidence_counts(steps, cells, self.mode).clamp_max(cells)
        counts[-1] = cells  # as published but for a single step, which is the first one and would reveal one cell
        return {
            "mask_ratio": (1 - counts.double() / cells).tolist(),
            "mask_temperature": linear(self.choice_temperature, 0.0, steps),
            "token_temperature": [1 / self.temperature] * steps,
            "guidance": linear(0.0, self.guidance, steps),
        }

    def propose(self, logits: Tensor, tokens: Tensor, unknown: Tensor, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        return super().propose(logits, tokens, torch.ones_like(unknown) if self.redraw_known else unknown, knobs, noise)

    def remask(self, draw: Draw, knobs: StepKnobs, noise: StepNoise) -> Tensor:
        tempered = draw.logits / knobs.token_temperature.clamp_min(MIN_TOKEN_TEMPERATURE)[:, None, None]
        confidence = token_log_prob(tempered, draw.proposal) + knobs.mask_temperature[:, None] * noise.remask
        confidence = confidence.masked_fill(~draw.unknown, float("inf"))
        cells = draw.free.sum(1)
        wanted = (cells - torch.round(knobs.mask_ratio * cells).long()).clamp_min(1)
        # Cells that editing keeps are infinite too and come before those to fill.
        index = (wanted + (~draw.free).sum(1) - 1).clamp_max(confidence.shape[1] - 1)
        return confidence < confidence.sort(dim=1, descending=True).values.gather(1, index[:, None])


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


def parse_sampler(text: str) -> PublishedSampler:
    """A sampler from ``NAME[,OPTION=VALUE,...]``, for instance ``halton,guidance=1.5,top_k=50``.

    Raises:
        ConfigError: unknown sampler or option, or a value of another type.
    """
    name, *rest = [part.strip() for part in text.split(",")]
    values = {key: value for key, _, value in (part.partition("=") for part in rest if part)}
    sampler = published_sampler(name, **values)  # names are checked; values are still texts
    try:
        return TypeAdapter(type(sampler)).validate_python(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise ConfigError(
            f"sampler {name!r}: {fault['loc'][0]} = {fault['input']!r}: {fault['msg']}; write OPTION=VALUE."
        ) from None
