"""Features and statistics of real images, computed by all processes together.

Each takes a share of the images, in whole batches, so that a network's last bits are those of one process.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Context, FeatureExtractor, ImageSource, Labelled, PrecomputedExtractor
from ..runtime import distributed
from .extract import BATCH, Progress, Reference, extract_features, reference_of, statistics_of
from .frechet import FeatureStatistics


@dataclass
class _Share:
    """This process's part of an image source."""

    source: ImageSource
    start: int
    stop: int
    fingerprint: str

    def __len__(self) -> int:
        return self.stop - self.start

    def images(self, index: Tensor) -> Tensor:
        return self.source.images(index + self.start)

    def contexts(self, index: Tensor) -> Context:
        return self.source.contexts(index + self.start)


def shared_reference(
    extractor: FeatureExtractor, source: ImageSource, *, progress: Progress | None = None
) -> Reference | None:
    """:func:`reference_of` in the main process, None in the others. All processes call it."""
    ready = extractor.precomputed(source) is not None if isinstance(extractor, PrecomputedExtractor) else False
    if distributed.world_size() == 1 or ready:
        return reference_of(extractor, source, progress=progress) if distributed.is_main() else None
    share = _share(source)
    own = extract_features(extractor, share, progress=_scaled(progress, source)).values if len(share) else None
    parts = [part for part in distributed.gather_on_main(own) if part is not None]
    if not distributed.is_main():
        return None
    features = torch.cat(parts)
    statistics = FeatureStatistics.of(features, extractor.protocol, source.fingerprint)
    return Reference(statistics, features, source.labels if isinstance(source, Labelled) else None)


def shared_statistics(
    extractor: FeatureExtractor, source: ImageSource, *, progress: Progress | None = None
) -> FeatureStatistics | None:
    """:func:`statistics_of` in the main process, None in the others. All processes call it."""
    if distributed.world_size() == 1:
        return statistics_of(extractor, source, progress=progress)
    share = _share(source)
    own = statistics_of(extractor, share, progress=_scaled(progress, source)) if len(share) else None
    parts = [part for part in distributed.gather_on_main(own) if part is not None]
    if not distributed.is_main():
        return None
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged


def _share(source: ImageSource) -> _Share:
    return _Share(source, *distributed.local_slice(len(source), BATCH), source.fingerprint)


def _scaled(progress: Progress | None, source: ImageSource) -> Progress | None:
    """The main process's progress as that of all, which are about as far."""
    if progress is None:
        return None
    return lambda done, total: progress(done * len(source) // total, len(source))
