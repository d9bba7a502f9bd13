"""What an image's context alone says of its score: a baseline from earlier iterations.

Some prompts and classes score higher than others whatever a policy does. That difference is noise to the policy's gradient,
and a critic takes it away only as far as the policy sees the context (``shared`` and ``lean`` do not). A baseline for each
prompt is the usual remedy (Black et al. 2023, arXiv:2305.13301, keep a mean and a standard deviation of each prompt). Prompts
that never come twice have none, so here a ridge regression on the context's vector says what a context scores: with classes
that is a mean of each class, drawn towards the mean of all. How far it is drawn is what generalised cross-validation (Golub,
Heath and Wahba 1979) finds best, and that may be all the way.

An image's baseline is made of earlier iterations alone. So it does not depend on the image's own noise and actions, and the
gradient stays unbiased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime import distributed
from .context_sums import no_sums, remembered, spread
from .standard import guarded

MEMORY = 0.95
"""What an iteration's images count in the next one's baseline: a reward that learns, and a policy, move on."""
STRENGTHS = torch.logspace(-4, 3, 43, dtype=torch.float64)
"""Strengths of the ridge that are tried, in units of the vectors' mean variance along a direction."""


class ContextBaseline:
    """Sums over earlier images, with weights that fall from iteration to iteration.

    Args:
        width: P, of the contexts' vectors (``Generator.context_vectors``). device: where the sums are kept.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.sums = no_sums(width, device, products=(width,), square=())

    def take(self, scores: Tensor, vectors: Tensor) -> Tensor:
        """(B,) scores of an iteration less what their contexts (B, P) let expect; then learns from them.

        All processes call it together, each with its own images.
        """
        mean, std = distributed.mean_and_std(scores)
        seen, wanted = vectors.double(), ((scores - mean) / guarded(std, mean)).double()
        expected = seen @ self.slope()
        self.sums = remembered(self.sums, MEMORY, seen, products=seen.T @ wanted, square=wanted.square().sum())
        return scores - std * expected.to(scores)

    def slope(self) -> Tensor:
        """(P,) float64: what a context's vector adds to a score, in standard deviations of the scores."""
        weight, squares = self.sums["count"]
        nothing = torch.zeros_like(self.sums["vector"])
        if not weight:
            return nothing
        # Scores have mean 0 in every iteration, so that only the vectors need centring.
        values, directions = spread(self.sums["count"], self.sums["vector"], self.sums["vectors"])
        if not len(values):  # one context alone
            return nothing
        along = directions.T @ (self.sums["products"] / weight)
        strengths = STRENGTHS.to(values) * values.mean()
        kept = values / (values + strengths[:, None])  # (S, p), of each direction
        whole, images = self.sums["square"] / weight, weight**2 / squares
        explained = along.square() / values
        left = (whole - (explained * kept * (2 - kept)).sum(1)).clamp_min(0)
        risk = left / (1 - (kept.sum(1) / images).clamp_max(1 - 1e-6)).square()
        best = risk.argmin()
        if risk[best] >= whole:
            return nothing
        return directions @ (along / (values + strengths[best]))
