"""How much of a reward do the actions decide within one image, and in which direction, image by image?

    python benchmarks/own_slopes.py --generator sit --policy RUN --images 24 --actions 96

Every image keeps its context and its noise (a seed decides both), and is made again and again under random actions around
the policy. ``adanat headroom`` draws new noise for every image, and cannot see this: it is what a policy could gain that knew
of each image which way its own reward rises. Whether features tell it is another question. One line of JSON, in shares of the
reward's variance:

``within``: between the actions of one image; ``linear``: the part of it that a slope explains in each image, less what a
regression on so few images fits to noise; ``common``: slopes that all images have in common; ``own``: slopes that they do not,
and by step and knob in ``own_by_knob``.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_toolkit.core import Noise
from adanat_toolkit.sampling import collect, seed_range
from adanat_toolkit.sampling.rollout import explored_by
from adanat_toolkit.training.judge import load_judge

SIGMA = 0.6
FIRST, FIRST_ACTION = 10_000, 50_000


def rewards(
    generator: adanat.Generator, policy: adanat.SamplingPolicy, reward: adanat.RewardModel, images: int, actions: int
) -> tuple[Tensor, Tensor]:
    """(images, actions) scores, and the actions (images, actions, T x A) in units of sigma."""
    noise = Noise(seed_range(FIRST, images).repeat_interleave(actions))
    context = generator.sample_contexts(noise)
    explore = Noise(seed_range(FIRST_ACTION, images * actions))
    made = collect(
        generator, policy, context, noise, sigma=SIGMA, action_noise=explore, reward=reward, micro_batch=64,
        keep_features=False,
    )  # fmt: skip
    assert made.embedded is not None
    tried = explored_by(explore, policy.space.decisions, policy.space.size)
    return reward.score_embedded(made.embedded, context).view(images, actions), tried.reshape(images, actions, -1)


def split(score: Tensor, tried: Tensor) -> dict[str, float | list[float]]:
    """See above."""
    y, x = score.double(), tried.double()
    whole, (images, actions, size) = y.var(), x.shape
    y, x = y - y.mean(1, keepdim=True), x - x.mean(1, keepdim=True)
    inverse = torch.linalg.inv(x.transpose(1, 2) @ x)
    slope = (inverse @ x.transpose(1, 2) @ y[..., None]).squeeze(2)
    left = (y - (x @ slope[..., None]).squeeze(2)).square().sum(1) / (actions - 1 - size)
    error = left[:, None] * inverse.diagonal(dim1=1, dim2=2)
    within = y.square().sum(1) / (actions - 1)
    own = slope.var(0) - error.mean(0)
    common = slope.mean(0).square() - slope.var(0) / images
    return {
        "within": float(within.mean() / whole),
        "linear": float((within - left).mean() / whole),
        "common": float(common.sum() / whole),
        "own": float(own.sum() / whole),
        "own_by_knob": [round(float(value / whole), 4) for value in own],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="sit")
    parser.add_argument("--policy", required=True, help="a run, whose reward judges")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--actions", type=int, default=96)
    options = parser.parse_args()
    generator = adanat.load_generator(options.generator)
    reward, _ = load_judge(options.policy, generator, offline=True)
    policy = adanat.load_policy(options.policy, generator)
    with torch.no_grad():
        found = rewards(generator, policy, reward, options.images, options.actions)
    names = list(policy.space.acted)
    facts = {"generator": generator.name, "images": options.images, "actions": options.actions, "knobs": names}
    print(json.dumps({**facts, **split(*found)}))


if __name__ == "__main__":
    main()
