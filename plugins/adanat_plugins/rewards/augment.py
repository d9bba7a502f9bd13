"""Differentiable augmentation of what a discriminator sees, real and generated alike (Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["color", "translation", "cutout"]

TRANSLATION = 1 / 8
"""Largest shift as a share of the side."""
CUTOUT = 1 / 2
"""Side of the removed square as a share of the image's."""


@dataclass(frozen=True)
class _Draw:
    """Random numbers of B images that are number ``start``, ``start + 1``, ... of ``total``."""

    generator: torch.Generator
    start: int
    total: int


def augment(
    images: Tensor,
    kinds: Sequence[Augmentation],
    generator: torch.Generator,
    *,
    start: int = 0,
    total: int | None = None,
) -> Tensor:
    """Augment each image on its own; differentiable in the images.

    Args:
        images: (B, 3, H, W) float in [0, 1]. generator: on the CPU, the only source of randomness.
        start, total: the images are number ``start``, ``start + 1``, ... of ``total`` (of all processes; default: B). An
            image's random numbers depend on its number alone, and the generator advances alike in all processes.

    Returns:
        (B, 3, H, W); colours may leave [0, 1], and what is shifted in or cut out is mid-grey.
    """
    draw = _Draw(generator, start, len(images) if total is None else total)
    x = 2 * images - 1  # the paper's range: black to white is -1 to 1 and padding is 0
    for kind in kinds:
        x = _KINDS[kind](x, draw)
    return (x + 1) / 2


def _uniform(x: Tensor, low: float, high: float, draw: _Draw) -> Tensor:
    """(B, 1, 1, 1) numbers, the same on every device."""
    numbers = torch.rand(draw.total, 1, 1, 1, generator=draw.generator)[draw.start : draw.start + len(x)]
    return (low + (high - low) * numbers).to(x)


def _offsets(x: Tensor, low: int, high: int, draw: _Draw) -> Tensor:
    """(B, 1) int64 numbers in low..high."""
    numbers = torch.randint(low, high + 1, (draw.total, 1), generator=draw.generator)
    return numbers[draw.start : draw.start + len(x)].to(x.device)


def _color(x: Tensor, draw: _Draw) -> Tensor:
    """Brightness +-0.5, saturation times 0..2, contrast times 0.5..1.5."""
    x = x + _uniform(x, -0.5, 0.5, draw)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * _uniform(x, 0, 2, draw) + grey
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * _uniform(x, 0.5, 1.5, draw) + mean


def _translation(x: Tensor, draw: _Draw) -> Tensor:
    """Shift by up to an eighth of each side, zeros shifted in."""
    batch, _, height, width = x.shape
    rows, row_inside = _shifted(x, height, draw)
    columns, column_inside = _shifted(x, width, draw)
    sample = torch.arange(batch, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * (row_inside[:, :, None] & column_inside[:, None, :])[:, None].to(x.dtype)


def _shifted(x: Tensor, side: int, draw: _Draw) -> tuple[Tensor, Tensor]:
    """Source index (B, side) along one side after a random shift, clamped, and where it is inside."""
    most = int(side * TRANSLATION + 0.5)
    source = torch.arange(side, device=x.device)[None] + _offsets(x, -most, most, draw)
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cutout(x: Tensor, draw: _Draw) -> Tensor:
    """Zero a square of half the side around a random centre; it may stick out."""
    keep = [_outside(x, side, draw) for side in x.shape[2:]]
    return x * (keep[0][:, :, None] | keep[1][:, None, :])[:, None].to(x.dtype)


def _outside(x: Tensor, side: int, draw: _Draw) -> Tensor:
    """(B, side) bool: not within the removed stretch."""
    length = int(side * CUTOUT + 0.5)
    start = _offsets(x, 0, side - 1 + (1 - length % 2), draw) - length // 2
    position = torch.arange(side, device=x.device)[None]
    return (position < start) | (position >= start + length)


_KINDS = {"color": _color, "translation": _translation, "cutout": _cutout}
