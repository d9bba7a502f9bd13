"""All that is measured on one GPU, in one go, into one file.

    python benchmarks/gpu_all.py --out gpu_all.json
    python benchmarks/gpu_all.py --out gpu_all.json --parts budget --budget-minutes 60

It has three parts (``--parts``; the first two where none is named):

- ``loop``: for every generator, batch and way to run it (see WAYS), trajectories a second, where the time of an iteration
  goes, peak memory, the time of the first iteration (which compiles), the share of the measured peak of matrix products, and
  what 4,096,000 trajectories would take at this rate.
- ``published``: throughput at the published sizes, as ``published_speed.py`` measures it (AdaNAT-L at T = 8, AdaNAT-S at 4).
- ``budget``: the published budget on the embedded MaskGIT, T = 4: 1,000 iterations of 4,096 trajectories for each policy of
  BUDGET_POLICIES, then its distance to the real images. A policy gets ``--budget-minutes``, in which it may not be done; the
  same command goes on with the runs in ``--runs``.

The file is written after every case, so that an interrupted run keeps what it has; parts that are not asked for are kept from
a file that is there. ``--tiny`` tries all three on a CPU in minutes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import published_speed
import torch
from torch.utils.flop_counter import FlopCounterMode

import adanat_toolkit as adanat
from adanat_toolkit.decoding import SamplingPolicy, TokenGenerator, fused
from adanat_toolkit.errors import AdaNATError
from adanat_toolkit.runtime import dtype_name
from adanat_toolkit.sampling import WholeStep
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import Trainer, create_trainer, resolve

TRAJECTORIES = 4_096_000
"""Of the published run."""
BATCH = 4096
"""Of an iteration of it."""
PARTS = ("loop", "published", "budget")
BUDGET_POLICIES = ("shared", "lean", "adaptive")
PUBLISHED_CASES = (
    ["--shape", "l", "--steps", "8", "--batch", "128", "--repeats", "3"],
    ["--shape", "s", "--steps", "4", "--batch", "128", "--repeats", "3", "--whole", str(BATCH)],
)
"""Arguments of ``published_speed.py``; each is measured as it is and with everything compiled."""
TINY_CASE = ["--shape", "s", "--steps", "2", "--batch", "2", "--repeats", "1", "--whole", "2", "--tiny"]
WAYS = ("eager", "fused", "networks", "whole")
"""``eager``: nothing is compiled. ``fused``: the decoding step is one kernel, which is what a GPU does by default.
``networks``: that, and generator and decoder compiled. ``whole``: these, and the steps of a rollout as one compiled piece."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="default: loop and published; with --tiny all")
    parser.add_argument("--generators", nargs="+", default=["maskgit", "muse"])
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 512, 1024, 2048, 4096])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=6, help="that are measured, after one that is not")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--budget-minutes", type=float, default=60.0, help="for each policy of the part budget")
    parser.add_argument("--budget-preset", default="gpu", help="settings of the part budget, such as gpu or paper")
    parser.add_argument("--runs", type=Path, default=Path("gpu_all_runs"), help="run folders of the part budget")
    parser.add_argument("--tiny", action="store_true", help="small cases of all parts on the CPU, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu_all.json"))
    options = parser.parse_args()
    if options.budget_minutes <= 0:
        parser.error(f"--budget-minutes is {options.budget_minutes:g}; give each policy more than 0 minutes")
    options.ways = list(WAYS)
    options.parts = options.parts or (PARTS if options.tiny else PARTS[:2])
    if options.tiny:
        options.generators, options.batches, options.iterations = ["maskgit"], [8, 16], 1
        options.device, options.dtype, options.ways = "cpu", "float32", ["eager", "whole"]
    out = json.loads(options.out.read_text()) if options.out.exists() else {}
    out["machine"] = _machine(options.device)
    for part in options.parts:
        out[part] = rows = []
        for case, measured in {"loop": _loop, "published": _published, "budget": _budget}[part](options):
            try:
                found = measured()
            except (AdaNATError, RuntimeError, OSError) as error:  # no compiler, too little memory: the others go on
                found = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
            rows.append({**case, **found})
            print(json.dumps(rows[-1]), flush=True)
            options.out.write_text(json.dumps(out, indent=1))


Cases = Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]
"""What a case is, and what measures it."""


def _loop(options: argparse.Namespace) -> Cases:
    for generator, way, batch in itertools.product(options.generators, options.ways, options.batches):
        case = {"generator": generator, "batch": batch, "way": way, "steps": options.steps}
        yield case, partial(_measure, case, options)


def _published(options: argparse.Namespace) -> Cases:
    fused.use_kernels(True)
    # A published iteration updates its discriminator on thousands of real images, for which a CPU takes minutes.
    few = ["--set", "reward.options.updates=1", "--set", "reward.options.batch=2"]
    compiled = ["--set", "generator.options.compile=true"]
    cases = [TINY_CASE + few] if options.tiny else [case + more for case in PUBLISHED_CASES for more in ([], compiled)]
    for case in cases:
        given = [*case, "--device", options.device, "--dtype", options.dtype]
        yield {"arguments": case}, partial(_published_speed, published_speed.options().parse_args(given))


def _published_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    with published_speed.random_weights(arguments.shape, arguments.tiny) as folder:
        return published_speed.measure(arguments, folder)


def _budget(options: argparse.Namespace) -> Cases:
    fused.use_kernels(True)
    for policy in BUDGET_POLICIES:
        yield {"policy": policy, "preset": options.budget_preset}, partial(_train, policy, options)


class _TimeIsUp(Exception):
    pass


def _train(policy: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train for the time there is, or to the end, and judge the result."""
    batch, total, images, every = (8, 24, 16, 1) if options.tiny else (BATCH, TRAJECTORIES, 10_000, 20)
    flags = {
        "generator": {"name": "maskgit"},
        "policy": {"name": policy},
        "steps": 4,
        "batch": batch,
        "trajectories": total,
        "checkpoint_every": every,
        "device": options.device,
        "dtype": options.dtype,
    }
    overrides = ["reward.options.batch=8", "reward.options.updates=1"] if options.tiny else []
    trainer = create_trainer(resolve(preset=options.budget_preset, flags=flags, overrides=overrides))
    folder, started = options.runs / policy, time.perf_counter()
    ends = started + 60 * options.budget_minutes

    def watch(row: dict[str, Any]) -> None:
        if row["iteration"] % every == 0 and time.perf_counter() > ends:  # the run has just been saved
            raise _TimeIsUp

    with suppress(_TimeIsUp):
        trainer.run(folder, on_iteration=watch)
    rows = RunFolder(folder).metrics()
    seconds = statistics.median(row["seconds"] for row in rows)
    scores = adanat.evaluate(trainer.generator, [str(folder)], num=images, steps=4)
    return {
        "iterations": len(rows),
        "of_iterations": total // batch,
        "trajectories": rows[-1]["trajectories"],
        "seconds_an_iteration": round(seconds, 4),
        "minutes_of_all": round(seconds * total / batch / 60, 2),
        "minutes_now": round((time.perf_counter() - started) / 60, 2),
        "images_judged": images,
        "scores": scores.rows,
    }


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
