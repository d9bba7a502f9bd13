"""PPO: densities, returns, advantages, the clipped loss and the update."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.sampling import gaussian_log_prob
from adanat_toolkit.training import PPOConfig, targets
from adanat_toolkit.training.ppo import (
    Batch,
    explained_variance,
    gae,
    ppo_loss,
    ppo_update,
    shrunk_baseline,
)

SIGMA = 0.6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Linear(nn.Module):
    """A policy or critic that reads features (M, 2, 3) and the step."""

    def __init__(self, outputs: int, seed: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * randn(outputs, 7, seed=seed))
        self.rows: list[int] = []

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        self.rows.append(len(step))
        return torch.cat([features.flatten(1), step[:, None].float()], dim=1) @ self.weight.T


def networks() -> tuple[Linear, Linear, torch.optim.Adam]:
    actor, critic = Linear(4, 1), Linear(1, 2)
    return actor, critic, torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=0.01)


def make_batch(size: int = 24, noise: float = SIGMA) -> Batch:
    actor, critic, _ = networks()
    features, step = randn(size, 2, 3, seed=3), torch.arange(size) % 4
    with torch.no_grad():
        mean, value = actor(features, step), critic(features, step)[:, 0]
    actions = mean + noise * randn(size, 4, seed=4)
    log_prob = gaussian_log_prob(actions, mean, SIGMA)
    goal = randn(size, seed=5)
    return Batch(features, step, actions, log_prob, goal, goal - value, torch.arange(size))


def update(batch: Batch, config: PPOConfig, **options: object) -> tuple[dict[str, float], Tensor, Linear]:
    """Figures, all parameters after the update, and the actor."""
    actor, critic, optimiser = networks()
    arguments: dict = {"sigma": SIGMA, "config": config, "total": len(batch.index), "seed": 9, **options}
    figures = ppo_update(actor, critic, optimiser, batch, **arguments)
    return figures, torch.cat([p.detach().flatten() for p in (*actor.parameters(), *critic.parameters())]), actor


# --- densities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.1, 0.6, 2.0])
def test_density_is_torchs(sigma: float) -> None:
    mean, actions = randn(5, 3, 4, seed=1), randn(5, 3, 4, seed=2)
    reference = torch.distributions.Independent(torch.distributions.Normal(mean, sigma), 1)
    assert torch.allclose(gaussian_log_prob(actions, mean, sigma), reference.log_prob(actions), rtol=1e-5, atol=1e-5)
    assert gaussian_log_prob(actions[..., :0], mean[..., :0], sigma).eq(0).all()


# --- returns and advantages -------------------------------------------------------------------------------------------


def test_returns_by_hand() -> None:
    """Where all values are 0 and lambda is 1, the estimates are the returns."""
    rewards = torch.tensor([[4.0, 8.0, 16.0], [0.0, 1.0, 2.0]])
    nothing = torch.zeros(2, 3)
    assert gae(rewards, nothing, 0.5, 1.0).tolist() == [[12.0, 16.0, 16.0], [1.0, 2.0, 2.0]]
    assert gae(rewards, nothing, 1.0, 1.0).tolist() == [[28.0, 24.0, 16.0], [3.0, 3.0, 2.0]]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_is_its_definition(gamma: float, lam: float) -> None:
    rewards, values = randn(3, 5, seed=1).double(), randn(3, 5, seed=2).double()
    literal = torch.zeros_like(values)
    for b in range(3):
        for t in range(5):
            total = 0.0
            for k in range(t, 5):
                following = float(values[b, k + 1]) if k + 1 < 5 else 0.0
                delta = float(rewards[b, k]) + gamma * following - float(values[b, k])
                total += (gamma * lam) ** (k - t) * delta
            literal[b, t] = total
    assert torch.allclose(gae(rewards, values, gamma, lam), literal)


def test_paper_targets() -> None:
    """Returns of all steps and episodes are standardised together, with the unbiased standard deviation."""
    reward, values = torch.tensor([0.2, 0.7, 0.4]), randn(3, 2, seed=7)
    config = PPOConfig.paper().model_copy(update={"gamma": 0.9})
    goal, advantages = targets(reward, values, config)
    returns = [0.9 * r for r in (0.2, 0.7, 0.4)] + [0.2, 0.7, 0.4]
    mean = sum(returns) / 6
    std = math.sqrt(sum((r - mean) ** 2 for r in returns) / 5)
    expected = [(r - mean) / (std + 1e-7) for r in returns]
    assert goal.T.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(advantages, goal - values)


def test_default_targets() -> None:
    reward, values = torch.tensor([0.2, 0.7, 0.4, 0.5]), randn(4, 3, seed=7)
    goal, advantages = targets(reward, values, PPOConfig())
    expected = (reward - reward.mean()) / reward.std()
    assert torch.allclose(goal, expected[:, None].expand(-1, 3), atol=1e-5)
    assert torch.allclose(advantages, goal - values, atol=1e-6)
    discounted, _ = targets(reward, values, PPOConfig(gamma=0.5))
    assert torch.allclose(discounted, expected[:, None] * torch.tensor([0.25, 0.5, 1.0]), atol=1e-5)
    bootstrapped, advantages = targets(reward, values, PPOConfig(gae_lambda=0.0))
    assert torch.allclose(advantages[:, 0], values[:, 1] - values[:, 0], atol=1e-6)
    assert torch.allclose(bootstrapped[:, 0], values[:, 1], atol=1e-6)


def test_equal_rewards_give_finite_targets() -> None:
    for config in (PPOConfig(), PPOConfig.paper(), PPOConfig(group=2)):
        goal, advantages = targets(torch.full((4,), 0.3), torch.zeros(4, 2), config)
        assert torch.isfinite(advantages).all() and float(goal.abs().max()) < 1


def test_group_centring() -> None:
    """What a group's common context and noise add to the reward cancels, whatever it is."""
    reward, values = torch.tensor([0.1, 0.3, 0.8, 0.6, 0.5, 0.5]), torch.zeros(6, 2)
    config = PPOConfig(group=2)
    goal, advantages = targets(reward, values, config)
    shifted, _ = targets(reward + torch.tensor([5.0, 5.0, -3.0, -3.0, 0.0, 0.0]), values, config)
    assert torch.allclose(goal, shifted, atol=1e-4)
    assert torch.allclose(advantages.view(3, 2, 2).sum(1), torch.zeros(3, 2), atol=1e-6)
    centred = torch.tensor([-0.1, 0.1, 0.1, -0.1, 0.0, 0.0])
    assert torch.allclose(goal[:, 0], centred / centred.std(), atol=1e-4)


