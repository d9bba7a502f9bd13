"""Frozen networks whose features a discriminator judges.

A backbone maps images (B, 3, H, W) float32 in [0, 1] to features (B, K, P, C) of K of its layers at P positions, in its
compute dtype and without gradients to its weights. Its own resize and normalisation are part of it.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from adanat_toolkit.compute import minimum_batch

from ..emoji64 import FOLDER as EMOJI64


class Backbone(nn.Module, ABC):
    """A frozen feature network.

    Attributes:
        layers: K. positions: P. channels: C.
        minimum_batch: smaller batches are padded, so that a sample's features do not depend on the batch it is in.
    """

    layers: int
    positions: int
    channels: int
    minimum_batch: int = 1

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, K, P, C)."""

    def freeze(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Move to the device and compute dtype for good."""
        self.minimum_batch = minimum_batch(dtype, device)
        return self.to(device=device, dtype=dtype).eval().requires_grad_(False)


class _Block(nn.Module):
    """A pre-norm transformer block in open_clip's names, with the three projections in one product."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.ln_1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out_proj(attended)
        return x + self.c_proj(F.gelu(self.c_fc(self.ln_2(x))))


class ClipTower(Backbone):
    """The image tower of an open_clip ``CLIP`` (a plain ViT), up to the last layer that is read.

    Same function as open_clip's ``VisionTransformer`` (checked in the tests); written out because nothing behind the
    last layer read has to run, and a patch embedding by a matrix product is faster than a strided convolution on a CPU.
    To every patch state the class token's state of the same layer is added: each position also sees the whole image.

    Args:
        state: the CLIP's tensors in open_clip's names.
        config: ``vision_cfg`` of the model's configuration.
        layers: transformer blocks (counted from 0) whose outputs are read.
        pool: average pooling of the map of positions, 1 for none.
    """

    def __init__(self, state: dict[str, Tensor], config: dict[str, int], layers: tuple[int, ...], pool: int) -> None:
        super().__init__()
        self.size, self.patch, width = config["image_size"], config["patch_size"], config["width"]
        self.side, self.pool, self.read = self.size // self.patch, pool, layers
        self.layers, self.channels, self.positions = len(layers), width, (self.side // pool) ** 2
        self.embed = nn.Linear(3 * self.patch**2, width)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(self.side**2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_Block(width, width // config["head_width"]) for _ in range(max(layers) + 1))
        self._load({key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")})

    def _load(self, visual: dict[str, Tensor]) -> None:
        own: dict[str, Tensor] = {key: visual[key] for key in ("class_embedding", "positional_embedding")}
        own |= {f"ln_pre.{part}": visual[f"ln_pre.{part}"] for part in ("weight", "bias")}
        # The network wants images in [-1, 1]: W (2x - 1) = (2W) x - sum(W).
        kernel = visual["conv1.weight"].float().flatten(1)
        own |= {"embed.weight": 2 * kernel, "embed.bias": -kernel.sum(1)}
        for index in range(len(self.blocks)):
            prefix, target = f"transformer.resblocks.{index}.", f"blocks.{index}."
            for part in ("weight", "bias"):
                own[f"{target}qkv.{part}"] = visual[f"{prefix}attn.in_proj_{part}"]
                own[f"{target}out_proj.{part}"] = visual[f"{prefix}attn.out_proj.{part}"]
                for norm in ("ln_1", "ln_2"):
                    own[f"{target}{norm}.{part}"] = visual[f"{prefix}{norm}.{part}"]
                for layer in ("c_fc", "c_proj"):
                    own[f"{target}{layer}.{part}"] = visual[f"{prefix}mlp.{layer}.{part}"]
        self.load_state_dict({key: value.float() for key, value in own.items()})

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        batch, side, patch = images.shape[0], self.side, self.patch
        patches = images.view(batch, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5).reshape(batch, side**2, -1)
        x = self.embed(patches.to(self.class_embedding.dtype))
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        kept = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.read:
                kept.append(self._pooled(x[:, 1:]) + x[:, :1])
        return torch.stack(kept, dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == 1:
            return x
        rows = self.side // self.pool
        return x.view(x.shape[0], rows, self.pool, rows, self.pool, -1).mean(dim=(2, 4)).flatten(1, 2)


def emoji64_clip(pool: int) -> ClipTower:
    """Blocks 1, 3 and 5 of the embedded CLIP's image tower (64x64, images in [-1, 1], no further normalisation)."""
    config = json.loads((EMOJI64 / "clip.json").read_text())
    return ClipTower(load_file(str(Path(EMOJI64 / "clip.safetensors"))), config["vision_cfg"], (1, 3, 5), pool)
