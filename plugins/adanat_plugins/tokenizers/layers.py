"""Layers that the networks of several tokenizers share, without arithmetic and memory that frozen ones can do without."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def silu_of_own(x: Tensor) -> Tensor:
    """SiLU of a tensor that nobody else reads, so that it may be overwritten: a new one of its size costs as much as the SiLU.

    Where gradients are recorded it is left alone.
    """
    return F.silu(x, inplace=not torch.is_grad_enabled())


class Upsample(nn.Module):
    """Nearest up-sampling by two and a 3x3 convolution, (B, C, h, w) -> (B, C', 2h, 2w).

    After nearest up-sampling a 3x3 window covers 2x2 pixels of the input alone, which ones depends on whether the row and the
    column are even. So four convolutions of 2x2, whose weights are sums of the 3x3 ones, give the same numbers but for
    rounding, with 4 products an output in place of 9. They run as one convolution of four times the outputs.

    That is for float32 on a CPU, where it was measured (docs/results/profile.md), and for frozen weights: elsewhere, and
    wherever gradients are recorded or torch compiles, the two operations are taken as they are.

    Args:
        conv: 3x3, padding 1.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self._summed: tuple[tuple[int, int], Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        as_written = torch.is_grad_enabled() or torch.compiler.is_compiling()
        if x.device.type != "cpu" or x.dtype != torch.float32 or as_written:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        batch, _, height, width = x.shape
        if batch == 1:  # oneDNN multiplies one small image in another order, and pixels must not depend on the batch
            return self(x.expand(2, -1, -1, -1))[:1]
        weight, bias = self._sums()
        channels = self.conv.out_channels
        # Window (p, q) of the padded input has its output of an even row in row p, and of an odd one in row p - 1.
        four = F.conv2d(x.contiguous(memory_format=torch.channels_last), weight, bias, padding=1)
        four = four.contiguous(memory_format=torch.channels_last)
        row, column = (width + 1) * 4 * channels, 4 * channels
        shape = (batch, height, 2, width, 2, channels)
        strides = ((height + 1) * row, row, row + 2 * channels, column, column + channels, 1)
        out = x.new_empty((batch, height, 2, width, 2, channels))
        out.copy_(four.as_strided(shape, strides))
        return out.view(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)

    def _sums(self) -> tuple[Tensor, Tensor | None]:
        """The weights of the four convolutions (4 C', C, 2, 2), (even, even) rows and columns first, and their bias."""
        weight, bias = self.conv.weight, self.conv.bias
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if self._summed is None or self._summed[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                parts = [part for rows in _halves(weight.double(), 2) for part in _halves(rows, 3)]
                summed = torch.cat(parts).float().contiguous(memory_format=torch.channels_last)
                self._summed = (state, summed, None if bias is None else bias.repeat(4))
        return self._summed[1:]


def _halves(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """What three taps along ``dim`` are on two input pixels: of an even output, and of an odd one."""
    first, second, third = weight.unbind(dim)
    return torch.stack([first, second + third], dim), torch.stack([first + second, third], dim)