def test_shrunk_baseline_by_hand() -> None:
    reward = torch.tensor([0.1, 0.4, 0.2, 0.8, 0.6, 0.5, 0.9, 0.5, 0.3, 0.2, 0.0, 0.1])
    found = shrunk_baseline(reward, 3).view(4, 3)
    groups = reward.view(4, 3).double()
    for i in range(4):
        rest = torch.cat([groups[:i], groups[i + 1 :]])
        noise = float(rest.var(1).mean())
        between = max(0.0, float(rest.mean(1).var()) - noise / 3)
        shrink = (noise / 2) / (noise / 2 + between)
        for j in range(3):
            inside = float(groups[i].sum() - groups[i, j]) / 2
            assert float(found[i, j]) == pytest.approx((1 - shrink) * inside + shrink * float(rest.mean()), abs=1e-5)


def test_a_shrunk_baseline_does_not_depend_on_its_own_reward() -> None:
    reward = randn(24, seed=3)
    baseline = shrunk_baseline(reward, 2)
    for i in (0, 7, 23):
        changed = reward.clone()
        changed[i] += 5
        moved = shrunk_baseline(changed, 2)
        assert float(moved[i]) == pytest.approx(float(baseline[i]), abs=1e-5)
        assert float((moved - baseline).abs().max()) > 0.1
    two = reward[:4].view(2, 2).flip(1).flatten()  # from two groups alone nothing can be told
    assert torch.allclose(shrunk_baseline(reward[:4], 2), two, atol=1e-6)
    assert torch.isfinite(shrunk_baseline(torch.full((8,), 0.3), 2)).all()
    shifted = shrunk_baseline(reward.double() + 1e6, 2) - 1e6
    assert torch.allclose(shifted.float(), baseline, atol=1e-3)


