"""Confidence intervals: over seeds (Student's t), and over samples (bootstrap)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import DataError

Interval = tuple[float, float]


def bootstrap_interval(
    statistic: Callable[[Tensor], float], count: int, *, resamples: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    """Interval of a figure under resampling of its samples with replacement.

    Args:
        statistic: (count,) int64 indices -> the figure of these samples.
        count: number of samples.
    """
    own = statistic(torch.arange(count))
    return resampled_interval(own, resampled(statistic, count, resamples=resamples, seed=seed), level=level)


def resampled(statistic: Callable[[Tensor], float], count: int, *, resamples: int = 200, seed: int = 0) -> Tensor:
    """(resamples,) float64: the figure of ``count`` samples drawn with replacement, again and again. The draws are the same
    for equal counts and seeds, so that the figures of two sets are drawn in pairs."""
    generator = torch.Generator().manual_seed(seed)
    draws = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)]
    return torch.tensor(draws, dtype=torch.float64)


def resampled_interval(own: float, values: Tensor, *, level: float = 0.95) -> Interval:
    """The percentiles of the resampled figures, moved so that the resamples' mean falls on the figure itself.

    The move matters for Frechet distances: duplicates in a resample raise them, which says nothing about the figure at its own
    sample count.
    """
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (values.quantile(tail) - values.mean() + own).tolist()
    return low, high


def deciles(values: Tensor) -> tuple[Tensor, Tensor]:
    """The 10 and 90 % quantiles over the first axis, float64: (N, T, K) -> two of (T, K).

    Step by step: some versions of torch refuse more than 2**24 numbers at once, and all sort them in one piece.
    """
    at = torch.tensor([0.1, 0.9], dtype=torch.float64, device=values.device)
    found = [torch.quantile(step.double(), at, dim=0) for step in values.unbind(1)]
    low, high = torch.stack(found, 1)
    return low, high


def mean_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of independent runs (seeds).

    Raises:
        DataError: fewer than two values.
    """
    if len(values) < 2:
        raise DataError(f"an interval over seeds needs at least 2 runs, got {len(values)}; run more seeds.")
    x = torch.tensor(list(values), dtype=torch.float64)
    half = _t_quantile((1 + level) / 2, len(x) - 1) * float(x.std()) / math.sqrt(len(x))
    return float(x.mean()) - half, float(x.mean()) + half


def _t_quantile(p: float, freedom: int) -> float:
    """Inverse of Student's t distribution, by bisection on its closed form for whole degrees of freedom (p > 1/2)."""

    def cumulative(t: float) -> float:
        # Abramowitz and Stegun 26.7.3 and 26.7.4, in theta = atan(t / sqrt(freedom)).
        theta = math.atan(t / math.sqrt(freedom))
        cosine = math.cos(theta)
        odd = freedom % 2
        term = cosine if odd else 1.0
        total = 0.0
        for j in range(freedom // 2):
            total += term
            term *= cosine**2 * ((2 * j + 2) / (2 * j + 3) if odd else (2 * j + 1) / (2 * j + 2))
        area = 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
        return (1 + area) / 2

    low, high = 0.0, 1.0
    while cumulative(high) < p:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if cumulative(middle) < p else (low, middle)
    return (low + high) / 2
