"""Peak memory of loading a checkpoint of 500 M parameters, relative to its size on disk.

Writes the published CC3M generator's architecture (503,628,929 parameters, random values) into each published container
in a temporary folder (2 GB of disk), loads each in a fresh process through the toolkit's own path, converts it as the
generators do, reads every weight, and compares the growth of the process's peak memory with the file's size. The target
is 1.3, for resident memory. ``halton`` goes through the whole generator instead: ``maskgit:halton-384`` (479,984,641
parameters) from its published file. Two figures: peak resident memory, which counts pages of the file that are mapped
and that the system may drop at any time, and the part of it that is anonymous, which it may not (sampled, Linux only).

    python benchmarks/loading_memory.py [--containers pth,legacy,safetensors,flax,halton] [--dtype float32|bfloat16] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

# Before torch starts its threads, here and in the processes that are started: on busy cores, waiting threads that spin make
# everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SIZES: dict[str, Any] = {
    "tokens": 256, "codebook_size": 1024, "embed_dim": 1152, "depth": 28, "num_heads": 16, "clip_dim": 1280,
}  # fmt: skip
CONTAINERS = {
    "pth": "torch zip (.pth) with argparse.Namespace",
    "legacy": "torch before 1.6 (.pth)",
    "safetensors": "safetensors",
    "flax": "Flax msgpack",
    "halton": "the whole generator maskgit:halton-384",
}
TARGET = 1.3


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class AnonymousPeak(threading.Thread):
    """The largest anonymous resident memory of this process while it runs, looked at every 2 ms (Linux)."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.peak = self.now()
        self.over = threading.Event()
        self.start()

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    def run(self) -> None:
        while not self.over.wait(0.002):
            self.peak = max(self.peak, self.now())

    def growth(self) -> int:
        self.over.set()
        self.join()
        return max(self.peak, self.now()) - self.first


def write_halton(file: Path) -> None:
    """Halton-MaskGIT large at 384 pixels and a small tokenizer of the same codebook, as published."""
    import torch

    from adanat_plugins.generators.halton_net import HaltonConfig, HaltonTransformer
    from adanat_plugins.tokenizers.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig

    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        network = HaltonTransformer(HaltonConfig(24, 1024, 24, 16, 4096, 16384, 1000))
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    state = {f"module._orig_mod.{n}": torch.randn(shape, generator=random) * 0.02 for n, shape in shapes.items()}
    state["module._orig_mod.head.weight"] = state["module._orig_mod.tok_emb.weight"]
    torch.save({"model_state_dict": state, "iter": 1}, file)
    tokenizer = LlamaGenVQConfig(16384, 4, 32, 32, (1, 2), 1)
    torch.save({"model": LlamaGenVQ(tokenizer).state_dict()}, file.with_suffix(".vq"))


def write(container: str, file: Path) -> None:
    """A checkpoint with seeded random weights, wrapped as published."""
    import torch

    from adanat_plugins.generators.uvit import UViT

    if container == "halton":
        return write_halton(file)

    with torch.device("meta"):
        shapes = {name: value.shape for name, value in UViT(**SIZES).state_dict().items()}
    random = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=random) * 0.02 for name, shape in shapes.items()}
    if container == "safetensors":
        from safetensors.torch import save_file

        save_file(state, file)
    elif container == "flax":
        write_flax(state, file)
    else:
        weights = {f"module.{name}": value for name, value in state.items()}
        content = {"model": weights, "args": argparse.Namespace(lr=1)}
        torch.save(content, file, _use_new_zipfile_serialization=container == "pth")


def write_flax(state: dict[str, Any], file: Path) -> None:
    """``{"params": {...}}`` with one array a name, as ``flax.serialization`` writes it."""
    import msgpack

    packer = msgpack.Packer()
    with file.open("wb") as out:
        out.write(packer.pack_map_header(1) + packer.pack("params") + packer.pack_map_header(len(state)))
        for name, value in state.items():
            payload = msgpack.packb((list(value.shape), "float32", value.numpy().tobytes()))
            out.write(packer.pack(name) + msgpack.packb(msgpack.ExtType(1, payload)))


def measure(container: str, file: Path, dtype_name: str) -> dict[str, float]:
    """Load in this process; figures in bytes."""
    import torch

    from adanat_plugins.generators.uvit import UViT
    from adanat_plugins.weights import build, place, read_state

    torch.zeros(1).sum()
    dtype = getattr(torch, dtype_name)
    if container == "halton":
        from adanat_plugins.generators import halton
    before, anonymous = peak_bytes(), AnonymousPeak()
    if container == "halton":
        options = {"weights": str(file), "tokenizer": str(file.with_suffix(".vq"))}
        generator = halton.HaltonMaskGIT.create(
            "halton-384", options, device=torch.device("cpu"), dtype=dtype, offline=True
        )
        total = sum(float(parameter.sum()) for parameter in generator.network.parameters())
    elif container == "flax":  # no PyTorch network has these names: reading alone is measured
        total = sum(float(value.sum()) for value in read_state(file).values())
    else:
        state = read_state(file)
        network = build(lambda: UViT(**SIZES), state, source=file.name)
        del state
        place(network, "cpu", dtype)
        total = sum(float(parameter.sum()) for parameter in network.parameters())
    assert math.isfinite(total)
    size, growth, owned = file.stat().st_size, peak_bytes() - before, anonymous.growth()
    return {"file": size, "growth": growth, "ratio": growth / size, "anonymous": owned, "anonymous_ratio": owned / size}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--containers", default=",".join(CONTAINERS))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--step", nargs=2, metavar=("write|measure", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        action, file = options.step[0], Path(options.step[1])
        if action == "write":
            write(options.containers, file)
        else:
            print(json.dumps(measure(options.containers, file, options.dtype)))
        return 0

    rows = {}
    for container in options.containers.split(","):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--containers", container, "--dtype", options.dtype, "--step"]
            file = str(Path(folder) / "checkpoint")
            subprocess.run([*command, "write", file], check=True)
            out = subprocess.run([*command, "measure", file], check=True, capture_output=True, text=True).stdout
            rows[container] = json.loads(out)
    if options.json:
        print(json.dumps(rows))
    else:
        print(
            f"| container ({options.dtype}) | file, GB | peak growth, GB | ratio | of it anonymous |\n|---|---|---|---|---|"
        )
        for container, row in rows.items():
            figures = f"{row['file'] / 1e9:.2f} | {row['growth'] / 1e9:.2f} | {row['ratio']:.2f} | {row['anonymous_ratio']:.2f}"
            print(f"| {CONTAINERS[container]} | {figures} |")
    return 0 if all(row["ratio"] <= TARGET for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
