"""Alarms over the rows of ``metrics.jsonl``: what goes wrong in a run, since when, and what helps.

Pure functions of the rows. Each rule looks at a short window that ends at a row, so that an alarm can go out again;
the limits stand below, ``docs/logged-names.md`` explains the names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from ..limits import LARGEST_FIGURE
from ..metrics import title

Row = Mapping[str, Any]

WINDOW = 5
"""Rows that are averaged before they are compared: single iterations are noisy."""
LOOK_BACK = 250
"""Rows in which the last updates of a discriminator are looked for: with lazy updates few rows have any."""
YARDSTICK_WORSE = 1.05
"""The held-out distance counts as fallen behind from this multiple of its best reading on."""
YARDSTICK_READINGS = 2
"""So many last readings must all have fallen behind: one may be chance."""
STANDARD_ERRORS = 2.0
"""A reward has risen when its windows' means differ by more than so many standard errors."""
DIVERSITY_LEFT = 0.6
"""Diversity has collapsed below this share of what it was at the start of the run (on the yardstick: at most the data's)."""
SATURATED = 0.98
"""Both accuracies of a discriminator above this: nearly every image is told apart."""
KL_LIMIT = 0.5
"""Mean KL divergence of one iteration's update, in nats. A healthy update stays below a tenth of it."""
KL_WINDOW = 2
FLAT_AFTER = 40
"""Updates of the policy after which a frozen reward must have risen."""
FLAT_SPREAD = 1e-6
"""Rewards of a batch count as equal when their standard deviation is below this share of their size."""


@dataclass(frozen=True)
class Alarm:
    """Something that went wrong.

    Attributes:
        name: ``reward-against-yardstick``, ``diversity-collapse``, ``discriminator-saturated``, ``kl-explodes`` or
            ``reward-flat``.
        since: the first iteration of the unbroken stretch in which it has been raised.
        message: what was seen, and the remedy.
    """

    name: str
    since: int
    message: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def reward_against_yardstick(rows: Sequence[Row]) -> str | None:
    """The reward has risen since the held-out yardstick was at its best, and the yardstick has fallen behind since."""
    readings = [i for i, row in enumerate(rows) if figure(row, "yardstick/frechet") is not None]
    if len(readings) <= YARDSTICK_READINGS:
        return None
    values = [float(rows[i]["yardstick/frechet"]) for i in readings]
    best = min(range(len(values)), key=values.__getitem__)
    recent = values[-YARDSTICK_READINGS:]
    if best >= len(values) - YARDSTICK_READINGS or min(recent) <= YARDSTICK_WORSE * values[best]:
        return None
    at = readings[best]
    before = rows[max(0, at + 1 - WINDOW) : max(at + 1, WINDOW)]  # a single row has no noise to be told from
    after = rows[max(at + 1, len(rows) - WINDOW) :]
    names = _terms(rows[-1]) or ["reward/mean"]
    rises = {name: rise for name in names if (rise := _improved(before, after, name)) is not None}
    if not rises:
        return None
    name, rise = next(iter(rises.items()))
    what = "the reward" if name == "reward/mean" else name
    return (
        f"{what} went from {rise[0]:.4g} to {rise[1]:.4g}, which is better, while the held-out {title('frechet')} went from "
        f"{values[best]:.4g} (iteration {rows[at]['iteration']}) to {values[-1]:.4g}: the policy exploits the reward. "
        "Train shorter, keep enough checkpoints to go back to (keep_checkpoints), or mix the reward with another "
        "(--reward A:1,B:0.3)."
    )


def diversity_collapse(rows: Sequence[Row]) -> str | None:
    """Images have become much more alike than at the start of the run."""
    for name, window, top in (("yardstick/diversity", 1, 1.0), ("diversity", WINDOW, math.inf)):
        values = _figures(rows, name)
        if len(values) < 2 * window:
            continue
        # The yardstick's scale has a meaning: 1 is as diverse as the data, and coming down to it is no loss.
        first, last = min(fmean(values[:window]), top), fmean(values[-window:])
        if not last > DIVERSITY_LEFT * first:
            return (
                f"{name} is {last:.4g}, below {DIVERSITY_LEFT:g} of {first:.4g}: the images become alike. Lower "
                "ppo.learning_rate or ppo.sigma, add a reward that sees sets of images (fid:influence) to a mixture, or keep "
                "guidance out of policy.knobs."
            )
    return None


def discriminator_saturated(rows: Sequence[Row]) -> str | None:
    """The discriminator tells nearly all generated images from real ones, so that its scores hardly rank them."""
    for prefix in _prefixes(rows, "accuracy_real"):
        pairs = [
            (real, fake)
            for row in rows[-LOOK_BACK:]
            if (real := figure(row, f"{prefix}accuracy_real")) is not None
            and (fake := figure(row, f"{prefix}accuracy_fake")) is not None
        ][-WINDOW:]
        if len(pairs) == WINDOW and min(fmean(p[side] for p in pairs) for side in (0, 1)) > SATURATED:
            return (
                f"{prefix}accuracy_real and accuracy_fake have a mean above {SATURATED:g} over {WINDOW} iterations: the "
                "discriminator tells everything apart, and its scores hardly rank the images. Weaken it "
                "(--set reward.options.learning_rate=..., reward.options.updates=1, label_smoothing, r1 or augment)."
            )
    return None


