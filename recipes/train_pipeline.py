"""Train a small ``StableDiffusionPipeline`` on the embedded emoji and save it as diffusers does; it does not ship.

    OMP_NUM_THREADS=1 python recipes/train_pipeline.py --dtype bfloat16 --out FOLDER         # --minutes M ends earlier

Text encoder: the text tower of the embedded CLIP, in transformers' layout, with its tokenizer. Autoencoder: the embedded
tokenizer's, in the layout of ``AutoencoderKL``, before rounding to codes and in its leading principal components; nothing
of it is trained. Denoiser: a U-Net that learns v on Stable Diffusion's own noise schedule; times are spread evenly over a
batch; 10 % empty captions for guidance; AdamW, warm-up, then a cosine to 0; averaged weights. The seed and the number of
updates decide the result; with ``--minutes`` the cosine ends when the time does, and the machine decides too. The folder is
also written every few minutes, and ``--start`` goes on from one with the averaged weights and a new optimiser.

    python recipes/train_pipeline.py --images FILE.zip

only writes the images with their captions, as ``--data`` takes them.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_dit import raw_latents

from adanat_plugins.emoji64 import FOLDER, data
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_plugins.generators.muse import embedded_text_encoder
from adanat_plugins.tokenizers.principal import PrincipalLatents
from adanat_toolkit.runtime import in_chunks, resolve_device, resolve_dtype

NULL = 0.1
"""Share of samples that lose their caption."""
SCHEDULER: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
"""Stable Diffusion 2's, but for the spacing: with few steps the first one should be at the noise that images start from."""


