"""Trajectories per second on an embedded generator: rollout with decoding and reward, and the whole training loop.

    python benchmarks/throughput.py --threads 2 --dtype float32
    python benchmarks/throughput.py --generator dit --threads 1

Prints one JSON object: medians over iterations after a warm-up one, with minimum and maximum. CPU seconds are those of all
threads of the process; on a busy machine they say more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from adanat_toolkit.runtime import fastest_dtype
from adanat_toolkit.training import Trainer, resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--policy", default="adaptive")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    flags = {
        "generator": {"name": arguments.generator},
        "dtype": arguments.dtype,
        "device": arguments.device,
        "steps": arguments.steps,
        "policy": {"name": arguments.policy},
    }
    trainer = Trainer(resolve(preset=arguments.preset, flags=flags, overrides=arguments.set))
    batch = trainer.config.batch

    def synchronise() -> float:
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    rollouts, loops, by_cpu = [], [], []
    for iteration in range(arguments.iterations + 1):
        started, used = synchronise(), time.process_time()
        row = trainer.step()
        seconds = synchronise() - started
        if iteration:  # the first one fills caches
            rollouts.append(batch / (row["seconds_rollout"] + row["seconds_score"]))
            loops.append(batch / seconds)
            by_cpu.append(batch / (time.process_time() - used))

    def spread(values: list[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "min": min(values), "max": max(values)}

    print(
        json.dumps(
            {
                "rollout_with_decoding_and_reward_per_second": spread(rollouts),
                "training_loop_per_second": spread(loops),
                "training_loop_per_cpu_second": spread(by_cpu),
                "generator": trainer.generator.name,
                "batch": batch,
                "steps": arguments.steps,
                "iterations": arguments.iterations,
                "device": str(trainer.device),
                "dtype": str(trainer.generator.dtype),
                "dtype_reason": fastest_dtype(trainer.device)[1],
                "threads": arguments.threads,
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
