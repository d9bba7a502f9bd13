"""Small checkpoints in the published layouts, for the generators that load third-party weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adanat_plugins.generators.dit_net import DiT
from adanat_plugins.generators.mage_net import MAGEConfig, MAGENet, unused_shapes
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.generators.var_net import VAR, VARConfig
from adanat_plugins.tokenizers.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from adanat_plugins.tokenizers.multi_scale import MultiScaleVQ, MultiScaleVQConfig
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig

TINY_VQGAN = VQGANConfig(codebook_size=64, code_width=32, width=32, multipliers=(1, 1, 2, 2, 4), blocks=1)
TINY_MAGE = MAGEConfig(
    width=48, depth=2, heads=12, decoder_width=32, decoder_depth=1, decoder_heads=16, tokens=16,
    codebook_size=1024, vocab_size=2025,
)
TINY_VAR = VARConfig(
    scales=(1, 2, 3, 4, 5), code_width=8, width=32, depth=2, heads=4, mlp_width=64, num_classes=11, vocabulary=1024
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


def save_latent(folder: Path) -> None:
    """DiT, SiT and their autoencoder as they are published: the two networks have the same tensors."""
    network = DiT(side=8, patch=2, channels=4, outputs=8, width=32, depth=2, heads=4, hidden=64, classes=10)
    state = randomise(network, 6)
    torch.save(state, folder / "DiT-XL-2-256x256.pt")
    torch.save(state, folder / "SiT-XL-2-256.pt")
    autoencoder = AutoencoderKL(AutoencoderKLConfig(width=32, multipliers=(1, 1), blocks=1))
    torch.save(randomise(autoencoder, 7), folder / "autoencoder_kl.pth")


def save_var(folder: Path, name: str) -> dict[str, Tensor]:
    """Transformer and tokenizer as VAR publishes them; the transformer's state."""
    network = VAR(TINY_VAR)
    state = randomise(network, 4) | {"lvl_1L": network.lvl_1L}
    state["pos_1LC"] *= 5  # spread by their width, positions would hardly tell the cells of a scale apart
    torch.save(state, folder / name)
    config = MultiScaleVQConfig(TINY_VAR.vocabulary, TINY_VAR.code_width, TINY_VAR.scales, 32, (1, 1, 2), 1)
    torch.save(randomise(MultiScaleVQ(config), 5), folder / "vae_ch160v4096z32.pth")
    return state
