"""What scores are divided by, so that a reward's unit makes no difference."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime import distributed

EPSILON = 1e-7
"""Added to a standard deviation, where scores are of an ordinary size."""
SMALL = 1e-4
"""Spreads from here on are never mistaken for rounding by :data:`EPSILON`; below it, what is added falls with them."""


def guarded(std: Tensor, mean: Tensor, around: Tensor | None = None) -> Tensor:
    """A standard deviation plus what keeps rounding from counting as spread: ``EPSILON``, or less for small scores.

    Scores that all lie within 1e-9 are as good as those within 1: what is added is at most a thousandth of such a spread. It
    is no less than the rounding of float32 at the scores' own size, so that equal scores stay equal.

    Args:
        std: () of what is divided. mean: () of the scores. around: () their standard deviation, where ``std`` is of what was
            left of them after a baseline.
    """
    size = torch.hypot(mean, std if around is None else around)
    return std + EPSILON * torch.maximum(size, std / SMALL).clamp(1e-25, 1)


def mean_and_divisor(values: Tensor, scores: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """() mean of ``values``, and what they are divided by. All processes call it together.

    Args:
        scores: what a baseline was taken off, where ``values`` are what was left; None: ``values`` themselves.
    """
    mean, std = distributed.mean_and_std(values)
    return mean, guarded(std, mean) if scores is None else guarded(std, *distributed.mean_and_std(scores))
