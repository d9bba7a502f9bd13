"""Assertions with sentences."""

from __future__ import annotations

import math

from torch import Tensor


def require(condition: bool, message: str) -> None:
    """``assert`` that stays under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def require_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
    gap = float((found - wanted).abs().max()) if found.shape == wanted.shape else math.inf
    limit = tolerance * (1 + float(wanted.abs().max()))
    require(gap <= limit, f"{what} differs by {gap:.3g} from the whole batch's (allowed: {limit:.3g}).")
