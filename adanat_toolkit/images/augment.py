"""Flips and shifts of real images."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import DATA, Noise, sample_seeds
from ..errors import DataError


def augment(images: Tensor, seed: int | Tensor, *, flip: bool = False, shift: int = 0) -> Tensor:
    """Random horizontal flips and shifts, a pure function of each sample's seed.

    Args:
        images: (B, 3, H, W), any dtype and device.
        seed: (B,) int64 seeds, one a sample; or one integer, from which sample i of the batch gets its own.
        flip: mirror each image with probability 1/2.
        shift: move each image by a whole number of pixels in [-shift, shift] each way; the border is repeated (the same
            as a random crop of the image padded by ``shift``).

    Returns:
        (B, 3, H, W) of the same dtype.
    """
    batch, _, height, width = images.shape
    if not 0 <= shift < min(height, width):
        raise DataError(f"shift {shift} is outside 0..{min(height, width) - 1} for {height}x{width} images.")
    if not flip and shift == 0:
        return images
    seeds = sample_seeds(seed, 0, 0, batch) if isinstance(seed, int) else seed
    draw = Noise(seeds.to(images.device)).uniform(DATA, 0, (3,))
    offset = (draw[:, :2] * (2 * shift + 1)).floor().long() - shift
    rows = (torch.arange(height, device=images.device)[None] + offset[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device)[None] + offset[:, 1:]).clamp(0, width - 1)
    if flip:
        columns = torch.where(draw[:, 2:] < 0.5, columns.flip(1), columns)
    samples = torch.arange(batch, device=images.device)
    # Advanced indices around a slice put their axes first: (B, H, W, 3).
    return images[samples[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
