"""A small decoder for training."""

from __future__ import annotations

import os
from pathlib import Path

from ..commands.distill import IMAGES, STEPS, WIDTH, Distilled, distill_to_file
from ..core import Generator, ImageSource
from ..images import images_for
from .arguments import checked, require_generator

__all__ = ["Distilled", "distill"]


@checked
def distill(
    generator: Generator,
    out: str | os.PathLike[str],
    *,
    images: int = IMAGES,
    steps: int = STEPS,
    width: int = WIDTH,
    seed: int = 0,
    data: ImageSource | str | os.PathLike[str] | None = None,
) -> Distilled:
    """Teach a small decoder what the generator's own one does (docs/performance.md).

    Args:
        out: the file, which ``train(settings={"decoder": FILE})`` reads; its name ends with ``.safetensors``.
        images: to learn from. steps: of 32 images. width: channels at the finest resolution that is computed.
        data: real images, whose codes are learned from too; None: those that ship with the generator.

    Raises:
        ConfigError: an argument does not fit, or the generator gives no latents. OutputError: the file cannot be written.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> generator = adanat.load_generator("maskgit", device="cpu")
        >>> found = adanat.distill(generator, "small.safetensors", images=32, steps=2, width=8)
        >>> found.decoder.card.image
        (64, 64)
    """
    generator = require_generator(generator)
    real = images_for(generator, os.fspath(data)) if isinstance(data, str | os.PathLike) else data
    if real is None:
        real = generator.real_images()
    return distill_to_file(generator, Path(out), real=real, images=images, steps=steps, width=width, seed=seed)
