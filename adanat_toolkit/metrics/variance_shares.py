"""How a reward's variance splits into what the context does, the actions, what they do together, and noise.

The data are crossed in blocks: in every block each of C contexts meets each of A random actions, and each such pair is drawn R
times with noise of its own. Blocks share nothing, so every share is estimated in each of them without bias (an estimate may
therefore be below 0) and its interval is Student's over the blocks. Slopes are estimated without a regression: the actions were
drawn at random, so the mean of reward x action is the slope; its square less its squared error is the share.

Shapes: G blocks, C contexts and A actions in each, R draws, T steps, K knobs acted on, S statistics of a state.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DataError
from .intervals import Interval, mean_interval

NORMAL = 1.96
"""Half-width of a 95 % interval in standard errors."""
LEAST_SPREAD = 1e-3
"""Statistics that vary less than this share of their variance among samples of one context and action say nothing of them."""


@dataclass(frozen=True)
class Share:
    """A share of the reward's variance, and its 95 % interval; both may be below 0, which is 0 within their error."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Slopes:
    """Slopes of the reward in the actions, one coordinate a step and knob, as shares of the variance.

    Attributes:
        share: of all coordinates together. by_knob: (T, K) of each. z: (T, K), each in standard errors from 0.
        count: how many slopes there are (of each context, where they differ between contexts).
    """

    share: Share
    by_knob: Tensor
    z: Tensor
    count: int


@dataclass(frozen=True)
class VarianceShares:
    """See the module.

    Attributes:
        variance: of the reward. mean: of the reward.
        context: of the context alone. action: of the action that all samples have in common, of any shape.
        action_context: of what an action does in one context and not in another, of any shape.
        draws: what is left between draws of one context and action.
        slope, context_slope, state_slope: the part of these that is a slope: common to all samples, different between contexts,
            and different between states (within one context and action; None where no statistics are given).
    """

    variance: float
    mean: float
    context: Share
    action: Share
    action_context: Share
    draws: Share
    slope: Slopes
    context_slope: Slopes
    state_slope: Slopes | None

    @property
    def action_state(self) -> Share | None:
        """What the state decides of the actions' effect."""
        return None if self.state_slope is None else self.state_slope.share

    @property
    def noise(self) -> Share:
        """``draws`` less what the state explains of it."""
        if self.state_slope is None:
            return self.draws
        state = self.state_slope.share
        return _sum(self.draws, Share(-state.value, (-state.interval[1], -state.interval[0])))

    @property
    def adaptive(self) -> Share:
        """Slopes that only a policy reaches which sees more than the step: of contexts, and of states where they are known."""
        if self.state_slope is None:
            return self.context_slope.share
        return _sum(self.context_slope.share, self.state_slope.share)


def variance_shares(reward: Tensor, action: Tensor, statistics: Tensor | None = None) -> VarianceShares:
    """Split the variance of crossed rewards.

    Args:
        reward: (G, C, A, R), at least 2 of each. action: (G, A, T, K), standard normal and independent.
        statistics: (G, C, A, R, T, S) of the state that each step's action was taken in.

    Raises:
        DataError: the reward is constant, or not finite.
    """
    reward, action = reward.double(), action.double()
    if not bool(reward.isfinite().all()):
        raise DataError("some rewards are not finite, so their variance cannot be split; mend the reward.")
    variance = float(reward.var())
    scale = float(reward.abs().max())
    if variance <= (1e-6 * scale) ** 2:
        raise DataError(
            f"the reward is constant ({float(reward.mean()):g} for all {reward.numel():,} images): there is no variance to "
            "split. Use a reward that tells images apart."
        )
    mean, y = float(reward.mean()), (reward - reward.mean()) / math.sqrt(variance)
    parts = _analysis(y)
    whole = sum(float(part.mean()) for part in parts)  # the sample variance is short of it where contexts are few
    variance, y, parts = variance * whole, y / math.sqrt(whole), [part / whole for part in parts]
    context, common, both, within = parts
    cells = y.mean(3)
    by_action, all_ = cells.mean(1), cells.mean((1, 2))
    together = cells - cells.mean(2)[:, :, None] - by_action[:, None] + all_[:, None, None]
    return VarianceShares(
        variance=variance,
        mean=mean,
        context=_over_blocks(context),
        action=_over_blocks(common),
        action_context=_over_blocks(both),
        draws=_over_blocks(within),
        slope=_common_slopes(by_action - all_[:, None], action),
        context_slope=_context_slopes(together, action),
        state_slope=None if statistics is None else _state_slopes(y, action, statistics.double()),
    )


def trajectories_to_move(share: float, count: int, context: float) -> float:
    """How many trajectories a policy gradient needs until it is as long as its own noise, that is at 45 degrees to the truth.

    The gradient of n trajectories in p coordinates has a squared length of s and a noise of p (1 - c) / n: n = p (1 - c) / s.

    Args:
        share: s, of the slopes. count: p. context: c, the share of the context, which a critic takes away.

    Returns:
        n; infinite where s is not above 0.
    """
    return math.inf if share <= 0 else count * (1 - max(context, 0.0)) / share


def _analysis(y: Tensor) -> list[Tensor]:
    """Two-way analysis of variance of each block: (G,) variances of contexts, of actions, of both together, and of draws."""
    contexts, actions, draws = y.shape[1:]
    cells = y.mean(3)
    by_context, by_action = cells.mean(2), cells.mean(1)
    together = cells - by_context[:, :, None] - by_action[:, None] + cells.mean((1, 2))[:, None, None]
    within = y.var(3).mean((1, 2))
    square = draws * together.square().sum((1, 2)) / ((contexts - 1) * (actions - 1))
    return [
        by_context.var(1) - square / (draws * actions),
        by_action.var(1) - square / (draws * contexts),
        (square - within) / draws,
        within,
    ]


