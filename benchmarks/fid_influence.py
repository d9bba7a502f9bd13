"""How well a batch's scores agree with the influence on a large set: the tables of docs/results/fid-influence.md.

    python benchmarks/fid_influence.py

Images of the embedded generator, made as in the first iteration of a training run (hand-made schedule, exploration with
sigma 0.6); the truth is the influence of each image on the distance of all of them.
"""

from __future__ import annotations

import os

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from adanat_plugins.rewards.fid import FidReward, frechet_distance_of_few
from adanat_plugins.rewards.frechet_influence import FrechetInfluence, Moments
from adanat_toolkit.policies import SamplingPolicy
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.training import Trainer, validate

COUNT, BATCH, DRAWS, SIGMA = 4096, 128, 8, 0.6
OTHER = "cosine,guidance=0:1,mask_temperature=1:0"
"""A much worse hand-made schedule."""


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def generate(schedule: str | None, first: int, count: int) -> tuple[FidReward, Tensor]:
    """The reward, and (count, D) float64 features of images made as an untrained policy makes them."""
    config = {"reward": {"name": "fid:influence"}, "policy": {"schedule": schedule}, "device": "cpu"}
    trainer = Trainer(validate(config))
    reward = trainer.reward
    assert isinstance(reward, FidReward)
    policy = SamplingPolicy(trainer.policy, trainer.space)
    made = sample(trainer.generator, policy, seed_range(first, count), sigma=SIGMA)
    return reward, torch.cat([reward.embed(part.images, part.context) for part in made]).double()


def main() -> None:
    reward, features = generate(None, 0, COUNT)
    influence = reward.influence
    truth, distance = influence(features, Moments.of(features))
    print(f"{COUNT} images, distance {distance:.2f}\n")
    draws = [torch.randperm(COUNT, generator=torch.Generator().manual_seed(k)) for k in range(DRAWS)]

    def agreement(method: FrechetInfluence, history: int) -> float:
        total = 0.0
        for order in draws:
            batch, past = features[order[:BATCH]], features[order[BATCH : BATCH + history]]
            moments = Moments.of(batch) if history == 0 else Moments.of(past).blend(Moments.of(batch))
            total += correlation(method(batch, moments)[0], truth[order[:BATCH]])
        return total / DRAWS

    lengths = (0, 128, 384, 768, 1536, 3072)
    print("| shrinkage | " + " | ".join(f"history {n}" for n in lengths) + " |")
    print("|---|" + "---|" * len(lengths))
    for shrinkage in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        method = FrechetInfluence(reward.mean, reward.covariance, shrinkage)
        print(f"| {shrinkage:g} | " + " | ".join(f"{agreement(method, n):.3f}" for n in lengths) + " |")
    _, stale = generate(OTHER, COUNT, 1536)
    print(f"\n| history of another policy ({OTHER}) | agreement |\n|---|---|")
    for length in (384, 768, 1536):
        other, total = Moments.of(stale[:length]), 0.0
        for order in draws:
            batch = features[order[:BATCH]]
            total += correlation(influence(batch, other.blend(Moments.of(batch)))[0], truth[order[:BATCH]])
        print(f"| {length} | {total / DRAWS:.3f} |")
    print("\n| shared by groups of | agreement |\n|---|---|")
    for size in (16, 32, 64):
        groups = features.split(size)
        distances = torch.stack([frechet_distance_of_few(g, reward.mean, reward.covariance) for g in groups])
        print(f"| {size} | {correlation(distances.repeat_interleave(size), truth):.3f} |")


if __name__ == "__main__":
    main()
