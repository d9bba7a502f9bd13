"""Would shaping pay: how much of the final score does the score of a draft tell, and what does it cost to ask?

    python benchmarks/shaping.py --generator maskgit --judge runs/judge --reward clip-score --steps 4 --images 1000

A judge (a run's reward by ``--judge``, a frozen one by ``--reward``, or both, each for itself) that scores the draft after each
step gives a potential: what a step adds to it can be paid at once, and the draft's score becomes a baseline for the actions
after it. Images are made under exploration, a few of each context, and the finished image's score is predicted from the
draft's (and its square) by a regression on deviations from the context's mean, cross-validated over contexts in ten parts. The
draft of ``dit`` and ``sit`` is the image that is predicted, without noise. One line of JSON a judge and draft:

``explained``: share of the final score's variance within contexts that the draft's score explains in contexts that the
regression has not seen, and its 95 % interval over the parts; ``by_statistics``, ``by_both``: the same of the statistics of the
prediction at that step (with squares and products), which a critic reads for nothing, and of both together;
``variance_left``: what the advantage of the actions after it keeps of its variance; ``cost``: CPU seconds of decoding and
scoring it, as a share of those of a trajectory (its steps, its image and that one's score).

Then one line a judge. ``gain``: effective samples in equal time, mean over the actions of 1 / ``variance_left`` divided by 1 +
what the drafts cost, with ``all`` drafts, with the ``best`` choice of drafts, and ``free`` as if they cost nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_toolkit.core import ACTION, Context, Noise, derive
from adanat_toolkit.registry import create_reward
from adanat_toolkit.sampling import explored_by
from adanat_toolkit.training.judge import load_judge

PARTS = 10
RIDGE = 1e-2


class Clock:
    """CPU seconds by what was done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.process_time()
        done = work()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - started
        return done


def image_of(generator: adanat.Generator, state: Any) -> Tensor | None:
    """The draft of a state; None where nothing has been predicted yet."""
    if not hasattr(state, "data"):
        return generator.decode(state)
    return None if state.data is None else generator.decode(replace(state, latents=state.data))


def score(reward: adanat.RewardModel, images: Tensor, context: Context) -> Tensor:
    return reward.score_embedded(reward.embed(images, context), context)


@torch.no_grad()
def drafts(
    generator: adanat.Generator,
    rewards: dict[str, adanat.RewardModel],
    groups: Tensor,
    arguments: argparse.Namespace,
    clock: Clock,
) -> tuple[list[int], Tensor, Tensor]:
    """Of some contexts: which actions follow a draft, the scores of these D drafts and of the image by each reward
    (n, R, D + 1), and the statistics that those actions see (n, D, S)."""
    seed, draws, space = arguments.seed, arguments.draws, generator.bind(None, arguments.steps)
    number = (groups[:, None] * draws + torch.arange(draws)).flatten().tolist()
    noise = Noise(torch.tensor([derive(seed, one) for one in number]))
    explore = Noise(torch.tensor([derive(seed, ACTION, one) for one in number]))
    context = generator.sample_contexts(Noise(groups.repeat_interleave(draws) + seed))
    wander = arguments.sigma * explored_by(explore, space.decisions, space.size)

    def judged(images: Tensor, what: str) -> Tensor:
        by_each = [clock(f"{what} {name}", partial(score, one, images, context)) for name, one in rewards.items()]
        return torch.stack(by_each, 1)

    state = clock("steps", partial(generator.reset, context, noise, arguments.steps))
    after, scores, statistics, smoothed = list[int](), list[Tensor](), list[Tensor](), None
    for t in range(space.decisions):
        clock("steps", partial(generator.observe, state))
        image = clock(f"decode {t}", partial(image_of, generator, state)) if t else None
        if image is not None:
            after.append(t)
            scores.append(judged(image, f"score {t}"))
            statistics.append(generator.statistics(state))
        step = torch.full((len(number),), t, dtype=torch.int64)
        smoothed = space.smoothed(wander[:, t], step, smoothed)
        state = clock("steps", partial(generator.step, state, space.transformed(smoothed, step), noise))
    scores.append(judged(clock("decode", partial(generator.decode, state)), "score"))
    return after, torch.stack(scores, 2).double(), torch.stack(statistics, 1).double()


def within(values: Tensor, draws: int) -> Tensor:
    """Deviations from the mean of the context, whose images stand together."""
    grouped = values.view(-1, draws, *values.shape[1:])
    return (grouped - grouped.mean(1, keepdim=True)).flatten(0, 1)


def powers(columns: Tensor) -> Tensor:
    """Standardised columns (n, S), their squares and products; what does not vary is left out."""
    moving = columns[:, columns.std(0) > 1e-9]
    z = (moving - moving.mean(0)) / moving.std(0)
    pairs = [z[:, i] * z[:, j] for i in range(z.shape[1]) for j in range(i, z.shape[1])]
    return torch.cat([z, *(pair[:, None] for pair in pairs)], 1)


