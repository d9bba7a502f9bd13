"""What a report reads from run folders: configuration, rows of metrics, alarms, the policy's card, a stored evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from ..errors import CheckpointError, ConfigError
from ..evaluation import RESULT, read_evaluation
from ..policies.folder import PolicyCard
from ..storage import RunFolder, card_digest, check_value, read_card, read_rows
from ..training import RunConfig, alarms, validate

EVALUATION = "evaluation"
"""Folder in a run folder where ``adanat publish`` and the report look for the result of ``adanat evaluate --out``."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: short, and different from those of the other runs of the report.
        stored: its config.json; config: the same, validated.
        rows: of metrics.jsonl. raised: every alarm that was raised at some time; active: names of those that still are.
        card: policy.json, None before the first checkpoint.
        evaluation: of this very policy by ``adanat evaluate``; None without. stale: whether there is one of another policy.
    """

    name: str
    path: Path
    stored: dict[str, Any]
    config: RunConfig
    rows: list[dict[str, Any]]
    raised: list[alarms.Alarm]
    active: frozenset[str]
    card: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    stale: bool

    def values(self, name: str) -> list[tuple[float, float]]:
        """(trajectories, figure) of the rows that have the figure as a finite number."""
        return [
            (float(row["trajectories"]), value) for row in self.rows if (value := alarms.figure(row, name)) is not None
        ]

    def last(self, name: str) -> float | None:
        """The newest finite value of a figure."""
        values = self.values(name)
        return values[-1][1] if values else None


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """The runs in the order given; one that is named twice counts once.

    Raises:
        ConfigError: not a run folder, or no finished iteration yet. CheckpointError: a file is damaged.
    """
    distinct = list({path.resolve(): path for path in paths}.values())
    return [_read(path, name) for path, name in zip(distinct, short_names(distinct), strict=True)]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of paths, as many as tell them apart: ``a/run``, ``b/run``."""
    parts = [path.resolve().parts for path in paths]
    longest = max((len(p) for p in parts), default=0)
    for length in range(1, longest + 1):
        names = ["/".join(p[-length:]).lstrip("/") or "/" for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


def _read(path: Path, name: str) -> Run:
    folder = RunFolder(path)
    stored = folder.config
    if stored is None:
        raise ConfigError(f"{path} is no run folder: it {_what(path)}. Give the --out of an adanat train.")
    try:
        config = validate(stored)
    except ConfigError as error:
        raise CheckpointError(f"{path / 'config.json'} does not fit this version of adanat-toolkit: {error}") from None
    rows = _rows(path / "metrics.jsonl")
    if not rows:
        raise ConfigError(
            f"{path} has no finished iteration, so there is nothing to report. Wait for the first one, or run the same "
            "adanat train again; it goes on."
        )
    folder.check_counted()
    card = _card(path)
    evaluation, stale = (None, False) if card is None else _evaluation(path, card)
    watch = alarms.Watch(rows)
    active = frozenset(alarm.name for alarm in watch.now)
    return Run(name, path, stored, config, rows, watch.ever, active, card, evaluation, stale)


def _what(path: Path) -> str:
    """What is wrong with a path that has no config.json, with the runs below it, if there are any."""
    if not path.exists():
        return "does not exist"
    if not path.is_dir():
        return "is a file"
    below = sorted(str(file.parent) for pattern in ("*", "*/*") for file in path.glob(f"{pattern}/config.json"))
    if below:
        more = f" and {len(below) - 3} more" if len(below) > 3 else ""
        return f"holds no config.json (but {', '.join(below[:3])}{more} do)"
    return "holds no config.json"


class _Row(BaseModel):
    """What every row of a run has; a run that diverged may have NaN and infinity in its figures."""

    trajectories: float = Field(ge=0, le=2**53, allow_inf_nan=False)
    mean: float = Field(alias="reward/mean")
    std: float = Field(alias="reward/std")


def _rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl (see :func:`runs.read_rows`), each with the numbers that every row of a run has."""
    rows = read_rows(file)
    remedy = "Nothing was changed; restore the file, or remove the line."
    for number, row in enumerate(rows, start=1):
        check_value(row, _Row, where=f"row {number} of {file}", error=CheckpointError, remedy=remedy)
    return rows


def _card(path: Path) -> dict[str, Any] | None:
    folder = RunFolder(path).policy
    file = folder / "policy.json"
    if not os.path.lexists(file):
        return None
    return read_card(folder, "policy", PolicyCard)


def _evaluation(path: Path, card: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The stored evaluation reduced to this policy and its hand-made schedule; and whether there is only a stale one."""
    file = path / EVALUATION / RESULT
    if not os.path.lexists(file):
        return None, False
    again = f"Remove it, or run adanat evaluate --policy {path} --out {path / EVALUATION} again."
    facts = read_evaluation(file, error=CheckpointError, remedy=again)
    mine = [row for row in facts["policies"] if card_digest(row["card"]) == card_digest(card)]
    return ({**facts, "policies": mine[:1]}, False) if mine else (None, bool(facts["policies"]))
