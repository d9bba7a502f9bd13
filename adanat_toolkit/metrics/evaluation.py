"""All figures of a set of generated images against real ones, and whether two sets of figures may be compared."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import DataError
from .extract import Features, Reference
from .frechet import CHUNK, FeatureStatistics, frechet_distance
from .intervals import Interval, bootstrap_interval, resampled, resampled_interval
from .kid import SUBSET_SIZE, SUBSETS, kernel_distance
from .prdc import neighbourhoods
from .scores import negative_entropy, pair_spread, relative_spread, split_scores

BOOTSTRAP, BOOTSTRAP_DIMENSIONS = 100, 512
"""Resamples by default, for up to so many features: beyond, each resample's eigenvalues take seconds."""


@dataclass(frozen=True)
class Evaluation:
    """Figures, and everything they depend on.

    Attributes:
        protocol: feature protocol. n_fake, n_real: sample counts; n_real is None for a published .npz without one.
        data: fingerprint of the real images.
        figures: ``frechet``, ``kid``, ``kid_std``, ``precision``, ``recall``, ``density``, ``coverage``,
            ``inception_score``, ``clip_score``, ``diversity``; those that the inputs allow.
        intervals: 95 % bootstrap intervals over the generated samples (recall and coverage: over the real ones).
        settings: sizes and seeds of the estimators.
    """

    protocol: str
    n_fake: int
    n_real: int | None
    data: str
    figures: dict[str, float]
    intervals: dict[str, Interval] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Evaluation:
        intervals = {name: (low, high) for name, (low, high) in value["intervals"].items()}
        return cls(**{**value, "intervals": intervals})


def require_comparable(*evaluations: Evaluation, allow: Collection[str] = ()) -> None:
    """Refuse to put figures side by side that depend on unlike things.

    Args:
        allow: what may differ because the reader is told: any of ``protocol``, ``n_fake``, ``n_real``, ``data``,
            ``settings``.

    Raises:
        DataError: names what differs.
    """
    meaning = {
        "protocol": "feature protocols",
        "n_fake": "numbers of generated images",
        "n_real": "numbers of real images",
        "data": "real data sets",
        "settings": "estimator settings",
    }
    for name, words in meaning.items():
        values = [getattr(e, name) for e in evaluations]
        if name not in allow and any(v != values[0] for v in values):
            shown = " and ".join(dict.fromkeys(textwrap.shorten(ascii(v), 300, placeholder="...") for v in values))
            raise DataError(
                f"figures of unlike {words} ({shown}) are not comparable; evaluate again with the same {words}."
            )


