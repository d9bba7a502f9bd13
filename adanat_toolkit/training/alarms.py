"""Alarms over the rows of ``metrics.jsonl``: what goes wrong in a run, since when, and what helps.

Functions of the rows alone. A rule walks over them once, in order, and keeps the little that it needs of them: an alarm
can go out again, and a row more costs the same in a run of any length. The limits stand below, ``docs/logged-names.md``
explains the names.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any, Protocol

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
UPDATED = {
    "ppo/approx_kl": "Raise ppo.learning_rate or the batch, or compare trajectories on common noise (ppo.group=4).",
    "fit/loss": "Raise ppo.learning_rate or the batch, or try more actions a context (fit.actions).",
    "fit/slope": "Raise fit.pull or the batch, or try more actions a context (fit.actions).",
}
"""Figures that rows have after an update of the policy, one an algorithm, and what helps where it learns nothing."""
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


class Rule(Protocol):
    """What an alarm is raised by; a new one for each run."""

    def see(self, row: Row) -> str | None:
        """Takes the next row of the run, and gives the alarm's message if it is raised after this row."""


class RewardAgainstYardstick:
    """The reward has risen since the held-out yardstick was at its best, and the yardstick has fallen behind since."""

    def __init__(self) -> None:
        self._seen = 0
        self._recent: deque[Row] = deque(maxlen=WINDOW)
        self._best, self._best_iteration = math.inf, 0
        self._later: deque[float] = deque(maxlen=YARDSTICK_READINGS)
        """The last readings after the best one."""
        self._before = _Part(())
        self._after: deque[Row] = deque(maxlen=WINDOW)

    def see(self, row: Row) -> str | None:
        self._seen += 1
        self._recent.append(row)
        self._after.append(row)
        reading = figure(row, "yardstick/frechet")
        if reading is not None and reading < self._best:
            self._best, self._best_iteration = reading, row["iteration"]
            self._later.clear()
            self._after.clear()
            self._before = _Part(self._recent)
        elif reading is not None:
            self._later.append(reading)
        if self._seen <= WINDOW:  # a single row has no noise to be told from
            self._before = _Part(self._recent)
        if len(self._later) < YARDSTICK_READINGS or min(self._later) <= YARDSTICK_WORSE * self._best:
            return None
        after = _Part(self._after)
        for name in _terms(row) or ["reward/mean"]:
            if (rise := _improved(self._before, after, name)) is not None:
                what = "the reward" if name == "reward/mean" else name
                return (
                    f"{what} went from {rise[0]:.4g} to {rise[1]:.4g}, which is better, while the held-out "
                    f"{title('frechet')} went from {self._best:.4g} (iteration {self._best_iteration}) to "
                    f"{self._later[-1]:.4g}: the policy exploits the reward. Train shorter, keep enough checkpoints to go "
                    "back to (keep_checkpoints), or mix the reward with another (--reward A:1,B:0.3)."
                )
        return None


class DiversityCollapse:
    """Images have become much more alike than at the start of the run."""

    def __init__(self) -> None:
        # The yardstick's scale has a meaning: 1 is as diverse as the data, and coming down to it is no loss.
        scales = (("yardstick/diversity", 1, 1.0), ("diversity", WINDOW, math.inf))
        self._scales = [(*scale, list[float](), deque[float](maxlen=scale[1])) for scale in scales]
        """Name, window, the largest start that counts, and the values of the run's start and of its end."""

    def see(self, row: Row) -> str | None:
        found = None
        for name, window, top, start, end in self._scales:
            if (value := figure(row, name)) is not None:
                (start if len(start) < window else end).append(value)
            if found or len(end) < window:
                continue
            first, last = min(fmean(start), top), fmean(end)
            if not last > DIVERSITY_LEFT * first:
                found = (
                    f"{name} is {last:.4g}, below {DIVERSITY_LEFT:g} of {first:.4g}: the images become alike. Lower "
                    "ppo.learning_rate or ppo.sigma, add a reward that sees sets of images (fid:influence) to a mixture, or "
                    "keep guidance out of policy.knobs."
                )
        return found


