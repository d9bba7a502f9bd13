"""Peak memory of loading a checkpoint of 500 M parameters, relative to its size on disk.

Writes the published CC3M generator's architecture (503,628,929 parameters, random values) into each published container
in a temporary folder (2 GB of disk), loads each in a fresh process through the toolkit's own path, converts it as the
generators do, reads every weight, and compares the growth of the process's peak resident memory with the file's size.
The target is 1.3.

    python benchmarks/loading_memory.py [--containers pth,legacy,safetensors,flax] [--dtype float32|bfloat16] [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "tokens": 256, "codebook_size": 1024, "embed_dim": 1152, "depth": 28, "num_heads": 16, "clip_dim": 1280,
}  # fmt: skip
CONTAINERS = {
    "pth": "torch zip (.pth) with argparse.Namespace",
    "legacy": "torch before 1.6 (.pth)",
    "safetensors": "safetensors",
    "flax": "Flax msgpack",
}
TARGET = 1.3


def peak_bytes() -> int:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def write(container: str, file: Path) -> None:
    """A checkpoint with seeded random weights, wrapped as published."""
    import torch

    from adanat_plugins.generators.uvit import UViT

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
    before = peak_bytes()
    state = read_state(file)
    if container == "flax":  # no PyTorch network has these names: reading alone is measured
        total = sum(float(value.sum()) for value in state.values())
    else:
        network = build(lambda: UViT(**SIZES), state, source=file.name)
        del state
        place(network, "cpu", getattr(torch, dtype_name))
        total = sum(float(parameter.sum()) for parameter in network.parameters())
    assert math.isfinite(total)
    size = file.stat().st_size
    return {"file": size, "growth": peak_bytes() - before, "ratio": (peak_bytes() - before) / size}


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
        print(f"| container ({options.dtype}) | file, GB | peak growth, GB | ratio |\n|---|---|---|---|")
        for container, row in rows.items():
            figures = f"{row['file'] / 1e9:.2f} | {row['growth'] / 1e9:.2f} | {row['ratio']:.2f}"
            print(f"| {CONTAINERS[container]} | {figures} |")
    return 0 if all(row["ratio"] <= TARGET for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
