"""Train the emoji64 yardstick: a small timm network on the (class, style) pairs of the embedded images.

    python recipes/train_yardstick.py            # about 6 minutes on two CPU cores

Writes, in ``plugins/adanat_plugins/features``: ``emoji64_yardstick.safetensors`` (float16 weights),
``emoji64_yardstick.json`` (classes, accuracies, noise floor) and ``emoji64_yardstick_real.safetensors`` (float16
features of all real images). A tenth of the emoji (by name, so that no skin tone or style of a held-out emoji is
trained on) is held out for the accuracies; the weights are those of the other nine tenths.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adanat_plugins.emoji64 import data as emoji
from adanat_plugins.features import yardstick
from adanat_plugins.features.network import FEATURE_DIM, build_network
from adanat_toolkit.core import derive
from adanat_toolkit.images import augment
from adanat_toolkit.metrics import FeatureStatistics, frechet_distance


def split(seed: int) -> tuple[Tensor, Tensor]:
    """(training, held-out) image indices; all images of a name are on one side."""
    names = [row["name"] for row in emoji.metadata()]
    distinct = sorted(set(names))
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {distinct[i] for i in order[: len(distinct) // 10]}
    mask = torch.tensor([name in held for name in names])
    return (~mask).nonzero()[:, 0], mask.nonzero()[:, 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(yardstick.__file__).parent)
    args = parser.parse_args()
    start = time.time()

    source = emoji.emoji_images()
    pairs = list(zip(emoji.labels().tolist(), emoji.style_labels().tolist(), strict=True))
    classes = sorted(set(pairs))
    targets = torch.tensor([classes.index(pair) for pair in pairs])
    training, held = split(args.seed)

    with torch.random.fork_rng():
        torch.manual_seed(args.seed)
        network = build_network(len(classes)).to(memory_format=torch.channels_last)
    decay = [p for p in network.parameters() if p.dim() > 1]
    plain = [p for p in network.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr)
    steps = args.epochs * (len(training) // args.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.2)
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    shuffle = torch.Generator().manual_seed(args.seed)
    for epoch in range(args.epochs):
        network.train()
        total = torch.zeros(())
        batches = training[torch.randperm(len(training), generator=shuffle)].split(args.batch)
        for number, index in enumerate(b for b in batches if len(b) == args.batch):
            images = augment(source.images(index), derive(args.seed, epoch, number), flip=True, shift=4)
            logits = network(yardstick.prepare(images).contiguous(memory_format=torch.channels_last))
            loss = loss_function(logits, targets[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach()
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {total / (number + 1):.3f} {time.time() - start:.0f} s", flush=True
        )

    network.eval()
    state = {k: v.half() if v.is_floating_point() else v for k, v in network.state_dict().items()}
    args.out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in state.items()}, str(args.out / f"{yardstick.NAME}.safetensors"))

    # Everything below is measured with the float16 weights, as they are used.
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    features = torch.empty(len(source), FEATURE_DIM)
    guesses = torch.empty(len(source), dtype=torch.int64)
    for index in torch.arange(len(source)).split(256):
        with torch.no_grad():
            batch = yardstick.prepare(source.images(index)).contiguous(memory_format=torch.channels_last)
            features[index] = network.forward_features(batch).mean((2, 3))
            guesses[index] = network.head.fc(features[index]).argmax(1)
    known = torch.tensor(classes)
    right = known[guesses] == known[targets]

    def accuracy(index: Tensor) -> dict[str, float]:
        parts = {"pair": right.all(1), "class": right[:, 0], "style": right[:, 1]}
        return {name: round(hits[index].float().mean().item(), 4) for name, hits in parts.items()}

    floors = []
    for seed in range(10):
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        halves = [FeatureStatistics.of(features[part]) for part in order.chunk(2)]
        floors.append(frechet_distance(*halves))
    digest = hashlib.sha256((args.out / f"{yardstick.NAME}.safetensors").read_bytes()).hexdigest()
    about = {
        "weights_sha256": digest,
        "parameters": sum(p.numel() for p in network.parameters()),
        "classes": [[label, emoji.STYLES[style]] for label, style in classes],
        "trained_on": f"{len(training):,} emoji64 images of (class, style) pairs; {args.epochs} epochs, flips, 4-pixel "
        f"shifts; {len(held):,} images of unseen emoji held out",
        "held_out_accuracy": accuracy(held),
        "training_accuracy": accuracy(training),
        "noise_floor": round(sum(floors) / len(floors), 6),
        "seed": args.seed,
    }
    (args.out / f"{yardstick.NAME}.json").write_text(json.dumps(about, separators=(",", ":")) + "\n")
    protocol = f"emoji64-v1-{digest[:8]}"
    meta = {"protocol": protocol, "data": source.fingerprint}
    save_file({"features": features.half()}, str(args.out / f"{yardstick.NAME}_real.safetensors"), metadata=meta)
    del about["classes"]
    print(
        json.dumps(about, indent=1),
        f"feature scale {features.std(0).mean():.3f}",
        f"{time.time() - start:.0f} s",
        sep="\n",
    )


if __name__ == "__main__":
    main()
