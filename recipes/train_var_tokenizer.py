"""Train the multi-scale quantiser of ``var:emoji64`` on the latents of the embedded tokenizer.

    OMP_NUM_THREADS=1 python recipes/train_var_tokenizer.py

Encoder and decoder are the embedded tokenizer's and stay as they are: only the codebook and the four convolutions that
the scales share are trained. Loss: squared error of the accumulated latent after every scale; codes that nothing uses
start again from what is missing somewhere. Writes ``plugins/adanat_plugins/emoji64/var_quantizer.safetensors``
(float16) and prints how far images through it are from the real ones. The same seed gives the same file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.emoji64.data import emoji_images
from adanat_plugins.features.yardstick import EmojiYardstick
from adanat_plugins.generators.maskgit import embedded_tokenizer
from adanat_plugins.tokenizers.multi_scale import MultiScaleQuantizer, MultiScaleTokenizer
from adanat_toolkit.metrics import FeatureStatistics, frechet_distance

CPU = torch.device("cpu")
SCALES = (1, 2, 3, 4, 6, 8)


def latents_of(tokenizer: MultiScaleTokenizer, file: Path | None) -> Tensor:
    """(10934, 32, 8, 8) float32 of all embedded images; kept in ``file``, if given, for the next run."""
    if file is not None and file.exists():
        return torch.load(file, weights_only=True)
    source = emoji_images()
    latents = torch.cat([tokenizer.encode(source.images(index)) for index in torch.arange(len(source)).split(256)])
    if file is not None:
        torch.save(latents, file)
    return latents


def missing(quantizer: MultiScaleQuantizer, latents: Tensor, draw: torch.Generator, count: int) -> Tensor:
    """(count, C): vectors that the scales were asked to represent, all scales alike."""
    with torch.no_grad():
        _, before = quantizer.encode(latents)
        asked = []
        for scale in range(len(quantizer.scales)):
            vectors = quantizer.resized(latents - before[scale], scale).flatten(2).transpose(1, 2).flatten(0, 1)
            asked.append(vectors[torch.randint(len(vectors), (-(-count // len(quantizer.scales)),), generator=draw)])
    vectors = torch.cat(asked)
    return vectors[torch.randperm(len(vectors), generator=draw)[:count]]


def distance(images: Tensor, real: FeatureStatistics, yardstick: EmojiYardstick) -> float:
    features = torch.cat([yardstick(part) for part in images.split(250)])
    return frechet_distance(FeatureStatistics.of(features), real)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--restart-every", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=60, help="stop after so many, wherever it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latents", type=Path, help="keep the images' latents in this file between runs")
    parser.add_argument("--check", type=int, default=2500, help="images in the measurement at the end; 0: none")
    parser.add_argument("--out", type=Path, default=FOLDER / "var_quantizer.safetensors")
    args = parser.parse_args()
    start, draw = time.time(), torch.Generator().manual_seed(args.seed)

    embedded = embedded_tokenizer(CPU, torch.float32)
    quantizer = MultiScaleQuantizer(args.codes, embedded.model.config.latent_channels, SCALES)
    tokenizer = MultiScaleTokenizer(embedded.model, quantizer, embedded.downsampling, CPU, torch.float32)
    latents = latents_of(tokenizer, args.latents)
    print(f"{len(latents)} latents, spread {latents.std():.3f}, {time.time() - start:.0f} s", flush=True)

    with torch.no_grad():
        for layer in quantizer.quant_resi.qresi_ls:
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=draw) * 0.01)
            layer.weight[:, :, 1, 1] += torch.eye(quantizer.width)
            layer.bias.zero_()
        quantizer.embedding.weight.zero_()
        some = latents[torch.randperm(len(latents), generator=draw)[:512]]
        # With codes of zero nothing is added, so that every scale asks for the latent itself: shrink what they get.
        first = missing(quantizer, some, draw, args.codes)
        quantizer.embedding.weight.copy_(first * torch.linspace(0.1, 1, args.codes)[:, None])
    quantizer.requires_grad_(True)
    groups = [
        {"params": quantizer.embedding.parameters(), "lr": 5 * args.lr},
        {"params": quantizer.quant_resi.parameters(), "lr": args.lr},
    ]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * max(0.01, 1 - step / args.steps)
    )
    used = torch.zeros(args.codes)
    for step in range(args.steps):
        batch = latents[torch.randint(len(latents), (args.batch,), generator=draw)]
        codes, before = quantizer.encode(batch)
        loss = torch.stack([(latent - batch).square().mean() for latent in before[1:]])
        optimizer.zero_grad()
        (loss.mean() + loss[-1]).backward()
        optimizer.step()
        schedule.step()
        used += torch.bincount(torch.cat([c.flatten() for c in codes]), minlength=args.codes)
        if (step + 1) % args.restart_every == 0:
            idle = (used == 0).nonzero()[:, 0]
            if step < 0.7 * args.steps and len(idle):
                with torch.no_grad():
                    quantizer.embedding.weight[idle] = missing(quantizer, batch, draw, len(idle))
            shares = " ".join(f"{value / latents.var():.3f}" for value in loss.tolist())
            print(f"step {step + 1}: unexplained {shares}; idle {len(idle)}; {time.time() - start:.0f} s", flush=True)
            used.zero_()
            if time.time() - start > 60 * args.minutes:
                break

    state = {name: value.detach().half().contiguous() for name, value in quantizer.state_dict().items()}
    meta = {"scales": json.dumps(SCALES), "seed": str(args.seed), "steps": str(step + 1)}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(args.out), metadata=meta)

    quantizer.load_state_dict({name: value.float() for name, value in state.items()})
    quantizer.requires_grad_(False)
    if not args.check:
        return
    yardstick = EmojiYardstick()
    features = yardstick.precomputed(emoji_images())
    assert features is not None
    real = FeatureStatistics.of(features)
    chosen = torch.randperm(len(latents), generator=torch.Generator().manual_seed(1))[: args.check]
    through = torch.cat([tokenizer.decode(quantizer.encode(part)[1][-1]) for part in latents[chosen].split(250)])
    plain = torch.cat([tokenizer.decode(part) for part in latents[chosen].split(250)])
    print(
        f"Frechet distance of {args.check:,} images: through the quantiser {distance(through, real, yardstick):.2f}, "
        f"through encoder and decoder alone {distance(plain, real, yardstick):.2f}; {time.time() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
