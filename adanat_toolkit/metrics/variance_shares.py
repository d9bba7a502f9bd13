"""How a reward's variance splits into what the context does, the actions, what they do together, and noise.

The data are crossed in blocks: in every block each of C contexts meets each of A random actions, and each such pair is drawn R
times with noise of its own. Blocks share nothing, so every share is estimated in each of them without bias (an estimate may
therefore be below 0) and its interval is Student's over the blocks (over all contexts, of slopes that differ between them).
Slopes are of regressions on actions that were drawn at random, so that their columns are uncorrelated; the share of a slope is
its square less its squared error.

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
        DataError: the reward is constant, or not finite; or there are more slopes than the images can carry.
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
        context=_mean(context),
        action=_mean(common),
        action_context=_mean(both),
        draws=_mean(within),
        slope=_common_slopes(by_action - all_[:, None], action),
        context_slope=_context_slopes(together, action),
        state_slope=None if statistics is None else _state_slopes(y, action, statistics.double()),
    )


def batch_shares(reward: Tensor, action: Tensor, context: Tensor) -> dict[str, float]:
    """Shares of the variance of one batch of training, without bias, so that their mean over iterations is the run's.

    Args:
        reward: (B,). action: (B, T, K), standard normal and independent: the exploration. context: (B,) int64, equal where two
            samples have the same one.

    Returns:
        ``context`` where two samples share one, and ``slope`` (of the actions, common to all) where there are enough samples;
        nothing where the reward does not vary.
    """
    y, x = reward.double().cpu(), action.double().cpu().flatten(1)
    count, out = len(y), dict[str, float]()
    if count < 3:
        return out
    y, variance = y - y.mean(), float(y.var())
    if not variance > 0:
        return out
    _, place, sizes = context.cpu().unique(return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, place, y)
    same = int(sizes.square().sum()) - count
    if 0 < same < count * (count - 1):
        alike = float(sums.square().sum() - y.square().sum()) / same
        others = -float(sums.square().sum()) / (count * count - count - same)
        out["context"] = (alike - others) / variance
    if count >= least_samples(x.shape[1], lost=1):
        out["slope"] = _regress(x - x.mean(0), y / math.sqrt(variance), lost=1)[2]
    return out


def least_samples(slopes: int, *, lost: int) -> int:
    """How many samples carry so many slopes and their errors: half as many again, and what was taken out of them before.

    With fewer the residuals are small because they were fitted, so that squared errors are too small; with no more than there
    are slopes there is no solution.

    Args:
        lost: degrees of freedom that were taken out before.
    """
    return int(1.5 * (slopes + 2)) + lost


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
    centred = (action - action.mean(1, keepdim=True)).flatten(2).flatten(0, 1)
    shares, z, total, half = _regress(centred, by_action.flatten(), lost=len(action))
    shape = action.shape[2:]
    return Slopes(Share(total, (total - half, total + half)), shares.view(shape), z.view(shape), centred.shape[1])


def _context_slopes(together: Tensor, action: Tensor) -> Slopes:
    """Slopes that differ between contexts: of each context their squares, less their squared errors.

    An error is that of a regression on one coordinate (White's, with each residual divided by the root of what the fit leaves
    of it, MacKinnon and White's HC2), so that nothing is found where there is nothing, however noise differs between actions.

    Args:
        together: (G, C, A) mean rewards without the means of contexts and of actions.
    """
    contexts, actions = together.shape[1:]
    scaled = action - action.mean(1, keepdim=True)
    scaled = scaled / scaled.square().mean(1, keepdim=True).sqrt()
    slope = torch.einsum("gca,gatk->gctk", together, scaled) / actions
    rest = together[..., None, None] - slope[:, :, None] * scaled[:, None]
    left = (1 - (1 + scaled.square()) / actions).clamp_min(1e-12)[:, None]
    error = (scaled[:, None] * rest).square().div(left).sum(2) / actions**2
    # The mean over contexts, which is common to all, took 1 / C of their variance, and the mean over actions 1 / A.
    shares = (slope.square() - error).flatten(0, 1) * contexts / (contexts - 1) * actions / (actions - 1)
    by_knob, spread = shares.mean(0), shares.std(0) / math.sqrt(len(shares))
    return Slopes(_mean(shares.sum((1, 2))), by_knob, by_knob / spread.clamp_min(1e-12), by_knob.numel())


def _state_slopes(y: Tensor, action: Tensor, statistics: Tensor) -> Slopes:
    """Slopes that differ with the state, which is taken relative to its mean over the context, and over the action.

    A state follows from the actions before it; without its mean over samples of the same actions, what two actions do together
    would be taken for what the state does.
    """
    _, contexts, actions, draws, steps = statistics.shape[:5]

    def residual(values: Tensor) -> Tensor:
        """(G, C, A, R, ...) less the means of contexts and of actions."""
        all_ = values.mean((1, 2, 3), keepdim=True)
        return values - values.mean((2, 3), keepdim=True) - values.mean((1, 3), keepdim=True) + all_

    own, rest = residual(statistics), residual(y)
    lost = (contexts + actions - 1) / (contexts * actions * draws)  # share of the degrees of freedom
    spread = statistics.flatten(0, 4).var(0)
    columns, sizes, knobs = [], [], action.shape[3]
    for t in range(steps):
        seen = own[..., t, :].flatten(0, 3)
        seen = seen[:, seen.var(0) > LEAST_SPREAD * spread.clamp_min(1e-12)]
        if seen.shape[1] == 0:
            continue
        # Uncorrelated with variance 1 (less what the means took), so that the squares of the slopes add up.
        seen = seen / seen.std(0)
        values, vectors = torch.linalg.eigh(seen.T @ seen / len(seen))
        kept = values > LEAST_SPREAD * len(values)
        seen = (seen @ vectors[:, kept] / values[kept].sqrt() * math.sqrt(1 - lost)).view(*y.shape, -1)
        acted = action[:, None, :, None, t, :, None] * seen[..., None, :]  # (G, C, A, R, K, kept)
        columns.append(residual(acted.flatten(4)).flatten(0, 3))
        sizes.append((t, seen.shape[-1]))
    nothing = torch.zeros(steps, knobs, dtype=y.dtype)
    if not columns:
        return Slopes(Share(0.0, (0.0, 0.0)), nothing, nothing, 0)
    x = torch.cat(columns, 1)
    shares, z, total, half = _regress(x, rest.flatten(), lost=round(lost * len(x)))
    by_knob, by_z, start = nothing.clone(), nothing.clone(), 0
    for t, size in sizes:
        stop = start + knobs * size
        by_knob[t] = shares[start:stop].view(knobs, size).sum(1)
        chi = z[start:stop].view(knobs, size).square().sum(1)
        by_z[t] = (chi - size) / math.sqrt(2 * size)  # a chi-squared, in standard errors from what noise gives
        start = stop
    return Slopes(Share(total, (total - half, total + half)), by_knob, by_z, x.shape[1])


def _regress(x: Tensor, y: Tensor, *, lost: int) -> tuple[Tensor, Tensor, float, float]:
    """Shares of y's variance of the (n, p) columns of x, which are uncorrelated with variance 1 but for chance.

    A share is the coefficient's square less its squared error (White's, which allows noise that differs between samples).

    Args:
        lost: degrees of freedom that were taken out of x and y before.

    Returns:
        (p,) shares and coefficients in standard errors; the sum of the shares and the half-width of its 95 % interval, by the
        variance of b'b for a normal b of covariance V: 4 b' V b + 2 trace(V^2).
    """
    least = least_samples(x.shape[1], lost=lost)
    if len(x) < least:
        raise DataError(
            f"{len(x):,} samples cannot carry {x.shape[1]:,} slopes ({lost:,} degrees of freedom were taken out before): "
            f"at least {least:,} are needed. Make more images, or take fewer steps or knobs."
        )
    inverse = torch.linalg.inv(x.T @ x)
    slope = inverse @ (x.T @ y)
    meat = x * (y - x @ slope)[:, None]
    covariance = inverse @ (meat.T @ meat) @ inverse * (len(x) / (len(x) - x.shape[1] - lost))
    error, square = covariance.diagonal(), float(covariance.square().sum())
    shares = slope.square() - error
    signal = max(float(slope @ covariance @ slope) - square, 0.0)
    z = slope / error.sqrt().clamp_min(1e-12)
    return shares, z, float(shares.sum()), NORMAL * math.sqrt(4 * signal + 2 * square)


def _mean(values: Tensor) -> Share:
    return Share(float(values.mean()), mean_interval(values.tolist()))


def _sum(a: Share, b: Share) -> Share:
    """The sum of two shares with independent errors."""
    value = a.value + b.value
    below = math.hypot(a.value - a.interval[0], b.value - b.interval[0])
    above = math.hypot(a.interval[1] - a.value, b.interval[1] - b.value)
    return Share(value, (value - below, value + above))
