"""Encoder and decoder of the autoencoders that keep the original layout (``encoder.down.0.block.0...``): levels of residual
blocks, attention between two blocks in the middle. Images are in [-1, 1].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .layers import Upsample, silu_of_own
from .llamagen_vq import Downsample, ResidualBlock, conv3, group_norm, through_level

Attention = Callable[[int], nn.Module]
"""Makes an attention block of so many channels."""


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention where there is any, then a change of size."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: Attention | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList([] if attention is None else [attention(outputs) for _ in range(blocks)])
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return through_level(x, self.block, self.attn, self.downsample or self.upsample)


def middle(channels: int, attention: Attention) -> nn.Sequential:
    parts = [
        ("block_1", ResidualBlock(channels, channels)),
        ("attn_1", attention(channels)),
        ("block_2", ResidualBlock(channels, channels)),
    ]
    return nn.Sequential(OrderedDict(parts))


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, outputs, h, w); every level but the last halves the image.

    Args:
        multipliers: level i has ``width * multipliers[i]`` channels. attention: of the middle. lowest: of the last level.
    """

    def __init__(
        self,
        outputs: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Attention,
        lowest: Attention | None = None,
    ) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = conv3(3, width)
        self.down = nn.ModuleList()
        for i, (before, after) in enumerate(zip([width, *widths], widths, strict=False)):
            level = Level(before, after, blocks, lowest if i == last else None)
            level.downsample = Downsample(after) if i != last else None
            self.down.append(level)
        self.mid = middle(widths[-1], attention)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv_in(images)
        for level in self.down:
            x = level(x)
        return self.conv_out(silu_of_own(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    """(B, inputs, h, w) -> (B, 3, H, W), nominally in [-1, 1]; arguments as :class:`Encoder`'s, one block a level more."""

    def __init__(
        self,
        inputs: int,
        width: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Attention,
        lowest: Attention | None = None,
    ) -> None:
        super().__init__()
        widths = [width * m for m in multipliers]
        last = len(widths) - 1
        self.conv_in = conv3(inputs, widths[-1])
        self.mid = middle(widths[-1], attention)
        self.up = nn.ModuleList()  # finest level first, as the published names count
        for i, (before, after) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True)):
            level = Level(before, after, blocks + 1, lowest if i == last else None)
            level.upsample = Upsample(conv3(after, after)) if i != 0 else None
            self.up.append(level)
        self.norm_out = group_norm(widths[0])
        self.conv_out = conv3(widths[0], 3)

    def forward(self, latent: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latent))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(silu_of_own(self.norm_out(x)))
