"""The one parallel-decoding step of every masked-token generator (AdaNAT section 3.1; MaskGIT section 3.2).

Noise is injected: one uniform a cell draws its token, one Gumbel a cell perturbs its confidence. Nothing here reads global
random state. How tokens are drawn is in ``draws``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .draws import draw_tokens, guide, token_log_prob


class StepKnobs(NamedTuple):
    """Physical values of one step, each (B,) float32; see ``actions.TOKEN_KNOBS`` for meanings and ranges."""

    mask_ratio: Tensor
    mask_temperature: Tensor
    token_temperature: Tensor
    guidance: Tensor


class StepNoise(NamedTuple):
    """``token``: (B, N) float32 uniform in (0, 1); ``remask``: (B, N) float32 standard Gumbel."""

    token: Tensor
    remask: Tensor


class StepResult(NamedTuple):
    """``proposal``: (B, N) int64 with no mask left; ``tokens``: (B, N) int64, the proposal with some cells masked again;
    ``log_prob``: (B, N) float32, log-probability of the proposal under the guided logits at temperature one."""

    proposal: Tensor
    tokens: Tensor
    log_prob: Tensor


def remask_count(mask_ratio: Tensor, cells: Tensor | int) -> Tensor:
    """k = min(floor(cells * ratio), cells - 1): how many cells a step asks to mask again, (B,) int64, >= 0."""
    count = torch.floor(mask_ratio * cells).long()
    most = torch.minimum(count, cells - 1) if isinstance(cells, Tensor) else count.clamp_max(cells - 1)
    return most.clamp_min(0)


def masked_decoding_step(
    tokens: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    knobs: StepKnobs,
    noise: StepNoise,
    mask_id: int,
    editable: Tensor | None = None,
) -> StepResult:
    """One step: guide, draw every unknown cell, mask the least confident cells again.

    Args:
        tokens: (B, N) int64; ``mask_id`` marks unknown cells, which alone are drawn.
        conditional: (B, N, V) logits given the context; unconditional: the same for the null context, or None for g = 0.
        knobs: physical values per sample.
        noise: see :class:`StepNoise`.
        editable: (B, N) bool, or None for all: in masked editing, the cells the generator may change; the masking ratio is
            then a share of these.

    Returns:
        :class:`StepResult`. Every sample is independent of the others. The cut-off is the k-th smallest confidence counting
        from 0 and cells strictly below it are masked: k cells, fewer where confidences tie at the cut-off, and no more than
        were unknown, since known cells have infinite confidence.
    """
    unknown = tokens == mask_id
    logits = guide(conditional, unconditional, knobs.guidance)
    drawn = draw_tokens(logits, knobs.token_temperature, noise.token)
    proposal = torch.where(unknown, drawn, tokens)

    # Confidence uses temperature ONE, not the sampling temperature (as the published code; the paper's text is silent).
    log_prob = token_log_prob(logits, proposal)
    confidence = log_prob + knobs.mask_temperature[:, None] * noise.remask
    confidence = confidence.masked_fill(~unknown, float("inf"))

    cells = tokens.shape[1] if editable is None else editable.sum(1)
    count = remask_count(knobs.mask_ratio, cells)
    cutoff = confidence.sort(dim=1).values.gather(1, count[:, None])
    return StepResult(proposal, proposal.masked_fill(confidence < cutoff, mask_id), log_prob)
