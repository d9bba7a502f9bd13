"""How much images of one context differ."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from ..core import Context
from ..runtime import distributed

MINIMUM_WIDTH = 16
"""Numbers an image below which an embedding holds scores, not features."""


MINIMUM_PAIRS = 8
"""Degrees of freedom below which a batch says nothing about the diversity within a context."""


_COLUMNS = 4096


def context_diversity(embedded: Tensor, context: Context) -> float | None:
    """Root-mean-square distance between two images of one context, in the space that the reward reads images in.

    It has no unit, and may be compared within a run only. Every context with two or more images in the batch counts,
    weighted by its degrees of freedom, also where its images are in several processes. All processes must call it together.

    Args:
        embedded: (B, ...) of ``RewardModel.embed``. context: B contexts, whose images have independent noise.

    Returns:
        The distance, or None: too few images share a context, or the embedding is no set of features.
    """
    if distributed.world_size() == 1:
        inverse = context.distinct()[1].to(embedded.device)
        count = torch.bincount(inverse)
    else:
        start, _ = distributed.position(len(context), embedded.device)
        keys = distributed.gather(context_numbers(context, start, embedded.device))
        everyone = keys.unique(return_inverse=True)[1]
        inverse, count = everyone[start : start + len(context)], torch.bincount(everyone)
    flat = embedded.flatten(1)
    scatter = torch.zeros((), dtype=torch.float64, device=embedded.device)
    for columns in flat.split(_COLUMNS, dim=1):  # a float32 copy of everything may not fit
        values = columns.float()
        sums = torch.zeros(len(count), values.shape[1], device=values.device).index_add_(0, inverse, values)
        sums = distributed.sum_over_ranks(sums)
        scatter += (values - (sums / count[:, None])[inverse]).square().sum(dtype=torch.float64)
    total, pairs = torch.stack([distributed.sum_over_ranks(scatter), (count - 1).sum().double()]).tolist()
    if flat.shape[1] < MINIMUM_WIDTH or pairs < MINIMUM_PAIRS:
        return None
    return float((2 * total / pairs) ** 0.5)


def context_numbers(context: Context, start: int, device: torch.device) -> Tensor:
    """(B,) int64 that tell contexts apart, the same in all processes. start: position of the first sample (``keys``)."""
    keys = context.keys(start)
    return torch.tensor([key if isinstance(key, int) else _number(key) for key in keys], dtype=torch.int64, device=device)


def _number(prompt: str) -> int:
    """The same one in all processes, which Python's own hash is not."""
    digest = hashlib.sha256(prompt.encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
