"""Throughput at the published sizes: AdaNAT-L and AdaNAT-S on ImageNet 256x256, with random weights, which cost the same.

The generator, the tokenizer, the discriminator's DINO and the images are written to a temporary folder and loaded as a user's
own are, under `--preset paper`. Rates are medians over repeats after warm-up, with minimum and maximum.

    python benchmarks/published_speed.py --shape l --steps 8 --batch 128 [--set generator.options.compile=true] [--whole 4096]

`--tiny` shrinks every network, to try the script where there is no GPU. `gpu_all.py` runs this too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SIZES: dict[str, dict[str, int]] = {
    "l": {"tokens": 256, "codebook_size": 1024, "embed_dim": 768, "depth": 24, "num_heads": 8},
    "s": {"tokens": 256, "codebook_size": 1024, "embed_dim": 512, "depth": 12, "num_heads": 8},
    "tiny": {"tokens": 256, "codebook_size": 1024, "embed_dim": 64, "depth": 2, "num_heads": 8},
}
PUBLISHED = {
    ("l", 8): {"training": 114.7, "sampling_tokens": 149.6, "sampling": 120.0},
    ("s", 4): {"training": 299.6, "sampling_tokens": 761.0, "sampling": 324.0, "whole_4096_seconds": 17.6},
}
"""Trajectories/s of the published code on one H100 (random weights, batch 128); "training" has no policy update in it."""
CLASSES, IMAGES = 1001, 256


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Random values of the scale that keeps activations near 1."""
    random = torch.Generator().manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        spread = 1.0 if "embedding" in name or "_emb" in name else max(1, value[0].numel()) ** -0.5
        state[name] = torch.randn(value.shape, generator=random) * spread
    return state


def write_weights(folder: Path, shape: str, tiny: bool) -> None:
    """Generator, tokenizer and DINO, where the toolkit looks for them."""
    import timm

    from adanat_plugins.generators.uvit import UViT
    from adanat_plugins.rewards.backbones import DINO
    from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig
    from adanat_plugins.weights import asset

    name = f"maskgit:adanat-imagenet-{shape}"
    sizes: dict[str, Any] = {**SIZES["tiny" if tiny else shape]}
    config = VQGANConfig(width=32, blocks=1, code_width=32) if tiny else VQGANConfig()
    files = {
        asset(name, "generator").file: UViT(**sizes, num_classes=CLASSES),
        asset(name, "tokenizer").file: VQGAN(config),
    }
    for file, module in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state_of(module), folder / file)
    from safetensors.torch import save_file

    path = folder / DINO.file
    path.parent.mkdir(parents=True, exist_ok=True)
    dino = timm.create_model("vit_small_patch16_224.dino", pretrained=False, num_classes=0)
    save_file({key: value.contiguous() for key, value in dino.state_dict().items()}, path)


def write_images(folder: Path) -> None:
    """Smooth random images in class folders."""
    from PIL import Image

    random = torch.Generator().manual_seed(0)
    for i in range(IMAGES):
        noise = torch.rand(1, 3, 16, 16, generator=random)
        pixels = nn.functional.interpolate(noise, size=256, mode="bilinear")[0].mul(255).byte().permute(1, 2, 0)
        path = folder / str(i % (CLASSES - 1)) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(path)


def seconds(function: Callable[[], object], repeats: int, device: torch.device, warm: int = 2) -> list[float]:
    """Wall time of each call, the device's work included."""
    times = []
    for i in range(warm + repeats):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if i >= warm:
            times.append(time.perf_counter() - started)
    return times


def rate(count: int, times: list[float]) -> dict[str, float]:
    figures = {"median": statistics.median(times), "min": max(times), "max": min(times)}
    return {key: round(count / value, 1) for key, value in figures.items()}


