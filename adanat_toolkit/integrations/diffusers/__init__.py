"""Policies inside diffusers: ``apply`` and ``remove`` for classic pipelines, ``AdanatGuider`` for modular ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .applied import apply, remove
from .following import seeded_latents

if TYPE_CHECKING:
    from .guider import AdanatGuider

__all__ = ["AdanatGuider", "apply", "remove", "seeded_latents"]


def __getattr__(name: str) -> Any:
    """The guider when it is first asked for: importing diffusers takes seconds, and older ones have no guiders."""
    if name != "AdanatGuider":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .guider import AdanatGuider
    except ModuleNotFoundError as error:
        if error.name != "diffusers.guiders":
            raise
        from diffusers import __version__

        raise ConfigError(
            f"the installed diffusers {__version__} has no guiders; install a newer one (pip install -U diffusers), or use "
            "adanat.apply with a classic pipeline."
        ) from None

    return AdanatGuider
