"""Speed of the training loop of the working tree against a git ref: A B A B, each in a process of its own.

    python benchmarks/against_ref.py REF --dtypes float32 bfloat16 --batch 128 --iterations 2 --rounds 3

On a machine that others use too the CPU seconds (user and system) of an iteration are the figure to compare; wall seconds are
printed beside them. ``--cold`` measures a whole first command instead: one image, from the start of the process to its end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("", "cli", "plugins")
"""Folders of the repository that packages are imported from."""

ITERATIONS = """
import json, sys, time
import torch
from adanat_toolkit.training import create_trainer, resolve

torch.set_num_threads(int(sys.argv[5]))
flags = {"generator": {"name": sys.argv[1]}, "dtype": sys.argv[2], "batch": int(sys.argv[3]), "device": "cpu"}
if sys.argv[6] != "default":
    flags["policy"] = {"name": sys.argv[6]}
trainer = create_trainer(resolve(preset="demo", flags=flags))
trainer.step()  # fills caches
rows = []
for _ in range(int(sys.argv[4])):
    cpu, row = time.process_time(), trainer.step()
    rows.append({key: value for key, value in row.items() if key.startswith("seconds")} | {"cpu": time.process_time() - cpu})
print(json.dumps(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ref", help="what the working tree is compared with, such as HEAD~1")
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--iterations", type=int, default=2, help="that are measured, after one that is not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--policy", default="adaptive", help="default: that of each one's preset")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        _extract(options.ref, Path(folder))
        trees = {options.ref: Path(folder), "working tree": ROOT}
        found: dict[str, list[dict[str, float]]] = {}
        for _ in range(options.rounds):
            for dtype in options.dtypes:
                for name, tree in trees.items():
                    rows = _cold(tree, dtype, options) if options.cold else _iterations(tree, dtype, options)
                    found.setdefault(f"{name}, {dtype}", []).extend(rows)
                    print(f"{name}, {dtype}: {rows}", file=sys.stderr)
    for name, rows in found.items():
        medians = {key: round(statistics.median(row[key] for row in rows), 3) for key in rows[0]}
        rate = {} if options.cold else {"trajectories_per_cpu_second": round(options.batch / medians["cpu"], 2)}
        print(json.dumps({"what": name, **medians, **rate, "measured": len(rows)}))


def _extract(ref: str, folder: Path) -> None:
    """The files of a ref."""
    archive = subprocess.run(["git", "archive", ref], cwd=ROOT, capture_output=True, check=True).stdout
    file = folder / "ref.tar"
    file.write_bytes(archive)
    with tarfile.open(file) as opened:
        opened.extractall(folder, filter="data")


def _environment(tree: Path, threads: int) -> dict[str, str]:
    paths = os.pathsep.join(str(tree / part) for part in PARTS)
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads)}


def _iterations(tree: Path, dtype: str, options: argparse.Namespace) -> list[dict[str, float]]:
    numbers = map(str, (options.batch, options.iterations, options.threads))
    arguments = [options.generator, dtype, *numbers, options.policy]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ITERATIONS, *arguments],
        cwd=tree, env=_environment(tree, options.threads), capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return rows


def _cold(tree: Path, dtype: str, options: argparse.Namespace) -> list[dict[str, float]]:
    with tempfile.TemporaryDirectory() as out:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [
                sys.executable, "-m", "adanat_cli", "sample", "--generator", options.generator, "--num", "1",
                "--policy", "fixed", "--dtype", dtype, "--device", "cpu", "--quiet", "--out", f"{out}/images",
            ],
            cwd=tree, env=_environment(tree, options.threads), capture_output=True, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return [{"cpu": cpu, "seconds": time.perf_counter() - started}]


if __name__ == "__main__":
    main()
