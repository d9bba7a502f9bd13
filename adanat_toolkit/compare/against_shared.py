"""What a policy that sees its samples gains over one that does the same for all: the question of the whole comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..metrics import mean_interval
from ..policies import SharedPolicy
from .result import score_figure

if TYPE_CHECKING:
    from .table import Row


def gains_over_shared(rows: Sequence[Row]) -> list[str]:
    """A sentence for each learned policy that has a shared one of the same reward and T beside it, with two common seeds.

    Differences are taken seed by seed, so that what a seed's images have in common does not count.
    """
    learned = [row for row in rows if row.reward is not None and row.control is None]
    shared = {(row.reward, row.steps): row for row in learned if row.policy == SharedPolicy.kind}
    out = []
    for row in learned:
        other = shared.get((row.reward, row.steps))
        if other is None or row is other:
            continue
        figures = [text for text in (_distance(row, other), _score(row, other)) if text]
        if figures:
            out.append(f"{row.label} at T={row.steps} against {other.title}: {'; '.join(figures)}.")
    return out


def _distance(row: Row, shared: Row) -> str | None:
    gaps = [own / other - 1 for own, other, _ in _pairs(row, shared, "frechet") if other]
    if len(gaps) < 2:
        return None
    low, high = mean_interval(gaps)
    return f"Frechet distance {sum(gaps) / len(gaps):+.1%} [{low:+.1%}, {high:+.1%}] (below 0 is better)"


def _score(row: Row, shared: Row) -> str | None:
    """Of a reward that stands still alone: one that learns is another judge in each row, and its scores are no figure."""
    gaps = [
        (own - other) / shared.scores[seed][1]
        for own, other, seed in _pairs(row, shared, score_figure(row.reward or ""))
        if shared.scores.get(seed, (0.0, 0.0))[1] > 0
    ]
    if len(gaps) < 2:
        return None
    low, high = mean_interval(gaps)
    mean = sum(gaps) / len(gaps)
    return f"reward {mean:+.3f} [{low:+.3f}, {high:+.3f}] standard deviations of the scores (above 0 is better)"


def _pairs(row: Row, shared: Row, figure: str) -> list[tuple[float, float, int]]:
    """The figure in both rows, for each seed that both have."""
    if figure not in row.figures or figure not in shared.figures:
        return []
    own, other = (dict(zip(r.seeds, r.figures[figure].values, strict=True)) for r in (row, shared))
    return [(own[seed], other[seed], seed) for seed in own if seed in other]
