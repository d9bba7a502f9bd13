"""What a policy that sees its samples gains over one that does the same for all: the question of the whole comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..policies import SharedPolicy
from .controls import distance_gaps, reward_gaps, with_interval
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
        figures = []
        distances = distance_gaps(other, row)
        if len(distances) > 1:
            figures.append(f"Frechet distance {with_interval(distances, '.1%')} (below 0 is better)")
        # One that learns is another judge in each row, and its scores are no figure.
        still = all(score_figure(row.reward or "") in r.figures for r in (row, other))
        scores = [-gap for gap in reward_gaps(other, row)] if still else []
        if len(scores) > 1:
            told = with_interval(scores, ".3f")
            figures.append(f"reward {told} standard deviations of the scores (above 0 is better)")
        if figures:
            out.append(f"{row.label} at T={row.steps} against {other.title}: {'; '.join(figures)}.")
    return out
