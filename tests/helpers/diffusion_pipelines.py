"""Small text-to-image pipelines with random weights, made and saved by diffusers and transformers themselves."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

TEXT_WIDTH, POOLED, TEXT_LENGTH = 16, 12, 14
TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def save_pipeline(kind: str, folder: Path, *, scheduler: Any = None) -> Path:
    """A pipeline's folder.

    Args:
        kind: a key of :data:`PIPELINES` or :data:`MORE_PIPELINES`. scheduler: in place of the kind's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipe = make_pipeline(kind, folder)
    if scheduler is not None:
        pipe.scheduler = scheduler
        pipe.register_modules(scheduler=scheduler)
    pipe.save_pretrained(folder)
    return folder


def make_pipeline(kind: str, folder: Path) -> Any:
    """The pipeline in memory; ``folder`` is for the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = {**PIPELINES, **MORE_PIPELINES}[kind](folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _vae(channels: int = 4, **config: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 16], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2,
        in_channels=3, out_channels=3, latent_channels=channels, layers_per_block=1, norm_num_groups=4, sample_size=16,
        **config,
    ).eval()  # fmt: skip


def _unet(**config: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4, **config,
    ).eval()  # fmt: skip


def _clip(folder: Path, *, projected: bool = False) -> tuple[Any, Any]:
    """A text encoder and its tokenizer of single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "<|startoftext|>", "<|endoftext|>"]
    ids = dict(zip(words, [*range(53), 58, 59], strict=True))
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TEXT_LENGTH)
    config = CLIPTextConfig(
        vocab_size=60, hidden_size=TEXT_WIDTH, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=TEXT_LENGTH, projection_dim=POOLED, bos_token_id=58, eos_token_id=59, pad_token_id=59,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval(), tokenizer


def _stable_diffusion(folder: Path) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    text_encoder, tokenizer = _clip(folder)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=_unet(cross_attention_dim=TEXT_WIDTH),
        scheduler=DDIMScheduler(**TRAINED, clip_sample=False, set_alpha_to_one=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _stable_diffusion_xl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    (first, tokenizer), (second, tokenizer_2) = _clip(folder), _clip(folder, projected=True)
    unet = _unet(
        cross_attention_dim=2 * TEXT_WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=POOLED + 6 * 4,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=EulerDiscreteScheduler(**TRAINED, timestep_spacing="leading"),
    )


def _stable_diffusion_3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    (first, tokenizer), (second, tokenizer_2) = _clip(folder, projected=True), _clip(folder, projected=True)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=8, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH, caption_projection_dim=16, pooled_projection_dim=2 * POOLED, out_channels=8,
        pos_embed_max_size=12,
    ).eval()  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(8, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        text_encoder_3=None,
        tokenizer_3=None,
    )


def _stable_diffusion_3_with_t5(folder: Path) -> Any:
    from transformers import T5Config, T5EncoderModel

    pipe = _stable_diffusion_3(folder)
    config = T5Config(vocab_size=40, d_model=2 * TEXT_WIDTH, d_kv=8, d_ff=20, num_layers=2, num_heads=2)
    pipe.register_modules(text_encoder_3=T5EncoderModel(config).eval(), tokenizer_3=_letters())
    return pipe


def _letters() -> Any:
    """A tokenizer of single letters, as transformers' own class for any."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<pad>", *string.ascii_lowercase, *string.digits, " "]
    letters = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", pad_token="<pad>")


def _z_image(folder: Path) -> Any:
    if not hasattr(diffusers, "ZImagePipeline"):
        pytest.skip(f"diffusers {diffusers.__version__} has no Z-Image")
    from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
    from transformers import Qwen3Config, Qwen3Model

    tokenizer = _letters()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    text_encoder = Qwen3Model(
        Qwen3Config(
            vocab_size=40, hidden_size=TEXT_WIDTH, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, max_position_embeddings=600,
        )
    ).eval()  # fmt: skip
    transformer = ZImageTransformer2DModel(
        in_channels=8, dim=24, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=TEXT_WIDTH,
        axes_dims=[4, 4, 4], axes_lens=[1024, 32, 32],
    ).eval()  # fmt: skip
    for token in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(token)
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_vae(8, shift_factor=0.06, scaling_factor=1.5, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
    )


PIPELINES = {
    "stable-diffusion": _stable_diffusion,
    "stable-diffusion-xl": _stable_diffusion_xl,
    "stable-diffusion-3": _stable_diffusion_3,
    "z-image": _z_image,
}
"""Pipelines of every family, by a name for tests."""
MORE_PIPELINES = {"stable-diffusion-3-t5": _stable_diffusion_3_with_t5}
"""Others with further components."""
