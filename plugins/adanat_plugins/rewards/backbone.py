"""What a discriminator sees of an image: the contract of backbones."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.runtime import image_chunk, in_chunks, minimum_batch


class Backbone(nn.Module, ABC):
    """A frozen feature network.

    Attributes:
        size: side in pixels of the images it works on; others are resized.
        layers: K. positions: P = (side / pool)^2. channels: C.
        minimum_batch: smaller batches are padded, so that a sample's features do not depend on the batch it is in.
    """

    size: int
    side: int
    layers: int
    positions: int
    channels: int
    pool: int = 1
    minimum_batch: int = 1

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, P, C)."""

    def freeze(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Move to the device and compute dtype for good."""
        self.minimum_batch = minimum_batch(dtype, device)
        return self.to(device=device, dtype=dtype).eval().requires_grad_(False)

    def features(self, images: Tensor) -> Tensor:
        """:meth:`forward` in chunks that suit the device."""
        return in_chunks(self, images, chunk=image_chunk(images.device), minimum=self.minimum_batch, convolves=True)[0]

    def set_pool(self, pool: int) -> None:
        """Average neighbouring positions from now on.

        Raises:
            ConfigError: ``pool`` does not divide the map's side.
        """
        if self.side % pool:
            raise ConfigError(f"pool = {pool} does not divide the backbone's {self.side}x{self.side} map.")
        self.pool, self.positions = pool, (self.side // pool) ** 2

    def pooled(self, x: Tensor) -> Tensor:
        """(B, side * side, C) -> (B, P, C)."""
        if self.pool == 1:
            return x
        rows = self.side // self.pool
        return x.view(x.shape[0], rows, self.pool, rows, self.pool, -1).mean(dim=(2, 4)).flatten(1, 2)
