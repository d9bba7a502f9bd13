"""The pages of docs/results/ablation.md that were made on a GPU: one after the other, several processes on each.

    python benchmarks/ablation.py --workers 12 --out runs/ablation --reports reports [--pages maskgit-T4-153600 muse]

Whatever follows ``--`` is added to every command, so that it can be tried on a laptop:

    python benchmarks/ablation.py --workers 2 --out runs/try --reports runs/try/reports --pages muse-T4-102400 -- \\
        --trajectories 64 --batch 32 --num 16 --seeds 0 --dtype float32 --set evaluate_images=16

The processes share a page's grid through its folder and go on where an earlier start stopped. On a GPU start NVIDIA's MPS first
(``nvidia-cuda-mps-control -d``), or they take turns.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

COMMON = "--preset demo --seeds 0,1,2 --num 2000 --evaluate-every 25 --dtype bfloat16"
BOTH = "--policy shared --policy adaptive --reward adversarial"
LITTLE = "--trajectories 25600 --batch 256"
REWARDS = (
    "--policy adaptive --reward adversarial --reward fid:influence --reward clip-score --reward adversarial:1,clip-score:0.3 "
    "--reward fid --set reward.options.features=clip-emoji64"
)
PAGES = {
    "maskgit-T4-153600": (
        "maskgit-153600",
        f"--generator maskgit {BOTH} --steps 4 --hand-made-steps 6,8,12,16 --candidates 0 --trajectories 153600 --batch 1024",
    ),
    "maskgit-T8-102400": (
        "maskgit-102400",
        f"--generator maskgit {BOTH} --steps 8 --candidates 0 --trajectories 102400 --batch 1024",
    ),
    "muse-T4-102400": (
        "muse-102400",
        f"--generator muse {BOTH} --steps 4 --candidates 0 --trajectories 102400 --batch 1024",
    ),
    "maskgit-gpu": (
        "maskgit-25600",
        f"--generator maskgit {BOTH} --steps 4 --hand-made-steps 6,8,12,16 --search-steps 4,8 --candidates 24 {LITTLE}",
    ),
    "muse": (
        "muse-25600",
        f"--generator muse {BOTH} --steps 4,8 --hand-made-steps 6,12,16 --candidates 24 {LITTLE}",
    ),
    "maskgit-rewards-gpu": ("maskgit-25600", f"--generator maskgit {REWARDS} --steps 4 --candidates 0 {LITTLE}"),
    "muse-rewards-gpu": ("muse-25600", f"--generator muse {REWARDS} --steps 4 --candidates 0 {LITTLE}"),
}
"""For each page the folder of its runs, which pages of one generator and budget share, and the arguments of ``adanat compare``.
The page ``muse-rewards-gpu`` in docs lacks the two rewards with ``clip-score``, which its command here makes too."""


def make(page: str, extra: list[str], out: Path, reports: Path, workers: int) -> int:
    """Run one page; returns how many of its processes failed."""
    folder, arguments = PAGES[page]
    command = [sys.executable, "-m", "adanat_cli", "compare", *COMMON.split(), *arguments.split(), *extra, "--quiet"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    processes = []
    for i in range(workers):
        # Only the first one's page is kept: the others write theirs aside.
        report = reports / page if i == 0 else out / folder / f"report-{i}"
        where = ["--out", str(out / folder), "--report", str(report)]
        with (out / f"{page}-{i}.log").open("w") as log:
            processes.append(subprocess.Popen([*command, *where], env=environment, stdout=log, stderr=log))
    return sum(process.wait() != 0 for process in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--reports", type=Path, default=Path("reports"))
    parser.add_argument("--pages", nargs="+", choices=PAGES, default=list(PAGES))
    arguments, extra = parser.parse_known_args()
    if extra and extra[0] != "--":
        parser.error(f"{extra[0]} is unknown here; what is for adanat compare stands after --")
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for page in arguments.pages:
        started = time.time()
        errors = make(page, extra[1:], arguments.out, arguments.reports, arguments.workers)
        outcome = (
            f"{errors} of {arguments.workers} processes failed (see {arguments.out}/{page}-*.log)" if errors else "done"
        )
        print(f"{page}: {time.time() - started:.0f} s, {outcome}", flush=True)
        failed += errors
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