def _common_slopes(by_action: Tensor, action: Tensor) -> Slopes:
    """Slopes that all samples have in common: (G, A) mean rewards of the actions, centred in each block."""
    actions = action.shape[1]
    products = (by_action[..., None, None] * action).flatten(0, 1) * (actions / (actions - 1))
    return _slopes(products.flatten(1), action.shape[2:])


def _context_slopes(together: Tensor, action: Tensor) -> Slopes:
    """Slopes that differ between contexts: pairs of actions in one context, less what all contexts have in common."""
    contexts, actions = together.shape[1:]
    products = together[..., None, None] * action[:, None]  # (G, C, A, T, K)
    pairs = (products.sum(2).square() - products.square().sum(2)) / (actions * (actions - 1))
    # Centring took 1 / C of the contexts' variance and about 1 / A of each slope.
    by_block = pairs.mean(1) * contexts / (contexts - 1) * (actions / (actions - 1)) ** 2
    error = by_block.std(0) / math.sqrt(len(by_block))
    by_knob = by_block.mean(0)
    return Slopes(_over_blocks(by_block.sum((1, 2))), by_knob, by_knob / error.clamp_min(1e-12), by_knob.numel())


def _state_slopes(y: Tensor, action: Tensor, statistics: Tensor) -> Slopes:
    """Slopes that differ with the state, which is taken relative to its mean over the context, and over the action.

    A state follows from the actions before it; without its mean over samples of the same actions, what two actions do together
    would be taken for what the state does.
    """
    blocks, contexts, actions, draws, steps = statistics.shape[:5]

    def residual(values: Tensor) -> Tensor:
        """(G, C, A, R, ...) less the means of contexts and of actions."""
        all_ = values.mean((1, 2, 3), keepdim=True)
        return values - values.mean((2, 3), keepdim=True) - values.mean((1, 3), keepdim=True) + all_

    # Both lose their share of the degrees of freedom; the statistics are scaled to variance 1 below.
    freedom = 1 - (contexts + actions - 1) / (contexts * actions * draws)
    own, rest = residual(statistics), residual(y) / math.sqrt(freedom)
    spread = statistics.flatten(0, 4).var(0)
    products, shapes = [], []
    for t in range(steps):
        seen = own[..., t, :].flatten(0, 3)
        seen = seen[:, seen.var(0) > LEAST_SPREAD * spread.clamp_min(1e-12)]
        if seen.shape[1] == 0:
            continue
        # Uncorrelated with variance 1, so that the squares of the slopes add up.
        seen = (seen - seen.mean(0)) / seen.std(0)
        values, vectors = torch.linalg.eigh(seen.T @ seen / len(seen))
        kept = values > LEAST_SPREAD * len(values)
        seen = seen @ vectors[:, kept] / values[kept].sqrt()
        acted = action[:, None, :, None, t].expand(blocks, contexts, actions, draws, -1).flatten(0, 3)
        products.append((rest.flatten()[:, None, None] * acted[:, :, None] * seen[:, None]).flatten(1))
        shapes.append((t, int(kept.sum())))
    knobs = action.shape[3]
    if not products:
        nothing = torch.zeros(steps, knobs, dtype=y.dtype)
        return Slopes(Share(0.0, (0.0, 0.0)), nothing, nothing, 0)
    all_slopes = _slopes(torch.cat(products, 1), None, freedom)
    by_knob, z = torch.zeros(2, steps, knobs, dtype=y.dtype)
    start = 0
    for t, kept_size in shapes:
        stop = start + knobs * kept_size
        part, errors = (x[start:stop].view(knobs, kept_size) for x in (all_slopes.by_knob, all_slopes.z))
        by_knob[t] = part.sum(1)
        z[t] = (errors.square().sum(1) - kept_size) / math.sqrt(2 * kept_size)  # a chi-squared, as standard errors from 0
        start = stop
    return Slopes(all_slopes.share, by_knob, z, all_slopes.count)


def _slopes(products: Tensor, shape: tuple[int, ...] | None, freedom: float = 1.0) -> Slopes:
    """Slopes as means of (n, p) independent products, as shares: b^2 less its squared error.

    Centred rewards spread less than their errors do: by ``freedom``, the share of the degrees of freedom that is left.

    The error of the sum: 4 b' V b + 2 trace(V^2), V the covariance of b (b is normal by the central limit theorem).
    """
    count = len(products)
    slope = products.mean(0)
    covariance = (products - slope).T @ (products - slope) / (count * (count - 1) * freedom)
    error = covariance.diagonal()
    shares = slope.square() - error
    total = float(shares.sum())
    signal = max(float(slope @ covariance @ slope - covariance.square().sum()), 0.0)
    half = NORMAL * math.sqrt(4 * signal + 2 * float(covariance.square().sum()))
    z = slope / error.sqrt().clamp_min(1e-12)
    if shape is not None:
        shares, z = shares.view(shape), z.view(shape)
    return Slopes(Share(total, (total - half, total + half)), shares, z, products.shape[1])


def _over_blocks(values: Tensor) -> Share:
    return Share(float(values.mean()), mean_interval(values.tolist()))


def _sum(a: Share, b: Share) -> Share:
    """The sum of two shares with independent errors."""
    value = a.value + b.value
    below = math.hypot(a.value - a.interval[0], b.value - b.interval[0])
    above = math.hypot(a.interval[1] - a.value, b.interval[1] - b.value)
    return Share(value, (value - below, value + above))
