"""The yardstick tables of a report: learned policies beside hand-made schedules, only like with like in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import DataError
from ..metrics import FIGURES, Evaluation, flattered, require_comparable
from .reading import Run


@dataclass(frozen=True)
class Line:
    """A row of a table.

    Attributes:
        label: the run's name, or the hand-made schedule's text. learned: whether it is a run. ratio: Frechet distance over the
            hand-made one's at the same T (1 for that one itself), with its 95 % interval where there is one.
        flattered: figures whose very network its reward reads, as the policy's card says.
    """

    label: str
    learned: bool
    steps: int
    evaluation: Evaluation
    ratio: float
    ratio_interval: tuple[float, float] | None
    flattered: tuple[str, ...] = ()


@dataclass
class Block:
    """One table.

    Attributes:
        facts: of the evaluation: generator, protocol, counts, seeds, device. lines: hand-made before learned, by T.
        stored: whether ``adanat evaluate`` made it earlier. apart: why it is not part of the table before; None if it is
            the first one.
    """

    facts: dict[str, Any]
    stored: bool
    lines: list[Line] = field(default_factory=list)
    apart: str | None = None

    @property
    def figures(self) -> list[str]:
        """Names of the columns: figures that any line has, in the order of the toolkit's tables."""
        return [name for name in FIGURES if any(name in line.evaluation.figures for line in self.lines)]


def blocks(results: Sequence[tuple[dict[str, Any], dict[str, Run], bool]]) -> list[Block]:
    """Tables of evaluations, as few as may be.

    Args:
        results: (JSON of ``evaluation.Comparison``, runs by the policy spec in it, whether it was stored). Policies that are
            not among the runs are left out.
    """
    out: list[Block] = []
    for facts, runs, stored in results:
        lines = _lines(facts, runs)
        if not any(line.learned for line in lines):
            continue
        block, apart = _place(out, facts, lines, stored)
        if block is None:
            block = Block(facts, stored, apart=apart)
            out.append(block)
        have = {(line.label, line.steps) for line in block.lines}
        block.lines += [line for line in lines if (line.label, line.steps) not in have]
        block.lines.sort(key=lambda line: (line.steps, line.learned))  # stable: runs in the order given
    return out


def _place(
    out: Sequence[Block], facts: dict[str, Any], lines: Sequence[Line], stored: bool
) -> tuple[Block | None, str | None]:
    """The table that the lines may join; else None, and why they may not."""
    apart = None
    for block in out:
        try:
            require_comparable(block.lines[0].evaluation, *(line.evaluation for line in lines))
        except DataError as error:
            apart = str(error)
            continue
        unlike = [
            name for name in ("generator_fingerprint", "seeds", "device", "dtype") if block.facts[name] != facts[name]
        ]
        if not unlike and block.stored == stored:
            return block, None
        words = ", ".join(name.replace("_fingerprint", "") for name in unlike) or "time of measurement"
        apart = f"made with another {words}."
    return None, apart


def _lines(facts: dict[str, Any], runs: dict[str, Run]) -> list[Line]:
    chosen = [row for row in facts["policies"] if row["policy"] in runs]
    wanted = {(row["baseline"], row["steps"]) for row in chosen}
    lines = [
        Line(row["policy"].removeprefix("fixed:"), False, row["steps"], _evaluation(facts, row), 1.0, None)
        for row in facts["baselines"]
        if (row["policy"], row["steps"]) in wanted
    ]
    for row in chosen:
        run = runs[row["policy"]]
        interval = (row["ratio_interval"] or {}).get("frechet")
        reads = row.get("card", {}).get("training", {}).get("reads", ())
        lines.append(
            Line(
                run.name,
                True,
                row["steps"],
                _evaluation(facts, row),
                row["ratio"]["frechet"],
                None if interval is None else (interval[0], interval[1]),
                flattered(reads, facts["protocol"], facts["estimators"].get("clip")),
            )
        )
    return lines


def _evaluation(facts: dict[str, Any], row: dict[str, Any]) -> Evaluation:
    return Evaluation.from_json(
        {
            "protocol": facts["protocol"],
            "n_fake": facts["images"],
            "n_real": facts["real_images"],
            "data": facts["data"],
            "figures": row["figures"],
            "intervals": row["intervals"],
            "settings": facts["estimators"],
        }
    )
