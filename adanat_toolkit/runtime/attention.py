"""Attention of short rows, whose fused kernel is slow in bfloat16 on a CPU."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from .devices import fastest_dtype

SHORT = 2**17
"""Weights of a sample (heads x queries x keys) up to which two batched products are taken. It goes by the sample alone:
what an image looks like must not depend on the batch. Rows of 257 in 16 heads, a published network's, are above it."""


@functools.cache
def _multiplies_fast() -> bool:
    """Whether this CPU has products of bfloat16."""
    return fastest_dtype(torch.device("cpu"))[0] == torch.bfloat16


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention with the scale 1 / sqrt(d).

    torch's fused kernel does not use a CPU's bfloat16 products as well as its batched products do: these take 0.6 of its
    time at 65 positions (docs/results/profile.md). Their weights are rounded once more, before the softmax.

    Args:
        query: (B, heads, n, d). key, value: (B, heads, m, d).

    Returns:
        (B, heads, n, d) in the type of the inputs.
    """
    batch, heads, rows, width = query.shape
    keys = key.shape[2]
    short = heads * rows * keys <= SHORT
    if not (short and query.dtype == torch.bfloat16 and query.device.type == "cpu" and _multiplies_fast()):
        return F.scaled_dot_product_attention(query, key, value)
    query = query.reshape(batch * heads, rows, width)
    key, value = (x.reshape(batch * heads, keys, width) for x in (key, value))
    ignored = query.new_empty(1, 1, 1)
    weights = torch.baddbmm(ignored, query, key.transpose(1, 2), beta=0, alpha=width**-0.5).softmax(2)
    return torch.bmm(weights, value).view(batch, heads, rows, width)
