"""Running sums over the contexts of earlier images: what ``baseline`` and engine ``slopes`` regress on contexts with.

Images of an iteration weigh less with each that follows. ``count`` holds the sum of the weights and that of their squares,
``vector`` and ``vectors`` those of the contexts' vectors v and of v v^T; what else is summed is the caller's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime import distributed

Sums = dict[str, Tensor]

SPREAD = 1e-6
"""Share of the largest variance of the contexts' vectors below which a direction is rounding."""


def no_sums(width: int, device: torch.device, **others: tuple[int, ...]) -> Sums:
    """Sums over nothing: float64, of vectors (P,), and of ``others`` in the shapes that they name."""
    shapes = {"count": (2,), "vector": (width,), "vectors": (width, width), **others}
    return {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}


def remembered(sums: Sums, memory: float, vectors: Tensor, **others: Tensor) -> Sums:
    """``sums``, each ``memory`` of what it was, with an iteration's (B, P) float64 ``vectors`` and its sums of ``others``.

    All processes call it together, each with its own images.
    """
    made = {
        "count": torch.full((2,), float(len(vectors)), dtype=torch.float64, device=vectors.device),
        "vector": vectors.sum(0),
        "vectors": vectors.T @ vectors,
        **others,
    }
    faded = {name: memory * value for name, value in sums.items()}
    faded["count"][1] *= memory  # the squares of weights are forgotten twice
    return {name: value + distributed.sum_over_ranks(made[name]) for name, value in faded.items()}


def spread(count: Tensor, vector: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (p,) and directions (P, p) in which contexts' vectors, of length 1, differ by more than rounding."""
    centre = vector / count[0]
    variances, directions = torch.linalg.eigh(vectors / count[0] - torch.outer(centre, centre))
    real = variances > SPREAD * variances[-1].clamp_min(SPREAD)
    return variances[real], directions[:, real]