class DiscriminatorSaturated:
    """The discriminator tells nearly all generated images from real ones, so that its scores hardly rank them."""

    def __init__(self) -> None:
        self._seen = 0
        self._pairs: dict[str, tuple[tuple[int, float, float], ...]] = {}
        """Number of the row and both accuracies at the last updates, by prefix: ``reward_model/`` or, in a mixture,
        ``reward_model/TERM/``."""
        self._until: dict[str, int] = {}
        """Those that are saturated, with the number of the row at which the first of their updates is too long ago."""

    def see(self, row: Row) -> str | None:
        self._seen += 1
        for key in row:
            if not (key.startswith("reward_model/") and key.endswith("accuracy_real")):
                continue
            prefix = key.removesuffix("accuracy_real")
            real, fake = figure(row, key), figure(row, f"{prefix}accuracy_fake")
            if real is None or fake is None:
                continue
            pairs = self._pairs[prefix] = (*self._pairs.get(prefix, ()), (self._seen, real, fake))[-WINDOW:]
            if len(pairs) == WINDOW and min(fmean(p[side] for p in pairs) for side in (1, 2)) > SATURATED:
                self._until[prefix] = pairs[0][0] + LOOK_BACK
            else:
                self._until.pop(prefix, None)
        self._until = {prefix: until for prefix, until in self._until.items() if self._seen < until}
        if not self._until:
            return None
        prefix = min(self._until)
        return (
            f"{prefix}accuracy_real and accuracy_fake have a mean above {SATURATED:g} over {WINDOW} iterations: the "
            "discriminator tells everything apart, and its scores hardly rank the images. Weaken it "
            "(--set reward.options.learning_rate=..., reward.options.updates=1, label_smoothing, r1 or augment)."
        )


class KlExplodes:
    """Updates move the policy far from the one that made the trajectories, or the numbers are no longer finite."""

    def __init__(self) -> None:
        self._seen = 0
        self._updated: deque[tuple[int, Row]] = deque(maxlen=KL_WINDOW)

    def see(self, row: Row) -> str | None:
        self._seen += 1
        if row.get("ppo/approx_kl") is not None:
            self._updated.append((self._seen, row))
        updated = [row for number, row in self._updated if number > self._seen - 10 * KL_WINDOW]
        values = _figures(updated, "ppo/approx_kl")
        if updated and figure(updated[-1], "ppo/approx_kl") is None:
            what = f"ppo/approx_kl is {updated[-1]['ppo/approx_kl']}"
        elif len(values) == KL_WINDOW and fmean(values) > KL_LIMIT:
            what = f"ppo/approx_kl is {fmean(values):.3g} over {KL_WINDOW} iterations, above {KL_LIMIT:g}"
        else:
            return None
        return (
            f"{what}: one iteration moves the policy too far for its clipped objective. Lower ppo.learning_rate or "
            "ppo.epochs, or set ppo.target_kl=0.05."
        )


class RewardFlat:
    """All images of a batch score alike; or a frozen reward has not risen since the start.

    A reward that learns is judged by its spread alone: its mean stands still because the discriminator keeps up.
    """

    def __init__(self) -> None:
        self._alike = 0
        """So many of the last rows have batches whose images score alike."""
        self._learned = LOOK_BACK
        """So many rows ago the reward was updated: with lazy updates not every row has figures of it."""
        self._updates, self._remedy = 0, ""
        self._start = _Part(())
        self._end: deque[Row] = deque(maxlen=WINDOW)

    def see(self, row: Row) -> str | None:
        std, mean = row.get("reward/std"), row.get("reward/mean")
        alike = std is not None and mean is not None and std <= FLAT_SPREAD * max(abs(mean), FLAT_SPREAD)
        self._alike = self._alike + 1 if alike else 0
        self._learned = 0 if any(key.startswith("reward_model/") for key in row) else self._learned + 1
        by = next((name for name in UPDATED if name in row), None)
        if by is not None:
            self._remedy = UPDATED[by]
            self._updates += 1
            self._end.append(row)
            if self._updates <= WINDOW:
                self._start = _Part(self._end)
        if self._alike >= WINDOW:
            return (
                f"all images of a batch get the reward {mean:.4g}: there is nothing to learn from. Check that the reward "
                "fits the generator (prompts, image size), or use another one."
            )
        if self._updates < FLAT_AFTER or self._learned < LOOK_BACK:
            return None
        end = _Part(self._end)
        terms = _terms(self._end[-1])
        if any(_improved(self._start, end, name) for name in ("reward/mean", *terms)):
            return None
        name = terms[0] if terms else "reward/mean"
        first, last = self._start.sample(name), end.sample(name)
        if first is None or last is None:
            return None
        return (
            f"{name} was {first.mean:.4g} at the start and is {last.mean:.4g} after {self._updates} updates: nothing is "
            f"learned, or less than the {_noise(first, last):.2g} that could be told from noise. {self._remedy}"
        )


