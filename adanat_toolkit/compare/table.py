"""From the scores of single cells to a table that may be read: mean and interval over seeds, one protocol, one N."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from ..errors import DataError
from ..metrics import FIGURES, mean_interval, require_comparable
from .against_shared import gains_over_shared
from .controls import TITLES, verdicts
from .result import HAND_MADE, Result, score_figure


@dataclass(frozen=True)
class Figure:
    """Mean over seeds; ``interval`` is Student's 95 % interval, for a single seed the bootstrap over its images, or None."""

    mean: float
    interval: tuple[float, float] | None
    values: list[float]


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        figures: by name. ratio: Frechet distance over that of ``hand-made`` at the same T, seed by seed.
        alarms: how many of the seeds raised each. failed: messages of the seeds that failed, by seed.
        budget: images generated for learning or searching, a seed. partial, told: see :class:`Result`.
        devices: what computed the seeds, where it was not the same for all of the table; else empty.
        control: see :class:`Cell`.
        scores: of a learned policy by seed: mean and standard deviation under the reward that it was trained on.
    """

    policy: str
    reward: str | None
    steps: int
    seeds: list[int]
    figures: dict[str, Figure]
    ratio: Figure | None
    alarms: dict[str, int]
    failed: dict[int, str]
    budget: int
    schedules: list[str]
    partial: bool
    told: list[str]
    devices: list[str]
    control: str | None = None
    scores: dict[int, tuple[float, float]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The policy, or the control of it."""
        return self.policy if self.control is None else f"{self.policy}: {TITLES[self.control]}"

    @property
    def label(self) -> str:
        return self.title if self.reward is None else f"{self.title}, {self.reward}"


@dataclass(frozen=True)
class Saved:
    """How many steps a hand-made schedule needs to be as good as a learned policy.

    Attributes:
        equal_at: T, interpolated between the measured ones; None where even the longest does not reach it.
        longest: the longest hand-made T measured.
    """

    policy: str
    reward: str | None
    steps: int
    equal_at: float | None
    longest: int


@dataclass(frozen=True)
class Table:
    """Rows by T, hand-made before learned; ``facts`` says how they were made.

    adapted: of each policy with controls, whether it adapted to its samples, in a sentence.
    against_shared: of each policy beside a shared one, what it gains, in a sentence.
    """

    rows: list[Row]
    saved: list[Saved]
    facts: dict[str, Any]
    adapted: list[str] = field(default_factory=list)
    against_shared: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def build_table(results: Sequence[Result], facts: dict[str, Any]) -> Table:
    """Rows of all results.

    Raises:
        DataError: evaluations of unlike protocols, sample counts, real images or estimators; or there are none.
    """
    evaluations = [r.evaluation for r in results if r.evaluation is not None]
    if not evaluations:
        reasons = "; ".join(dict.fromkeys(f"{r.cell.name}: {r.error}" for r in results if r.error))
        raise DataError(f"nothing was evaluated, so there is no table. {reasons}".strip())
    require_comparable(*evaluations)
    reference = {
        (r.cell.steps, r.cell.seed): r.evaluation.figures["frechet"]
        for r in results
        if r.cell.policy == HAND_MADE and r.evaluation is not None
    }
    groups: dict[tuple[str, str | None, int, str | None], list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell.row, []).append(result)
    several = len({r.cell.seed for r in results}) > 1
    still = list(dict.fromkeys(name for r in results if not r.cell.learned for name in r.scores))
    rows = [_row(group, reference, several, still) for group in groups.values()]
    devices = {device for row in rows for device in row.devices}
    if len(devices) < 2:
        rows = [replace(row, devices=[]) for row in rows]
        facts = {**facts, "device": next(iter(devices), facts["device"])}
    rows.sort(key=lambda row: (row.steps, row.reward is not None))  # stable: the grid's order within
    first = evaluations[0]
    about = {
        "protocol": first.protocol,
        "images": first.n_fake,
        "real_images": first.n_real,
        "data": first.data,
        "estimators": first.settings,
    }
    return Table(rows, _steps_saved(rows), {**facts, **about}, verdicts(rows), gains_over_shared(rows))


def _row(
    group: Sequence[Result], reference: dict[tuple[int, int], float], several: bool, still: Sequence[str]
) -> Row:
    """
    Args:
        several: whether the table has several seeds, so that intervals are over them; else over the images.
        still: rewards that do not learn, whose scores mean the same in every row.
    """
    done = [(r, r.evaluation) for r in group if r.evaluation is not None]
    cell = group[0].cell
    names = [name for name in FIGURES if done and all(name in e.figures for _, e in done)]
    figures = {}
    for name in names:
        values = [e.figures[name] for _, e in done]
        single = None if several else done[0][1].intervals.get(name)
        figures[name] = Figure(fmean(values), _interval(values, single), values)
    for reward in still:
        if done and all(reward in r.scores for r, _ in done):
            values = [r.scores[reward][0] for r, _ in done]
            figures[score_figure(reward)] = Figure(fmean(values), _interval(values, None), values)
    ratios = [
        e.figures["frechet"] / reference[r.cell.steps, r.cell.seed]
        for r, e in done
        if reference.get((r.cell.steps, r.cell.seed))  # nothing is a multiple of 0
    ]
    alarms: dict[str, int] = {}
    for result in group:
        for alarm in result.alarms:
            alarms[alarm["name"]] = alarms.get(alarm["name"], 0) + 1
    return Row(
        cell.policy,
        cell.reward,
        cell.steps,
        [r.cell.seed for r, _ in done],
        figures,
        Figure(fmean(ratios), _interval(ratios, None), ratios) if ratios else None,
        alarms,
        {r.cell.seed: r.error for r in group if r.error is not None},
        max(r.images for r in group),
        [r.schedule for r in group if r.schedule is not None],
        any(r.partial for r in group),
        list(dict.fromkeys(name for r in group for name in r.told)),
        list(dict.fromkeys(r.device for r in group if r.device)),
        cell.control,
        {r.cell.seed: score for r, _ in done if cell.learned for score in r.scores.values()},
    )


def _interval(values: list[float], single: tuple[float, float] | None) -> tuple[float, float] | None:
    return mean_interval(values) if len(values) > 1 else single


def _steps_saved(rows: Sequence[Row]) -> list[Saved]:
    """Against the best hand-made row of each T, linear in T between them; of policies of fewer steps than the longest."""
    best: dict[int, float] = {}
    for row in rows:
        if row.reward is None and "frechet" in row.figures:
            value = row.figures["frechet"].mean
            best[row.steps] = min(best.get(row.steps, math.inf), value)
    curve = sorted(best.items())
    if not curve:
        return []
    return [
        Saved(row.policy, row.reward, row.steps, _crossing(curve, row.figures["frechet"].mean), curve[-1][0])
        for row in rows
        if row.reward is not None
        and row.control is None
        and "frechet" in row.figures
        and row.steps < curve[-1][0]
    ]


def _crossing(curve: list[tuple[int, float]], value: float) -> float | None:
    """The least T at which the curve is down to ``value``."""
    if curve[0][1] <= value:
        return float(curve[0][0])
    for (t0, v0), (t1, v1) in itertools.pairwise(curve):
        if v1 <= value:
            return t0 + (t1 - t0) * (v0 - value) / (v0 - v1)
    return None


# --- texts ------------------------------------------------------------------------------------------------------------