def evaluate_features(
    fake: Features,
    real: Reference,
    *,
    labels: Tensor | None = None,
    clip: Tensor | None = None,
    neighbours: int = 10_000,
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    bootstrap: int | None = None,
    frechets: Tensor | None = None,
    seed: int = 0,
) -> Evaluation:
    """Every figure that the inputs allow.

    Args:
        labels: (N,) int64 class ids of the fakes, for the diversity within class; without them, or without the reals'
            labels, it is the diversity of the whole set (``settings["diversity_classes"]`` is 1). Classes without real images
            do not count; where no class has two images on both sides, there is no such figure.
        clip: (N,) per-sample CLIP scores (see :func:`clip_scores`).
        neighbours: precision, recall, density and coverage use min(N, M, neighbours) random fakes and reals: as many of
            each, because their values depend on both counts.
        subsets, subset_size: of the kernel distance.
        bootstrap: resamples for the intervals; 0 for none; None: 100 for up to 512 features, else 0.
        frechets: what :func:`resampled_frechets` gave for the same ``bootstrap`` and ``seed``, if that is known already.
        seed: of subsets, splits and resamples.

    Raises:
        DataError: unlike protocols, or too few samples.
    """
    statistics = FeatureStatistics.of(fake.values, fake.protocol)
    figures = {"frechet": frechet_distance(statistics, real.statistics)}
    intervals: dict[str, Interval] = {}
    settings: dict[str, Any] = {"seed": seed}
    count = len(fake)
    bootstrap = resamples_of(fake) if bootstrap is None else bootstrap

    def interval(statistic: Any, size: int) -> Interval:
        return bootstrap_interval(statistic, size, resamples=bootstrap, seed=seed)

    if bootstrap:
        if frechets is None:
            frechets = resampled_frechets(fake, real, bootstrap=bootstrap, seed=seed)
        intervals["frechet"] = resampled_interval(figures["frechet"], frechets)
    if real.features is not None:
        size = min(subset_size, count, len(real.features))
        settings |= {"kid_subsets": subsets, "kid_subset_size": size}
        figures["kid"], figures["kid_std"] = kernel_distance(
            fake.values, real.features, subsets=subsets, subset_size=size, seed=seed
        )
        size = min(count, len(real.features), neighbours)
        settings |= {"neighbours_samples": size, "k": 3, "k_density": 5}
        near = neighbourhoods(_subset(fake.values, size, seed), _subset(real.features, size, seed + 1))
        figures |= near.figures()
        if bootstrap:
            for name, each in vars(near).items():
                intervals[name] = interval(_mean_of(each), size)
    if fake.probabilities is not None:
        # Shuffled once for all: images often come sorted by class, and the score is taken of consecutive parts.
        chances = _subset(fake.probabilities, count, seed, shuffle=True)
        terms = torch.cat([negative_entropy(part.double()) for part in chances.split(CHUNK)])
        splits = settings["inception_splits"] = min(10, count)

        def score(index: Tensor) -> float:
            return float(split_scores(chances[index], terms[index], splits).mean())

        figures["inception_score"] = score(torch.arange(count))
        if bootstrap:
            intervals["inception_score"] = interval(score, count)
    if clip is not None:
        figures["clip_score"] = float(clip.double().mean())
        if bootstrap:
            intervals["clip_score"] = interval(_mean_of(clip.double()), count)
    if real.features is not None:
        ids, real_ids = torch.zeros(count, dtype=torch.int64), torch.zeros(len(real.features), dtype=torch.int64)
        if labels is not None and real.labels is not None:
            ids, real_ids = labels.cpu(), real.labels
        # A number of the real images alone, so that it is the same for all sets that are held against them.
        classes = int(real_ids.max()) + 1
        settings["diversity_classes"] = classes
        ids = ids.clamp(max=classes)  # one more class for those that no real image has
        real_spread = pair_spread(real.features, real_ids, classes + 1)

        def diversity(index: Tensor) -> float:
            return relative_spread(pair_spread(fake.values[index], ids[index], classes + 1), real_spread)

        with contextlib.suppress(DataError):
            figures["diversity"] = diversity(torch.arange(count))
            if bootstrap:
                intervals["diversity"] = interval(diversity, count)
    return Evaluation(fake.protocol, count, real.statistics.count, real.statistics.data, figures, intervals, settings)


def resamples_of(fake: Features) -> int:
    """How many resamples intervals have by default: none where each takes seconds."""
    return BOOTSTRAP if fake.values.shape[1] <= BOOTSTRAP_DIMENSIONS else 0


def resampled_frechets(fake: Features, real: Reference, *, bootstrap: int, seed: int = 0) -> Tensor:
    """(bootstrap,) float64: the Frechet distance of the fakes drawn with replacement. Two sets of as many fakes are drawn in
    pairs by the same ``seed``."""

    def distance(index: Tensor) -> float:
        return frechet_distance(FeatureStatistics.of(fake.values[index], fake.protocol), real.statistics)

    return resampled(distance, len(fake), resamples=bootstrap, seed=seed)


def _mean_of(values: Tensor) -> Any:
    return lambda index: float(values[index].mean())


def _subset(values: Tensor, size: int, seed: int, *, shuffle: bool = False) -> Tensor:
    if size == len(values) and not shuffle:
        return values
    return values[torch.randperm(len(values), generator=torch.Generator().manual_seed(seed))[:size]]
