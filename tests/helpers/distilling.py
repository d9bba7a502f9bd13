"""A token generator with a random tokenizer that a small decoder can be taught by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .tiny import TinyGenerator


class Teacher(TinyGenerator):
    """Images of 12x20 pixels: a convolution of code vectors of 6 channels, and a sigmoid. Its encoder is not its inverse."""

    def __init__(self, seed: int = 0, **options: Any) -> None:
        super().__init__(**options)
        draw = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.image_size = (4 * self.grid[0], 4 * self.grid[1])
        self.codebook = torch.randn(self.codebook_size, 6, generator=draw)
        self.kernel = torch.randn(6, 3, 4, 4, generator=draw) / 2

    @property
    def tokenizer_fingerprint(self) -> str:
        return f"{self.seed:016x}"

    def token_vectors(self, tokens: Tensor) -> Tensor:
        return self.codebook[tokens].view(len(tokens), *self.grid, 6).permute(0, 3, 1, 2)

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return F.conv_transpose2d(self.token_vectors(tokens), self.kernel, stride=4).sigmoid()

    def encode_images(self, images: Tensor) -> Tensor:
        cells = F.avg_pool2d(images, 4).mean(1).flatten(1)
        return (cells * self.codebook_size).long().clamp(max=self.codebook_size - 1)
