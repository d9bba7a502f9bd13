"""Drawing tokens under knobs: what masked-token and next-scale generators share.

Noise is injected: one uniform a cell draws its token, by inverting the cumulative distribution. Gumbel-max over the
vocabulary has the same law, but would take V random numbers a cell, and per-sample seeds would cost accordingly.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_TOKEN_TEMPERATURE = 1e-6
"""Temperatures below this one are raised to it: the draw is then the arg-max."""
TOP_K_SLACK = 2.4e-7
"""A ``top_k`` that lies by this share, two units of float32's last place, below a whole number is that number: an untrained
policy's 900 is 899.9999 or 900 according to how float32 came to it, and an integer part alone would keep 899 tokens."""


def guide(conditional: Tensor, unconditional: Tensor | None, guidance: Tensor) -> Tensor:
    """cond + g (cond - uncond), g per sample (B,); the conditional logits alone where no unconditional ones are given."""
    if unconditional is None:
        return conditional
    return (conditional - unconditional).mul_(guidance[:, None, None]).add_(conditional)


def draw_tokens(
    logits: Tensor, temperature: Tensor, uniform: Tensor, *, top_k: Tensor | None = None, top_p: Tensor | None = None
) -> Tensor:
    """One categorical draw a cell from softmax(logits / temperature), by inverse transform.

    Args:
        logits: (B, N, V) float32. temperature: (B,). uniform: (B, N) in (0, 1).
        top_k, top_p: (B,), see :func:`keep_likely`. They choose among the logits at temperature one, so the temperature
            does not change which tokens may be drawn.

    Returns:
        (B, N) int64 in [0, V).
    """
    if top_k is not None or top_p is not None:
        logits = keep_likely(logits, top_k, top_p)
    scaled = logits / temperature.clamp_min(MIN_TOKEN_TEMPERATURE)[:, None, None]
    # In place: a copy of the logits is megabytes, and memory is what this waits for.
    cumulative = scaled.sub_(scaled.amax(-1, keepdim=True)).exp_().cumsum_(-1)
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return torch.searchsorted(cumulative.contiguous(), threshold).squeeze(-1).clamp_max(logits.shape[-1] - 1)


def token_log_prob(logits: Tensor, tokens: Tensor) -> Tensor:
    """Log-softmax at a token a cell: (B, N, V), (B, N) -> (B, N); ids outside the vocabulary read its nearest entry.

    The logit less the logarithm of the sum would round to the size of the logits: where one token is all but certain, cells
    would tie that do not.
    """
    index = tokens.clamp(0, logits.shape[-1] - 1).unsqueeze(-1)
    return logits.log_softmax(-1).gather(-1, index).squeeze(-1)


def whole_top_k(top_k: Tensor) -> Tensor:
    """The integer part of ``top_k``, int64 of its shape (see :data:`TOP_K_SLACK`)."""
    return torch.floor(top_k.double() * (1 + TOP_K_SLACK)).long()


def keep_likely(logits: Tensor, top_k: Tensor | None, top_p: Tensor | None) -> Tensor:
    """The logits with minus infinity at unlikely tokens; each sample has its own limits.

    First ``top_k`` (its integer part k): what is strictly below the k-th largest logit goes, ties with it stay; below 1
    it keeps everything, and so does k >= V. Then ``top_p``: of what is left, from the least likely on, tokens go as long
    as their probabilities add up to 1 - top_p or less; the most likely one always stays.

    Args:
        logits: (B, N, V) float32. top_k, top_p: (B,) float32, or None for no such limit.
    """
    size = logits.shape[-1]
    ascending, order = logits.sort(dim=-1, stable=True)
    if top_k is not None:
        kept = whole_top_k(top_k)
        kept = torch.where(kept < 1, size, kept).clamp_max(size)
        least = ascending.gather(-1, (size - kept)[:, None, None].expand(-1, logits.shape[1], 1))
        ascending = ascending.masked_fill(ascending < least, float("-inf"))
    if top_p is not None:
        removed = ascending.softmax(-1).cumsum(-1) <= (1 - top_p)[:, None, None]
        removed[..., -1] = False
        ascending = ascending.masked_fill(removed, float("-inf"))
    return torch.empty_like(logits).scatter_(-1, order, ascending)
