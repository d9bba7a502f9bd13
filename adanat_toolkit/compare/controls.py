"""Controls of a policy that sees its samples: its own actions, taken away from the samples that they were chosen for.

If these are as good as the policy, it did not adapt to its samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ConfigError
from ..metrics import mean_interval

if TYPE_CHECKING:
    from .table import Row

MEAN, WITHIN, OVERALL = "mean", "within", "overall"
TITLES = {
    MEAN: "mean schedule for all",
    WITHIN: "actions shuffled within contexts",
    OVERALL: "actions shuffled",
}
"""The controls, in the order of the table."""


def control_actions(control: str, actions: Tensor, groups: Tensor, seed: int) -> Tensor:
    """The raw actions that a control replays.

    Shuffled, each sample has the actions of another one; within contexts, of another one of the same context.

    Args:
        actions: (N, T, A), what the policy did. groups: (N,) int64, equal for samples of one context.

    Raises:
        ConfigError: most samples are the only one of their context, so that there is nothing to shuffle within.
    """
    if control == MEAN:
        return actions.mean(0, keepdim=True).expand_as(actions)
    if control == OVERALL:
        groups = torch.zeros_like(groups)
    shuffled, draw, alone = actions.clone(), torch.Generator().manual_seed(seed), 0
    for group in groups.unique():
        members = (groups == group).nonzero().squeeze(1)
        alone += int(len(members) == 1)
        order = members[torch.randperm(len(members), generator=draw)]
        shuffled[order] = actions[order.roll(1)]
    if 2 * alone > len(groups):
        raise ConfigError(
            f"{alone} of {len(groups)} images are the only one of their class, so that actions cannot be shuffled within "
            "classes; give more images (--num)."
        )
    return shuffled


def verdicts(rows: Sequence[Row]) -> list[str]:
    """A sentence for each policy of the table that has controls: whether it adapted."""
    out = []
    for row in rows:
        own = (row.policy, row.reward, row.steps)
        controls = [r for r in rows if r.control is not None and (r.policy, r.reward, r.steps) == own]
        if row.control is None and controls:
            out.append(f"{row.label} at T={row.steps}: {_verdict(row, controls)}")
    return out


def _verdict(row: Row, controls: Sequence[Row]) -> str:
    """By the Frechet distance, and by the reward that the policy was trained on where that scores single images."""
    distance = "Frechet distance of its controls against its own"
    reward = "What its controls lose of it, in standard deviations of the images' scores"
    said = _judged(row, controls, distance_gaps, distance, ".1%")
    if not any(len(reward_gaps(row, control)) > 1 for control in controls):
        return said
    return f"{said} By its own reward, {_judged(row, controls, reward_gaps, reward, '.3f')}"


def _judged(row: Row, controls: Sequence[Row], gaps_of: Callable[[Row, Row], list[float]], what: str, form: str) -> str:
    """``gaps_of``: how much worse a control is than the policy, seed by seed; ``what`` that is, and how it is written."""
    worse, told, missing = {}, {}, []
    for control in controls:
        gaps = gaps_of(row, control)
        assert control.control is not None
        if len(gaps) < 2:
            missing.append(TITLES[control.control])
            continue
        worse[control.control] = mean_interval(gaps)[0] > 0
        told[control.control] = f"{TITLES[control.control]} {with_interval(gaps, form)}"
    if not told:
        return "whether it adapted cannot be told from fewer than two seeds; give more (--seeds)."
    figures = f"{what}: {'; '.join(told.values())}."
    if missing:
        figures += f" Fewer than two seeds have {' and '.join(missing)}."
    return f"{_conclusion(worse.get(MEAN), worse.get(OVERALL), worse.get(WITHIN))}. {figures}"


def _conclusion(mean: bool | None, overall: bool | None, within: bool | None) -> str:
    """What the controls say together; each is worse than the policy, not worse, or not known (None).

    What is not known neither denies that a policy adapted nor shows it.
    """
    if mean is False:
        return "it did not adapt as far as these seeds tell, its mean schedule is as good for all"
    if overall is False:
        return "it gained by variety, not by adapting: its actions are as good for other samples"
    if overall is None and within is None:
        return "whether it adapted cannot be told: its mean schedule is worse, and so it may be by variety alone"
    if overall is None and within is False:
        return "it did not adapt to the samples of one context; whether to contexts cannot be told"
    if mean is None:
        return "its actions suit its own samples best; whether that is better than its mean schedule cannot be told"
    if within is False:
        return "it adapted to contexts, not to the samples of one"
    return "it adapted, to contexts or to samples" if within is None else "it adapted"


def with_interval(gaps: Sequence[float], form: str) -> str:
    """Mean of two or more seeds with its interval, each with a sign."""
    low, high = mean_interval(gaps)
    return f"{sum(gaps) / len(gaps):+{form}} [{low:+{form}}, {high:+{form}}]"


def distance_gaps(row: Row, control: Row) -> list[float]:
    """How much worse the control is, seed by seed, as a share of the policy's Frechet distance."""
    if "frechet" not in row.figures or "frechet" not in control.figures:
        return []
    own = dict(zip(row.seeds, row.figures["frechet"].values, strict=True))
    other = dict(zip(control.seeds, control.figures["frechet"].values, strict=True))
    return [other[seed] / own[seed] - 1 for seed in own if seed in other and own[seed]]


def reward_gaps(row: Row, control: Row) -> list[float]:
    """How much less the control scores, seed by seed, in standard deviations of the scores of the policy's images."""
    own, other = row.scores, control.scores
    return [(own[seed][0] - other[seed][0]) / own[seed][1] for seed in own if seed in other and own[seed][1] > 0]
