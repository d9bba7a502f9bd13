"""The VQ-16 tokenizer of LlamaGen (Sun et al. 2024, arXiv:2406.06525), which Halton-MaskGIT uses.

Parameter names follow the released ``vq_ds16_c2i.pt``, so that it loads by name. Written from what the published
implementation computes; ``tests/golden`` compares the numbers. It is a VQGAN (Esser et al. 2021) whose codes are short
(8 channels) and compared by direction: latents and code vectors are scaled to length one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..weights import Shapes, encoder_sizes
from .layers import Upsample, silu_of_own

USAGE_LENGTH = 65536
"""Length of the training-time record of recent codes that the released file carries along; nothing reads it here."""


@dataclass(frozen=True)
class LlamaGenVQConfig:
    """Sizes of the tokenizer.

    Attributes:
        codebook_size, code_width: number of codes and their channels.
        latent_width: channels between the encoder and the projection to codes.
        width, multipliers: level i has ``width * multipliers[i]`` channels; each level but the last halves the image.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """

    codebook_size: int = 16384
    code_width: int = 8
    latent_width: int = 256
    width: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    blocks: int = 2

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> LlamaGenVQConfig:
        """The sizes of a checkpoint, read from its tensors' shapes.

        Raises:
            WeightsError: the tensors are not those of a LlamaGen tokenizer.
        """
        expected = "the layout of vq_ds16_c2i.pt (encoder.conv_blocks.N..., quantize.embedding.weight)"
        shapes = Shapes(state, "not a LlamaGen VQ tokenizer", expected)
        codebook_size, code_width = shapes.of("quantize.embedding.weight", 2)
        latent_width = shapes.of("encoder.conv_out.weight", 4)[0]
        return cls(codebook_size, code_width, latent_width, *encoder_sizes(shapes, "encoder.conv_blocks.", "res"))


def group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResidualBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = group_norm(inputs), conv3(inputs, outputs)
        self.norm2, self.conv2 = group_norm(outputs), conv3(outputs, outputs)
        self.nin_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu_of_own(self.norm1(x)))
        h = self.conv2(silu_of_own(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(query, key, value)[:, 0].transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # One column and row at the far ends only, as trained.


def through_level(x: Tensor, blocks: nn.ModuleList, attention: nn.ModuleList, resize: nn.Module | None) -> Tensor:
    """Residual blocks, each followed by its attention where there is any, then the change of size if there is one."""
    for i, block in enumerate(blocks):
        x = block(x)
        if len(attention):
            x = attention[i](x)
    return x if resize is None else resize(x)


class Level(nn.Module):
    """One resolution: residual blocks, each followed by attention at the lowest one, then a change of size."""

    def __init__(self, inputs: int, outputs: int, blocks: int, attention: bool) -> None:
        super().__init__()
        self.res = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks))
        self.attn = nn.ModuleList(AttentionBlock(outputs) for _ in range(blocks if attention else 0))
        self.downsample: nn.Module | None = None
        self.upsample: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        return through_level(x, self.res, self.attn, self.downsample or self.upsample)


def middle(channels: int) -> nn.ModuleList:
    return nn.ModuleList(
        [ResidualBlock(channels, channels), AttentionBlock(channels), ResidualBlock(channels, channels)]
    )


class Encoder(nn.Module):
    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in config.multipliers]
        last = len(widths) - 1
        self.conv_in = conv3(3, config.width)
        self.conv_blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([config.width, *widths], widths, strict=False)):
            level = Level(inputs, outputs, config.blocks, attention=i == last)
            level.downsample = Downsample(outputs) if i != last else None
            self.conv_blocks.append(level)
        self.mid = middle(widths[-1])
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], config.latent_width)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, latent_width, H / downsampling, W / downsampling)."""
        x = self.conv_in(images)
        for module in (*self.conv_blocks, *self.mid):
            x = module(x)
        return self.conv_out(silu_of_own(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        widths = [config.width * m for m in reversed(config.multipliers)]
        last = len(widths) - 1
        self.conv_in = conv3(config.latent_width, widths[0])
        self.mid = middle(widths[0])
        self.conv_blocks = nn.ModuleList()
        for i, (inputs, outputs) in enumerate(zip([widths[0], *widths], widths, strict=False)):
            level = Level(inputs, outputs, config.blocks + 1, attention=i == 0)
            level.upsample = Upsample(conv3(outputs, outputs)) if i != last else None
            self.conv_blocks.append(level)
        self.norm_out = group_norm(widths[-1])
        self.conv_out = conv3(widths[-1], 3)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, latent_width, h, w) -> (B, 3, H, W), nominally in [-1, 1]."""
        x = self.conv_in(latent)
        for module in (*self.mid, *self.conv_blocks):
            x = module(x)
        return self.conv_out(silu_of_own(self.norm_out(x)))


class Codebook(nn.Module):
    """Code vectors, compared and read out at length one."""

    codebook_used: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size, width)
        self.register_buffer("codebook_used", torch.zeros(USAGE_LENGTH))

    def directions(self) -> Tensor:
        return F.normalize(self.embedding.weight.float(), dim=-1)

    def nearest(self, latent: Tensor) -> Tensor:
        """(B, code_width, h, w) -> (B, h * w) int64: for unit vectors the nearest has the largest product."""
        unit = F.normalize(latent.float().flatten(2).transpose(1, 2), dim=-1)
        return (unit @ self.directions().T).argmax(-1)

    def vectors(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 -> (B, code_width, h, w)."""
        return self.directions()[codes].permute(0, 3, 1, 2)


class LlamaGenVQ(nn.Module):
    """Codes <-> images; what generators use is :class:`LlamaGenTokenizer`."""

    def __init__(self, config: LlamaGenVQConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = Codebook(config.codebook_size, config.code_width)
        self.quant_conv = nn.Conv2d(config.latent_width, config.code_width, 1)
        self.post_quant_conv = nn.Conv2d(config.code_width, config.latent_width, 1)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, h * w) int64 codes, row by row."""
        return self.quantize.nearest(self.quant_conv(self.encoder(images)))

    def decode(self, codes: Tensor) -> Tensor:
        """(B, h, w) int64 codes -> (B, 3, H, W), nominally in [-1, 1], not clamped."""
        vectors = self.quantize.vectors(codes).to(self.post_quant_conv.weight.dtype)
        return self.decoder(self.post_quant_conv(vectors))


class LlamaGenTokenizer(nn.Module):
    """The tokenizer as generators use it: images in [0, 1] outside, flat codes, chunks that fit the hardware.

    Args:
        model: with its weights. device, dtype: where and in what it computes.
    """

    def __init__(self, model: LlamaGenVQ, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.codebook_size, self.downsampling = model.config.codebook_size, model.config.downsampling

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> (B, 3, H, W) float32 in [0, 1]."""

        def run(ids: Tensor) -> Tensor:
            return self.model.decode(ids.view(-1, *grid)).float().clamp(-1, 1).add(1).div(2)

        return in_chunks(run, codes, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    @torch.no_grad()
    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> their unit vectors (B, C, h, w) float32."""
        return self.model.quantize.vectors(codes.view(-1, *grid)).float().contiguous()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, N) int64, the nearest codes."""

        def run(batch: Tensor) -> Tensor:
            return self.model.encode((batch * 2 - 1).to(self.dtype))

        return in_chunks(run, images, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]
