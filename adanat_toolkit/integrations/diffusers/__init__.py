"""Policies inside diffusers: ``apply`` and ``remove`` for classic pipelines, ``AdanatGuider`` for modular ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .applied import apply, remove
from .following import seeded_latents

if TYPE_CHECKING:
    from .guider import AdanatGuider

__all__ = ["AdanatGuider", "apply", "remove", "seeded_latents"]


def __getattr__(name: str) -> Any:
    """The guider when it is first asked for: diffusers has guiders since 0.35, and importing it takes seconds."""
    if name != "AdanatGuider":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .guider import AdanatGuider

    return AdanatGuider
