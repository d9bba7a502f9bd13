"""``adanat stats``: the statistics of real images, in one file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core import FeatureExtractor, Generator, ImageSource, Labelled
from ..errors import DataError, OutputError
from ..images import ClassCounts
from ..metrics import shared_statistics
from ..runtime import distributed, float32_by_default
from ..storage import prepare_file
from .prepare_data import require_safetensors


@float32_by_default()
def write_statistics(
    extractor: FeatureExtractor,
    real: ImageSource,
    file: Path,
    *,
    generator: Generator,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the mean and scatter of real images' features (see ``metrics.FeatureStatistics``), the size of the images, and
    how many are of each class.

    All processes call it; the main one writes.

    Args:
        real: at least 2 images. generator: what they were opened for. Where it has no classes, their labels are positions of
            folders, which are nobody's classes and are not kept.
        progress: called with (images done, images in all).

    Returns:
        ``file``, ``images``, ``image_size`` (H, W in pixels), ``protocol`` and ``data``; empty but in the main process.

    Raises:
        ConfigError: not a .safetensors name. DataError: a single image. OutputError: the file cannot be written.
    """
    from safetensors import SafetensorError

    require_safetensors(file)
    if len(real) < 2:
        raise DataError("statistics need at least 2 images, and there is 1; give --data with more.")
    if distributed.is_main():
        prepare_file(file)
    statistics = shared_statistics(extractor, real, progress=progress)
    if statistics is None:
        return {}
    height, width = real.images(torch.zeros(1, dtype=torch.int64)).shape[-2:]
    statistics = statistics.taken_at((height, width))
    labels = real.labels if isinstance(real, Labelled) and generator.context_kind == "class" else None
    if labels is not None:  # which classes images are held against
        statistics = replace(statistics, card={**statistics.card, "classes": ClassCounts.write(labels)})
    temporary = file.with_name(f".{file.stem}.{os.getpid()}.tmp.safetensors")
    try:
        statistics.save(temporary)
        os.replace(temporary, file)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"cannot write {file}: {error}. Nothing was lost; free space and run again.") from None
    return {
        "file": str(file),
        "images": statistics.count,
        "image_size": [height, width],
        "protocol": statistics.protocol,
        "data": statistics.data,
    }
