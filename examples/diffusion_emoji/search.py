"""Hand-made constant schedules on a grid, ranked by the yardstick: python search.py. The last line is the best."""

from __future__ import annotations

import argparse
import itertools

from adanat_toolkit.evaluation import Yardstick
from adanat_toolkit.metrics import evaluate_features
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_features, create_generator
from adanat_toolkit.runtime import resolve_device, resolve_dtype
from adanat_toolkit.sampling import seed_range


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--num", type=int, default=500, help="images a schedule")
    parser.add_argument("--seed", type=int, default=100_000, help="first image seed")
    parser.add_argument("--guidance", default="0.5,1,2,3")
    parser.add_argument("--eta", default="0.05,0.4")
    parser.add_argument("--step-size", default="1")
    options = parser.parse_args()
    device = resolve_device("auto")
    generator = create_generator("diffusion-emoji", device=device, dtype=resolve_dtype("auto", device), offline=True)
    yardstick = Yardstick(
        generator, create_features("emoji64", device=device, offline=True), generator.real_images(), progress=None
    )
    found = []
    axes = (text.split(",") for text in (options.guidance, options.eta, options.step_size))
    for guidance, eta, size in itertools.product(*axes):
        schedule = f"guidance={guidance},eta={eta},step_size={size}"
        policy = load_policy(f"fixed:{schedule}", generator, options.steps)
        images = yardstick.make(policy, seed_range(options.seed, options.num))
        figures = evaluate_features(images.features, yardstick.reference).figures
        found.append((figures["frechet"], schedule))
        print(f"{figures['frechet']:.3f} {schedule}", flush=True)
    print("best:", "{:.3f} {}".format(*min(found)))


if __name__ == "__main__":
    main()
