"""Shares of a reward's variance: unbiased on rewards whose shares are known, and honest about their errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from adanat_toolkit.errors import DataError
from adanat_toolkit.metrics import VarianceShares, batch_shares, deciles, trajectories_to_move, variance_shares

G, C, A, R, T, K, S = 8, 8, 16, 2, 3, 2, 3
TRUTH = {"context": 0.2, "action": 0.04, "context_slope": 0.03, "state_slope": 0.05}
INTERPLAY = 0.01 * 2 * K
"""Variance of an interplay of two steps, which is one of the actions alone."""
WHOLE = 1 + INTERPLAY


def crossed(seed: int, *, effects: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of variance WHOLE with the variances of TRUTH (the action's is a slope), the actions, and the states.

    A state also follows the square of the action before it, which must not be taken for what the state decides.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, dtype=torch.float64)

    action, own = normal(G, A, T, K), normal(G, C, A, R, T, S)
    before = (action.square().sum(-1) - K).roll(1, 2) * (torch.arange(T) > 0)
    states = own + before[:, None, :, None, :, None]
    size = {name: math.sqrt(share) if effects else 0.0 for name, share in TRUTH.items()}
    reward = math.sqrt(1 - sum(s**2 for s in size.values())) * normal(G, C, A, R)
    reward += size["context"] * normal(G, C, 1, 1)
    reward += size["action"] * action[:, None, :, None, 0, 0]
    reward += size["context_slope"] * torch.einsum("ga,gc->gca", action[:, :, 1, 1], normal(G, C))[..., None]
    reward += size["state_slope"] * action[:, None, :, None, 2, 0] * own[..., 2, 1]
    if effects:
        reward += 0.1 * (action[:, :, 1, 0] * before[:, :, 1])[:, None, :, None]
    return reward, action, states


def found(shares: VarianceShares) -> dict[str, tuple[float, float, float]]:
    assert shares.state_slope is not None
    parts = {
        "context": shares.context,
        "action": shares.slope.share,
        "context_slope": shares.context_slope.share,
        "state_slope": shares.state_slope.share,
    }
    return {name: (part.value, *part.interval) for name, part in parts.items()}


@pytest.mark.parametrize("effects", [True, False])
def test_unbiased_with_intervals_that_hold(effects: bool) -> None:
    runs = [found(variance_shares(*crossed(seed, effects=effects))) for seed in range(40)]
    for name, share in TRUTH.items():
        truth = share / WHOLE if effects else 0.0
        values = torch.tensor([run[name][0] for run in runs])
        allowed = 4 * float(values.std()) / math.sqrt(len(runs))
        assert float(values.mean()) == pytest.approx(truth, abs=allowed), name
        held = sum(run[name][1] <= truth <= run[name][2] for run in runs)
        assert held >= 33, (name, held)  # of 40 at 95 %: below 33 by chance once in 10,000
        assert not any(low <= -1 or high >= 1 for _, low, high in (run[name] for run in runs))


def test_slopes_of_contexts_are_whole_with_few_actions() -> None:
    """As few actions as are allowed: half of the variance is slopes of contexts, and noise grows with the action's size."""
    draw, values = torch.Generator().manual_seed(0), []
    for _ in range(60):
        action = torch.randn(8, 8, 2, 2, generator=draw)
        own = torch.randn(8, 8, 2, 2, generator=draw) / 8**0.5
        noise = torch.randn(8, 8, 8, 2, generator=draw) * action[:, None, :, None, 0, 0].abs() / 2**0.5
        reward = torch.einsum("gctk,gatk->gca", own, action)[..., None] + noise
        values.append(variance_shares(reward, action).context_slope.share.value)
    found = torch.tensor(values)
    assert float(found.mean()) == pytest.approx(0.5, abs=0.04)  # 0.38 where a slope is taken for its own error


def test_shares_sum_to_one_and_name_the_knob() -> None:
    shares = variance_shares(*crossed(3))
    assert shares.action_state is not None and shares.state_slope is not None
    parts = [shares.context, shares.action, shares.action_context, shares.action_state, shares.noise]
    assert sum(part.value for part in parts) == pytest.approx(1)
    for slopes, place in ((shares.slope, (0, 0)), (shares.context_slope, (1, 1)), (shares.state_slope, (2, 0))):
        assert divmod(int(slopes.by_knob.argmax()), K) == place
        assert abs(float(slopes.z[place])) > 3


def test_scale_does_not_matter() -> None:
    reward, action, states = crossed(1)
    plain, scaled = variance_shares(reward, action, states), variance_shares(3 + 1e-3 * reward, action, states)
    assert scaled.variance == pytest.approx(1e-6 * plain.variance)
    for name, values in found(plain).items():
        assert found(scaled)[name] == pytest.approx(values)


def test_without_statistics_the_state_is_unknown() -> None:
    reward, action, _ = crossed(1)
    shares = variance_shares(reward, action)
    assert shares.action_state is None
    assert shares.noise == shares.draws


def test_states_that_say_nothing_count_for_nothing() -> None:
    reward, action, states = crossed(1)
    shares = variance_shares(reward, action, states[:, :, :1, :1].expand_as(states))
    assert shares.state_slope is not None and shares.state_slope.count == 0
    assert shares.state_slope.share.value == 0


@pytest.mark.parametrize(("value", "what"), [(0.3, "constant"), (math.nan, "not finite")])
def test_refused(value: float, what: str) -> None:
    reward, action, _ = crossed(1)
    with pytest.raises(DataError, match=what):
        variance_shares(torch.full_like(reward, value), action)


@pytest.mark.parametrize(("actions", "steps"), [(8, 13), (8, 14), (8, 16), (28, 50), (28, 56)])
def test_more_slopes_than_the_images_carry_are_refused(actions: int, steps: int) -> None:
    """Near the rank the residuals were fitted away, above it there is no solution: no share, and no negative variance."""
    draw = torch.Generator().manual_seed(0)
    action = torch.randn(8, actions, steps, 4, generator=draw)
    with pytest.raises(DataError, match=r"samples cannot carry \d+ slopes"):
        variance_shares(torch.randn(8, 8, actions, 2, generator=draw), action)


def test_one_sample_says_nothing_and_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    for count in (1, 2):
        assert batch_shares(torch.rand(count), torch.randn(count, 2, 2), torch.zeros(count, dtype=torch.int64)) == {}
    assert not recwarn.list


def test_deciles_are_the_quantiles_of_all_steps() -> None:
    values = torch.randn(50, 3, 2)
    expected = torch.quantile(values.double(), torch.tensor([0.1, 0.9], dtype=torch.float64), dim=0)
    assert torch.equal(torch.stack(deciles(values)), expected)


def test_trajectories_to_move_are_where_gradient_equals_noise() -> None:
    slope, draw = torch.tensor([0.1, -0.05, 0.0, 0.02]), torch.Generator().manual_seed(0)
    count = trajectories_to_move(float(slope.square().sum()), len(slope), context=0.2)
    assert count == pytest.approx(4 * 0.8 / 0.0129)
    n, errors = round(count), []
    for _ in range(300):
        action = torch.randn(n, 4, generator=draw)
        reward = action @ slope + math.sqrt(0.8) * torch.randn(n, generator=draw)
        errors.append(((reward[:, None] * action).mean(0) - slope).square().sum())
    assert float(torch.stack(errors).mean()) == pytest.approx(float(slope.square().sum()), rel=0.15)
    assert trajectories_to_move(0.0, 4, 0.2) == math.inf
