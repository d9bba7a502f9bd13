"""A policy's images under the yardstick: made from given seeds, turned into features, held against the real images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .actions import ActionSpace
from .interfaces import FeatureExtractor, Generator, ImageSource, Policy
from .metrics import Evaluation, Features, Reference, evaluate_features, extract_features, reference_of
from .metrics.extract import BATCH
from .pictures import to_bytes
from .sampling import sample

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""


@dataclass(frozen=True)
class Images:
    """What is kept of a set of generated images.

    Attributes:
        features: (N, D), in the order of the seeds. labels: (N,) int64 class ids, None without classes.
        knobs: (N, T, K) float32 physical values. shown: the first images, (n, 3, H, W) uint8.
    """

    features: Features = field(repr=False)
    labels: Tensor | None = field(repr=False)
    knobs: Tensor = field(repr=False)
    shown: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.features)


class Yardstick:
    """A feature protocol with the real images' side of it, computed once."""

    def __init__(
        self,
        generator: Generator,
        extractor: FeatureExtractor,
        real: ImageSource | Reference,
        *,
        progress: Progress | None = None,
    ) -> None:
        """``progress`` counts the real images, where their features must be computed; a Reference has them already."""
        self.generator, self.extractor = generator, extractor
        self.reference = real if isinstance(real, Reference) else reference_of(extractor, real, progress=progress)

    def make(
        self,
        policy: Policy,
        space: ActionSpace,
        seeds: Tensor,
        *,
        keep: int = 0,
        batch: int | None = None,
        progress: Progress | None = None,
    ) -> Images:
        """Images of a policy, one a seed.

        Args:
            seeds: (N,) int64. keep: how many of the first images to keep. batch: images in flight at once.
        """
        generator, total = self.generator, len(seeds)
        values: list[Tensor] = []
        chances: list[Tensor] = []
        classes: list[Tensor] = []
        knobs: list[Tensor] = []
        waiting: list[Tensor] = []
        shown = torch.empty(0, 3, *generator.image_size, dtype=torch.uint8)
        done = 0
        for samples in sample(generator, policy, space, seeds, batch=batch):
            pixels = to_bytes(samples.images)
            shown = torch.cat([shown, pixels[: keep - len(shown)]]) if len(shown) < keep else shown
            knobs.append(samples.knobs.cpu())
            if samples.context.classes is not None:
                classes.append(samples.context.classes.cpu())
            waiting.append(pixels)
            done += len(pixels)
            # Whole extractor batches only: the last bits of features depend on the batch, and seeds must not.
            if sum(map(len, waiting)) >= BATCH or done == total:
                pixels = torch.cat(waiting)
                whole = total if done == total else len(pixels) // BATCH * BATCH
                part = extract_features(self.extractor, pixels[:whole])
                waiting = [pixels[whole:]]
                values.append(part.values)
                if part.probabilities is not None:
                    chances.append(part.probabilities)
            if progress is not None:
                progress(done, total)
        features = Features(torch.cat(values), torch.cat(chances) if chances else None, self.extractor.protocol)
        return Images(features, torch.cat(classes) if classes else None, torch.cat(knobs), shown)

    def judge(self, images: Images, *, seed: int = 0, bootstrap: int | None = None) -> Evaluation:
        """All figures that the inputs allow (see ``metrics.evaluate_features``)."""
        labels = images.labels if self._labels_usable(images.labels) else None
        return evaluate_features(images.features, self.reference, labels=labels, seed=seed, bootstrap=bootstrap)

    def _labels_usable(self, labels: Tensor | None) -> bool:
        """Whether diversity within class is defined: some class must have two images on both sides."""
        real = self.reference.labels
        if labels is None or real is None:
            return False
        size = int(max(labels.max(), real.max())) + 1
        ours, theirs = (torch.bincount(ids, minlength=size) for ids in (labels, real))
        return bool(((ours >= 2) & (theirs >= 2)).any())
