"""Tokenizers in diffusers' ``VQModel`` layout (the embedded emoji64 tokenizer, aMUSEd's)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from adanat_toolkit.runtime import image_chunk, in_chunks, minimum_batch

from ..weights import build, place
from .vqmodel_net import VQModel, VQModelConfig


class VQModelTokenizer(nn.Module):
    """Codes <-> images through a ``VQModel``.

    Args:
        model: a ``VQModel`` with its weights, of this package or diffusers' own, which may have attention.
        signed: whether the network's own images are in [-1, 1], as emoji64's, or in [0, 1], as aMUSEd's.
        device, dtype: where and in what the convolutions run; images and codes are float32 and int64 outside.
    """

    def __init__(self, model: Any, device: torch.device, dtype: torch.dtype, *, signed: bool = True) -> None:
        super().__init__()
        # Channels-last roughly doubles the speed of the convolutions on CPUs and on tensor cores.
        place(model, device, dtype)
        # nn.Module.to, since diffusers' own override warns.
        nn.Module.to(model, memory_format=torch.channels_last)
        self.model = model.eval().requires_grad_(False)
        self.device, self.dtype, self.signed = device, dtype, signed
        self._chunk = image_chunk(device)

    @classmethod
    def from_state(
        cls, config: dict[str, Any], state: dict[str, Tensor], device: torch.device, dtype: torch.dtype
    ) -> VQModelTokenizer:
        """From the config and the state dict of a diffusers folder, of a model without attention."""
        sizes = VQModelConfig.from_json(config)
        return cls(build(lambda: VQModel(sizes), state, source="the tokenizer"), device, dtype)

    @property
    def downsampling(self) -> int:
        return 2 ** (len(self.model.config.block_out_channels) - 1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> (B, 3, H, W) float32 in [0, 1]."""

        def run(ids: Tensor) -> Tensor:
            latent = self._codes(ids, grid)
            image = self.model.decoder(self.model.post_quant_conv(latent)).float()
            image = image.clamp(-1, 1).add(1).div(2) if self.signed else image.clamp(0, 1)
            return image.contiguous()

        return in_chunks(run, codes, chunk=self._chunk, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    def _codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        return self.model.quantize.embedding(codes).view(len(codes), *grid, -1).permute(0, 3, 1, 2)

    @torch.no_grad()
    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """(B, N) int64 codes of an (h, w) grid -> their vectors (B, C, h, w) float32."""
        return self._codes(codes, grid).float().contiguous()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, N) int64, the nearest codes."""

        def run(batch: Tensor) -> Tensor:
            return self.nearest(self._latents(batch))

        return in_chunks(run, images, chunk=self._chunk, minimum=minimum_batch(self.dtype, self.device), convolves=True)[0]

    @torch.no_grad()
    def latents(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) float32 in [0, 1] -> (B, C, h, w) float32, before they are rounded to codes."""
        minimum = minimum_batch(self.dtype, self.device)
        return in_chunks(self._latents, images, chunk=self._chunk, minimum=minimum, convolves=True)[0].contiguous()

    def _latents(self, batch: Tensor) -> Tensor:
        x = (batch * 2 - 1 if self.signed else batch).to(self.dtype).contiguous(memory_format=torch.channels_last)
        return self.model.quant_conv(self.model.encoder(x)).float()

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, h * w) int64, the nearest codes."""
        cells = latents.permute(0, 2, 3, 1).flatten(1, 2)
        return torch.cdist(cells, self.model.quantize.embedding.weight.float()[None]).argmin(-1)
