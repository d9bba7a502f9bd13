"""Precision, recall, density and coverage from nearest neighbours, in chunks.

Precision and recall: Kynkaanniemi et al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models",
section 2, k = 3. **Precision is the share of fakes inside the real manifold, recall the share of reals inside the fake
manifold.** Density and coverage: Naeem et al. 2020, "Reliable Fidelity and Diversity Metrics for Generative Models",
section 3, k = 5. All four depend on the sample counts: compare like with like.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError

ROWS, COLUMNS = 1024, 8192
"""Chunk of the distance matrix: 64 MB in float64, whatever the number of samples."""


FEWEST = 6
"""Samples of a set: each needs 5 neighbours beside itself."""


@dataclass(frozen=True)
class Neighbourhoods:
    """The four figures sample by sample; their means are the figures.

    Attributes:
        precision, density: (N,) float64 over fakes. recall, coverage: (M,) float64 over reals.
    """

    precision: Tensor
    recall: Tensor
    density: Tensor
    coverage: Tensor

    def figures(self) -> dict[str, float]:
        return {name: float(value.mean()) for name, value in vars(self).items()}


def neighbourhoods(fake: Tensor, real: Tensor, *, k: int = 3, k_density: int = 5) -> Neighbourhoods:
    """Precision and recall with ``k`` neighbours, density and coverage with ``k_density``.

    A sample is inside a ball when its distance is at most the radius, the distance of the ball's centre to its k-th
    nearest neighbour in its own set (itself not counted). Distances are float64; memory is the features and one chunk.

    Args:
        fake, real: (N, D), (M, D) features.

    Raises:
        DataError: not more than k samples in a set.
    """
    if min(len(fake), len(real)) <= max(k, k_density):
        raise DataError(
            f"{max(k, k_density)} nearest neighbours need more samples than {len(fake)} fake and {len(real)} real."
        )
    # Only differences matter; centring keeps the squares small, so that nothing cancels in |x|^2 + |y|^2 - 2 x.y.
    centre = real.mean(0, dtype=torch.float64)
    real_near = nearest_distances(real, max(k, k_density), centre)
    radius_precision, radius_density = real_near[:, k - 1], real_near[:, k_density - 1]
    radius_recall = nearest_distances(fake, k, centre)[:, k - 1]

    precision = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    density = torch.zeros(len(fake), dtype=torch.float64, device=fake.device)
    recall, coverage = (torch.zeros(len(real), dtype=torch.bool, device=real.device) for _ in range(2))
    for rows in chunks(len(fake), ROWS):
        for columns in chunks(len(real), COLUMNS):
            squared = _squared_distances(fake[rows], real[columns], centre)
            precision[rows] |= (squared <= radius_precision[columns]).any(1)
            recall[columns] |= (squared <= radius_recall[rows, None]).any(0)
            within = squared <= radius_density[columns]
            density[rows] += within.sum(1).double() / k_density
            coverage[columns] |= within.any(0)
    return Neighbourhoods(precision.double(), recall.double(), density, coverage.double())


def nearest_distances(features: Tensor, k: int, centre: Tensor | None = None) -> Tensor:
    """(N, k) float64 squared distances to the 1st..k-th nearest other samples of (N, D) ``features``."""
    centre = features.mean(0, dtype=torch.float64) if centre is None else centre
    out = torch.empty(len(features), k, dtype=torch.float64, device=features.device)
    for rows in chunks(len(features), ROWS):
        best = torch.full((rows.stop - rows.start, k), torch.inf, dtype=torch.float64, device=features.device)
        for columns in chunks(len(features), COLUMNS):
            squared = _squared_distances(features[rows], features[columns], centre)
            own = torch.arange(rows.start, rows.stop, device=features.device)
            own = own[(own >= columns.start) & (own < columns.stop)]
            squared[own - rows.start, own - columns.start] = torch.inf
            best = torch.cat([best, squared.topk(min(k, squared.shape[1]), largest=False).values], 1)
            best = best.topk(k, largest=False).values
        out[rows] = best
    return out


def chunks(count: int, size: int) -> list[slice]:
    """Consecutive slices of at most ``size`` that cover ``count``."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _squared_distances(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
    x, y = x.double() - centre, y.double() - centre
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_(min=0)
