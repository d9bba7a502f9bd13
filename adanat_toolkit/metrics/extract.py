"""Features of images under a protocol, batch by batch; the real images' side of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import FeatureExtractor, ImageSource, JointExtractor, Labelled, PrecomputedExtractor
from ..errors import DataError
from ..runtime import plugin_call, require_rows
from .frechet import FeatureStatistics

Progress = Callable[[int, int], None]
BATCH = 128
"""Images a forward. It is fixed, because a network's last bits depend on it."""


@dataclass(frozen=True)
class Features:
    """Features of a set of images.

    Attributes:
        values: (N, D) float32 on the CPU. probabilities: (N, C) float32, where the network has a classifier.
        protocol: the extractor's.
    """

    values: Tensor
    probabilities: Tensor | None
    protocol: str

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Reference:
    """The real images of a comparison: statistics, and features where the images were at hand.

    Attributes:
        statistics: with protocol, count and the data's fingerprint. features: (M, D) float32, or None (a published
            .npz).
        labels: (M,) int64 class ids, or None.
    """

    statistics: FeatureStatistics
    features: Tensor | None = None
    labels: Tensor | None = None


def extract_features(
    extractor: FeatureExtractor, images: Tensor | ImageSource, *, progress: Progress | None = None
) -> Features:
    """Features, and class probabilities where there are any, of all images.

    Args:
        images: (N, 3, H, W) float in [0, 1] or uint8; or an image source.
        progress: called with (images done, images in all).
    """
    values, probabilities = [], []
    for batch in _batches(images, progress):
        with plugin_call(f"features {extractor.protocol!r}", "features"):
            if isinstance(extractor, JointExtractor):
                part, classes = extractor.joint(batch)
            else:
                part, found = extractor(batch), extractor.probabilities(batch)
                classes = torch.empty(0) if found is None else found
        require_rows(f"the features of {extractor.protocol!r}", part, len(batch))
        values.append(part.float().cpu())
        if classes.numel():
            probabilities.append(classes.float().cpu())
    return Features(torch.cat(values), torch.cat(probabilities) if probabilities else None, extractor.protocol)


def reference_of(extractor: FeatureExtractor, source: ImageSource, *, progress: Progress | None = None) -> Reference:
    """Features and statistics of real images. What the extractor ships for this very data set is used, not computed."""
    features = extractor.precomputed(source) if isinstance(extractor, PrecomputedExtractor) else None
    if features is None:
        features = torch.cat([_features(extractor, batch).float().cpu() for batch in _batches(source, progress)])
    statistics = FeatureStatistics.of(features, extractor.protocol, source.fingerprint)
    return Reference(statistics, features, source.labels if isinstance(source, Labelled) else None)


def statistics_of(
    extractor: FeatureExtractor, source: Tensor | ImageSource, *, data: str = "", progress: Progress | None = None
) -> FeatureStatistics:
    """Statistics of all images, streaming: memory does not grow with their number. ``.save(path)`` keeps them.

    Args:
        data: fingerprint to record; an image source has its own.
    """
    data = data if isinstance(source, Tensor) else source.fingerprint
    statistics = FeatureStatistics.empty(extractor.feature_dim, extractor.protocol, data, dict(extractor.card))
    waiting: list[Tensor] = []
    for batch in _batches(source, progress):
        waiting.append(_features(extractor, batch))
        if len(waiting) == 8:  # each update costs several passes over a (D, D) matrix
            statistics, waiting = statistics.update(torch.cat(waiting)), []
    return statistics.update(torch.cat(waiting)) if waiting else statistics


def _features(extractor: FeatureExtractor, images: Tensor) -> Tensor:
    with plugin_call(f"features {extractor.protocol!r}", "features"):
        found = extractor(images)
    require_rows(f"the features of {extractor.protocol!r}", found, len(images))
    return found


def _batches(images: Tensor | ImageSource, progress: Progress | None) -> Iterator[Tensor]:
    total = len(images)
    if total == 0:
        raise DataError("there are no images to take features of; give at least one.")
    indices: Iterable[Tensor] = torch.arange(total).split(BATCH)
    done = 0
    for index in indices:
        if isinstance(images, Tensor):
            batch = images[index.to(images.device)]
            yield batch.float() / 255 if batch.dtype == torch.uint8 else batch
        else:
            yield images.images(index)
        done += len(index)
        if progress is not None:
            progress(done, total)