def explained(inputs: Tensor, final: Tensor, draws: int) -> Tensor:
    """(PARTS,): the share of the final score's variance within contexts that a regression on the other parts explains."""
    x, y = within(inputs, draws), within(final, draws)
    part, out = torch.arange(len(y)) // draws % PARTS, []
    for i in range(PARTS):
        own, others = part == i, part != i
        a = x[others].T @ x[others] + RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
        error = y[own] - x[own] @ torch.linalg.solve(a, x[others].T @ y[others])
        out.append(1 - error.square().mean() / y.square().mean())
    return torch.stack(out)


def gain(chosen: tuple[int, ...], left: dict[int, float], cost: dict[int, float], decisions: int) -> float:
    """Effective samples in equal time, with the drafts before the ``chosen`` actions; an action has the best one before it."""
    each = [1 / min([1.0, *(left[t] for t in chosen if t <= k)]) for k in range(decisions)]
    return sum(each) / decisions / (1 + sum(cost[t] for t in chosen))


def report(
    about: dict[str, Any],
    after: list[int],
    scores: Tensor,
    statistics: Tensor,
    seconds: dict[str, float],
    decisions: int,
    draws: int,
) -> None:
    """What one judge's scores (n, D + 1) of drafts and image say."""
    final, judge = scores[:, -1], about["judge"]
    trajectory = seconds["steps"] + seconds["decode"] + seconds[f"score {judge}"]
    left, cost = dict[int, float](), dict[int, float]()
    for i, t in enumerate(after):
        draft, seen = powers(scores[:, i : i + 1]), powers(statistics[:, i])
        shares = explained(draft, final, draws)
        left[t] = 1 - max(0.0, float(shares.mean()))
        cost[t] = (seconds[f"decode {t}"] + seconds[f"score {t} {judge}"]) / trajectory
        show(
            **about,
            before_action=t + 1,
            explained=shares.mean(),
            explained_within=2.26 * shares.std() / PARTS**0.5,
            by_statistics=explained(seen, final, draws).mean(),
            by_both=explained(torch.cat([draft, seen], 1), final, draws).mean(),
            variance_left=left[t],
            cost=cost[t],
        )
    choices = [chosen for size in range(len(after) + 1) for chosen in itertools.combinations(after, size)]
    best = max(choices, key=lambda chosen: gain(chosen, left, cost, decisions))
    free = dict.fromkeys(after, 0.0)
    show(
        **about,
        actions=decisions,
        context=1 - within(final, draws).square().mean() / (1 - 1 / draws) / final.var(),
        trajectory_ms=1000 * trajectory / len(final),
        gain_all=gain(tuple(after), left, cost, decisions),
        gain_best=gain(best, left, cost, decisions),
        best_before_actions=[t + 1 for t in best],
        gain_free=gain(tuple(after), left, free, decisions),
    )


def show(**row: Any) -> None:
    print(
        json.dumps({k: round(float(v), 4) if isinstance(v, Tensor | float) else v for k, v in row.items()}), flush=True
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--generator", default="maskgit")
    parser.add_argument("--judge", help="folder of a training whose reward judges")
    parser.add_argument("--reward", help="a frozen reward in place of a judge, such as clip-score")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--draws", type=int, default=4, help="images of a context")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sigma", type=float, default=0.6, help="exploration around the hand-made schedule")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    generator = adanat.load_generator(arguments.generator, device="cpu")
    rewards: dict[str, adanat.RewardModel] = {}
    if arguments.judge:
        reward, name = load_judge(arguments.judge, generator)
        rewards[name] = reward
    if arguments.reward or not rewards:
        name = arguments.reward or "clip-score"
        rewards[name] = create_reward(
            name, {}, generator=generator, real=None, device=generator.device, seed=0, offline=True
        )
    clock, parts, after = Clock(), [], list[int]()
    contexts = arguments.images // arguments.draws // PARTS * PARTS  # as many in each part
    for groups in torch.arange(contexts).split(max(1, arguments.batch // arguments.draws)):
        after, *found = drafts(generator, rewards, groups, arguments, clock)
        parts.append(found)
        print(f"{(int(groups[-1]) + 1) * arguments.draws} of {contexts * arguments.draws} images", file=sys.stderr)
    scores, statistics = (torch.cat(column) for column in zip(*parts, strict=True))
    decisions = generator.bind(None, arguments.steps).decisions
    about = {"generator": generator.name, "steps": arguments.steps, "images": len(scores)}
    for j, judge in enumerate(rewards):
        report(about | {"judge": judge}, after, scores[:, j], statistics, clock.seconds, decisions, arguments.draws)
    return 0


if __name__ == "__main__":
    sys.exit(main())
