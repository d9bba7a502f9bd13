"""Continuous latents of the embedded tokenizer: its leading principal components before rounding to codes.

Of its 32 channels, 6 components hold 99.9 % of the variance; they are what small diffusion and flow networks learn best.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .vqmodel import VQModelTokenizer


class PrincipalLatents(nn.Module):
    """Latents of unit variance <-> images.

    Args:
        tokenizer: the tokenizer whose latents they are.
        mean: (C,). into: (C, k), from its channels less their mean. back: (k, C), the way back. All float32.
    """

    mean: Tensor
    into: Tensor
    back: Tensor

    def __init__(self, tokenizer: VQModelTokenizer, mean: Tensor, into: Tensor, back: Tensor) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        for name, values in (("mean", mean), ("into", into), ("back", back)):  # buffers: a fingerprint covers them
            self.register_buffer(name, values.float().to(tokenizer.device))
        self.channels, self.downsampling = self.into.shape[1], tokenizer.downsampling

    @property
    def model(self) -> Any:
        """The autoencoder itself."""
        return self.tokenizer.model

    @classmethod
    def fit(cls, tokenizer: VQModelTokenizer, latents: Tensor, channels: int) -> PrincipalLatents:
        """The ``channels`` leading components of latents (n, C, h, w).

        Each is divided by the square root of its standard deviation, half-way to whitening, so that the leading ones weigh
        more in a loss; the whole has unit variance.
        """
        cells = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
        mean = cells.mean(0)
        variance, vectors = torch.linalg.eigh(torch.cov((cells - mean).T))
        vectors, scale = vectors[:, -channels:], variance[-channels:] ** 0.25
        scale = scale * (scale**2).mean().sqrt()
        return cls(tokenizer, mean, vectors / scale, (vectors * scale).T.contiguous())

    def project(self, latents: Tensor) -> Tensor:
        """The tokenizer's (B, C, h, w) -> (B, k, h, w)."""
        return ((latents.permute(0, 2, 3, 1) - self.mean) @ self.into).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, k, h, w) float32."""
        return self.project(self.tokenizer.latents(images))

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, k, h, w) float32 -> (B, 3, H, W) float32 in [0, 1], of the nearest codes."""
        full = (latents.permute(0, 2, 3, 1) @ self.back + self.mean).permute(0, 3, 1, 2)
        grid = (latents.shape[2], latents.shape[3])
        return self.tokenizer.decode(self.tokenizer.nearest(full), grid)