@pytest.mark.parametrize("spread", [0.0, 0.4, 3.0])
def test_the_shrunk_baseline_is_never_the_noisier_one(spread: float) -> None:
    """Variance of the advantage, against the mean of the other trajectories of a group and the mean of all."""
    level = spread * randn(4000, 1, seed=1)
    reward = (level + randn(4000, 2, seed=2)).flatten()
    shrunk = float((reward - shrunk_baseline(reward, 2)).var())
    group = float((reward - reward.view(-1, 2).flip(1).flatten()).var())
    whole = float(reward.var())
    assert shrunk <= 1.01 * min(group, whole)
    if spread == 0.4:
        assert shrunk < 0.6 * group and shrunk < 0.99 * whole


@pytest.mark.parametrize(
    "config",
    [PPOConfig(), PPOConfig(group=4), PPOConfig(group=4, group_baseline="shrunk"), PPOConfig.paper()],
    ids=["reward", "group", "shrunk", "paper"],
)
def test_advantages_do_not_depend_on_the_unit_of_the_reward(config: PPOConfig) -> None:
    reward = torch.randn(64, generator=torch.Generator().manual_seed(2))
    values = torch.zeros(64, 2)
    expected = targets(reward, values, config)[1]
    for unit in (1e-3, 1e-6, 1e-8, 1e-12, 1e6):
        torch.testing.assert_close(targets(reward * unit, values, config)[1], expected, rtol=2e-3, atol=1e-4)
    # What is nothing but rounding at the scores' own size is no spread.
    for level in (0.0, 1e-6, 0.3, 3.0):
        equal = torch.full((64,), level)
        equal[::2] *= 1 + 2**-23
        found = targets(equal, values, config)[1]
        assert found.isfinite().all() and found[:, -1].std() < 0.75


def test_the_shrunk_baseline_is_an_option_of_groups() -> None:
    reward, values = randn(12, seed=5), torch.zeros(12, 2)
    goal, _ = targets(reward, values, PPOConfig(group=2, group_baseline="shrunk"))
    centred = reward - shrunk_baseline(reward, 2)
    assert torch.allclose(goal[:, 0], (centred - centred.mean()) / centred.std(), atol=1e-4)
    with pytest.raises(ValidationError, match=r"needs groups; set ppo\.group to 2 or more"):
        PPOConfig(group_baseline="shrunk")


def test_explained_variance() -> None:
    returns = randn(50, seed=1)
    assert explained_variance(returns, returns) == pytest.approx(1)
    assert explained_variance(torch.zeros(50), returns) == pytest.approx(0, abs=1e-5)
    assert explained_variance(-returns, returns) == pytest.approx(-3, abs=1e-4)
    assert math.isnan(explained_variance(returns, torch.ones(50)))


# --- loss -------------------------------------------------------------------------------------------------------------


def test_loss_by_hand() -> None:
    """Three states whose ratios are inside, above and below the clip, with advantages of either sign."""
    ratios, advantages = torch.tensor([1.1, 1.5, 0.5, 1.5, 0.5]), torch.tensor([2.0, 1.0, 1.0, -1.0, -1.0])
    mean = torch.zeros(5, 1, requires_grad=True)
    actions = torch.full((5, 1), 0.3)
    new = gaussian_log_prob(actions, torch.zeros(5, 1), SIGMA)
    value = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], requires_grad=True)
    batch = Batch(None, torch.zeros(5), actions, new - ratios.log(), torch.zeros(5), advantages, torch.arange(5))
    loss, figures = ppo_loss(mean, value, batch, SIGMA, PPOConfig(), 5)
    chosen = [1.1 * 2, 1.2 * 1, 0.5 * 1, -1.5, -0.8]
    assert float(figures["policy_loss"]) == pytest.approx(-sum(chosen) / 5, rel=1e-5)
    assert float(figures["value_loss"]) == pytest.approx(1 / 5)
    assert float(loss.detach()) == pytest.approx(-sum(chosen) / 5 + 0.5 / 5, rel=1e-5)
    assert float(figures["clip_fraction"]) == pytest.approx(4 / 5)
    kl = [(r - 1) - math.log(r) for r in ratios.tolist()]
    assert float(figures["approx_kl"]) == pytest.approx(sum(kl) / 5, rel=1e-4)
    loss.backward()
    assert mean.grad is not None
    # Where the clip is active in the direction of improvement, nothing pulls any more.
    assert [bool(g) for g in mean.grad[:, 0] != 0] == [True, False, True, True, False]


