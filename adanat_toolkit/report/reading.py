"""What a report reads from run folders: configuration, rows of metrics, alarms, the policy's card, a stored evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..evaluation import RESULT
from ..storage import RunFolder, card_digest
from ..storage import read_rows as read_json_lines
from ..training import RunConfig, alarms, validate

REQUIRED = ("iteration", "trajectories", "reward/mean", "reward/std")
"""Numbers that every row of metrics has."""
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
        found = []
        for row in self.rows:
            value = row.get(name)
            if isinstance(value, int | float) and _is_number(value) and math.isfinite(value):
                found.append((float(row["trajectories"]), float(value)))
        return found

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
    rows = read_rows(path / "metrics.jsonl")
    if not rows:
        raise ConfigError(
            f"{path} has no finished iteration, so there is nothing to report. Wait for the first one, or run the same "
            "adanat train again; it goes on."
        )
    card = _card(path)
    evaluation, stale = (None, False) if card is None else _evaluation(path, card)
    active = frozenset(alarm.name for alarm in alarms.check(rows))
    return Run(name, path, stored, config, rows, alarms.raised(rows), active, card, evaluation, stale)


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


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl (see :func:`runs.read_rows`), each with the numbers that every row of a run has.

    Raises:
        CheckpointError: names the line, and what is wrong with it.
    """
    rows = read_json_lines(file)
    for number, row in enumerate(rows, start=1):
        missing = [key for key in REQUIRED if not isinstance(row, dict) or not _is_number(row.get(key))]
        if missing:
            raise CheckpointError(
                f"{file} is damaged: line {number} has no number {missing[0]!r}, as every row of a run has. Nothing was "
                "changed; restore the file, or remove the line."
            )
    return rows


def _card(path: Path) -> dict[str, Any] | None:
    file = path / "policy" / "policy.json"
    try:
        card = json.loads(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        card = None
    if not isinstance(card, dict) or "sha256" not in card or "name" not in card.get("generator", ()):
        raise CheckpointError(
            f"{file} is damaged (not a policy's card). It was left untouched; the next checkpoint of the run writes it anew."
        )
    return card


def _evaluation(path: Path, card: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """The stored evaluation reduced to this policy and its hand-made schedule; and whether there is only a stale one."""
    file = path / EVALUATION / RESULT
    try:
        facts = json.loads(file.read_bytes())
        rows = facts["policies"]
        mine = [row for row in rows if card_digest(row["card"]) == card_digest(card)]
    except FileNotFoundError:
        return None, False
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(
            f"{file} is damaged: it is no result of adanat evaluate. Remove it, or run adanat evaluate --policy {path} "
            f"--out {path / EVALUATION} again."
        ) from None
    return ({**facts, "policies": mine[:1]}, False) if mine else (None, bool(rows))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
