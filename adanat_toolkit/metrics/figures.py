"""Names, titles and directions of the figures: said once."""

from __future__ import annotations

FIGURES = ("frechet", "kid", "precision", "recall", "density", "coverage", "diversity", "inception_score", "clip_score")