RULES: dict[str, Callable[[], Rule]] = {
    "reward-against-yardstick": RewardAgainstYardstick,
    "diversity-collapse": DiversityCollapse,
    "discriminator-saturated": DiscriminatorSaturated,
    "kl-explodes": KlExplodes,
    "reward-flat": RewardFlat,
}


class Watch:
    """The alarms of a run, as its rows come.

    Args:
        rows: of ``metrics.jsonl`` from the run's start on, in order; :meth:`see` takes those that follow.

    Attributes:
        now: the alarms that are raised after the last row, in the order of :data:`RULES`.
    """

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self.now: list[Alarm] = []
        self._rules = {name: rule() for name, rule in RULES.items()}
        self._last: dict[str, Alarm] = {}
        for row in rows:
            self.see(row)

    def see(self, row: Row) -> None:
        """Takes the next row."""
        since = {alarm.name: alarm.since for alarm in self.now}
        self.now = []
        for name, rule in self._rules.items():
            if (message := rule.see(row)) is not None:
                alarm = Alarm(name, since[name] if name in since else int(row["iteration"]), message)
                self.now.append(alarm)
                self._last[name] = alarm

    @property
    def ever(self) -> list[Alarm]:
        """Every alarm that was raised at some time, as it was at the end of its last stretch; in the order of :data:`RULES`."""
        return [self._last[name] for name in RULES if name in self._last]


def figure(row: Row, name: str) -> float | None:
    """A logged figure; None where the row does not have it, or not as a number to compute with (NaN, infinity)."""
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= LARGEST_FIGURE else None  # a comparison with NaN is false


def _figures(rows: Iterable[Row], name: str) -> list[float]:
    return [value for row in rows if (value := figure(row, name)) is not None]


def _terms(row: Row) -> list[str]:
    """Names of the means of a reward's terms. A mixture is standardised within the batch, and influences sum to nothing: then
    the terms tell what is learned."""
    return [key for key in row if key.startswith("reward/") and key.endswith("/mean") and key != "reward/mean"]


class _Sample:
    """A figure's values in a few rows: their mean, and its squared standard error."""

    def __init__(self, values: list[float]) -> None:
        self.values, self.mean = values, fmean(values)

    @cached_property
    def variance(self) -> float:
        return stdev(self.values) ** 2 / len(self.values) if len(self.values) > 1 else 0.0

    @cached_property
    def rough_variance(self) -> float:
        """The same but for rounding, and far cheaper."""
        n = len(self.values)
        return sum((value - self.mean) ** 2 for value in self.values) / (n - 1) / n if n > 1 else 0.0


class _Part:
    """A few rows whose figures are compared; each is summarised once."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = tuple(rows)
        self._samples: dict[str, _Sample | None] = {}

    def sample(self, name: str) -> _Sample | None:
        """Of the rows that have the figure; None where none has."""
        if name not in self._samples:
            values = _figures(self._rows, name)
            self._samples[name] = _Sample(values) if values else None
        return self._samples[name]


def _improved(before: _Part, after: _Part, name: str) -> tuple[float, float] | None:
    """Means before and after, where the figure has become better beyond its noise; None where it has not."""
    first, last = before.sample(name), after.sample(name)
    if first is None or last is None:
        return None
    # A distance is the one term that improves downwards.
    gain = first.mean - last.mean if name.endswith("frechet/mean") else last.mean - first.mean
    return (first.mean, last.mean) if gain > 0 and _beyond_noise(gain, first, last) else None


def _noise(first: _Sample, last: _Sample) -> float:
    """The least gain that is more than noise."""
    return STANDARD_ERRORS * math.sqrt(first.rough_variance + last.rough_variance)


def _beyond_noise(gain: float, first: _Sample, last: _Sample) -> bool:
    limit = _noise(first, last)
    # The exact deviation is slow; it is needed only where rounding could decide.
    if abs(gain - limit) < 1e-9 * max(gain, abs(first.mean), abs(last.mean), 1e-90):
        limit = STANDARD_ERRORS * math.sqrt(first.variance + last.variance)
    return gain > limit
