"""The multi-scale residual tokenizer of VAR (Tian et al. 2024, arXiv:2404.02905, section 3.2).

An image is a latent map, and the map is a sum: at each scale, from one token to the full map, what is still missing is
resized to the scale, replaced by the nearest codes, resized back, passed through a convolution and added. Parameter names
follow the released ``vae_ch160v4096z32.pth``, so that it loads by name. Written from what the published implementation
computes; ``tests/golden`` compares the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..weights import Shapes, encoder_sizes, place
from .levels import Decoder, Encoder
from .llamagen_vq import conv3, group_norm

CONVOLUTIONS = 4
"""How many convolutions the scales share."""
SHARE = 0.5
"""Share of the convolution's output in what a scale adds; the rest is its input."""


def convolution_of(scale: int, scales: int) -> int:
    """Which convolution a scale uses: the one whose tick is nearest to its position.

    In float64 with these very ticks: for the ten published scales two of the positions are ties that rounding decides.
    """
    ticks = np.linspace(1 / 3 / CONVOLUTIONS, 1 - 1 / 3 / CONVOLUTIONS, CONVOLUTIONS)
    return int(np.argmin(np.abs(ticks - scale / (scales - 1))))


class SharedConvolutions(nn.Module):
    """The convolutions ``qresi_ls.0`` ... that scales share."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(conv3(width, width) for _ in range(CONVOLUTIONS))

    def forward(self, x: Tensor, index: int) -> Tensor:
        return (1 - SHARE) * x + SHARE * self.qresi_ls[index](x)


class MultiScaleQuantizer(nn.Module):
    """Codes of all scales <-> the latent map, in float32.

    Args:
        vocabulary, width: number of codes and their channels.
        scales: sides of the token maps; the last is that of the latent.
    """

    ema_vocab_hit_SV: Tensor

    def __init__(self, vocabulary: int, width: int, scales: Sequence[int]) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.embedding = nn.Embedding(vocabulary, width)
        self.quant_resi = SharedConvolutions(width)
        # How often each scale used each code in training; the published file carries it along and nothing reads it.
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.scales), vocabulary))

    @property
    def side(self) -> int:
        return self.scales[-1]

    @property
    def width(self) -> int:
        return self.embedding.embedding_dim

    def resized(self, latent: Tensor, scale: int) -> Tensor:
        """(B, C, H, H) -> (B, C, p, p), means of areas: what a scale's codes stand for, and what its tokens are made from."""
        return F.interpolate(latent, size=(self.scales[scale],) * 2, mode="area")

    def spread(self, vectors: Tensor, scale: int) -> Tensor:
        """Code vectors of a scale (B, C, p, p) -> what they add to the latent, (B, C, H, H)."""
        if self.scales[scale] != self.side:
            vectors = F.interpolate(vectors, size=(self.side, self.side), mode="bicubic")
        return self.quant_resi(vectors, convolution_of(scale, len(self.scales)))

    def contribution(self, codes: Tensor, scale: int) -> Tensor:
        """Codes of a scale (B, p * p) int64, row by row -> what they add to the latent, (B, C, H, H)."""
        side, table = self.scales[scale], self.embedding.weight

        def run(batch: Tensor) -> Tensor:
            return self.spread(self.embedding(batch).transpose(1, 2).reshape(len(batch), -1, side, side), scale)

        return in_chunks(run, codes, minimum=minimum_batch(table.dtype, table.device), convolves=True)[0]

    def nearest(self, vectors: Tensor) -> Tensor:
        """(B, C, p, p) -> (B, p * p) int64: the nearest codes in Euclidean distance, row by row."""
        table = self.embedding.weight

        def run(flat: Tensor) -> Tensor:
            # |z|^2 is the same for every code, so it is left out.
            return (table.square().sum(1) - 2 * flat @ table.T).argmin(-1)

        # At the coarsest scale a sample is one row of the product.
        minimum = minimum_batch(table.dtype, table.device, rows=True)
        return in_chunks(run, vectors.flatten(2).transpose(1, 2), minimum=minimum)[0]

    def encode(self, latent: Tensor, chosen: Sequence[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of a latent, coarse to fine.

        Args:
            latent: (B, C, H, H). chosen: the scales to use, rising; None for all.

        Returns:
            (codes, before): for each scale its codes (B, p * p) and the latent as it was before them (B, C, H, H); the
            last entry of ``before`` is the latent that all codes add up to.
        """
        before, codes = [torch.zeros_like(latent)], []
        for scale in range(len(self.scales)) if chosen is None else chosen:
            codes.append(self.nearest(self.resized(latent - before[-1], scale)))
            before.append(before[-1] + self.contribution(codes[-1], scale))
        return codes, before


@dataclass(frozen=True)
class MultiScaleVQConfig:
    """Sizes of the published tokenizer.

    Attributes:
        vocabulary, code_width: number of codes and their channels, which are the latent's.
        scales: sides of the token maps.
        width, multipliers: level i has ``width * multipliers[i]`` channels; each level but the last halves the image.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """

    vocabulary: int
    code_width: int
    scales: tuple[int, ...]
    width: int
    multipliers: tuple[int, ...]
    blocks: int

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], scales: Sequence[int], *, source: str) -> MultiScaleVQConfig:
        """The sizes of a checkpoint, read from its tensors' shapes; ``scales`` are the transformer's.

        Raises:
            WeightsError: the tensors are not those of this tokenizer.
        """
        expected = "the layout of vae_ch160v4096z32.pth (encoder.down.N.block..., quantize.quant_resi.qresi_ls...)"
        shapes = Shapes(state, f"{source} is no tokenizer of VAR", expected)
        vocabulary, code_width = shapes.of("quantize.embedding.weight", 2)
        return cls(vocabulary, code_width, tuple(scales), *encoder_sizes(shapes))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv, self.proj_out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return x + self.proj_out(mixed[:, 0].transpose(1, 2).reshape(x.shape))


class MultiScaleVQ(nn.Module):
    """The published tokenizer; what generators use is :class:`MultiScaleTokenizer`."""

    def __init__(self, config: MultiScaleVQConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.code_width, config.width, config.multipliers, config.blocks, AttentionBlock, AttentionBlock
        self.encoder, self.decoder = Encoder(*sizes), Decoder(*sizes)
        self.quantize = MultiScaleQuantizer(config.vocabulary, config.code_width, config.scales)
        self.quant_conv = conv3(config.code_width, config.code_width)
        self.post_quant_conv = conv3(config.code_width, config.code_width)


class MultiScaleTokenizer(nn.Module):
    """Latents <-> images in [0, 1], and codes <-> latents by ``quantizer``.

    Args:
        model: has ``encoder``, ``quant_conv``, ``post_quant_conv`` and ``decoder``; its own images are in [-1, 1].
        quantizer: with its weights; it stays in float32, since a code is decided by small differences.
        device, dtype: where and in what the convolutions run; images and latents are float32 outside.
    """

    def __init__(
        self, model: Any, quantizer: MultiScaleQuantizer, downsampling: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.quantizer = place(quantizer, device, torch.float32).eval().requires_grad_(False)
        for part in (model.encoder, model.quant_conv, model.post_quant_conv, model.decoder):
            place(part, device, dtype)
        self.device, self.dtype, self.downsampling = device, dtype, downsampling

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, 3, H, W) float32 in [0, 1]."""

        def run(batch: Tensor) -> Tensor:
            image = self.model.decoder(self.model.post_quant_conv(batch.to(self.dtype)))
            return image.float().clamp(-1, 1).add(1).div(2).contiguous()

        return in_chunks(run, latent, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, C, h, w) float32, before any code is chosen."""

        def run(batch: Tensor) -> Tensor:
            return self.model.quant_conv(self.model.encoder((batch * 2 - 1).to(self.dtype))).float().contiguous()

        return in_chunks(run, images, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]
