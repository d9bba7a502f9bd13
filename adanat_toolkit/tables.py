"""From the scores of single cells to a table that may be read: mean and interval over seeds, one protocol, one N."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean
from typing import Any

from .errors import DataError
from .metrics import Evaluation, mean_interval, require_comparable

FIGURES = ("frechet", "kid", "precision", "recall", "density", "coverage", "diversity", "inception_score", "clip_score")
HAND_MADE = "hand-made"
"""The generator's best known schedule: what every ratio is relative to."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        policy: kind of a learned policy; ``published``, ``hand-made`` or ``search``; or a policy spec given as a baseline.
        reward: None for what is not learned. steps: T. seed: of the training or search, and of the block of images.
    """

    policy: str
    reward: str | None
    steps: int
    seed: int

    @property
    def learned(self) -> bool:
        return self.reward is not None

    @property
    def name(self) -> str:
        """Safe as a folder's name."""
        parts = [self.policy, *([self.reward] if self.reward else []), f"T{self.steps}", f"s{self.seed}"]
        return "-".join("".join(c if c.isalnum() or c in "-_." else "_" for c in part) for part in parts)

    @property
    def row(self) -> tuple[str, str | None, int]:
        """What the cells of a row of the table have in common."""
        return self.policy, self.reward, self.steps


@dataclass(frozen=True)
class Result:
    """A finished cell, or one that failed.

    Attributes:
        schedule: text of a hand-made or found schedule, None for a learned policy.
        images: generated for learning or searching (the budget that was used).
        alarms: raised at some time of the training: name, since, message.
        knobs: ``names``, and per step and knob ``mean``, ``low`` and ``high`` (10 and 90 %) over the images.
        training: per iteration ``trajectories``, ``reward`` and, where read, ``frechet`` of the held-out yardstick.
        partial: whether it was optimised on the very features that judge it: a search, or a reward that reads them.
        told: further figures whose network the reward reads. error: why it failed; there is no evaluation then.
        device: what computed it.
    """

    cell: Cell
    evaluation: Evaluation | None
    schedule: str | None = None
    images: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    knobs: dict[str, Any] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    partial: bool = False
    told: list[str] = field(default_factory=list)
    error: str | None = None
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        found = value["evaluation"]
        evaluation = None if found is None else Evaluation.from_json(found)
        return cls(**{**value, "cell": Cell(**value["cell"]), "evaluation": evaluation})


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

    @property
    def label(self) -> str:
        return self.policy if self.reward is None else f"{self.policy}, {self.reward}"


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
    """Rows by T, hand-made before learned; ``facts`` says how they were made."""

    rows: list[Row]
    saved: list[Saved]
    facts: dict[str, Any]

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
    groups: dict[tuple[str, str | None, int], list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell.row, []).append(result)
    several = len({r.cell.seed for r in results}) > 1
    rows = [_row(group, reference, several) for group in groups.values()]
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
    return Table(rows, _steps_saved(rows), {**facts, **about})


