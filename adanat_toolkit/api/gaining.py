"""What a policy can gain, before one is trained."""

from __future__ import annotations

import os
from pathlib import Path

from ..commands.headroom import (
    BUDGET,
    SIGMA,
    Headroom,
    Progress,
    find_headroom,
    percent,
    reward_for,
    span,
)
from ..core import Generator, RewardModel
from ..decoding import SamplingPolicy
from ..evaluation import own_contexts
from ..images import images_for
from ..storage import prepare_folder
from ..training.objects import RewardFunction, as_reward
from .arguments import checked, require_generator
from .pages import table
from .policies import Spec, as_policy

__all__ = ["Headroom", "headroom"]


class HeadroomPage(Headroom):
    """The result of :func:`headroom`; a notebook shows it as two tables and a verdict."""

    def _repr_html_(self) -> str:
        shares = table(
            ["of the reward's variance", "share", "95 % interval"],
            [[name, percent(share), span(share)] for name, share in self.rows],
            self.title(),
        )
        slopes = table(
            ["slopes, % of the variance", "whose", *(f"step {t + 1}" for t in range(self.steps))],
            [
                [knob, whose, *(f"{100 * value:.2f}{' *' if clear else ''}" for value, clear in steps)]
                for knob, whose, steps in self.slope_rows()
            ],
            f"where sigma {SIGMA:g} moves the reward; * clear of 0",
        )
        return f"<p><b>{self.verdict.text}</b></p>{shares}{slopes}<p>{self.needed_text()}</p>"


@checked
def headroom(
    generator: Generator,
    reward: RewardModel | RewardFunction | str | None = None,
    *,
    policy: SamplingPolicy | Spec | None = "fixed",
    steps: int | None = None,
    trajectories: int = BUDGET,
    seed: int = 0,
    data: str | os.PathLike[str] | None = None,
    batch: int | None = None,
    offline: bool = False,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Headroom:
    """What shared and adaptive policies can gain on a generator and a reward (docs/headroom.md).

    Args:
        reward: a name, a RewardModel, or a function ``(images, context) -> scores``; None: that of the run ``policy`` names,
            else ``clip-score``. One that learns is named together with a run folder as ``policy``, and is as the run left it.
        policy: where to start, what :func:`load_policy` returns or takes; the generator's best known schedule if left out.
        steps: T of a hand-made schedule. trajectories: images to make. batch: in flight at once.
        data: real images whose contexts are drawn, and which the reward may need; None: those that ship.
        out: a folder for ``headroom.json`` and ``headroom.png`` (see ``Headroom.save``).
        progress: called with a word, how many images are made, and how many there will be.

    Raises:
        ConfigError: an argument is of the wrong type, too few trajectories for an interval, or a reward that learned nothing.
        DataError: the reward is constant. CheckpointError, PluginError, WeightsError, OutputError.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> from adanat_toolkit.testing import Control, control_reward
        >>> found = adanat.headroom(Control(by_context=0, by_state=0), control_reward, batch=1024)
        >>> found.verdict.kind
        'shared'
    """
    generator = require_generator(generator)
    ready, told = as_reward(reward), None
    loaded = as_policy(policy, generator, steps=steps, offline=offline)
    path = None if data is None else os.fspath(data)
    if out is not None:
        prepare_folder(Path(out))
    real = images_for(generator, path)
    if not isinstance(ready, RewardModel):
        spec = policy if isinstance(policy, str | os.PathLike) else None
        ready, told = reward_for(ready, spec, generator=generator, real=real, seed=seed, offline=offline)
    found = find_headroom(
        generator,
        loaded,
        ready,
        trajectories=trajectories,
        seed=seed,
        contexts_from=own_contexts(generator, path, real),
        batch=batch,
        facts=None if told is None else {"reward": told},
        progress=progress,
    )
    if out is not None:
        found.save(out)
    return HeadroomPage(**vars(found))
