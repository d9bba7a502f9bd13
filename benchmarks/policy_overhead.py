"""What the adaptive policy adds to sampling: its share of the floating-point operations and of the wall time.

Two shapes: the embedded generator, and AdaNAT-L for ImageNet 256x256 (a U-ViT of width 768 and depth 24 with the
published VQGAN; random values, which cost the same). torch counts the operations of each part; for emoji64 also of whole
images, which must come to the same. Wall time is that of the policy's calls within ``sample``.

    python benchmarks/policy_overhead.py [--shapes emoji64 adanat-l] [--batch 32] [--repeats 5] [--device cpu] [--no-time]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adanat_plugins.generators.maskgit import MaskGIT, UViTClassGenerator
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig, VQGANTokenizer
from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, parse_schedule
from adanat_toolkit.policies import AdaptivePolicy, SamplingPolicy, build_policy
from adanat_toolkit.sampling import sample, seed_range

CLASSES = 1001
SPACE = tuple(knob.name for knob in TOKEN_KNOBS)
STEPS = {"emoji64": 4, "adanat-l": 8}
"""T of the paper's reported AdaNAT-L, and the toolkit's default."""


def make_generator(shape: str, device: torch.device) -> UViTClassGenerator:
    if shape == "emoji64":
        generator = MaskGIT.create("emoji64", {}, device=device, dtype=torch.float32, offline=True)
        assert isinstance(generator, UViTClassGenerator)
        return generator
    torch.manual_seed(0)
    network, model = adanat_l()
    tokenizer = VQGANTokenizer(model, device, torch.float32)
    return UViTClassGenerator(
        "maskgit:adanat-imagenet-l", network, tokenizer, grid=(16, 16), image_size=(256, 256), class_names=None,
        device=device, dtype=torch.float32, default_schedule="adanat",
    )  # fmt: skip


def adanat_l() -> tuple[UViT, VQGAN]:
    """The published generator's and tokenizer's architectures with random values."""
    network = UViT(tokens=256, codebook_size=1024, embed_dim=768, depth=24, num_heads=8, num_classes=CLASSES)
    return network.eval(), VQGAN(VQGANConfig()).eval()


def make_policy(shape: str, generator: UViTClassGenerator) -> SamplingPolicy:
    schedule = parse_schedule("adanat", generator.action_space, STEPS[shape])
    space = generator.action_space.bind(schedule)
    options = AdaptivePolicy.Options()
    network, _ = build_policy(
        AdaptivePolicy, options, space=space, grid=generator.grid, feature_dim=generator.feature_dim, seed=0
    )
    return SamplingPolicy(network.to(generator.device).eval(), space)


COUNTED = 4
"""Images whose operations are counted together: fewer are padded on a CPU (``compute.MINIMUM_BATCH``)."""


def operations(function: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention; a multiplication and an addition are two."""
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        counter,
    ):  # attention as plain products: every kernel counts alike
        function()
    return int(counter.get_total_flops())


def count(shape: str) -> dict[str, Any]:
    """Operations of one image. AdaNAT-L's are counted on the meta device: nothing is computed."""
    steps = STEPS[shape]
    with torch.device("meta" if shape == "adanat-l" else "cpu"):
        if shape == "adanat-l":
            network, tokenizer = adanat_l()
            policy = AdaptivePolicy(
                AdaptivePolicy.Options(), space=ActionSpace(TOKEN_KNOBS, SPACE), grid=(16, 16), feature_dim=768
            )
            tokens, width = torch.zeros(1, 256, dtype=torch.int64), 768
            decode = operations(lambda: tokenizer.raw_images(tokens, (16, 16)))
        else:
            generator = make_generator(shape, torch.device("cpu"))
            network, policy = generator.network, make_policy(shape, generator).network
            tokens, width = torch.zeros(1, generator.cells, dtype=torch.int64), generator.feature_dim
            decode = operations(lambda: generator.decode_tokens(tokens.expand(COUNTED, -1))) // COUNTED
        one = torch.zeros(1, 1, dtype=torch.int64)
        forward = operations(lambda: network(tokens, one))
        seen = operations(lambda: policy(torch.zeros(1, tokens.shape[1], width), one[0]))
    paper = steps * (2 * forward + seen) + decode
    image = (steps - 1) * 2 * forward + steps * seen + decode
    return {
        "steps": steps,
        "generator_forward": forward,
        "decode": decode,
        "policy_forward": seen,
        "image_paper": paper,
        "image": image,
        "share_paper": steps * seen / paper,
        "share": steps * seen / image,
        "share_of_forwards": seen / (2 * forward),
        "parameters_generator": sum(p.numel() for p in network.parameters()),
        "parameters_policy": sum(p.numel() for p in policy.parameters()),
    }


def count_while_sampling(shape: str, device: torch.device) -> dict[str, int]:
    """Operations of an image as it is really made (the null context's first state is shared by the batch): with nothing kept,
    and with the first states kept."""
    generator = make_generator(shape, device)
    policy = make_policy(shape, generator)
    context = generator.encode_classes(list(range(COUNTED)))

    def run() -> None:
        list(sample(generator, policy, seed_range(0, COUNTED), context))

    return {"nothing_kept": operations(run) // COUNTED, "first_states_kept": operations(run) // COUNTED}


def measure(shape: str, device: torch.device, batch: int, repeats: int) -> dict[str, Any]:
    """Wall time of the policy's calls and of the whole, in seconds an image; the first batch warms up."""
    generator = make_generator(shape, device)
    policy = make_policy(shape, generator)
    clock = _Clock(policy.network, device)
    rows: list[tuple[float, float]] = []
    for i in range(repeats + 1):
        clock.seconds = 0.0
        started = clock.now()
        for _ in sample(generator, policy, seed_range(i * batch, batch), batch=batch):
            pass
        rows.append((clock.seconds, clock.now() - started))
    shares = [policy_time / total for policy_time, total in rows[1:]]
    return {
        "batch": batch,
        "repeats": repeats,
        "seconds_policy": statistics.median(p for p, _ in rows[1:]) / batch,
        "seconds_image": statistics.median(t for _, t in rows[1:]) / batch,
        "share": statistics.median(shares),
        "share_range": [min(shares), max(shares)],
    }


class _Clock:
    """Adds up the time of a module's calls."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device, self.seconds, self.started = device, 0.0, 0.0
        module.register_forward_pre_hook(self.start)
        module.register_forward_hook(self.stop)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def start(self, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.started = self.now()

    def stop(self, module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        self.seconds += self.now() - self.started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--batch", type=int, help="images at once when timing; default 32 for emoji64, 2 for adanat-l")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-time", action="store_true", help="count operations only")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    out: dict[str, Any] = {"torch": torch.__version__, "device": str(device), "machine": platform.machine()}
    out["threads"] = torch.get_num_threads()
    for shape in arguments.shapes:
        out[shape] = {"operations": count(shape)}
        if shape == "emoji64":
            out[shape]["operations_while_sampling"] = count_while_sampling(shape, device)
        if not arguments.no_time:
            batch = arguments.batch or (32 if shape == "emoji64" else 2)
            out[shape]["time"] = measure(shape, device, batch, arguments.repeats)
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
