"""A prediction of tokens in a few numbers: what the policy ``lean`` sees, and what ``adanat headroom`` splits by."""

from __future__ import annotations

import math

import torch
from torch import Tensor

RANGES = {
    "entropy": (0.75, 0.1),
    "entropy_spread": (0.1, 0.03),
    "confidence": (0.1, 0.06),
    "divergence": (0.6, 0.4),
    "masked": (0.6, 0.4),
}
"""Usual value and spread over samples and steps; of the embedded ``maskgit``, ``mage`` and ``muse`` at T = 4."""


def statistic_names(guided: bool) -> tuple[str, ...]:
    """Names of what :func:`prediction_statistics` gives; ``guided``: the generator has predictions without its condition."""
    return ("entropy", "entropy_spread", "confidence", *(["divergence"] if guided else []), "masked")


def prediction_statistics(logits: Tensor, null_logits: Tensor | None, unknown: Tensor, masked: Tensor) -> Tensor:
    """Statistics over the cells that are not known yet (zeros where there are none).

    Args:
        logits: (B, N, V) float32 given the context. null_logits: the same without it, or None where there are none.
        unknown: (B, N) bool. masked: (B,) float32 in [0, 1], the share of the image that is still to be drawn.

    Returns:
        (B, K) float32, in the order of :func:`statistic_names`: the cells' entropy as a share of log V (mean, and standard
        deviation over cells), the mean probability of the likeliest token, where ``null_logits`` are given the mean
        Kullback-Leibler divergence of conditional from unconditional in nats, and ``masked``.
    """
    log_prob = logits.log_softmax(-1)
    probability = log_prob.exp()
    entropy = -(probability * log_prob).sum(-1) / math.log(logits.shape[-1])
    count = unknown.sum(1).clamp_min(1)

    def mean(values: Tensor) -> Tensor:
        return (values * unknown).sum(1) / count

    centre = mean(entropy)
    columns = [centre, mean((entropy - centre[:, None]) ** 2).sqrt(), mean(probability.amax(-1))]
    if null_logits is not None:
        columns.append(mean((probability * (log_prob - null_logits.log_softmax(-1))).sum(-1)))
    return torch.stack([*columns, masked], dim=1)
