"""Figures of one set of images: Inception Score, CLIP score, diversity within class."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from ..errors import DataError


def inception_score(probabilities: Tensor, *, splits: int = 10, seed: int | None = 0) -> tuple[float, float]:
    """exp of the mean KL(p(y|x) || p(y)), mean and standard deviation over splits (Salimans et al. 2016, section 4).

    Args:
        probabilities: (N, C), rows summing to 1. splits: made smaller where there are fewer samples.
        seed: of the shuffle before splitting; None keeps the order.
    """
    if len(probabilities) == 0:
        raise DataError("an Inception Score needs at least one sample.")
    p = probabilities.double()
    if seed is not None:
        p = p[torch.randperm(len(p), generator=torch.Generator().manual_seed(seed)).to(p.device)]
    values = split_scores(p, negative_entropy(p), splits)
    return float(values.mean()), float(values.std(correction=0))


def negative_entropy(p: Tensor) -> Tensor:
    """sum of p log p over the last axis; a class of probability 0 adds nothing."""
    return torch.special.xlogy(p, p).sum(-1)


def split_scores(p: Tensor, terms: Tensor, splits: int) -> Tensor:
    """(splits,) float64 Inception Scores of consecutive parts of (N, C) ``p``; ``terms`` (N,) float64 is its negative entropy.

    The mean KL of a part to its own marginal q is the mean of p log p less the sum of q log q.
    """
    splits = min(splits, len(p))
    bounds = [i * len(p) // splits for i in range(splits + 1)]
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    return torch.stack(
        [(terms[part].mean() - negative_entropy(p[part].mean(0, dtype=torch.float64))).exp() for part in parts]
    )


def clip_scores(image_features: Tensor, text_features: Tensor, *, scale: float = 100.0) -> Tensor:
    """Per-sample scale * max(cos, 0) of image and text embeddings (Hessel et al. 2021, "CLIPScore", section 3, with
    their weight 2.5 replaced by the common 100).

    Args:
        image_features, text_features: (N, D), of one CLIP; they need not be normalised.

    Returns:
        (N,) float64.
    """
    if image_features.shape != text_features.shape:
        raise DataError(
            f"{tuple(image_features.shape)} image and {tuple(text_features.shape)} text features do not pair."
        )
    similarity = torch.nn.functional.cosine_similarity(image_features.double(), text_features.double(), dim=1)
    return scale * similarity.clamp(min=0)


def within_class_diversity(
    fake: Tensor, real: Tensor, fake_labels: Tensor | None = None, real_labels: Tensor | None = None
) -> float:
    """Root-mean-square distance between two fakes of a class, relative to that between two reals of the class.

    1 is as diverse as the data, 0 is one image a class. The mean over pairs has a closed form (twice the unbiased
    variance), so all pairs count. Classes are weighted by their number of fakes; a class needs two fakes and two
    reals. Without labels everything is one class.

    Args:
        fake, real: (N, D), (M, D) features. fake_labels, real_labels: (N,), (M,) int64.

    Raises:
        DataError: no class has two fakes and two reals.
    """
    if fake_labels is None or real_labels is None:
        fake_labels = torch.zeros(len(fake), dtype=torch.int64)
        real_labels = torch.zeros(len(real), dtype=torch.int64)
    classes = int(max(fake_labels.max(), real_labels.max())) + 1
    return relative_spread(pair_spread(fake, fake_labels, classes), pair_spread(real, real_labels, classes))


COLUMNS = 256
"""Features that are in float64 at once: 0.1 GB for 50,000 samples (docs/results/metrics_memory.md)."""

Spread = tuple[Tensor, Tensor]
"""(classes,) float64 counts, and mean squared distances between two different samples of a class."""


def relative_spread(fake: Spread, real: Spread) -> float:
    """:func:`within_class_diversity` from the classes' spreads (see :func:`pair_spread`)."""
    (fake_count, fake_spread), (real_count, real_spread) = fake, real
    usable = (fake_count >= 2) & (real_count >= 2)
    if not usable.any():
        raise DataError(
            "diversity within class needs a class with two generated and two real images; make more images."
        )
    weights = fake_count[usable]
    above, below = (weights * fake_spread[usable]).sum(), (weights * real_spread[usable]).sum()
    if below == 0:
        raise DataError("the real images of every class are alike, so diversity relative to them is undefined.")
    return float((above / below).sqrt())


def pair_spread(features: Tensor, labels: Tensor, classes: int) -> Spread:
    """Spread within class of (N, D) features with (N,) int64 labels below ``classes``."""
    labels, device = labels.to(features.device), features.device
    count = torch.bincount(labels, minlength=classes).double()
    scatter = torch.zeros(classes, dtype=torch.float64, device=device)
    for columns in features.split(COLUMNS, dim=1):
        values = columns.double()
        sums = torch.zeros(classes, values.shape[1], dtype=torch.float64, device=device).index_add_(0, labels, values)
        values = values - (sums / count.clamp(min=1)[:, None])[labels]
        scatter.index_add_(0, labels, values.square_().sum(1))
    return count, 2 * scatter / (count - 1).clamp(min=1)
