"""Is there headroom for stopping: can an image's own statistics tell that its remaining steps bring nothing?

    python benchmarks/stopping.py --generator maskgit --judge demo-run/run --steps 8 --images 2048

Images are made to the end, and what the judge (a run's reward, or a frozen one by ``--reward``) thinks of the draft after
each step is held against the finished image. What the remaining steps bring is predicted from the statistics of the
prediction at that step, by ridge regression on them, their squares and products, cross-validated in ten parts. One line of
JSON a step:

``gain``: mean of what the remaining steps bring, in standard deviations of the final score; ``gain_sd``: its spread;
``explained``: share of that spread that the statistics explain in images that the regression has not seen, and its 95 %
interval over the parts; ``correlation``: the largest with a single statistic; ``half_chosen``, ``half_random``,
``half_oracle``: mean score lost where half of the images stop here, those that the regression names, any, or the best ones.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_toolkit.core import Noise
from adanat_toolkit.registry import create_reward
from adanat_toolkit.training.judge import load_judge

PARTS = 10
RIDGE = 1e-2


@torch.no_grad()
def drafts(generator: adanat.Generator, reward: adanat.RewardModel, seeds: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Scores of the drafts after each step (n, T), and the statistics before each (n, T, S)."""
    schedule = generator.bind(None, steps).schedule
    assert schedule is not None
    noise = Noise(seeds)
    context = generator.sample_contexts(noise)
    state, scores, statistics = generator.reset(context, noise, steps), [], []
    for row in schedule.float():
        statistics.append(generator.statistics(state))
        state = generator.step(state, row.expand(len(seeds), -1), noise)
        scores.append(reward.score(generator.decode(state), context))
    return torch.stack(scores, 1), torch.stack(statistics, 1)


def predicted(statistics: Tensor, gain: Tensor) -> Tensor:
    """(n,): what the regression on the other nine parts says of each image."""
    z = (statistics - statistics.mean(0)) / (statistics.std(0) + 1e-9)
    pairs = [z[:, i] * z[:, j] for i in range(z.shape[1]) for j in range(i, z.shape[1])]
    x = torch.cat([torch.ones(len(z), 1, dtype=z.dtype), z, torch.stack(pairs, 1)], 1)
    part = torch.arange(len(x)) % PARTS
    out = torch.zeros_like(gain)
    for i in range(PARTS):
        own, others = part == i, part != i
        a = x[others].T @ x[others] + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        out[own] = x[own] @ torch.linalg.solve(a, x[others].T @ gain[others])
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--judge", help="folder of a training whose reward judges")
    parser.add_argument("--reward", help="a frozen reward in place of a judge, such as clip-score")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = adanat.load_generator(arguments.generator)
    if arguments.judge:
        reward, judge = load_judge(arguments.judge, generator)
    else:
        judge = arguments.reward or "clip-score"
        reward = create_reward(judge, {}, generator=generator, real=None, device=generator.device, seed=0, offline=True)
    parts = []
    for start in range(0, arguments.images, arguments.batch):
        seeds = torch.arange(start, min(start + arguments.batch, arguments.images)) + arguments.seed
        parts.append(drafts(generator, reward, seeds.to(generator.device), arguments.steps))
        print(f"{start + len(seeds)} of {arguments.images} images", file=sys.stderr)
    scores, statistics = (torch.cat(column).double().cpu() for column in zip(*parts, strict=True))
    if hasattr(reward, "discriminator"):
        scores = scores.clamp(1e-6, 1 - 1e-6).logit()  # a probability: its logit has no ends
    scores = scores / scores[:, -1].std()
    for step in range(1, arguments.steps):  # what is known when the next step would begin
        gain = scores[:, -1] - scores[:, step - 1]
        seen = statistics[:, step]
        guess = predicted(seen, gain)
        part, error = torch.arange(len(gain)) % PARTS, (gain - guess).square() / gain.var()
        shares = torch.stack([1 - error[part == i].mean() for i in range(PARTS)])
        moving = seen[:, seen.std(0) > 1e-9]
        half = len(gain) // 2
        row = {
            "generator": generator.name,
            "judge": judge,
            "steps": arguments.steps,
            "images": len(gain),
            "after": step,
            "gain": gain.mean(),
            "gain_sd": gain.std(),
            "explained": shares.mean(),
            "explained_within": 2.26 * shares.std() / PARTS**0.5,
            "correlation": torch.corrcoef(torch.cat([gain[None], moving.T]))[0, 1:].abs().max(),
            "half_chosen": gain[guess.argsort()[:half]].sum() / len(gain),
            "half_random": gain.mean() / 2,
            "half_oracle": gain.sort().values[:half].sum() / len(gain),
        }
        print(json.dumps({k: round(float(v), 4) if isinstance(v, Tensor) else v for k, v in row.items()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
