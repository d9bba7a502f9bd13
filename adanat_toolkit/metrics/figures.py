"""Names, titles and directions of the figures: said once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """A figure of an evaluation.

    Attributes:
        title: words for the head of a column. less_is_better: its direction. reads: what it is computed from: ``features``
            of the protocol, ``probabilities`` of its classifier, or ``prompts``.
    """

    title: str
    less_is_better: bool = False
    reads: str = "features"


TABLE = {
    "frechet": Figure("Frechet distance", less_is_better=True),
    "kid": Figure("Kernel distance (KID)", less_is_better=True),
    "precision": Figure("precision"),
    "recall": Figure("recall"),
    "density": Figure("density"),
    "coverage": Figure("coverage"),
    "diversity": Figure("diversity"),
    "inception_score": Figure("Inception Score", reads="probabilities"),
    "clip_score": Figure("CLIP score", reads="prompts"),
}
"""The figures by name, in the order of the toolkit's tables."""

FIGURES = tuple(TABLE)


def title(figure: str) -> str:
    """Words for the head of a column."""
    return TABLE[figure].title


def direction(figure: str) -> str:
    """``lower is better`` or ``higher is better``."""
    return "lower is better" if TABLE[figure].less_is_better else "higher is better"


def flattered(reads: Collection[str], protocol: str, scorer: str | None = None) -> tuple[str, ...]:
    """The figures that flatter a policy, because its reward reads the very network that they are computed with.

    Args:
        reads: ``RewardModel.reads`` of the reward that the policy was trained with. protocol: of the features. scorer: of
            what gives the CLIP score.
    """
    networks = {"features": protocol, "probabilities": protocol, "prompts": scorer}
    return tuple(name for name, figure in TABLE.items() if networks[figure.reads] in reads)
