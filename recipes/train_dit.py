"""Train the embedded network of ``sit``, which ``dit`` uses too: a small transformer on latents of the embedded images.

    OMP_NUM_THREADS=1 python recipes/train_dit.py sit --dtype bfloat16        # --minutes M stops earlier

Latents are those of the embedded tokenizer before rounding, in their leading principal components. ``sit`` learns the
velocity on the straight path; ``dit`` learns the noise on the solver's variance-preserving one, for which so few updates
are too few: where noise is nearly all, a small error of it is a large one of the image. Times are spread evenly over a
batch; 10 % null class for guidance; AdamW, warm-up, then a cosine to 0; averaged weights, stored in float16. The seed and
the number of updates decide the result; ``--minutes`` only when it is cut. The file is also written every few minutes.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from adanat_plugins.emoji64 import FOLDER, data
from adanat_plugins.generators.dit import DiTGenerator, SiTGenerator
from adanat_plugins.generators.dit_net import HEADS, DiT
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_plugins.tokenizers.principal import PrincipalLatents
from adanat_toolkit.runtime import resolve_device, resolve_dtype

PATHS = {"dit": DiTGenerator.path, "sit": SiTGenerator.path}
NULL = 0.1
"""Share of samples that lose their class."""


def raw_latents(kept: Path | None, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(10934, 32, 8, 8) float32: the tokenizer's latents of all images, kept in a file if one is named."""
    if kept is not None and kept.is_file():
        return torch.load(kept)
    tokenizer, images = embedded_tokenizer(device, dtype), data.emoji_images()
    index = torch.arange(len(images))
    latents = torch.cat([tokenizer.latents(images.images(rows).to(device)).cpu() for rows in index.split(256)])
    if kept is not None:
        torch.save(latents, kept)
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=sorted(PATHS))
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so many minutes")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--patch", type=int, default=2, help="side of a token in latents")
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--channels", type=int, default=6, help="principal components")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the averaged weights")
    parser.add_argument("--every", type=float, default=4, help="minutes between files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", help="of the matrix products; weights and sums stay in float32")
    parser.add_argument("--latents", type=Path, help="keep the tokenizer's latents in this file between runs")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or FOLDER / f"{options.family}.safetensors"
    path, device = PATHS[options.family], resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)

    raw, labels = raw_latents(options.latents, device, torch.float32), data.labels()
    space = PrincipalLatents.fit(embedded_tokenizer(torch.device("cpu"), torch.float32), raw, options.channels)
    latents = space.project(raw)
    classes = len(data.class_names())
    torch.manual_seed(options.seed)
    draw = torch.Generator().manual_seed(options.seed)
    network = DiT(
        side=latents.shape[2], patch=options.patch, channels=options.channels, outputs=options.channels, width=options.width,
        depth=options.depth, heads=HEADS[options.width], hidden=4 * options.width, classes=classes,
    ).to(device)  # fmt: skip
    average = copy.deepcopy(network)
    trained = [p for p in network.parameters() if p.requires_grad]
    print(f"{sum(p.numel() for p in trained):,} parameters", flush=True)
    optimiser = torch.optim.AdamW(trained, options.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    warmup = min(200, options.updates // 10 + 1)
    facts = {key: getattr(options, key) for key in ("family", "updates", "batch", "learning_rate", "average", "seed")}

    def write(update: int) -> None:
        tensors = {key: value.half().cpu().contiguous() for key, value in average.state_dict().items()}
        tensors |= {f"latents.{key}": getattr(space, key).contiguous() for key in ("mean", "into", "back")}
        training = facts | {"done": update, "loss": round(recent, 4)}
        beside = out.with_suffix(".partial")
        save_file(tensors, beside, {"num_heads": str(HEADS[options.width]), "training": json.dumps(training)})
        os.replace(beside, out)

    start = written = time.monotonic()
    recent, update = 0.0, 0
    while update < options.updates and time.monotonic() - start < 60 * options.minutes:
        rate = options.learning_rate * min((update + 1) / warmup, 0.5 * (1 + math.cos(math.pi * update / options.updates)))
        optimiser.param_groups[0]["lr"] = rate
        rows = torch.randint(len(latents), (options.batch,), generator=draw)
        times = (torch.arange(options.batch) + torch.rand(options.batch, generator=draw)) / options.batch
        times = times.clamp(1e-3, 1 - 1e-3)
        dropped = torch.rand(options.batch, generator=draw) < NULL
        clean, noise = latents[rows], torch.randn(options.batch, *latents.shape[1:], generator=draw)
        alpha, sigma = (x.exp().float()[:, None, None, None] for x in path.log_alpha_sigma(times.double()))
        target = noise if options.family == "dit" else clean - noise
        x, given = (alpha * clean + sigma * noise).to(device), labels[rows].masked_fill(dropped, classes).to(device)
        # Plain attention: on CPUs the backward pass of the fused one is many times slower.
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            predicted, _ = network(x, path.network_time(times).to(device), given)
        loss = F.mse_loss(predicted.float(), target.to(device))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        decay = min(options.average, (update + 1) / (update + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        recent += (loss.item() - recent) / min(update + 1, 100)
        update += 1
        if update % 100 == 0:
            print(f"update {update}: loss {recent:.4f}, {time.monotonic() - start:.0f} s", flush=True)
        if time.monotonic() - written > 60 * options.every:
            write(update)
            written = time.monotonic()
    write(update)
    print(f"{out}: {update} updates, loss {recent:.4f}, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
