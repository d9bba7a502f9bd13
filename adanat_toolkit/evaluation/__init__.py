"""Policies held against real images."""

from .choices import (
    choose_features,
    choose_scorer,
    class_id,
    is_statistics,
    own_captions,
    real_side,
    require_real_images,
)
from .evaluate import MINIMUM, RESULT, Comparison, Judged, evaluate_policies, write_comparison
from .stored import Count, StoredFigure, StoredInterval, read_evaluation
from .yardstick import Images, Yardstick, require_enough

__all__ = [
    "MINIMUM",
    "RESULT",
    "Comparison",
    "Count",
    "Images",
    "Judged",
    "StoredFigure",
    "StoredInterval",
    "Yardstick",
    "choose_features",
    "choose_scorer",
    "class_id",
    "evaluate_policies",
    "is_statistics",
    "own_captions",
    "read_evaluation",
    "real_side",
    "require_enough",
    "require_real_images",
    "write_comparison",
]
