"""Kernel distance (KID: Binkowski et al. 2018, "Demystifying MMD GANs", section 4): squared MMD under a cubic kernel.

The estimator is unbiased, so its expectation does not depend on the number of samples; it may be slightly negative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError
from .frechet import CHUNK
from .prdc import COLUMNS, ROWS, chunks

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(
    fake: Tensor, real: Tensor, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the unbiased squared MMD over random subsets without replacement.

    The kernel is k(x, y) = (x.y / D + 1)^3. Sums are float64.

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
    drawn = [[torch.randperm(len(x), generator=generator)[:size] for x in (fake, real)] for _ in range(subsets)]
    fakes, reals = (torch.stack(each) for each in zip(*drawn, strict=True))
    values = _within(fake, fakes) + _within(real, reals) - 2 * _pair_sums(fake, real, fakes, reals) / size**2
    return float(values.mean()), float(values.std(correction=0))


def _within(x: Tensor, subsets: Tensor) -> Tensor:
    """(S,) float64 mean kernel of two different samples of each (S, n) subset."""
    size = subsets.shape[1]
    own = torch.cat([(part.double().square().sum(1) / x.shape[1] + 1) ** 3 for part in x.split(CHUNK)]).cpu()
    return (_pair_sums(x, x, subsets, subsets) - own[subsets].sum(1)) / (size * (size - 1))


def _pair_sums(x: Tensor, y: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(S,) float64, on the CPU: sums of the kernel over all pairs of a subset of ``x`` and one of ``y``.

    Args:
        x, y: (N, D), (M, D). rows, columns: (S, n), (S, m) int64 indices of the subsets' samples.
    """
    if len(x) * len(y) > rows.numel() * columns.shape[1]:
        pairs = zip(rows.to(x.device), columns.to(y.device), strict=True)
        return torch.stack([_kernel(x[i], y[j]).sum() for i, j in pairs]).cpu()
    # The subsets overlap so much that each pair's kernel is computed once for all of them.
    sums = torch.zeros(len(rows), dtype=torch.float64, device=x.device)
    in_rows, in_columns = (_members(index, len(z)).to(z.device) for index, z in ((rows, x), (columns, y)))
    for here in chunks(len(x), ROWS):
        for there in chunks(len(y), COLUMNS):
            sums += ((in_rows[:, here].double() @ _kernel(x[here], y[there])) * in_columns[:, there]).sum(1)
    return sums.cpu()


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x.double() @ y.double().T).div_(x.shape[1]).add_(1).pow_(3)


def _members(subsets: Tensor, count: int) -> Tensor:
    """(S, count) bool: which samples are in which subset."""
    return torch.zeros(len(subsets), count, dtype=torch.bool).scatter_(1, subsets, True)
