"""diffusers' modular pipelines around the parts of the small classic ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .diffusion_pipelines import make_pipeline

BLOCKS = {
    "stable-diffusion-xl": "StableDiffusionXLAutoBlocks",
    "stable-diffusion-3": "StableDiffusion3AutoBlocks",
    "z-image": "ZImageAutoBlocks",
}
"""Kinds of ``diffusion_pipelines`` that have modular blocks."""


def make_modular(kind: str, folder: Path) -> Any:
    """The modular pipeline of the same parts as ``make_pipeline(kind, folder)``."""
    import diffusers

    classic = make_pipeline(kind, folder)
    modular = getattr(diffusers, BLOCKS[kind])().init_pipeline()
    parts = {name: part for name, part in classic.components.items() if name in modular.component_names and part is not None}
    modular.update_components(**parts)
    modular.set_progress_bar_config(disable=True)
    return modular
