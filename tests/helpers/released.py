"""Small checkpoints in the published layouts, for the generators that load third-party weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adanat_plugins.generators.mage_net import MAGEConfig, MAGENet, unused_shapes
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig

TINY_VQGAN = VQGANConfig(codebook_size=64, code_width=32, width=32, multipliers=(1, 1, 2, 2, 4), blocks=1)
TINY_MAGE = MAGEConfig(
    width=48,
    depth=2,
    heads=12,
    decoder_width=32,
    decoder_depth=1,
    decoder_heads=16,
    tokens=16,
    codebook_size=1024,
    vocab_size=2025,
)
TINY_UVIT: dict[str, Any] = {"tokens": 16, "codebook_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 4}


def randomise(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Every tensor of the module drawn anew; its state."""
    random = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in module.state_dict().items():
        spread = 1.0 if "embedding" in name or "_emb" in name else max(1, value[0].numel()) ** -0.5
        state[name] = torch.randn(value.shape, generator=random) * spread
    return state


def tiny_vqgan(codes: int = 64) -> dict[str, Tensor]:
    config = VQGANConfig(codes, TINY_VQGAN.code_width, TINY_VQGAN.width, TINY_VQGAN.multipliers, TINY_VQGAN.blocks)
    return randomise(VQGAN(config), 1)


def save_mage(file: Path) -> dict[str, Tensor]:
    """A checkpoint as MAGE publishes it: network, unused tensors and tokenizer under ``model``; the network's state."""
    network = randomise(MAGENet(TINY_MAGE), 2)
    unused = {
        name: torch.zeros(shape, dtype=torch.int64 if name.endswith("position_ids") else torch.float32)
        for name, shape in unused_shapes(TINY_MAGE).items()
    }
    tokenizer = {f"vqgan.{name}": value for name, value in tiny_vqgan(1024).items()}
    torch.save({"model": {**network, **unused, **tokenizer}, "epoch": 1599}, file)
    return network


def save_uvit(file: Path, **context: int) -> dict[str, Tensor]:
    """A U-ViT as AutoNAT and AdaNAT store it; ``num_classes`` or ``clip_dim`` picks the context. Its state."""
    state = randomise(UViT(**TINY_UVIT, **context), 3)
    torch.save({f"module.{name}": value for name, value in state.items()}, file)
    return state


def save_vqgan(file: Path, codes: int = 64) -> None:
    torch.save({"state_dict": tiny_vqgan(codes)}, file)
