"""Differentiable augmentation of what a discriminator sees, real and generated alike (Zhao et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["color", "translation", "cutout"]

TRANSLATION = 1 / 8
"""Largest shift as a share of the side."""
CUTOUT = 1 / 2
"""Side of the removed square as a share of the image's."""


def augment(images: Tensor, kinds: Sequence[Augmentation], generator: torch.Generator) -> Tensor:
    """Augment each image on its own; differentiable in the images.

    Args:
        images: (B, 3, H, W) float in [0, 1]. generator: on the CPU, the only source of randomness.

    Returns:
        (B, 3, H, W); colours may leave [0, 1], and what is shifted in or cut out is mid-grey.
    """
    x = 2 * images - 1  # the paper's range: black to white is -1 to 1 and padding is 0
    for kind in kinds:
        x = _KINDS[kind](x, generator)
    return (x + 1) / 2


def _uniform(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """(B, 1, 1, 1) numbers, the same on every device."""
    return (low + (high - low) * torch.rand(x.shape[0], 1, 1, 1, generator=generator)).to(x)


def _offsets(x: Tensor, low: int, high: int, generator: torch.Generator) -> Tensor:
    """(B, 1) int64 numbers in low..high."""
    return torch.randint(low, high + 1, (x.shape[0], 1), generator=generator).to(x.device)


def _color(x: Tensor, generator: torch.Generator) -> Tensor:
    """Brightness +-0.5, saturation times 0..2, contrast times 0.5..1.5."""
    x = x + _uniform(x, -0.5, 0.5, generator)
    grey = x.mean(dim=1, keepdim=True)
    x = (x - grey) * _uniform(x, 0, 2, generator) + grey
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    return (x - mean) * _uniform(x, 0.5, 1.5, generator) + mean


def _translation(x: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to an eighth of each side, zeros shifted in."""
    batch, _, height, width = x.shape
    rows, row_inside = _shifted(x, height, generator)
    columns, column_inside = _shifted(x, width, generator)
    sample = torch.arange(batch, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    return moved * (row_inside[:, :, None] & column_inside[:, None, :])[:, None].to(x.dtype)


def _shifted(x: Tensor, side: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Source index (B, side) along one side after a random shift, clamped, and where it is inside."""
    most = int(side * TRANSLATION + 0.5)
    source = torch.arange(side, device=x.device)[None] + _offsets(x, -most, most, generator)
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cutout(x: Tensor, generator: torch.Generator) -> Tensor:
    """Zero a square of half the side around a random centre; it may stick out."""
    keep = [_outside(x, side, generator) for side in x.shape[2:]]
    return x * (keep[0][:, :, None] | keep[1][:, None, :])[:, None].to(x.dtype)


def _outside(x: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """(B, side) bool: not within the removed stretch."""
    length = int(side * CUTOUT + 0.5)
    start = _offsets(x, 0, side - 1 + (1 - length % 2), generator) - length // 2
    position = torch.arange(side, device=x.device)[None]
    return (position < start) | (position >= start + length)


_KINDS = {"color": _color, "translation": _translation, "cutout": _cutout}