def text_parts(folder: Path) -> tuple[Any, Any]:
    """The embedded CLIP's text tower as a ``CLIPTextModel``, and its ``CLIPTokenizer``, whose files go into ``folder``.

    Raises:
        AssertionError: their states are not those of the embedded tower.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    own = embedded_text_encoder(torch.device("cpu"), torch.float32)
    sizes = json.loads((FOLDER / "clip.json").read_text())["text_cfg"]
    width, length = sizes["width"], sizes["context_length"]
    # The embedded tokenizer's words, under the names of the two special ones that transformers has.
    named = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {named.get(word, word): i for word, i in own.tokenizer.encoder.items()}
    merges = sorted(own.tokenizer.bpe_ranks, key=own.tokenizer.bpe_ranks.__getitem__)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(words))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges if len(pair) == 2)]))
    tokenizer = CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length, pad_token="!"
    )  # open_clip pads with 0, which is this word
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=sizes["vocab_size"],
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=sizes["layers"],
            num_attention_heads=sizes["heads"],
            max_position_embeddings=length,
            projection_dim=width,
            hidden_act="gelu",
            bos_token_id=words["<|startoftext|>"],
            eos_token_id=words["<|endoftext|>"],
            pad_token_id=words["!"],
        )
    ).eval()
    model.load_state_dict(_transformers_names(own.tower.state_dict(), model.state_dict()))
    prompts = ["", "3d emoji of waving hand sign, dark skin tone", *data.captions()[::97]]
    ids = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        difference = (model(ids).last_hidden_state - own(prompts)[0]).abs().max().item()
    print(f"text states differ by at most {difference:.1e}", flush=True)
    assert difference < 1e-4
    return model, tokenizer


def _transformers_names(own: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's text tower under transformers' names; what generation does not use keeps the values of ``wanted``."""
    prefix = "text_model." if any(name.startswith("text_model.") for name in wanted) else ""  # transformers before 5
    found = {
        f"{prefix}embeddings.token_embedding.weight": own["token_embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": own["positional_embedding"],
        f"{prefix}final_layer_norm.weight": own["ln_final.weight"],
        f"{prefix}final_layer_norm.bias": own["ln_final.bias"],
    }
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    parts |= {"attn.out_proj": "self_attn.out_proj"}
    for name, value in own.items():
        if not name.startswith("transformer.resblocks."):
            continue
        layer, rest = name.removeprefix("transformer.resblocks.").split(".", 1)
        part, kind = rest.replace("in_proj_", "in_proj.").rsplit(".", 1)
        place = f"{prefix}encoder.layers.{layer}"
        if part == "attn.in_proj":
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                found[f"{place}.self_attn.{letter}_proj.{kind}"] = third.contiguous()
        else:
            found[f"{place}.{parts[part]}.{kind}"] = value
    return wanted | found


def write_images(path: Path) -> None:
    """The embedded images and a ``metadata.jsonl`` with their captions in one ZIP."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FOLDER / "images.zip", path)
    rows = (json.dumps({"file": row["file"], "caption": row["caption"]}) for row in data.metadata())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("metadata.jsonl", "\n".join(rows))


@torch.no_grad()
def autoencoder(space: PrincipalLatents) -> Any:
    """The embedded tokenizer's networks as an ``AutoencoderKL`` whose latents are those of ``space``.

    The encoder computes the same numbers. The decoder does so too but for what the components leave out and for the border:
    the linear map is put into its first layer, whose padding is zero after the map in one and before it in the other.
    """
    from diffusers import AutoencoderKL

    own, channels = space.model, space.channels
    blocks = own.config.block_out_channels
    model = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * len(blocks),
        up_block_types=["UpDecoderBlock2D"] * len(blocks),
        block_out_channels=list(blocks),
        layers_per_block=own.config.layers_per_block,
        latent_channels=channels,
        norm_num_groups=own.config.norm_num_groups,
        mid_block_add_attention=False,
        sample_size=data.SIZE[0],
        scaling_factor=1.0,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).eval()
    state = {name: value for name, value in own.state_dict().items() if name.startswith(("encoder.", "decoder."))}
    out, quant, after, enter = own.encoder.conv_out, own.quant_conv, own.post_quant_conv, own.decoder.conv_in
    into = space.into.T @ quant.weight[:, :, 0, 0]
    variance = torch.full((channels,), -30.0)  # its logarithm: none
    state["encoder.conv_out.weight"] = F.pad(torch.einsum("ki,icxy->kcxy", into, out.weight), (0,) * 7 + (channels,))
    mean = into @ out.bias + space.into.T @ (quant.bias - space.mean)
    state["encoder.conv_out.bias"] = torch.cat([mean, variance])
    back = after.weight[:, :, 0, 0] @ space.back.T
    state["decoder.conv_in.weight"] = torch.einsum("oixy,ik->okxy", enter.weight, back)
    shift = after.weight[:, :, 0, 0] @ space.mean + after.bias
    state["decoder.conv_in.bias"] = enter.bias + torch.einsum("oixy,i->o", enter.weight, shift)
    model.load_state_dict(state)
    return model


def text_states(model: Any, tokenizer: Any, prompts: tuple[str, ...]) -> Tensor:
    """(n, L, C) float32 states of prompts, as the pipeline encodes them."""
    length = tokenizer.model_max_length
    ids = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return in_chunks(lambda part: (model(part).last_hidden_state,), ids, chunk=256)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=6000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training, where --updates take longer")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, nargs=2, default=(96, 160), help="channels at 8x8 and at 4x4 cells")
    parser.add_argument("--channels", type=int, default=6, help="principal components")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--every", type=float, default=4, help="minutes between folders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the matrix products; weights and sums stay in float32")
    parser.add_argument("--latents", type=Path, help="keep the tokenizer's latents in this file between runs")
    parser.add_argument("--start", type=Path, help="a pipeline's folder whose U-Net training goes on from")
    parser.add_argument("--images", type=Path, help="write the images with their captions here, and do no more")
    parser.add_argument("--out", type=Path, default=Path("runs/emoji-pipeline"), help="the pipeline's folder")
    options = parser.parse_args()
    if options.images is not None:
        write_images(options.images)
        return
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel

    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    text_encoder, tokenizer = text_parts(options.out / "tokenizer")
    raw = raw_latents(options.latents, device, torch.float32)
    space = PrincipalLatents.fit(embedded_tokenizer(torch.device("cpu"), torch.float32), raw, options.channels)
    latents, vae = space.project(raw), autoencoder(space)
    states = text_states(text_encoder, tokenizer, (*data.captions(), ""))
    empty = len(states) - 1
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    network = UNet2DConditionModel(
        sample_size=latents.shape[2],
        in_channels=options.channels,
        out_channels=options.channels,
        block_out_channels=tuple(options.width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=states.shape[2],
        attention_head_dim=tuple(width // 32 for width in options.width),  # the number of heads, whatever its name
        norm_num_groups=16,
    )
    if options.start is not None:
        network.load_state_dict(UNet2DConditionModel.from_pretrained(options.start, subfolder="unet").state_dict())
    network.to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    scheduler = DPMSolverMultistepScheduler(**SCHEDULER)
    levels = scheduler.alphas_cumprod
    optimiser = torch.optim.AdamW(
        network.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    warmup = min(200, options.updates // 10 + 1)

    def write() -> None:
        pipe = StableDiffusionPipeline(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=copy.deepcopy(average).cpu().to(memory_format=torch.contiguous_format),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(options.out)

    start = written = time.monotonic()
    recent, update = 0.0, 0
    while True:
        progress = max(update / options.updates, (time.monotonic() - start) / (60 * options.minutes))
        if progress >= 1:
            break
        rate = options.learning_rate * min((update + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        optimiser.param_groups[0]["lr"] = rate
        rows = torch.randint(len(latents), (options.batch,), generator=draw)
        times = (torch.arange(options.batch) + torch.rand(options.batch, generator=draw)) / options.batch
        times = (times * len(levels)).long()
        dropped = torch.rand(options.batch, generator=draw) < NULL
        clean, noise = latents[rows], torch.randn(options.batch, *latents.shape[1:], generator=draw)
        alpha, sigma = (x.sqrt()[:, None, None, None] for x in (levels[times], 1 - levels[times]))
        x = (alpha * clean + sigma * noise).to(device).contiguous(memory_format=torch.channels_last)
        given = states[rows.masked_fill(dropped, empty)].to(device)
        # Plain attention: on CPUs the backward pass of the fused one is many times slower.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = network(x, times.to(device), given).sample
        loss = F.mse_loss(velocity.float(), (alpha * noise - sigma * clean).to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(options.average, (update + 1) / (update + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        recent += (loss.item() - recent) / min(update + 1, 100)
        update += 1
        if update % 100 == 0:
            print(f"update {update}: loss {recent:.4f}, {time.monotonic() - start:.0f} s", flush=True)
        if time.monotonic() - written > 60 * options.every:
            write()
            written = time.monotonic()
    write()
    print(f"{options.out}: {update} updates, loss {recent:.4f}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
