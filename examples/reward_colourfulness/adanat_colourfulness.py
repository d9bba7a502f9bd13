"""The reward ``colourfulness``: Hasler and Suesstrunk, "Measuring colourfulness in natural images" (2003), equation 8.

With rg = R - G and yb = (R + G) / 2 - B: sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2), pixels on 0..255 in the
paper. Grey images score 0; the paper calls 15 slightly, 45 averagely and 82 highly colourful.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adanat_toolkit.interfaces import Context, Generator, ImageSource, PluginOptions, RewardModel


class Options(PluginOptions):
    ignore_white: bool = False
    """Leave white pixels (all channels above 0.98) out: emoji stand on white."""


class Colourfulness(RewardModel):
    """Colourfulness of each image, on the paper's scale."""

    Options = Options

    def __init__(
        self, options: Options, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        self.ignore_white = options.ignore_white

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B,) float32, 0 or larger."""
        red, green, blue = (255 * images).flatten(2).unbind(1)
        weight = torch.ones_like(red)
        if self.ignore_white:
            weight = (images.amin(1).flatten(1) <= 0.98).float()
        weight = weight / weight.sum(1, keepdim=True).clamp_min(1)
        spread, centre = torch.zeros_like(red[:, 0]), torch.zeros_like(red[:, 0])
        for opponent in (red - green, (red + green) / 2 - blue):
            mean = (weight * opponent).sum(1)
            spread += (weight * (opponent - mean[:, None]).square()).sum(1)
            centre += mean.square()
        return spread.sqrt() + 0.3 * centre.sqrt()
