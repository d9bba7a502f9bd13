"""A policy inside diffusers' ``AmusedPipeline``: train one, apply it in one line, remove it again.

    python examples/diffusers_amused.py [--weights FOLDER] [--out FOLDER]

Without ``--weights`` a tiny pipeline with random weights is built on the spot, so that the script runs in seconds anywhere;
its images mean nothing. With the folder of amused/amused-256 it trains on that one, for as few images.
"""

from __future__ import annotations

import argparse
import json
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import AmusedPipeline, AmusedScheduler, UVit2DModel, VQModel
from torch import Tensor
from torchvision.utils import save_image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

import adanat_toolkit as adanat

PROMPTS = ["a red fox", "a blue tree", "the sea at night"]
STEPS = 4


def tiny_pipeline(folder: Path) -> Path:
    """An aMUSEd pipeline with random weights, as diffusers saves it."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    pipe: Any = AmusedPipeline(
        transformer=UVit2DModel(
            hidden_size=32, use_bias=False, cond_embed_dim=24, micro_cond_encode_dim=4, micro_cond_embed_dim=20,
            encoder_hidden_size=32, vocab_size=64, codebook_size=48, in_channels=40, block_out_channels=32,
            num_res_blocks=1, block_num_heads=2, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
            sample_size=8,
        ),
        vqvae=VQModel(
            block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, latent_channels=8,
            up_block_types=["UpDecoderBlock2D"] * 2, layers_per_block=1, norm_num_groups=4, num_vq_embeddings=48,
            mid_block_add_attention=False, lookup_from_codebook=True,
        ),
        text_encoder=CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
                max_position_embeddings=32, projection_dim=24, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
                pad_token_id=len(words) - 1,
            )
        ),
        tokenizer=CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=32),
        scheduler=AmusedScheduler(mask_token_id=63),
    )  # fmt: skip
    pipe.save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def captions(folder: Path, size: tuple[int, int]) -> Path:
    """A data folder: training draws its prompts from the captions of images; this reward does not look at the images."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, prompt in enumerate(PROMPTS):
        save_image(torch.rand(3, *size), folder / f"{i}.png")
        rows.append(json.dumps({"file": f"{i}.png", "caption": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def brightness(images: Tensor, context: Any) -> Tensor:
    """A reward that needs no weights: (B, 3, H, W) in [0, 1] to (B,)."""
    return images.mean((1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="folder of an aMUSEd pipeline; without it a tiny random one is built")
    parser.add_argument("--out", type=Path, default=Path("runs/diffusers_amused"))
    options = parser.parse_args()
    weights = options.weights or tiny_pipeline(options.out / "tiny")

    generator = adanat.load_generator("amused", weights=str(weights), dtype="float32")  # as the pipeline
    data = captions(options.out / "captions", generator.image_size)
    run = adanat.train(
        generator=generator, reward=brightness, data=data, steps=STEPS, trajectories=32, batch=16, out=options.out / "run"
    )

    pipe = AmusedPipeline.from_pretrained(weights)
    adanat.apply(pipe, run.path, seeds=range(len(PROMPTS)))
    images = pipe(PROMPTS, num_inference_steps=STEPS, output_type="pt").images
    save_image(images, options.out / "applied.png")

    same = adanat.sample(generator, run.policy, seeds=range(len(PROMPTS)), prompts=PROMPTS).images
    print(f"largest difference from adanat.sample: {float((images.cpu() - same).abs().max()):.1e}")
    adanat.remove(pipe)
    print(f"images: {options.out / 'applied.png'}; the pipeline is as it was before")


if __name__ == "__main__":
    main()
