"""How much images of one context differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core import Context
from ..runtime import distributed

if TYPE_CHECKING:
    pass


MINIMUM_WIDTH = 16
"""Numbers an image below which an embedding holds scores, not features."""


MINIMUM_PAIRS = 8
"""Degrees of freedom below which a batch says nothing about the diversity within a context."""


_COLUMNS = 4096


def context_diversity(embedded: Tensor, context: Context) -> float | None:
    """Root-mean-square distance between two images of one context, in the space that the reward reads images in.

    It has no unit, and may be compared within a run only. Every context with two or more images in the batch counts,
    weighted by its degrees of freedom. All processes must call it together.

    Args:
        embedded: (B, ...) of ``RewardModel.embed``. context: B contexts, whose images have independent noise.

    Returns:
        The distance, or None: too few images share a context, or the embedding is no set of features.
    """
    _, inverse = context.distinct()
    inverse = inverse.to(embedded.device)
    count = torch.bincount(inverse)
    flat = embedded.flatten(1)
    scatter = torch.zeros((), dtype=torch.float64, device=embedded.device)
    for columns in flat.split(_COLUMNS, dim=1):  # a float32 copy of everything may not fit
        values = columns.float()
        sums = torch.zeros(len(count), values.shape[1], device=values.device).index_add_(0, inverse, values)
        scatter += (values - (sums / count[:, None])[inverse]).square().sum(dtype=torch.float64)
    freedom = (count - 1).sum().double()
    total, pairs = distributed.sum_over_ranks(torch.stack([scatter, freedom])).tolist()
    if flat.shape[1] < MINIMUM_WIDTH or pairs < MINIMUM_PAIRS:
        return None
    return float((2 * total / pairs) ** 0.5)