def test_first_epoch_is_the_policy_gradient() -> None:
    batch = make_batch()
    actor, critic, _ = networks()
    loss, figures = ppo_loss(
        actor(batch.features, batch.step), critic(batch.features, batch.step)[:, 0], batch, SIGMA, PPOConfig(), 24
    )
    loss.backward()
    own = actor.weight.grad
    actor.weight.grad = None
    reference = torch.distributions.Normal(actor(batch.features, batch.step), SIGMA).log_prob(batch.actions).sum(1)
    (-(reference * batch.advantages).mean()).backward()
    assert torch.allclose(own, actor.weight.grad, atol=1e-5)
    assert float(figures["clip_fraction"]) == 0 and float(figures["approx_kl"]) == pytest.approx(0, abs=1e-6)


# --- update -----------------------------------------------------------------------------------------------------------


def test_paper_update_is_the_literal_loop() -> None:
    batch, config = make_batch(), PPOConfig.paper().model_copy(update={"learning_rate": 0.01})
    figures, own, _ = update(batch, config)
    actor, critic, optimiser = networks()
    for _ in range(5):
        log_prob = torch.distributions.Normal(actor(batch.features, batch.step), SIGMA).log_prob(batch.actions).sum(1)
        ratio = (log_prob - batch.log_prob).exp()
        surrogate = torch.min(ratio * batch.advantages, ratio.clamp(0.8, 1.2) * batch.advantages)
        value = critic(batch.features, batch.step)[:, 0]
        loss = -surrogate.mean() + 0.5 * nn.functional.mse_loss(value, batch.targets)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    expected = torch.cat([p.detach().flatten() for p in (*actor.parameters(), *critic.parameters())])
    assert torch.allclose(own, expected, atol=1e-6)
    assert figures["epochs"] == 5


def test_minibatches_cover_every_state_once_an_epoch() -> None:
    batch = make_batch(23)
    steps: list[int] = []
    config = PPOConfig(epochs=3, minibatches=4)
    _, first, actor = update(batch, config, on_step=lambda: steps.append(1))
    assert len(steps) == 12
    assert [sum(actor.rows[i : i + 4]) for i in (0, 4, 8)] == [23, 23, 23]
    assert max(actor.rows) - min(actor.rows) <= 1
    assert torch.equal(update(batch, config)[1], first)
    assert not torch.allclose(update(batch, config, seed=10)[1], first, atol=1e-4)  # other mini-batches


def test_states_may_come_in_any_order() -> None:
    """``index`` decides the mini-batch: this is what makes many processes compute what one computes."""
    batch, config = make_batch(), PPOConfig(epochs=2, minibatches=3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(update(batch, config)[1], update(batch.select(order), config)[1], atol=1e-5)


@pytest.mark.parametrize("micro_batch", [1, 5, 24, 100])
def test_micro_batches_add_up(micro_batch: int) -> None:
    batch, config = make_batch(), PPOConfig(epochs=2, minibatches=2, max_gradient_norm=0.5)
    whole, expected, _ = update(batch, config)
    figures, own, actor = update(batch, config, micro_batch=micro_batch)
    assert max(actor.rows) <= micro_batch
    assert torch.allclose(own, expected, atol=2e-5)
    assert figures == pytest.approx(whole, rel=1e-3, abs=1e-5)


def test_more_minibatches_than_states() -> None:
    figures, own, _ = update(make_batch(3), PPOConfig(epochs=1, minibatches=8))
    assert torch.isfinite(own).all() and all(math.isfinite(v) for v in figures.values())


@pytest.mark.parametrize("limit", [0.25, None])
def test_gradient_clipping(limit: float | None) -> None:
    batch = make_batch()
    batch.targets *= 1000
    norms: list[float] = []
    actor, critic, optimiser = networks()
    parameters = [*actor.parameters(), *critic.parameters()]

    def record() -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()))

    config = PPOConfig(max_gradient_norm=limit, epochs=1, minibatches=1)
    figures = ppo_update(actor, critic, optimiser, batch, sigma=SIGMA, config=config, total=24, seed=0, on_step=record)
    assert figures["gradient_norm"] > 10  # logged before it is clipped
    assert norms[0] == pytest.approx(limit or figures["gradient_norm"], rel=1e-4)