def kl_explodes(rows: Sequence[Row]) -> str | None:
    """Updates move the policy far from the one that made the trajectories, or the numbers are no longer finite."""
    updated = [row for row in rows[-10 * KL_WINDOW :] if row.get("ppo/approx_kl") is not None][-KL_WINDOW:]
    values = _figures(updated, "ppo/approx_kl")
    if updated and figure(updated[-1], "ppo/approx_kl") is None:
        what = f"ppo/approx_kl is {updated[-1]['ppo/approx_kl']}"
    elif len(values) == KL_WINDOW and fmean(values) > KL_LIMIT:
        what = f"ppo/approx_kl is {fmean(values):.3g} over {KL_WINDOW} iterations, above {KL_LIMIT:g}"
    else:
        return None
    return (
        f"{what}: one iteration moves the policy too far for its clipped objective. Lower ppo.learning_rate or ppo.epochs, "
        "or set ppo.target_kl=0.05."
    )


def reward_flat(rows: Sequence[Row]) -> str | None:
    """All images of a batch score alike; or a frozen reward has not risen since the start.

    A reward that learns is judged by its spread alone: its mean stands still because the discriminator keeps up.
    """
    recent = rows[-WINDOW:]
    if len(recent) == WINDOW and all(
        row["reward/std"] <= FLAT_SPREAD * max(abs(row["reward/mean"]), FLAT_SPREAD) for row in recent
    ):
        return (
            f"all images of a batch get the reward {recent[-1]['reward/mean']:.4g}: there is nothing to learn from. Check "
            "that the reward fits the generator (prompts, image size), or use another one."
        )
    updated = [row for row in rows if "ppo/approx_kl" in row]
    # With lazy updates not every row has figures of the reward's update.
    if len(updated) < FLAT_AFTER or any(key.startswith("reward_model/") for row in rows[-LOOK_BACK:] for key in row):
        return None
    terms = _terms(updated[-1])
    if any(_improved(updated[:WINDOW], updated[-WINDOW:], name) for name in ("reward/mean", *terms)):
        return None
    name = terms[0] if terms else "reward/mean"
    ends = [_figures(part, name) for part in (updated[:WINDOW], updated[-WINDOW:])]
    if not all(ends):
        return None
    first, last = map(fmean, ends)
    return (
        f"{name} was {first:.4g} at the start and is {last:.4g} after {len(updated)} updates: nothing is learned. Raise "
        "ppo.learning_rate or the batch, or compare trajectories on common noise (ppo.group=4)."
    )


RULES: dict[str, Callable[[Sequence[Row]], str | None]] = {
    "reward-against-yardstick": reward_against_yardstick,
    "diversity-collapse": diversity_collapse,
    "discriminator-saturated": discriminator_saturated,
    "kl-explodes": kl_explodes,
    "reward-flat": reward_flat,
}


def check(rows: Sequence[Row], before: Sequence[Alarm] = ()) -> list[Alarm]:
    """The alarms that are raised after the last of the rows.

    Args:
        rows: of ``metrics.jsonl`` from the run's start on, in order.
        before: what this gave for all of them but the last: the start of a stretch that goes on is not looked for again.
    """
    since = {alarm.name: alarm.since for alarm in before}
    return [alarm for name in RULES if (alarm := _stretch(name, rows, since.get(name))) is not None]


def raised(rows: Sequence[Row]) -> list[Alarm]:
    """Every alarm that was raised at some time of a run, in its last stretch; in the order of :data:`RULES`."""
    found = []
    for name, rule in RULES.items():
        last = len(rows)
        while last and rule(rows[:last]) is None:
            last -= 1
        alarm = _stretch(name, rows[:last])
        if alarm is not None:
            found.append(alarm)
    return found


def _stretch(name: str, rows: Sequence[Row], since: int | None = None) -> Alarm | None:
    """An alarm that is raised after the last row, with the start of its unbroken stretch (``since`` where that is known)."""
    rule = RULES[name]
    message = rule(rows) if rows else None
    if message is None:
        return None
    if since is not None:
        return Alarm(name, since, message)
    first = len(rows)
    while first > 1 and rule(rows[: first - 1]) is not None:
        first -= 1
    return Alarm(name, int(rows[first - 1]["iteration"]), message)


def figure(row: Row, name: str) -> float | None:
    """A logged figure; None where the row does not have it, or not as a number to compute with (NaN, infinity)."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST_FIGURE else None  # a comparison with NaN is false


def _figures(rows: Sequence[Row], name: str) -> list[float]:
    return [value for row in rows if (value := figure(row, name)) is not None]


def _terms(row: Row) -> list[str]:
    """Names of the means of a reward's terms. A mixture is standardised within the batch, and influences sum to nothing: then
    the terms tell what is learned."""
    return [key for key in row if key.startswith("reward/") and key.endswith("/mean") and key != "reward/mean"]


def _improved(before: Sequence[Row], after: Sequence[Row], name: str) -> tuple[float, float] | None:
    """Means before and after, where the figure has become better beyond its noise; None where it has not."""
    if not name.endswith("frechet/mean"):
        return _risen(before, after, name)
    fallen = _risen(after, before, name)  # the one term that improves downwards
    return None if fallen is None else fallen[::-1]


def _risen(before: Sequence[Row], after: Sequence[Row], name: str = "reward/mean") -> tuple[float, float] | None:
    """Means of a figure before and after, where it has risen beyond its noise; None where it has not."""
    first, last = (_figures(rows, name) for rows in (before, after))
    if not first or not last:
        return None
    variance = sum(stdev(v) ** 2 / len(v) for v in (first, last) if len(v) > 1)
    low, high = fmean(first), fmean(last)
    return (low, high) if high - low > STANDARD_ERRORS * math.sqrt(variance) else None


def _prefixes(rows: Sequence[Row], figure: str) -> list[str]:
    """``reward_model/`` or, in a mixture, ``reward_model/TERM/``: where a figure of a learned reward stands."""
    recent = rows[-LOOK_BACK:]
    return sorted(
        {k.removesuffix(figure) for row in recent for k in row if k.startswith("reward_model/") and k.endswith(figure)}
    )
