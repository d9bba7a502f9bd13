"""The KL autoencoder of Stable Diffusion (Rombach et al. 2022, appendix G), which DiT and SiT work in.

Parameter names follow the original layout (``encoder.down.0.block.0...``), so that published files load by name; diffusers'
layout has other names. Attention is at the lowest resolution only; images are in [-1, 1] inside and in [0, 1] outside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..weights import Shapes, build, encoder_sizes
from .levels import Decoder, Encoder
from .llamagen_vq import AttentionBlock

SCALE = 0.18215
"""A latent of the generators is so many times the autoencoder's own (Rombach et al. 2022, appendix G)."""


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Sizes of the autoencoder; the defaults are the published ones.

    Attributes:
        latent_channels: of a latent, and of the encoder's mean and log variance each.
        width, multipliers: level i has ``width * multipliers[i]`` channels; each level but the last halves the image.
        blocks: residual blocks a level in the encoder; the decoder has one more.
    """

    latent_channels: int = 4
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.multipliers) - 1)

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, source: str = "the file") -> AutoencoderKLConfig:
        """The sizes of a checkpoint, read from its tensors' shapes.

        Raises:
            WeightsError: the tensors are not those of this autoencoder.
        """
        expected = "encoder.down.N.block..., decoder.up.N.block..., quant_conv and post_quant_conv"
        shapes = Shapes(state, f"{source} is no KL autoencoder in the original layout", expected)
        return cls(shapes.of("post_quant_conv.weight", 4)[1], *encoder_sizes(shapes))


class AutoencoderKL(nn.Module):
    """The network alone: names, shapes and numbers of the published implementation."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.width, config.multipliers, config.blocks, AttentionBlock
        self.encoder = Encoder(2 * config.latent_channels, *sizes)
        self.decoder = Decoder(config.latent_channels, *sizes)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 2 C, h, w): mean, then log variance."""
        return self.quant_conv(self.encoder(images))

    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) at the generators' scale -> (B, 3, H, W), nominally in [-1, 1], not clamped."""
        return self.decoder(self.post_quant_conv(latents / SCALE))


class KLTokenizer(nn.Module):
    """Latents <-> images as generators use them, in chunks that fit the hardware.

    Args:
        model: with its weights. device, dtype: where and in what it computes.
    """

    def __init__(self, model: AutoencoderKL, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.device, self.dtype = device, dtype
        self.channels, self.downsampling = model.config.latent_channels, model.config.downsampling

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], *, source: str, device: torch.device, dtype: torch.dtype
    ) -> KLTokenizer:
        """From the tensors of a published file; the sizes are read from it.

        Raises:
            WeightsError: a tensor is missing, extra or misshapen.
        """
        config = AutoencoderKLConfig.from_state(state, source=source)
        return cls(build(lambda: AutoencoderKL(config), state, source=source, dtype=dtype), device, dtype)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 at the generators' scale -> (B, 3, H, W) float32 in [0, 1]."""

        def run(z: Tensor) -> Tensor:
            return self.model.decode(z.to(self.dtype)).float().add(1).div(2).clamp(0, 1)

        return in_chunks(run, latents, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> the mean latents, (B, C, h, w) float32 at the generators' scale."""

        def run(batch: Tensor) -> Tensor:
            moments = self.model.moments((batch * 2 - 1).to(self.dtype)).float()
            return moments[:, : self.channels] * SCALE

        return in_chunks(run, images, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]
