"""What is computed of real images once and kept in a file: tokens, and feature statistics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..core import Generator, ImageSource
from ..decoding import TokenGenerator
from ..errors import ConfigError
from ..images import GRID_LIMIT, grid, side_by_side, write_png
from ..registry import toolkit_version
from ..runtime import float32_by_default, in_chunks
from ..sampling import default_batch
from ..storage import prepare_file, write_file


@float32_by_default()
def encode_to_file(
    generator: Generator,
    real: ImageSource,
    file: Path,
    *,
    count: int | None = None,
    batch: int | None = None,
    on_images: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the tokens of real images, and beside them (``.png``) the first images and their reconstructions.

    The file holds ``tokens`` (M, N) int32 and, where the images have classes, ``labels`` (M,) int64; its metadata say which
    generator and which images.

    Args:
        count: only the first images. batch: images at once. on_images: called with (images done, images in all).

    Returns:
        ``file``, ``picture``, ``images``, ``cells`` and ``mean_absolute_error`` of the pictured reconstructions (images in
        [0, 1]).

    Raises:
        ConfigError: not a token generator, or one without an encoder. OutputError: the file cannot be written.
    """
    from safetensors.torch import save

    require_safetensors(file)
    if not isinstance(generator, TokenGenerator):
        raise ConfigError(
            f"{generator.name} is no token generator, so images cannot be encoded; use maskgit, mage or muse."
        )
    picture = file.with_suffix(".png")
    for written in (file, picture):
        prepare_file(written)
    total = len(real) if count is None else min(count, len(real))
    size = batch or default_batch(generator.device)
    parts, labels = [], []
    shown, rebuilt = torch.empty(0), torch.empty(0)
    for start in range(0, total, size):
        index = torch.arange(start, min(start + size, total))
        images = real.images(index)
        tokens = generator.encode_images(images.to(generator.device))
        parts.append(tokens.to("cpu", torch.int32))
        context = real.contexts(index) if generator.context_kind == "class" else None
        if context is not None and context.classes is not None:
            labels.append(context.classes)
        if len(shown) < min(GRID_LIMIT, total):
            wanted = GRID_LIMIT - len(shown)
            (back,) = in_chunks(generator.decode_tokens, tokens[:wanted], chunk=size)
            shown, rebuilt = torch.cat([shown, images[:wanted]]), torch.cat([rebuilt, back.cpu()])
        if on_images is not None:
            on_images(start + len(index), total)
    facts = {
        "toolkit": toolkit_version(),
        "generator": generator.name,
        "generator_fingerprint": generator.fingerprint,
        "data": real.fingerprint,
        "codebook_size": generator.codebook_size,
        "grid": list(generator.grid),
    }
    tensors = {"tokens": torch.cat(parts)} | ({"labels": torch.cat(labels)} if labels else {})
    write_file(file, save(tensors, metadata={"adanat_tokens": json.dumps(facts)}))
    write_png(picture, side_by_side([grid(shown), grid(rebuilt)], ["real images", "their reconstructions"]))
    return {
        "file": str(file),
        "picture": str(picture),
        "images": total,
        "cells": generator.cells,
        "mean_absolute_error": float((shown - rebuilt).abs().mean()),
    }


def require_safetensors(file: Path) -> None:
    """
    Raises:
        ConfigError: the name has another ending.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(f"--out {file}: the file is written as .safetensors; give a name that ends so.")
