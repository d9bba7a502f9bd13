"""Noise that belongs to a sample's seed, under the path that plug-ins import."""

from .core.noise import (
    ACTION,
    CONTEXT,
    DATA,
    INITIAL,
    REMASK,
    REWARD,
    SHUFFLE,
    STEP,
    TOKEN,
    Noise,
    derive,
    sample_seeds,
)

__all__ = [
    "ACTION",
    "CONTEXT",
    "DATA",
    "INITIAL",
    "REMASK",
    "REWARD",
    "SHUFFLE",
    "STEP",
    "TOKEN",
    "Noise",
    "derive",
    "sample_seeds",
]
