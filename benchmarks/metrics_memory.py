"""Peak memory and time of all figures of 50,000 generated against 50,000 real images, in the width of InceptionV3.

The features are random numbers (2,048 a sample, and 1,008 class probabilities), so that what is measured is the statistics
alone: everything that `adanat evaluate` holds and computes once the network has seen the images. The target is 4 GB for the
whole process.

    python benchmarks/metrics_memory.py [--samples 50000] [--features 2048] [--neighbours 10000] [--subsets 100]

Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from adanat_toolkit.metrics import Features, FeatureStatistics, Reference, evaluate_features

CLASSES = 1008
TARGET = 4.0


def peak_gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=50_000)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--neighbours", type=int, default=10_000)
    parser.add_argument("--subsets", type=int, default=100)
    arguments = parser.parse_args()
    count, dice = arguments.samples, torch.Generator().manual_seed(0)

    def features(shift: float) -> torch.Tensor:
        return torch.randn(count, arguments.features, generator=dice).add_(shift)

    def labels() -> torch.Tensor:
        return torch.randint(1000, (count,), generator=dice)

    chances = torch.rand(count, CLASSES, generator=dice)
    chances /= chances.sum(1, keepdim=True)
    fake, real = Features(features(0.05), chances, "random"), features(0.0)
    before, started = peak_gigabytes(), time.perf_counter()
    reference = Reference(FeatureStatistics.of(real, "random"), real, labels())
    found = evaluate_features(
        fake, reference, labels=labels(), neighbours=arguments.neighbours, subsets=arguments.subsets
    )
    print(
        json.dumps(
            {
                "samples": count,
                "features": arguments.features,
                "peak_gb": round(peak_gigabytes(), 2),
                "peak_gb_of_the_inputs": round(before, 2),
                "target_gb": TARGET,
                "seconds": round(time.perf_counter() - started, 1),
                "threads": torch.get_num_threads(),
                "figures": found.figures,
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
