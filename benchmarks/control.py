"""Policies on the positive control: what share of the possible gain each kind reaches, after how many trajectories.

    python benchmarks/control.py --policies shared adaptive --effects 0.02 0.005 --trajectories 100000 --seeds 0

The control (``adanat_toolkit.testing.Control``) knows the best policy of each kind in closed form. An effect of e means
that the slope common to all samples, those of contexts and those of states are each a share e of the reward's variance;
an effect of a:b:c, such as 0.019:0.004:0.004, gives the three shares one by one, in this order.
One line of JSON a reading, with the gain of the exported policy over the schedule as a share of what is possible for the
adaptive policy; what a shared one and one that sees the class can reach of it is in ``possible_shared`` and
``possible_context``. Whatever follows ``--set`` are settings of training, for all of them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.core import TOKEN, Noise
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.testing.control import ControlState
from adanat_toolkit.training import create_trainer, resolve

STEPS = 4


class DrawnAnew(Control):
    """Another action draws another image, as where tokens are drawn: images of one seed share no noise of the reward."""

    def step(self, state: ControlState, action: Tensor, noise: Noise) -> ControlState:
        after = super().step(state, action, noise)
        if after.step == after.steps:
            own = Noise(noise.seeds ^ (after.total.double().view(torch.int64) >> 1 & 2**62 - 1))
            size = self.law(after.steps).noise
            after.total = after.total + size * (own.normal(TOKEN, 0, ()) - noise.normal(TOKEN, 0, ()))
        return after


def sizes_of(text: str) -> tuple[float, float, float]:
    """The shares of the common slope, of contexts' slopes and of states' slopes: "E" for all three, or "A:B:C".

    Raises:
        ArgumentTypeError: it is neither one nor three numbers from 0 on that sum to less than 1.
    """
    try:
        parts = [float(part) for part in text.split(":")]
    except ValueError:
        parts = []
    sizes = parts * 3 if len(parts) == 1 else parts
    if len(sizes) != 3 or not all(size >= 0 for size in sizes) or not sum(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write one share for all three effects, such as 0.02, or three, such as 0.019:0.004:0.004 (common "
            "to all, of contexts, of states); none below 0, and less than 1 in all"
        )
    return sizes[0], sizes[1], sizes[2]


def train(policy: str, effects: tuple[float, float, float], seed: int, arguments: argparse.Namespace) -> None:
    """One run, without a folder."""
    name, _, options = policy.partition(":")
    kind = DrawnAnew if arguments.drawn_anew else Control
    shared, by_context, by_state = effects
    control = kind(context=arguments.context, shared=shared, by_context=by_context, by_state=by_state, seed=seed)
    possible = control.possible(STEPS)
    flags: dict[str, Any] = {
        "steps": STEPS,
        "trajectories": arguments.trajectories,
        "batch": arguments.batch,
        "micro_batch": 1024,
        "seed": seed,
        "device": "cpu",
        "policy": {"name": name},
    }
    overrides = [f"policy.options.{one}" for one in options.split(",") if one] + arguments.set
    config = resolve(preset="demo", flags=flags, overrides=overrides)
    trainer, started = create_trainer(config, control, control_reward), time.perf_counter()
    every = max(1, config.iterations // arguments.readings)
    while trainer.iteration < config.iterations:
        trainer.step()
        if trainer.iteration % every == 0 or trainer.iteration == config.iterations:
            row = {
                "policy": policy,
                "effects": effects,
                "seed": seed,
                "settings": [*(["drawn anew"] if arguments.drawn_anew else []), *arguments.set],
                "trajectories": trainer.iteration * config.batch,
                "gain": round(control.gain(trainer.exported()), 4),
                "of_possible": round(control.gain(trainer.exported()) / possible["adaptive"], 3),
                "possible_shared": round(possible["shared"] / possible["adaptive"], 3),
                "possible_context": round(possible["context"] / possible["adaptive"], 3),
                "possible": round(possible["adaptive"], 4),
                "seconds": round(time.perf_counter() - started, 1),
            }
            print(json.dumps(row), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policies", nargs="+", default=["shared", "adaptive"], help="NAME[:OPTION=VALUE,...]")
    both = [sizes_of("0.02"), sizes_of("0.005")]
    parser.add_argument("--effects", nargs="+", type=sizes_of, default=both, metavar="E", help="E, or COMMON:CONTEXT:STATE")
    parser.add_argument("--trajectories", type=int, default=100_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--readings", type=int, default=8)
    parser.add_argument("--context", type=float, default=0.16, help="the context's share of the reward's variance")
    parser.add_argument("--drawn-anew", action="store_true", help="images of one seed share no noise")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for effects in arguments.effects:
        for policy in arguments.policies:
            for seed in arguments.seeds:
                train(policy, effects, seed, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
