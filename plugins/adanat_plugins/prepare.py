"""What every network that reads images does first: resize, normalise, fill up small batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_BATCH, GPU_BATCH = 16, 64
"""Images a forward of a large network."""


def prepare_images(
    images: Tensor,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    mode: str = "bicubic",
    squash: bool = False,
) -> Tensor:
    """What torchvision's Resize, CenterCrop, ToTensor and Normalize do to the saved image.

    Values are rounded to 8 bit before and after the resize, as a PNG and PIL round them, so that a score in training is
    the score of the file. Agrees with PIL to two grey levels at single pixels (PIL's weights are in fixed point).

    Args:
        images: (B, 3, H, W) float in [0, 1].
        size: side of the result in pixels; the shorter side is brought to it, and the middle of the longer one is kept.
        mode: ``bicubic`` or ``bilinear``, antialiased. squash: resize both sides instead of cropping.

    Returns:
        (B, 3, size, size) float32.
    """
    x = (images.float().clamp(0, 1) * 255).round() / 255
    height, width = x.shape[-2:]
    short = min(height, width)
    target = (size, size) if squash else (int(size * height / short), int(size * width / short))
    for step in ((height, target[1]), target):  # across, then down, each rounded: PIL's order
        if step != x.shape[-2:]:
            x = F.interpolate(x, step, mode=mode, antialias=True, align_corners=False)
            x = (x.clamp(0, 1) * 255).round() / 255
    top, left = round((target[0] - size) / 2), round((target[1] - size) / 2)
    x = x[..., top : top + size, left : left + size]
    shape = (1, 3, 1, 1)
    return (x - torch.tensor(mean, device=x.device).view(shape)) / torch.tensor(std, device=x.device).view(shape)


def forward_batch(device: torch.device) -> int:
    """Images that a large network sees at once: few, so that its activations fit beside the generator."""
    return CPU_BATCH if device.type == "cpu" else GPU_BATCH
