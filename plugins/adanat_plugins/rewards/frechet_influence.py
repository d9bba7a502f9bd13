"""First-order influence of a sample on the Frechet distance of its set (derived in docs/fid-influence.md).

With F = |m - n|^2 + tr(S + R - 2 (R^1/2 S R^1/2)^1/2) for generated moments (m, S) and reference moments (n, R), mixing
a mass e of the point x into the generated distribution changes F by e IF(x) + O(e^2),

    IF(x) = 2 (m - n).(x - m) + (x - m)^T (I - T) (x - m) - tr((I - T) S),

where T = R^1/2 (R^1/2 S R^1/2)^-1/2 R^1/2 is the optimal-transport map from N(0, S) to N(0, R).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """A distribution of features by its first two moments, float64.

    Attributes:
        weight: how many samples it stands for (need not be whole). mean: (D,).
        covariance: (D, D), divided by the weight.
    """

    weight: float
    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> Moments:
        """Moments of (N, D) features."""
        values = features.double()
        mean = values.mean(0)
        centred = values - mean
        return cls(float(len(values)), mean, centred.T @ centred / len(values))

    def blend(self, other: Moments) -> Moments:
        """The mixture of both, each with its weight; exact."""
        total = self.weight + other.weight
        share = other.weight / total
        delta = other.mean - self.mean
        spread = torch.outer(delta, delta) * (share * (1 - share))
        covariance = self.covariance * (1 - share) + other.covariance * share + spread
        return Moments(total, self.mean + delta * share, covariance)

    def scaled(self, factor: float) -> Moments:
        """The same distribution standing for ``factor`` times as many samples."""
        return Moments(self.weight * factor, self.mean, self.covariance)


class FrechetInfluence:
    """Distance to a fixed reference, and its derivative by the mass of each sample.

    Both sides are convolved with isotropic noise N(0, s I), s = shrinkage * tr(R) / D: every covariance has full rank,
    the distance stays zero exactly for equal moments, and the derivative is exact for the distance so defined.

    Args:
        mean: (D,) and covariance: (D, D), float64, of the reference. shrinkage: s as a share of the reference's mean
            variance.
    """

    def __init__(self, mean: Tensor, covariance: Tensor, shrinkage: float) -> None:
        self.mean = mean
        self.noise = shrinkage * float(covariance.trace()) / len(mean)
        self._eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        reference = covariance + self.noise * self._eye
        values, vectors = torch.linalg.eigh(reference)
        self._root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        self._trace = float(reference.trace())

    def _decompose(self, moments: Moments) -> tuple[Tensor, Tensor]:
        """Eigenvalues' square roots and eigenvectors of R^1/2 S R^1/2: the one costly operation, O(D^3)."""
        product = self._root @ (moments.covariance + self.noise * self._eye) @ self._root
        values, vectors = torch.linalg.eigh((product + product.T) / 2)
        # Rounding leaves eigenvalues near 0 uncertain by about 1e-16 of the largest.
        return values.clamp(min=float(values[-1]) * 1e-15).sqrt(), vectors

    def distance(self, moments: Moments) -> float:
        """Squared Frechet distance of the two smoothed Gaussians."""
        return self._distance(moments, self._decompose(moments)[0])

    def _distance(self, moments: Moments, roots: Tensor) -> float:
        trace = float(moments.covariance.trace()) + self.noise * len(self.mean) + self._trace
        return float((moments.mean - self.mean).square().sum()) + trace - 2 * float(roots.sum())

    def __call__(self, features: Tensor, moments: Moments) -> tuple[Tensor, float]:
        """Influence of each sample, and the distance.

        Args:
            features: (N, D). moments: the generated distribution; its own samples' influences average to 0.

        Returns:
            (N,) float64, negative where more of the sample brings the sets closer; and the distance.
        """
        roots, vectors = self._decompose(moments)
        basis = self._root @ vectors  # T = basis diag(1 / roots) basis^T
        deviation = features.double() - moments.mean
        transported = ((deviation @ basis).square() / roots).sum(1)
        trace_ts = roots.sum() - self.noise * (basis.square().sum(0) / roots).sum()
        expected = moments.covariance.trace() - trace_ts
        shift = 2 * deviation @ (moments.mean - self.mean)
        return shift + deviation.square().sum(1) - transported - expected, self._distance(moments, roots)
