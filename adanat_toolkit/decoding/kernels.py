"""The decoding step in two Triton kernels: the logits are read once, and nothing of their size is written.

``masked_decoding.masked_decoding_step`` is the reference, cell by cell in float32. What can differ: sums over the vocabulary
are taken in another order, so ``log_prob`` differs by rounding, a draw whose uniform number falls within rounding of a
boundary between two tokens may take the neighbour with probability above zero, and a cell whose confidence lies within
rounding of the cut-off may change sides. ``fused`` decides when they run; importing this module needs Triton.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .draws import MIN_TOKEN_TEMPERATURE
from .masked_decoding import StepKnobs, StepNoise, StepResult

LARGEST_VOCABULARY = 16_384
"""A row of logits is held in registers; larger ones would spill."""
LARGEST_BLOCK = 128
"""Cells whose confidences are compared with each other at once."""
COLDEST = tl.constexpr(MIN_TOKEN_TEMPERATURE)


@triton.jit
def _draw(
    tokens,
    conditional,
    unconditional,
    guidance,
    temperature,
    remask_temperature,
    uniform,
    gumbel,
    proposal,
    log_prob,
    confidence,
    mask_id,
    cells,
    conditional_sample,
    conditional_cell,
    unconditional_sample,
    unconditional_cell,
    guidance_stride,
    temperature_stride,
    remask_stride,
    VOCABULARY: tl.constexpr,
    BLOCK: tl.constexpr,
    GUIDED: tl.constexpr,
):
    """One program a cell: its proposal, the proposal's log-probability, and its confidence."""
    row = tl.program_id(0).to(tl.int64)  # offsets of logits pass 2^31
    sample, cell = row // cells, row % cells
    lane = tl.arange(0, BLOCK)
    inside = lane < VOCABULARY
    place = conditional + sample * conditional_sample + cell * conditional_cell + lane
    logits = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        place = unconditional + sample * unconditional_sample + cell * unconditional_cell + lane
        other = tl.load(place, mask=inside, other=0.0).to(tl.float32)
        strength = tl.load(guidance + sample * guidance_stride).to(tl.float32)
        logits = (logits - other) * strength + logits
    logits = tl.where(inside, logits, -float("inf"))

    warmth = tl.maximum(tl.load(temperature + sample * temperature_stride).to(tl.float32), COLDEST)
    scaled = tl.div_rn(logits, tl.zeros_like(logits) + warmth)
    weight = tl.exp(scaled - tl.max(scaled, 0))
    cumulative = tl.cumsum(weight, 0)
    # A parallel sum may fall by rounding from one token to the next, so the first of them that reaches the threshold is
    # looked for among tokens that have a probability.
    likely = weight > 0
    threshold = tl.load(uniform + row) * tl.max(tl.where(likely, cumulative, 0.0), 0)
    drawn = tl.min(tl.where(likely & (cumulative >= threshold), lane, VOCABULARY - 1), 0).to(tl.int64)
    before = tl.load(tokens + row)
    unknown = before == mask_id
    chosen = tl.where(unknown, drawn, before)

    # At temperature one, as the reference.
    largest = tl.max(logits, 0)
    normaliser = tl.log(tl.sum(tl.exp(logits - largest), 0))
    own = tl.sum(tl.where(lane == tl.minimum(chosen, VOCABULARY - 1), logits, 0.0), 0) - largest - normaliser
    noise = tl.load(remask_temperature + sample * remask_stride).to(tl.float32) * tl.load(gumbel + row)
    tl.store(proposal + row, chosen)
    tl.store(log_prob + row, own)
    tl.store(confidence + row, tl.where(unknown, own + noise, float("inf")))


