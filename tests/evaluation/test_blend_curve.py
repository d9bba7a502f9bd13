"""The curve of blends draws figures that evaluations have."""

from __future__ import annotations

from adanat_toolkit.evaluation.blend_curve import DRAWN
from adanat_toolkit.metrics import FIGURES


def test_every_figure_that_is_drawn_is_measured() -> None:
    assert set(DRAWN) <= set(FIGURES)