def test_target_kl_stops_the_epochs() -> None:
    batch = make_batch()
    free = PPOConfig(epochs=12, minibatches=1)
    assert update(batch, free)[0]["epochs"] == 12
    stopped, _, _ = update(batch, free.model_copy(update={"target_kl": 1e-3}))
    assert stopped["epochs"] == 2  # the first epoch starts at a divergence of zero
    assert 2 * stopped["approx_kl"] > 1e-3
    assert update(batch, free.model_copy(update={"target_kl": 1e3}))[0]["epochs"] == 12


def test_normalised_advantages() -> None:
    batch, config = make_batch(), PPOConfig(epochs=1, normalise_advantages=True)
    scaled = copy.copy(batch)
    scaled.advantages = 7 * batch.advantages + 3
    assert torch.allclose(update(batch, config)[1], update(scaled, config)[1], atol=1e-4)
    assert torch.equal(batch.advantages, make_batch().advantages)  # the caller's are left alone


def test_update_improves_the_objective() -> None:
    batch = make_batch()
    batch.advantages = -((batch.actions - 1.0) ** 2).sum(1)  # best action: all ones
    batch.advantages -= batch.advantages.mean()
    actor, critic, optimiser = networks()
    before = float((actor(batch.features, batch.step).detach() - 1).square().mean())
    ppo_update(actor, critic, optimiser, batch, sigma=SIGMA, config=PPOConfig(epochs=10), total=24, seed=0)
    assert float((actor(batch.features, batch.step).detach() - 1).square().mean()) < before


# --- configuration ----------------------------------------------------------------------------------------------------


def test_paper_configuration() -> None:
    paper = PPOConfig.paper()
    assert (paper.learning_rate, paper.clip, paper.gamma, paper.epochs, paper.minibatches) == (1e-5, 0.2, 1.0, 5, 1)
    assert (paper.value_coefficient, paper.max_gradient_norm, paper.target_kl) == (0.5, None, None)
    assert not paper.normalise_advantages and paper.standardise == "returns" and paper.learning_rate_decay == "none"


def test_sigma_schedule() -> None:
    config = PPOConfig(sigma=0.6, sigma_drop=0.3, sigma_drop_at=(0.6,))
    assert [config.sigma_at(i, 10) for i in range(10)] == [0.6] * 7 + [0.3] * 3
    absolute = PPOConfig(sigma_drop_at=(2, 4, 5), sigma_drop=0.2, sigma_floor=0.15)
    assert [absolute.sigma_at(i, 99) for i in range(8)] == pytest.approx([0.6, 0.6, 0.6, 0.4, 0.4, 0.2, 0.15, 0.15])
    low = PPOConfig(sigma=0.05)  # below the floor from the start: drops leave it there
    assert {low.sigma_at(i, 10) for i in range(10)} == {0.05}


def test_learning_rate_schedule() -> None:
    assert PPOConfig(learning_rate=0.1).learning_rate_at(7, 8) == 0.1
    linear = PPOConfig(learning_rate=0.1, learning_rate_decay="linear")
    assert [linear.learning_rate_at(i, 4) for i in range(4)] == pytest.approx([0.1, 0.075, 0.05, 0.025])


def test_contradictions_are_refused() -> None:
    from adanat_toolkit.training import resolve

    for key in ("ppo.group=2", "ppo.gae_lambda=0.9"):
        with pytest.raises(ConfigError, match=r"standardise.*set standardise = 'reward'"):
            resolve(overrides=["ppo.standardise=returns", key, "batch=8"])
