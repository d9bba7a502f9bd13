"""Policies held against real images."""

from .blend_curve import CURVE, blend_specs, draw_curve
from .choices import (
    choose_features,
    choose_scorer,
    class_id,
    is_statistics,
    own_contexts,
    real_side,
    require_real_images,
)
from .evaluate import MINIMUM, RESULT, Comparison, Judged, Progress, evaluate_policies, write_comparison
from .stored import Count, StoredFigure, StoredInterval, read_evaluation, require_inside
from .yardstick import Images, Yardstick, require_enough

__all__ = [
    "CURVE",
    "MINIMUM",
    "RESULT",
    "Comparison",
    "Count",
    "Images",
    "Judged",
    "Progress",
    "StoredFigure",
    "StoredInterval",
    "Yardstick",
    "blend_specs",
    "choose_features",
    "choose_scorer",
    "class_id",
    "draw_curve",
    "evaluate_policies",
    "is_statistics",
    "own_contexts",
    "read_evaluation",
    "real_side",
    "require_enough",
    "require_inside",
    "require_real_images",
    "write_comparison",
]