@triton.jit
def _remask(
    proposal,
    confidence,
    ratio,
    editable,
    tokens,
    mask_id,
    cells,
    ratio_stride,
    BLOCK: tl.constexpr,
    EDITED: tl.constexpr,
):
    """One program a block of a sample's cells: those below its k-th smallest confidence are masked.

    A value is below the k-th smallest one, counted from 0, where at most k values are not above it: no sort is needed.
    """
    first = tl.program_id(0).to(tl.int64) * cells
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(confidence + first + own, mask=own < cells, other=float("inf"))
    not_above = tl.zeros([BLOCK], tl.int32)
    changeable = cells
    if EDITED:
        changeable = cells * 0
    for start in range(0, cells, BLOCK):
        other = start + tl.arange(0, BLOCK)
        there = other < cells
        compared = tl.load(confidence + first + other, mask=there, other=float("inf"))
        smaller = (compared[None, :] <= value[:, None]) & there[None, :]
        not_above += tl.sum(smaller.to(tl.int32), 1)
        if EDITED:
            changeable += tl.sum(tl.load(editable + first + other, mask=there, other=0).to(tl.int32), 0)
    share = tl.load(ratio + tl.program_id(0) * ratio_stride).to(tl.float32) * changeable.to(tl.float32)
    count = tl.maximum(tl.minimum(tl.floor(share).to(tl.int32), changeable - 1), 0)
    token = tl.load(proposal + first + own, mask=own < cells, other=0)
    masked = (not_above <= count) & (not_above > 0)  # a confidence that is not a number is not above itself either
    tl.store(tokens + first + own, tl.where(masked, mask_id, token), mask=own < cells)


def decoding_step(
    tokens: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    knobs: StepKnobs,
    noise: StepNoise,
    mask_id: int,
    editable: Tensor | None = None,
) -> StepResult:
    """``masked_decoding_step`` by kernels: its arguments and result. Logits may be bfloat16; all is computed in float32.

    Raises:
        ValueError: the vocabulary is larger than :data:`LARGEST_VOCABULARY`. Whatever Triton raises where it cannot compile.
    """
    samples, cells, vocabulary = conditional.shape
    if vocabulary > LARGEST_VOCABULARY:
        raise ValueError(f"the vocabulary has {vocabulary:,} entries, more than {LARGEST_VOCABULARY:,}")
    tokens, uniform, gumbel = tokens.contiguous(), noise.token.contiguous(), noise.remask.contiguous()
    conditional = _rows(conditional)
    other = conditional if unconditional is None else _rows(unconditional)
    proposal, remasked = torch.empty_like(tokens), torch.empty_like(tokens)
    log_prob, confidence = torch.empty_like(uniform), torch.empty_like(uniform)
    block = triton.next_power_of_2(vocabulary)
    if samples and cells:
        _draw[(samples * cells,)](
            tokens,
            conditional,
            other,
            knobs.guidance,
            knobs.token_temperature,
            knobs.mask_temperature,
            uniform,
            gumbel,
            proposal,
            log_prob,
            confidence,
            mask_id,
            cells,
            conditional.stride(0),
            conditional.stride(1),
            other.stride(0),
            other.stride(1),
            knobs.guidance.stride(0),
            knobs.token_temperature.stride(0),
            knobs.mask_temperature.stride(0),
            VOCABULARY=vocabulary,
            BLOCK=block,
            GUIDED=unconditional is not None,
            num_warps=min(max(block // 512, 1), 16),
        )
        together = min(triton.next_power_of_2(cells), LARGEST_BLOCK)
        _remask[(samples, triton.cdiv(cells, together))](
            proposal,
            confidence,
            knobs.mask_ratio,
            tokens if editable is None else editable.contiguous(),
            remasked,
            mask_id,
            cells,
            knobs.mask_ratio.stride(0),
            BLOCK=together,
            EDITED=editable is not None,
        )
    return StepResult(proposal, remasked, log_prob)


def _rows(logits: Tensor) -> Tensor:
    """The logits with each row in one piece; repeated samples (an expanded tensor) are not copied."""
    return logits if logits.stride(2) == 1 else logits.contiguous()
