"""All that is measured of the training loop on one GPU, in one go, into one file.

    python benchmarks/gpu_all.py --out gpu_all.json

For every generator, batch and way to run it (see WAYS): trajectories a second, where the time of an iteration goes,
peak memory, the time of the first iteration (which compiles), the share of the measured peak of matrix products, and what
4,096,000 trajectories would take at this rate. It is written after every case, so that an interrupted run keeps what it has.
``--tiny`` tries all of it on a CPU in a minute. The published sizes are measured by ``published_speed.py``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from adanat_toolkit.decoding import SamplingPolicy, TokenGenerator, fused
from adanat_toolkit.errors import AdaNATError
from adanat_toolkit.runtime import dtype_name
from adanat_toolkit.sampling import WholeStep
from adanat_toolkit.training import Trainer, create_trainer, resolve

TRAJECTORIES = 4_096_000
"""Of the published run."""
WAYS = ("eager", "fused", "networks", "whole")
"""``eager``: nothing is compiled. ``fused``: the decoding step is one kernel, which is what a GPU does by default.
``networks``: that, and generator and decoder compiled. ``whole``: these, and the steps of a rollout as one compiled piece."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--generators", nargs="+", default=["maskgit", "muse"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=6, help="that are measured, after one that is not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tiny", action="store_true", help="two small cases on the CPU, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu_all.json"))
    options = parser.parse_args()
    ways = list(WAYS)
    if options.tiny:
        options.generators, options.batches, options.iterations = ["maskgit"], [8, 16], 1
        options.device, options.dtype, ways = "cpu", "float32", ["eager", "whole"]
    results: list[dict[str, Any]] = []
    for generator, way, batch in itertools.product(options.generators, ways, options.batches):
        case = {"generator": generator, "batch": batch, "way": way, "steps": options.steps}
        try:
            measured = _measure(case, options)
        except (AdaNATError, RuntimeError) as error:  # no compiler, too little memory: the others are measured all the same
            measured = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        results.append({**case, **measured})
        print(json.dumps(results[-1]), flush=True)
        options.out.write_text(json.dumps({"machine": _machine(options.device), "cases": results}, indent=1))


def _measure(case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    compiled = case["way"] in ("networks", "whole") and not options.tiny
    flags = {
        "generator": {"name": case["generator"], "options": {"compile": compiled}},
        "batch": case["batch"],
        "steps": case["steps"],
        "device": options.device,
        "dtype": options.dtype,
        "policy": {"name": "adaptive"},
    }
    fused.use_kernels(case["way"] != "eager")
    trainer = create_trainer(resolve(preset="demo", flags=flags))
    assert isinstance(trainer, Trainer) and isinstance(trainer.generator, TokenGenerator)
    if case["way"] == "whole":  # whatever the number of iterations; traced only where the script is tried
        traced = {"backend": "eager", "fullgraph": True, "dynamic": False} if options.tiny else None
        trainer.whole = WholeStep(
            trainer.generator, SamplingPolicy(trainer.policy, trainer.space), trainer.critic, traced
        )
    first = _timed(trainer)["seconds"]
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    rows = [_timed(trainer) for _ in range(options.iterations)]
    peak = torch.cuda.max_memory_allocated() if trainer.device.type == "cuda" else None
    seconds = statistics.median(row["seconds"] for row in rows)
    parts = {
        key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0] if key.startswith("seconds_")
    }
    found = {
        "dtype": dtype_name(trainer.generator.dtype),
        "seconds": round(seconds, 4),
        "seconds_first": round(first, 2),
        **parts,
        "trajectories_per_second": round(case["batch"] / seconds, 1),
        "minutes_of_the_published_run": round(TRAJECTORIES * seconds / case["batch"] / 60, 2),
        "peak_memory_bytes": peak,
    }
    if trainer.whole is not None:
        found["compiled_sizes"] = sorted(trainer.whole.sizes)  # none: it failed, and the log says why
    if trainer.device.type == "cuda":
        found["fused"] = fused.in_use()
    if case["way"] in ("eager", "fused"):  # inside compiled code nothing is counted
        with FlopCounterMode(display=False) as counter:
            trainer.step()
        rate = counter.get_total_flops() / seconds
        peak_rate = _matrix_peak(trainer.device, trainer.generator.dtype)
        found |= {"flops_per_second": rate, "share_of_matrix_peak": round(rate / peak_rate, 4)}
    return found


def _timed(trainer: Any) -> dict[str, float]:
    """A step's row, whose seconds are those until the device has done it."""
    started = time.perf_counter()
    row = trainer.step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    return {**{k: v for k, v in row.items() if k.startswith("seconds")}, "seconds": time.perf_counter() - started}


def _matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best


def _machine(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or platform.machine()
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda}


if __name__ == "__main__":
    main()
