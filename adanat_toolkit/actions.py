"""The knobs and the action space, under the path that plug-ins import."""

from .core.actions import (
    GUIDANCE,
    MASK_RATIO,
    MASK_TEMPERATURE,
    TIME,
    TOKEN_KNOBS,
    TOKEN_TEMPERATURE,
    ActionSpace,
    Knob,
    next_scale_knobs,
)

__all__ = [
    "GUIDANCE",
    "MASK_RATIO",
    "MASK_TEMPERATURE",
    "TIME",
    "TOKEN_KNOBS",
    "TOKEN_TEMPERATURE",
    "ActionSpace",
    "Knob",
    "next_scale_knobs",
]
