"""The two engines on the same work: reward and Frechet distance after equal trajectories, trajectories a second, memory.

Each run is a process of its own, which trains with the default configuration and then makes the same images (same seeds)
with the policy it learned. The embedded yardstick, which no reward looks at, judges them::

    python benchmarks/engines.py --trajectories 2048 --images 2000 --seeds 0 1

It prints a Markdown table (stdout) and appends one JSON line a run to --json FILE. Time is counted in CPU seconds of the
process on the CPU, so that what else the machine does hardly matters, and in seconds of the clock elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# Before torch starts its threads, here and in the processes that are started: on busy cores, waiting threads that spin make
# everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

ENGINES = ("adanat", "sb3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trajectories", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", nargs=2, metavar=("ENGINE", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options, options.worker[0], int(options.worker[1]))))
        return
    rows = [run(options, "fixed", 0)]
    for seed in options.seeds:  # engines alternate, so that what else the machine does falls on both
        rows += [run(options, engine, seed) for engine in ENGINES]
    print(table(rows))


def run(options: argparse.Namespace, engine: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--worker", engine, str(seed)]
    for name in ("trajectories", "batch", "steps", "images", "device", "dtype", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(row, file=sys.stderr, flush=True)
    if options.json:
        with open(options.json, "a") as handle:
            handle.write(json.dumps(row) + "\n")
    return row


def work(options: argparse.Namespace, engine: str, seed: int) -> dict[str, Any]:
    """One run: train (unless ``fixed``), make images, judge them."""
    import torch

    from adanat_toolkit.registry import create_generator
    from adanat_toolkit.runtime import resolve_dtype
    from adanat_toolkit.training import create_trainer, validate

    torch.set_num_threads(options.threads)
    row: dict[str, Any] = {"engine": engine, "seed": seed}
    if engine == "fixed":
        generator = create_generator(
            "maskgit",
            device=torch.device(options.device),
            dtype=resolve_dtype(options.dtype, torch.device(options.device)),
        )
        return row | judge("fixed", generator, options)
    config = validate(
        {
            "engine": engine,
            "seed": seed,
            "trajectories": options.trajectories,
            "batch": options.batch,
            "steps": options.steps,
            "device": options.device,
            "dtype": options.dtype,
            "checkpoint_every": 10**6,
        }
    )
    trainer = create_trainer(config)
    clock = time.process_time if trainer.device.type == "cpu" else time.perf_counter
    before = reset_peak(trainer.device)
    metrics: list[dict[str, Any]] = []
    times = [clock()]

    def note(figures: dict[str, Any]) -> None:
        metrics.append(figures)
        times.append(clock())

    with tempfile.TemporaryDirectory() as folder:
        trainer.run(Path(folder), on_iteration=note)
        row["memory_mib"] = (peak(trainer.device) - before) / 2**20
        # The first iteration computes the all-mask states of the classes, which are kept.
        each = [after - start for start, after in itertools.pairwise(times)]
        row["seconds"] = statistics.median(each[1:] or each)
        row["trajectories_per_second"] = config.batch / row["seconds"]
        row["reward"] = statistics.fmean(m["reward/mean"] for m in metrics[-4:])
        row["reward_gap"] = statistics.fmean(
            m["reward_model/logit_real"] - m["reward_model/logit_fake"] for m in metrics[-4:]
        )
        return row | judge(folder, trainer.generator, options)


def judge(policy_spec: str, generator: Any, options: argparse.Namespace) -> dict[str, float]:
    """Frechet distance of the policy's images under the embedded yardstick, against all real images."""
    import torch

    from adanat_toolkit.metrics import FeatureStatistics, extract_features, frechet_distance, reference_of
    from adanat_toolkit.policies import load_policy
    from adanat_toolkit.registry import create_features
    from adanat_toolkit.sampling import sample, seed_range

    policy = load_policy(policy_spec, generator, options.steps)
    images = torch.cat([part.images for part in sample(generator, policy, seed_range(10**6, options.images))])
    extractor = create_features("emoji64", device=generator.device)
    real = generator.real_images()
    assert real is not None
    found = extract_features(extractor, images)
    reference = reference_of(extractor, real)
    return {"frechet": frechet_distance(FeatureStatistics.of(found.values, found.protocol), reference.statistics)}


def reset_peak(device: Any) -> int:
    """Bytes in use now; forgets the peak so far (of the GPU, or of the process on Linux)."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak(device: Any) -> int:
    """Peak bytes in use since :func:`reset_peak`."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status("VmHWM")


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: this benchmark needs Linux for its memory figures.")


COLUMNS = (
    ("frechet", "Frechet", ".4f"),
    ("reward", "reward", ".4f"),
    ("reward_gap", "logit gap", ".3f"),
    ("trajectories_per_second", "trajectories/s", ".1f"),
    ("seconds", "s an iteration", ".2f"),
    ("memory_mib", "memory MiB", ".0f"),
)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| engine | seed | " + " | ".join(title for _, title, _ in COLUMNS) + " |",
        "|---|---|" + "---|" * len(COLUMNS),
    ]
    for row in rows:
        cells = [format(row[name], form) if name in row else "" for name, _, form in COLUMNS]
        seed = "" if row["engine"] == "fixed" else row["seed"]
        lines.append(f"| {row['engine']} | {seed} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
