"""The generators published with AdaNAT and AutoNAT: ``maskgit:adanat-imagenet-l`` / ``-s``, and what Muse's share.

A U-ViT over the 16x16 codes of the MaskGIT/MAGE VQGAN, 256x256 pixels. Sizes, grid and vocabulary are read from the
checkpoint's tensors; only the number of attention heads leaves no trace in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import PluginOptions
from adanat_toolkit.registry import parse_options

from ..tokenizers.vqgan import VQGANTokenizer
from ..weights import Shapes, asset, build, read_state
from .class_conditional import PublishedOptions, published_files
from .maskgit import UViTClassGenerator
from .uvit import TokenEmbedding, UViT

HEADS = {512: 8, 768: 8, 1152: 16}
"""Published numbers of attention heads by width (AdaNAT-S, AdaNAT-L, CC3M)."""

SCHEDULE = "adanat"
"""The schedule that the published code adds to its policy with ``--heu 1``; its own hand-made baseline."""


class AdaNATOptions(PublishedOptions):
    heads: int | None = Field(None, ge=1, le=1024)
    """Attention heads; None takes the published number for the checkpoint's width (weights do not tell it)."""


def uvit_sizes(
    state: Mapping[str, Tensor], *, heads: int | None = None, source: str = "the file"
) -> dict[str, Any]:
    """The arguments of :class:`~adanat_plugins.generators.uvit.UViT` that fit a checkpoint's tensors.

    Raises:
        WeightsError: the tensors are not those of a U-ViT generator.
        ConfigError: ``heads`` is needed, or does not divide the width.
    """
    expected = "a U-ViT's tensors (token_emb..., in_blocks.N..., mid_block..., out_blocks.N..., mlm_layer...)"
    shapes = Shapes(state, f"{source} is no AdaNAT/AutoNAT generator", expected)
    words, width = shapes.of("token_emb.word_embeddings.weight", 2, least=2)
    tokens = shapes.of("token_emb.position_embeddings.weight", 2)[0]
    in_blocks = shapes.blocks("in_blocks.") if any(name.startswith("in_blocks.") for name in state) else 0
    hidden = shapes.of("mid_block.mlp.fc1.weight", 2)[0]
    classes = clip_dim = None
    if "context_embed.word_embeddings.weight" in state:
        classes = shapes.of("context_embed.word_embeddings.weight", 2, least=2)[0]
    else:
        clip_dim = shapes.of("context_embed.weight", 2)[1]
    number = heads or HEADS.get(width)
    if number is None or width % number:
        what = "unknown for" if number is None else f"{number}, which does not divide"
        raise ConfigError(f"the number of attention heads is {what} width {width}; give the option heads.")
    return {
        "tokens": tokens,
        "codebook_size": words - 1,
        "embed_dim": width,
        "depth": 2 * in_blocks,
        "num_heads": number,
        "mlp_ratio": hidden / width,
        "qkv_bias": "mid_block.attn.qkv.bias" in state,
        "skip": "out_blocks.0.skip_linear.weight" in state,
        "num_classes": classes,
        "clip_dim": clip_dim,
    }


def load_uvit(path: Path, heads: int | None = None) -> UViT:
    """The U-ViT of a published file, on the CPU in float32.

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = read_state(path)
    sizes = uvit_sizes(state, heads=heads, source=str(path))
    return build(lambda: UViT(**sizes), state, source=str(path))


def load_vqgan(path: Path, network: UViT, device: torch.device, dtype: torch.dtype) -> VQGANTokenizer:
    """The tokenizer of a published file, checked against the generator's codes.

    Raises:
        WeightsError: it is no such file, or has another number of codes.
    """
    tokenizer = VQGANTokenizer.from_state(read_state(path), source=str(path), device=device, dtype=dtype)
    codes = tokenizer.model.config.codebook_size
    if codes != network.codebook_size:
        raise WeightsError(
            f"the generator predicts {network.codebook_size} codes and the tokenizer {path} has {codes}: they do not "
            "belong together. Give the matching file with the option tokenizer."
        )
    return tokenizer


def square_grid(name: str, tokens: int) -> tuple[int, int]:
    """(h, w) of a square grid of ``tokens`` cells.

    Raises:
        WeightsError: it is no square.
    """
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise WeightsError(f"{name}: the checkpoint has {tokens} positions, which form no square grid.")
    return side, side


class AdaNATImageNet(UViTClassGenerator):
    """``maskgit:adanat-imagenet-l`` and ``-s``: 1,000 ImageNet classes, 256x256 pixels."""

    Options: ClassVar[type[PluginOptions]] = AdaNATOptions

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("adanat-imagenet-l", "adanat-imagenet-s")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> AdaNATImageNet:
        """See ``interfaces.Generator.create``."""
        name = f"maskgit:{variant or cls.variants()[0]}"
        chosen = parse_options(f"generator {name!r}", AdaNATOptions, options)
        files = published_files(chosen, asset(name, "generator"), asset(name, "tokenizer"), offline=offline)
        network = load_uvit(files[0], chosen.heads)
        if not isinstance(network.context_embed, TokenEmbedding):
            raise WeightsError(f"{files[0]} is text-conditional; use it as --generator muse:adanat-cc3m.")
        tokenizer = load_vqgan(files[1], network, device, dtype)
        grid = square_grid(name, network.tokens)
        made = cls(
            name,
            network,
            tokenizer,
            grid=grid,
            image_size=(grid[0] * tokenizer.downsampling, grid[1] * tokenizer.downsampling),
            class_names=None,
            device=device,
            dtype=dtype,
            default_schedule=SCHEDULE,
        )
        return chosen.applied(made)
