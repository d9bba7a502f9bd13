"""Quality of policies on the embedded generators over seeds: trains, then evaluates on fresh seeds, and prints a table.

    python benchmarks/quality.py --seeds 0 1 2 --policies adaptive shared --trajectories 12288 --num 2500

Every run is a folder under --out, and a second call continues or reuses it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "adanat_cli", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--reward", default="adversarial")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--policies", nargs="+", default=["adaptive"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--trajectories", type=int, default=12288)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--first-seed", type=int, default=1000, help="first of the evaluation's seeds")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()

    print("| policy | seed | Frechet | hand-made | ratio | precision | recall | hand-made precision | recall | train s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for policy in arguments.policies:
        ratios = []
        for seed in arguments.seeds:
            folder = arguments.out / f"{arguments.generator.replace(':', '-')}-{policy}-T{arguments.steps}-s{seed}"
            started = time.perf_counter()
            run(
                *("train", "--generator", arguments.generator, "--reward", arguments.reward, "--policy", policy),
                *("--preset", arguments.preset, "--steps", str(arguments.steps), "--seed", str(seed), "--quiet"),
                *("--trajectories", str(arguments.trajectories), "--dtype", arguments.dtype, "--out", str(folder)),
            )
            seconds = time.perf_counter() - started
            report = run(
                *("evaluate", "--generator", arguments.generator, "--policy", str(folder), "--num", str(arguments.num)),
                *("--seed", str(arguments.first_seed), "--dtype", arguments.dtype, "--json", "--quiet"),
                *("--out", str(folder / "evaluation")),
            )
            result = json.loads(report)
            own, base = result["policies"][0], result["baselines"][0]["figures"]
            figures = own["figures"]
            ratios.append(own["ratio"]["frechet"])
            print(
                f"| {policy} | {seed} | {figures['frechet']:.3f} | {base['frechet']:.3f} | {ratios[-1]:.3f} "
                f"| {figures['precision']:.3f} | {figures['recall']:.3f} | {base['precision']:.3f} | {base['recall']:.3f} "
                f"| {seconds:.0f} |",
                flush=True,
            )
        mean = sum(ratios) / len(ratios)
        spread = math.sqrt(sum((r - mean) ** 2 for r in ratios) / max(1, len(ratios) - 1))
        print(f"| {policy} | mean of {len(ratios)} | | | {mean:.3f} +- {spread:.3f} (sd) | | | | | |", flush=True)


if __name__ == "__main__":
    main()
