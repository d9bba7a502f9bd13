"""A small aMUSEd pipeline with random weights, made and saved by diffusers and transformers themselves."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import torch

from .released import randomise

CODES, MASK, SIDE, TEXT_WIDTH, TEXT_POOLED, TEXT_LENGTH = 48, 63, 4, 32, 24, 12


def amused_parts(folder: Path, *, halved: bool = False, side: int = SIDE) -> dict[str, Any]:
    """The five parts of the pipeline.

    Args:
        folder: for the tokenizer's merges. halved: as in the 512-pixel model, whose transformer works on half the grid.
    """
    from diffusers import AmusedScheduler, UVit2DModel, VQModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    transformer = UVit2DModel(
        hidden_size=32, use_bias=False, cond_embed_dim=TEXT_POOLED, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
        encoder_hidden_size=TEXT_WIDTH, vocab_size=MASK + 1, codebook_size=CODES, in_channels=40, block_out_channels=32,
        num_res_blocks=1, downsample=halved, upsample=halved, block_num_heads=2, num_hidden_layers=2,
        num_attention_heads=2, intermediate_size=48, sample_size=side,
    )  # fmt: skip
    vqvae = VQModel(
        act_fn="silu", block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2, in_channels=3, out_channels=3, latent_channels=8, layers_per_block=1,
        norm_num_groups=4, num_vq_embeddings=CODES, sample_size=8, mid_block_add_attention=False,
        lookup_from_codebook=True,
    )  # fmt: skip
    text_encoder = CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=60, hidden_size=TEXT_WIDTH, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=TEXT_LENGTH, projection_dim=TEXT_POOLED, bos_token_id=58, eos_token_id=59,
            pad_token_id=59,
        )
    )  # fmt: skip
    for seed, network in enumerate((transformer, vqvae, text_encoder), 11):
        network.load_state_dict(randomise(network, seed), strict=False)
        network.eval()
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "<|startoftext|>", "<|endoftext|>"]
    ids = dict(zip(words, [*range(53), 58, 59], strict=True))
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TEXT_LENGTH)
    return {
        "transformer": transformer,
        "vqvae": vqvae,
        "text_encoder": text_encoder,
        "tokenizer": tokenizer,
        "scheduler": AmusedScheduler(mask_token_id=MASK),
    }


def save_amused(folder: Path, *, halved: bool = False, side: int = SIDE) -> dict[str, Any]:
    """The pipeline's folder, each part saved by its own library; the parts."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = amused_parts(folder, halved=halved, side=side)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return parts
