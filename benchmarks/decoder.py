"""What the distilled decoder costs beside the own one: CPU time of decoding, and of whole training iterations.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/decoder.py --rounds 3

CPU time (user and system) is the figure, since machines are shared; the two decoders are measured in turn in one process.
Prints one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from adanat_toolkit.decoding import load_decoder
from adanat_toolkit.registry import create_generator
from adanat_toolkit.training import Trainer, resolve

CPU = torch.device("cpu")


def cpu_seconds(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def decoding(generator_name: str, dtype: torch.dtype, batch: int, rounds: int) -> dict[str, float]:
    """CPU milliseconds an image: own decoder, distilled decoder, encoder."""
    generator: Any = create_generator(generator_name, {}, device=CPU, dtype=dtype, offline=True)
    small = load_decoder(generator.distilled_decoder, generator)
    draw = torch.Generator().manual_seed(0)
    codes = torch.randint(generator.codebook_size, (batch, generator.cells), generator=draw)
    vectors, images = generator.token_vectors(codes), generator.decode_tokens(codes)
    work: dict[str, Callable[[], Any]] = {
        "own": lambda: generator.decode_tokens(codes),
        "distilled": lambda: small.decode(vectors),
        "encoder": lambda: generator.encode_images(images),
    }
    found: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, each in work.items():
            found[name].append(cpu_seconds(each))
    return {f"{name}_ms_an_image": round(1000 * min(times[1:]) / batch, 2) for name, times in found.items()}


def iterations(generator_name: str, dtype: str, batch: int, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of training iterations with either decoder, in turn, after one each that is not measured."""
    trainers, found = {}, {}
    for decoder in ("own", "distilled"):
        flags = {
            "generator": {"name": generator_name}, "dtype": dtype, "batch": batch, "device": "cpu", "decoder": decoder,
            "policy": {"name": "adaptive"},
        }  # fmt: skip
        trainers[decoder], found[decoder] = Trainer(resolve(preset="demo", flags=flags)), []
        trainers[decoder].step()
    for _ in range(rounds):
        for decoder, trainer in trainers.items():
            found[decoder].append(cpu_seconds(trainer.step))
    return [
        {
            "decoder": decoder,
            "dtype": dtype,
            "batch": batch,
            "cpu_seconds": [round(value, 2) for value in values],
            "trajectories_per_cpu_second": round(batch / statistics.median(values), 2),
        }
        for decoder, values in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128, help="trajectories of an iteration")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for dtype in options.dtypes:
        costs = decoding(options.generator, getattr(torch, dtype), 32, options.rounds)
        print(json.dumps({"dtype": dtype, **costs}), flush=True)
        for row in iterations(options.generator, dtype, options.batch, options.rounds):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
