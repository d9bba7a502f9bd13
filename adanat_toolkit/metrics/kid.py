"""Kernel distance (KID: Binkowski et al. 2018, "Demystifying MMD GANs", section 4): squared MMD under a cubic kernel.

The estimator is unbiased, so its expectation does not depend on the number of samples; it may be slightly negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError

SUBSETS = 100
SUBSET_SIZE = 1000


def polynomial_mmd(fake: Tensor, real: Tensor) -> Tensor:
    """Unbiased squared MMD under k(x, y) = (x.y / D + 1)^3.

    Args:
        fake, real: (n, D) and (m, D) float64, n and m >= 2.

    Returns:
        () float64.
    """

    def inner(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T).div_(x.shape[1]).add_(1)

    def cubes(k: Tensor) -> Tensor:
        return (k * k).flatten().dot(k.flatten())

    def within(x: Tensor) -> Tensor:
        kernel = inner(x, x)
        return (cubes(kernel) - (kernel.diagonal() ** 3).sum()) / (len(x) * (len(x) - 1))

    return within(fake) + within(real) - 2 * cubes(inner(fake, real)) / (len(fake) * len(real))


def kernel_distance(
    fake: Tensor, real: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the unbiased squared MMD over random subsets without replacement.

    Args:
        fake, real: (N, D) and (M, D) features.
        subset_size: made smaller where there are fewer samples. seed: of the subsets.

    Raises:
        DataError: fewer than 2 samples, or unlike dimensions.
    """
    size = min(subset_size, len(fake), len(real))
    if size < 2 or fake.shape[1] != real.shape[1]:
        raise DataError(f"KID needs two sets of at least 2 samples of equal width, got {fake.shape} and {real.shape}.")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x = fake[torch.randperm(len(fake), generator=generator)[:size].to(fake.device)].double()
        y = real[torch.randperm(len(real), generator=generator)[:size].to(real.device)].double()
        values.append(polynomial_mmd(x, y))
    drawn = torch.stack(values)
    return float(drawn.mean()), float(drawn.std(correction=0))
