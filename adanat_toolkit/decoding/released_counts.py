"""How many cells, and which ones first: the schedules and orders of the published masked-token samplers.

The rounding decides the counts, so each is computed in the precision of its published code; ``tests/golden`` compares
them. The samplers themselves are in ``released_samplers``.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..errors import ConfigError, nearest


def mask_schedule(ratio: Tensor, method: str, total: int) -> Tensor:
    """Masked share after a share ``ratio`` of the steps (MaskGIT section 3.3), clipped to [1e-6, 1].

    Args:
        ratio: (T,) float32 in (0, 1], (t + 1) / T.
        method: ``uniform``, ``cosine``, ``log``, ``exp`` or ``pow`` with its exponent, as ``pow2.5``.
        total: number of cells to fill (``log`` and ``exp`` depend on it).

    Raises:
        ConfigError: unknown method.
    """
    known = ("uniform", "cosine", "pow2", "log", "exp")
    bits = math.log2(max(total, 1))
    if method == "uniform":
        value = 1 - ratio
    elif method == "cosine":
        value = torch.cos(math.pi / 2 * ratio)
    elif method == "log":
        value = -torch.log2(ratio) / max(bits, 1e-9)  # one cell stays masked until the last step
    elif method == "exp":
        value = 1 - torch.exp2(-bits * (1 - ratio))
    elif method.startswith("pow"):
        try:
            exponent = float(method.removeprefix("pow"))
        except ValueError:
            raise ConfigError(f"mask schedule {method!r} has no exponent; write pow2 or pow2.5.") from None
        value = 1 - ratio**exponent
    else:
        raise ConfigError(f"unknown mask schedule {method!r}{nearest(method, known)} Known: {', '.join(known)}.")
    return value.clamp(1e-6, 1.0)


def step_ratios(steps: int) -> Tensor:
    """(t + 1) / T for t = 0..T-1, (T,) float32."""
    return torch.tensor([(t + 1) / steps for t in range(steps)], dtype=torch.float64).float()


def mask_counts(steps: int, total: int, method: str = "cosine") -> Tensor:
    """floor(total * share): cells to mask after each step before any clamp, (T,) int64."""
    return torch.floor(total * mask_schedule(step_ratios(steps), method, total)).long()


def clamp_count(count: Tensor, unknown: Tensor) -> Tensor:
    """At least one cell stays masked and at least one is revealed: max(1, min(count, unknown - 1))."""
    return torch.minimum(count, unknown - 1).clamp_min(1)


def clamped_counts(steps: int, total: int, method: str = "cosine") -> Tensor:
    """Cells masked after each step of a decoder that clamps, from all masked, (T,) int64."""
    unknown, out = torch.tensor(total), []
    for count in mask_counts(steps, total, method):
        unknown = clamp_count(count, unknown)
        out.append(int(unknown))
    return torch.tensor(out)


def halton_counts(steps: int, total: int) -> Tensor:
    """Cumulative number of revealed cells of the Halton sampler, (T,) int64; more than ``total`` where T is.

    N_i = max(i + 1, int(total (1 - arccos((i + 1) / T) / (pi / 2)))), in float32 as published: the rounding decides.
    """
    share = 1 - torch.arccos(step_ratios(steps)) / (math.pi * 0.5)
    return torch.maximum((share * total).long(), torch.arange(1, steps + 1))


def confidence_counts(steps: int, total: int, mode: str = "arccos", *, clamp: bool = True) -> Tensor:
    """Cumulative number of revealed cells of Halton-MaskGIT's confidence sampler, (T,) int64.

    It is more than ``total`` where T is.

    Args:
        mode: ``root``, ``linear``, ``square``, ``cosine`` or ``arccos``.
        clamp: raise each entry i to at least i + 1 (the first one is 0 without it).

    Raises:
        ConfigError: unknown mode.
    """
    r = torch.linspace(0, 1, steps)
    curves = {
        "root": r**0.5,
        "linear": r,
        "square": r**2,
        "cosine": 1 - torch.cos(r * math.pi * 0.5),
        "arccos": 1 - torch.arccos(r) / (math.pi * 0.5),
    }
    if mode not in curves:
        raise ConfigError(f"unknown mode {mode!r}{nearest(mode, curves)} Known: {', '.join(curves)}.")
    counts = (curves[mode] * total).long()
    return torch.maximum(counts, torch.arange(1, steps + 1)) if clamp else counts


def radical_inverse(base: int, count: int) -> Tensor:
    """The van der Corput sequence 1..count of a base, in (0, 1): digits mirrored at the point, (count,) float64."""
    index, numerator, denominator = torch.arange(1, count + 1), torch.zeros(count, dtype=torch.int64), 1
    while denominator <= count:
        numerator, index, denominator = numerator * base + index % base, index // base, denominator * base
    return numerator.double() / denominator  # one exact division: sums of digits would round at the cells' borders


@lru_cache(maxsize=16)
def halton_order(grid: tuple[int, int], points: int = 10_000) -> Tensor:
    """Cells in the order in which the points of the 2-D Halton sequence (bases 2 and 3) first visit them.

    Args:
        grid: (h, w).
        points: how many points are drawn; the published number leaves cells of very large grids unvisited, so more are
            drawn until all are (the order of those visited earlier does not change).

    Returns:
        (h * w,) int64, row * w + column.
    """
    h, w = grid
    # The published code scales in float32: at cell borders the rounding decides.
    row = torch.floor(radical_inverse(2, points).float() * h).long()
    column = torch.floor(radical_inverse(3, points).float() * w).long()
    seen = dict.fromkeys((row * w + column).tolist())
    return torch.tensor(list(seen)) if len(seen) == h * w else halton_order(grid, 2 * points)
