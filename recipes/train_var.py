"""Train the transformer of ``var:emoji64``: class-conditional, next-scale, on the embedded images.

    OMP_NUM_THREADS=1 python recipes/train_var.py

Needs the quantiser of ``train_var_tokenizer.py``. The tokens of all images are made once. A batch uses all scales or, now
and then, fewer (those that ``--steps T`` of a sampling uses), so that shorter runs are not foreign to the network. Labels are
dropped at random for guidance. Writes the averaged weights as float16 to ``plugins/adanat_plugins/emoji64/var.safetensors``.
On the CPU; every step's randomness comes from the seed and the step alone, so a run that was stopped goes on from
its checkpoint with the same command and ends with the same weights.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train_dit import raw_latents

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.emoji64.data import class_names, labels
from adanat_plugins.generators.var import load_emoji64_tokenizer, spread_scales
from adanat_plugins.generators.var_net import VAR, VARConfig
from adanat_plugins.tokenizers.multi_scale import MultiScaleQuantizer
from adanat_toolkit.core import derive
from adanat_toolkit.runtime import resolve_dtype

CPU = torch.device("cpu")
ORDER, STEP, START = range(3)
"""What the random numbers of a step or an epoch are for."""


def initialise(network: VAR, seed: int) -> None:
    """Small normal weights; branches that start open (gates at one) and shrink with the depth."""
    draw = torch.Generator().manual_seed(derive(seed, START))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("scale_mul_1H11"):
                continue
            parameter.normal_(0, 0.02, generator=draw) if parameter.ndim > 1 else parameter.zero_()
        for block in network.blocks:
            for last in (block.attn.proj, block.ffn.fc2):
                last.weight /= math.sqrt(2 * len(network.blocks))
            block.ada_lin[1].bias[: 2 * network.config.width] = 1


def loss_of(
    network: VAR,
    quantizer: MultiScaleQuantizer,
    chosen: tuple[int, ...],
    codes: Tensor,
    classes: Tensor,
    dtype: torch.dtype,
) -> Tensor:
    """Mean cross-entropy of all tokens of the chosen scales, (B, n) int64, each predicted from the scales before."""
    parts = codes.split([quantizer.scales[scale] ** 2 for scale in chosen], dim=1)
    latent = torch.zeros(len(codes), quantizer.width, quantizer.side, quantizer.side)
    inputs = []
    for scale, part in zip(chosen, parts, strict=True):
        inputs.append(network.embed(quantizer.resized(latent, scale), scale, classes))
        latent = latent + quantizer.contribution(part, scale)
    mask = network.block_mask(chosen)
    # Plain attention: on CPUs the backward pass of the fused one is many times slower.
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        logits = network(torch.cat(inputs, dim=1), network.conditions(classes), mask=mask)[1]
    return F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())


def save(network: nn.Module, path: Path, step: int, seed: int) -> None:
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in network.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, str(path), metadata={"steps": str(step), "seed": str(seed)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--depth", type=int, default=6)
    parser.add_argument("--heads", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--fewer", type=float, default=0.2, help="share of batches with fewer scales")
    parser.add_argument("--no-label", type=float, default=0.1, help="share of samples without their label")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many; the same command goes on")
    parser.add_argument("--save-every", type=float, default=3, help="minutes between checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="auto", help="of the matrix products; weights and sums stay in float32")
    parser.add_argument("--latents", type=Path, help="keep the images' latents in this file between runs")
    parser.add_argument("--quantiser", type=Path, default=FOLDER / "var_quantizer.safetensors")
    parser.add_argument("--checkpoint", type=Path, default=Path("train_var.pt"))
    parser.add_argument("--out", type=Path, default=FOLDER / "var.safetensors")
    args = parser.parse_args()
    start = saved = time.time()
    dtype = resolve_dtype(args.dtype, CPU)

    tokenizer = load_emoji64_tokenizer(args.quantiser, CPU, torch.float32)
    quantizer, targets, classes = tokenizer.quantizer, labels(), len(class_names())
    scales = quantizer.scales
    lists = [spread_scales(steps, scales, "var") for steps in range(len(scales), 2, -1)]
    latents = raw_latents(args.latents, CPU, torch.float32)
    with torch.no_grad():
        data = [
            torch.cat([torch.cat(quantizer.encode(part, chosen)[0], dim=1).short() for part in latents.split(256)])
            for chosen in lists
        ]
    print(f"tokens of {len(latents)} images, {time.time() - start:.0f} s", flush=True)

    config = VARConfig(
        scales, quantizer.width, args.width, args.depth, args.heads, 4 * args.width, classes,
        quantizer.embedding.num_embeddings,
    )  # fmt: skip
    network, average = VAR(config), VAR(config)
    initialise(network, args.seed)
    average.load_state_dict(network.state_dict())
    average.requires_grad_(False)
    matrices = [p for n, p in network.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in network.named_parameters() if not (p.ndim == 2 and "emb" not in n)]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    parameters = [p for group in groups for p in group["params"]]
    first = 0
    if args.checkpoint.exists():
        kept = torch.load(args.checkpoint, weights_only=True)
        network.load_state_dict(kept["network"])
        average.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        first = kept["step"]
    print(f"{sum(p.numel() for p in parameters):,} parameters, from step {first}", flush=True)

    epoch, shown = len(latents) // args.batch, []
    for step in range(first, args.steps):
        order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(derive(args.seed, ORDER, step // epoch)))
        rows = order[(step % epoch) * args.batch :][: args.batch]
        draw = torch.Generator().manual_seed(derive(args.seed, STEP, step))
        fewer = torch.rand((), generator=draw) < args.fewer
        which = int(torch.randint(1, len(lists), (), generator=draw)) if fewer else 0
        dropped = torch.rand(args.batch, generator=draw) < args.no_label
        loss = loss_of(
            network, quantizer, lists[which], data[which][rows].long(), targets[rows].masked_fill(dropped, classes), dtype
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        rate = args.lr * min(1, (step + 1) / 60) * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * step / args.steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        with torch.no_grad():
            weight = max(0.005, 1 - (1 + step) / (10 + step))
            for own, new in zip(average.parameters(), network.parameters(), strict=True):
                own.lerp_(new, weight)
        if not which:
            shown.append(loss.item())
        if (step + 1) % 25 == 0 and shown:
            print(f"step {step + 1}: {sum(shown) / len(shown):.3f} nats a token; {time.time() - start:.0f} s", flush=True)
            shown = []
        over = time.time() - start > 60 * args.minutes or step + 1 == args.steps
        if over or time.time() - saved > 60 * args.save_every:
            saved = time.time()
            kept = {
                "network": network.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
                "step": step + 1,
            }  # fmt: skip
            aside = args.checkpoint.with_suffix(".part")
            torch.save(kept, aside)
            aside.replace(args.checkpoint)
            save(average, args.out, step + 1, args.seed)
        if over:
            break


if __name__ == "__main__":
    main()
