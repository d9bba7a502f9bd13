"""Trains the denoiser of ``diffusion-emoji``: python train.py [--updates N] [--out FILE].

Latents of the toolkit's embedded tokenizer before quantisation, of the images and their mirror images, in the few principal
components that tell its codes apart; v-prediction on a cosine schedule; 10 % null class for guidance; AdamW, warm-up then a
cosine to 0; averaged weights, stored in float16. One seed draws everything.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from adanat_diffusion_emoji import WEIGHTS
from adanat_diffusion_emoji.ddim import NoiseLevels
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adanat_plugins.emoji64 import data
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_toolkit.runtime import in_chunks, resolve_device, resolve_dtype

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 6,
    "out_channels": 6,
    "block_out_channels": [112, 144],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "time_embedding_dim": 256,
    "attention_head_dim": 32,
    "norm_num_groups": 16,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 99,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "clip_sample": False,
    "set_alpha_to_one": True,
}


def principal_components(latents: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """mean (C,), and linear maps (C, count) into the leading components and (count, C) back.

    Of the 32 channels 6 components hold 99.9 % of the variance. Each is divided by the square root of its standard deviation,
    half-way to whitening, so that the leading ones weigh more in the loss; the whole has unit variance.
    """
    cells = latents.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = cells.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov((cells - mean).T))
    vectors, scale = vectors[:, -count:], variance[-count:] ** 0.25
    scale = scale * (scale**2).mean().sqrt()
    return mean.float(), (vectors / scale).float(), (vectors * scale).T.float()


@torch.no_grad()
def encode(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(21868, 32, 8, 8) float32 latents of all images and their mirror images, and their classes."""
    model = embedded_tokenizer(device, dtype).model
    pixels = data.emoji_images().images(torch.arange(len(data.labels())))

    def run(images: Tensor) -> Tensor:
        x = (images * 2 - 1).to(device, dtype).contiguous(memory_format=torch.channels_last)
        return model.quant_conv(model.encoder(x)).float().cpu()

    parts = [in_chunks(run, images, chunk=64)[0] for images in (pixels, pixels.flip(3))]
    return torch.cat(parts).contiguous(), data.labels().repeat(2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--latents", type=Path, help="keep the encoded images in this file between runs")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    from diffusers import DDIMScheduler, UNet2DModel

    device = resolve_device(options.device)
    dtype = resolve_dtype("auto", device)
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    network = UNet2DModel.from_config(UNET).to(device, memory_format=torch.channels_last)
    average = copy.deepcopy(network)
    print(f"{sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    if options.latents is not None and options.latents.is_file():
        latents, labels = torch.load(options.latents)
    else:
        latents, labels = encode(device, dtype)
        if options.latents is not None:
            torch.save((latents, labels), options.latents)
    mean, into, back = principal_components(latents, UNET["in_channels"])
    latents = ((latents.permute(0, 2, 3, 1) - mean) @ into).permute(0, 3, 1, 2).contiguous()
    levels = NoiseLevels(DDIMScheduler.from_config(SCHEDULER).alphas_cumprod)
    optimiser = torch.optim.AdamW(
        network.parameters(), options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
    )
    warmup = min(200, options.updates // 10 + 1)
    start, recent = time.monotonic(), 0.0
    for update in range(options.updates):
        progress = update / options.updates
        rate = options.learning_rate * min((update + 1) / warmup, 0.5 * (1 + math.cos(math.pi * progress)))
        optimiser.param_groups[0]["lr"] = rate
        rows = torch.randint(len(latents), (options.batch,), generator=draw)
        # Stratified: every batch covers all noise levels, which steadies the gradient.
        remaining = (torch.arange(options.batch) + torch.rand(options.batch, generator=draw)) / options.batch
        dropped = torch.rand(options.batch, generator=draw) < 0.1
        noise = torch.randn(options.batch, *latents.shape[1:], generator=draw)
        classes = labels[rows].masked_fill(dropped, UNET["num_class_embeds"] - 1)
        alpha = levels.alpha(remaining).float()[:, None, None, None]
        clean = latents[rows]
        noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
        target = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
        x = noisy.to(device).contiguous(memory_format=torch.channels_last)
        # Plain attention: on CPUs the backward pass of the fused one is many times slower.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            velocity = network(x, levels.timestep(remaining).to(device), classes.to(device)).sample
        loss = F.mse_loss(velocity.float(), target.to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        decay = min(0.998, (update + 1) / (update + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        recent += (loss.item() - recent) / min(update + 1, 100)
        if (update + 1) % 100 == 0 or update + 1 == options.updates:
            print(f"update {update + 1}: loss {recent:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    tensors = {key: value.half().contiguous() for key, value in average.state_dict().items()}
    tensors |= {"latents.mean": mean, "latents.back": back.contiguous()}
    training = {key: str(value) for key, value in vars(options).items() if key not in ("out", "latents", "device")}
    metadata = {"unet": UNET, "scheduler": SCHEDULER, "training": training | {"loss": round(recent, 4)}}
    save_file(tensors, options.out, {key: json.dumps(value) for key, value in metadata.items()})
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
