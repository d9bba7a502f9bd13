"""The network of a ``VQModel`` without attention, under the names that diffusers gives its parameters.

diffusers' own class computes the same numbers, but to import it takes longer than to make an image: it brings transformers and
torchvision along. The embedded tokenizer is read into this one; files with attention or of other kinds are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from .layers import Upsample, silu_of_own
from .llamagen_vq import Downsample

EPSILON = 1e-6
"""Of all group norms."""


@dataclass(frozen=True)
class VQModelConfig:
    """Sizes, as ``config.json`` names them.

    Attributes:
        block_out_channels: channels of each resolution, from the image's own down; each but the last halves the image.
        layers_per_block: residual blocks of a resolution in the encoder; the decoder has one more.
        latent_channels: C of a cell and of its code. num_vq_embeddings: number of codes.
        norm_num_groups: groups of all group norms.
    """

    block_out_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int
    num_vq_embeddings: int
    norm_num_groups: int = 32

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> VQModelConfig:
        """From the contents of ``config.json``; what this network does not have is not read."""
        values = {field.name: config[field.name] for field in fields(cls) if field.name in config}
        return cls(**{**values, "block_out_channels": tuple(config["block_out_channels"])})


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=EPSILON)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=EPSILON)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(silu_of_own(self.norm1(x)))
        hidden = self.conv2(silu_of_own(self.norm2(hidden)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + hidden


class Level(nn.Module):
    """The residual blocks of one resolution, and the change to the next; ``change`` is ``down``, ``up`` or none."""

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, change: str | None = None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResidualBlock(outputs if i else inputs, outputs, groups) for i in range(blocks))
        if change == "down":
            self.downsamplers = nn.ModuleList([Downsample(outputs)])
        elif change == "up":
            self.upsamplers = nn.ModuleList([Upsample(nn.Conv2d(outputs, outputs, 3, padding=1))])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():  # in the order in which they were made
            for layer in part.children():
                x = layer(x)
        return x


class Encoder(nn.Module):
    """(B, 3, H, W) -> (B, C, h, w), before ``quant_conv``."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        outputs, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(3, outputs[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(before, after, config.layers_per_block, groups, "down" if i + 1 < len(outputs) else None)
            for i, (before, after) in enumerate(zip((outputs[0], *outputs), outputs, strict=False))
        )
        self.mid_block = Level(outputs[-1], outputs[-1], 2, groups)
        self.conv_norm_out = nn.GroupNorm(groups, outputs[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(outputs[-1], config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(silu_of_own(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """(B, C, h, w), after ``post_quant_conv`` -> (B, 3, H, W)."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        outputs, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, outputs[0], 3, padding=1)
        self.mid_block = Level(outputs[0], outputs[0], 2, groups)
        self.up_blocks = nn.ModuleList(
            Level(before, after, config.layers_per_block + 1, groups, "up" if i + 1 < len(outputs) else None)
            for i, (before, after) in enumerate(zip((outputs[0], *outputs), outputs, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, outputs[-1], eps=EPSILON)
        self.conv_out = nn.Conv2d(outputs[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(silu_of_own(self.conv_norm_out(x)))


class Codebook(nn.Module):
    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)


class VQModel(nn.Module):
    """The whole tokenizer."""

    def __init__(self, config: VQModelConfig) -> None:
        super().__init__()
        self.config = config
        width = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv, self.post_quant_conv = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.quantize = Codebook(config.num_vq_embeddings, width)