def _row(group: Sequence[Result], reference: dict[tuple[int, int], float], several: bool) -> Row:
    """``several``: whether the table has several seeds, so that intervals are over them; else over the images."""
    done = [(r, r.evaluation) for r in group if r.evaluation is not None]
    cell = group[0].cell
    names = [name for name in FIGURES if done and all(name in e.figures for _, e in done)]
    figures = {}
    for name in names:
        values = [e.figures[name] for _, e in done]
        single = None if several else done[0][1].intervals.get(name)
        figures[name] = Figure(fmean(values), _interval(values, single), values)
    ratios = [
        e.figures["frechet"] / reference[r.cell.steps, r.cell.seed]
        for r, e in done
        if (r.cell.steps, r.cell.seed) in reference
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
        if row.reward is not None and "frechet" in row.figures and row.steps < curve[-1][0]
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


def columns(table: Table) -> list[str]:
    """Figures that the table shows: those that any row has."""
    return [name for name in FIGURES if any(name in row.figures for row in table.rows)]


def cells_of(row: Row, names: Sequence[str], *, intervals: bool = True) -> list[str]:
    """The texts of a row: what it is, then the figures (with their intervals or without), the ratio, notes and alarms."""
    shown = [_show(row.figures.get(name), intervals) for name in names]
    notes = ["partial"] if row.partial else []
    notes += [f"{name} partial" for name in row.told]
    notes += [f"{name} ({count}/{len(row.seeds) + len(row.failed)})" for name, count in row.alarms.items()]
    notes += [f"FAILED (seed {seed})" for seed in row.failed]
    notes += row.devices
    return [
        row.policy,
        row.reward or "",
        str(row.steps),
        str(len(row.seeds)),
        *shown,
        _show(row.ratio),
        ", ".join(notes),
    ]


HEADS = ("policy", "reward", "T", "seeds")
TAILS = ("ratio", "notes")


def _show(figure: Figure | None, interval: bool = True) -> str:
    if figure is None:
        return ""
    if figure.interval is None or not interval:
        return _number(figure.mean)
    return f"{_number(figure.mean)} [{_number(figure.interval[0])}, {_number(figure.interval[1])}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"


def saved_text(saved: Saved) -> str:
    """One sentence."""
    name = saved.policy if saved.reward is None else f"{saved.policy} ({saved.reward})"
    if saved.equal_at is None:
        return f"{name} at T={saved.steps}: no hand-made schedule up to T={saved.longest} is as good."
    if saved.equal_at <= saved.steps:
        return (
            f"{name} at T={saved.steps}: a hand-made schedule is as good at T={saved.equal_at:.1f}; no steps are saved."
        )
    return (
        f"{name} at T={saved.steps}: as good as hand-made schedules at T={saved.equal_at:.1f}, which saves "
        f"{saved.equal_at - saved.steps:.1f} steps."
    )


def failures(table: Table) -> list[str]:
    """What failed and why, a line a row of the table and reason."""
    out = []
    for row in table.rows:
        reasons: dict[str, list[str]] = {}
        for seed, text in row.failed.items():
            reasons.setdefault(text, []).append(str(seed))
        out += [f"{row.label}, T={row.steps}, seed {', '.join(seeds)}: {text}" for text, seeds in reasons.items()]
    return out


def caption(table: Table) -> list[str]:
    """What a reader must know beside the numbers, a line each."""
    facts = table.facts
    several = len({seed for row in table.rows for seed in [*row.seeds, *row.failed]}) > 1
    device = "devices in the notes" if any(row.devices for row in table.rows) else facts["device"]
    over = "Student's 95 % interval over seeds" if several else "95 % bootstrap interval over images"
    return [
        f"{facts['generator']} (weights {facts['generator_fingerprint']}), {facts['images']:,} images a seed, seeds "
        f"{', '.join(map(str, facts['seeds']))}, adanat-toolkit {facts['toolkit']}, {device}, {facts['dtype']}.",
        f"Features {facts['protocol']}, real images {facts['data']} ({facts['real_images']}).",
        f"Mean over seeds, in brackets {over}. Frechet and kernel distance: lower is better.",
        f"ratio: Frechet distance over that of `{HAND_MADE}` at the same T, seed by seed; below 1 is better.",
        "partial: optimised on the very features that judge it here, so that its figures flatter it; FIGURE partial: that "
        "figure's alone.",
        f"Budget of learned policies and of the search: {facts['budget']:,} generated images a seed.",
    ]


def markdown(table: Table, *, pictures: Sequence[str] = (), command: str | None = None) -> str:
    """The table as a page: numbers, alarms with their remedies, steps saved, failures, pictures (relative paths)."""
    names = columns(table)
    heads = [*HEADS, *names, *TAILS]
    lines = [f"# {table.facts['generator']}: policies compared", ""]
    lines += [f"- {line}" for line in caption(table)]
    if command:
        lines += ["", "```bash", command, "```"]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells_of(row, names)) + " |" for row in table.rows]
    if table.saved:
        lines += ["", "## Steps saved", "", *(f"- {saved_text(saved)}" for saved in table.saved)]
    schedules = [(row, dict.fromkeys(row.schedules)) for row in table.rows if row.schedules]
    if schedules:
        lines += ["", "## Schedules", ""]
        lines += [f"- {row.policy}, T={row.steps}: " + "; ".join(f"`{s}`" for s in found) for row, found in schedules]
    if table.facts.get("alarms"):
        lines += ["", "## Alarms", ""]
        lines += [
            f"- {a['cell']}, from iteration {a['since']}: **{a['name']}**: {a['message']}"
            for a in table.facts["alarms"]
        ]
    failed = failures(table)
    if failed:
        lines += ["", "## Failed", "", *(f"- {line}" for line in failed)]
    for name in pictures:
        lines += ["", f"![{name.removesuffix('.png').replace('-', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def to_csv(table: Table) -> str:
    """One line a row; mean, low and high of every figure in columns of their own, and protocol and N in each line."""
    names = columns(table)
    heads = ["policy", "reward", "steps", "seeds", "images", "protocol", "data", "budget", "devices"]
    for name in [*names, "ratio"]:
        heads += [name, f"{name}_low", f"{name}_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heads, "partial", "alarms", "failed"])
    for row in table.rows:
        line: list[Any] = [
            row.policy,
            row.reward or "",
            row.steps,
            " ".join(map(str, row.seeds)),
            table.facts["images"],
        ]
        line += [table.facts["protocol"], table.facts["data"], row.budget]
        line.append(" ".join(row.devices or [table.facts["device"]]))
        for figure in [*(row.figures.get(name) for name in names), row.ratio]:
            low, high = (figure.interval if figure is not None else None) or ("", "")
            line += ["" if figure is None else figure.mean, low, high]
        writer.writerow([*line, int(row.partial), " ".join(row.alarms), " ".join(map(str, row.failed))])
    return out.getvalue()