@contextmanager
def random_weights(shape: str, tiny: bool) -> Iterator[Path]:
    """Weights and images in a temporary folder, where the toolkit finds them inside; what was set before is set again."""
    variable = "ADANAT_WEIGHTS"
    before = os.environ.get(variable)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_weights(folder, shape, tiny)
        write_images(folder / "images")
        os.environ[variable] = name
        try:
            yield folder
        finally:
            if before is None:
                del os.environ[variable]
            else:
                os.environ[variable] = before


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """One case's figures. ``arguments`` has those of :func:`options`; ``folder`` is that of :func:`random_weights`."""
    from adanat_toolkit.core import Noise
    from adanat_toolkit.decoding import TokenGenerator
    from adanat_toolkit.policies import SamplingPolicy
    from adanat_toolkit.sampling import collect
    from adanat_toolkit.training import Trainer, resolve

    flags = {
        "generator": {
            "name": f"maskgit:adanat-imagenet-{arguments.shape}",
            "options": {"heads": 8} if arguments.tiny else {},
        },
        "steps": arguments.steps,
        "batch": arguments.batch,
        "device": arguments.device,
        "dtype": arguments.dtype,
        "data": {"path": str(folder / "images")},
        "offline": True,
    }
    trainer = Trainer(resolve(preset="paper", flags=flags, overrides=arguments.set))
    generator, batch, device = trainer.generator, arguments.batch, trainer.device
    assert isinstance(generator, TokenGenerator)
    seeds = Noise(torch.arange(batch, device=device))
    context = generator.sample_contexts(seeds)

    def training() -> None:
        trainer._score(trainer._rollout(0.6)[0])
        trainer.iteration += 1

    def sampling(images: int) -> Callable[[], object]:
        return lambda: collect(
            generator,
            SamplingPolicy(trainer.policy, trainer.space),
            context,
            seeds,
            keep_features=False,
            keep_images=images,
        )

    tokens = torch.randint(generator.codebook_size, (batch, generator.cells), device=device)
    features, step = (
        torch.randn(batch, generator.cells, generator.feature_dim, device=device),
        torch.zeros_like(tokens[:, 0]),
    )
    images = torch.rand(batch, 3, *generator.image_size, device=device)
    parts: dict[str, Callable[[], object]] = {
        "forward": lambda: generator.predict(tokens, context),
        "decode": lambda: generator.decode_tokens(tokens),
        "policy": lambda: trainer.policy(features, step),
        "embed": lambda: trainer.reward.embed(images, context),
    }
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    result: dict[str, object] = {
        "shape": arguments.shape,
        "steps": arguments.steps,
        "batch": batch,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "dtype": trainer.config.dtype,
        "settings": arguments.set,
        "torch": torch.__version__,
        "training": rate(batch, seconds(training, arguments.repeats, device)),
        "sampling_tokens": rate(batch, seconds(sampling(0), arguments.repeats, device)),
        "sampling": rate(batch, seconds(sampling(batch), arguments.repeats, device)),
    }
    with torch.no_grad():
        for name, part in parts.items():
            result[f"{name}_ms"] = round(1000 * statistics.median(seconds(part, arguments.repeats, device)), 2)
    result["published"] = PUBLISHED.get((arguments.shape, arguments.steps))
    if arguments.whole:
        flags |= {"batch": arguments.whole}
        whole = Trainer(resolve(preset="paper", flags=flags, overrides=arguments.set))
        times = []
        for _ in range(1 + arguments.whole_repeats):
            row = whole.step()
            times.append({key: round(row[key], 2) for key in row if key.startswith("seconds")})
        result[f"whole_{arguments.whole}"] = times[1:]
    if device.type == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    return result


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("l", "s"), default="l")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--whole", type=int, default=0, help="also time whole iterations of so many trajectories")
    parser.add_argument("--whole-repeats", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--tiny", action="store_true")
    return parser


def main() -> None:
    arguments = options().parse_args()
    with random_weights(arguments.shape, arguments.tiny) as folder:
        print(json.dumps(measure(arguments, folder), indent=1))


if __name__ == "__main__":
    main()
