"""Policy ``residual``: its contract, its learning rate of its own, its penalty, and what it learns on the control."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adanat_toolkit import testing
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.policies import ResidualOptions, ResidualPolicy, load_policy
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import PPOConfig, create_trainer, resolve
from adanat_toolkit.training.config import RunConfig, merge
from adanat_toolkit.training.ppo import Batch, descend

BASE: dict[str, Any] = {
    "steps": 4,
    "batch": 256,
    "trajectories": 16384,
    "device": "cpu",
    "dtype": "float32",
    "ppo": {"sigma_drop": 0.0, "learning_rate": 5e-3},
    "policy": {"name": "residual", "average": 0.9},
}


def config(**more: Any) -> RunConfig:
    return resolve(flags=merge(BASE, more))


@pytest.mark.parametrize("engine", ["adanat", "offline"])
def test_it_learns_more_than_any_shared_policy_can(engine: str, tmp_path: Path) -> None:
    control = Control(shared=0.04, by_context=0.04, by_state=0.04)
    trainer = create_trainer(config(engine=engine), control, control_reward)
    trainer.run(tmp_path)
    possible = control.possible(4)
    assert possible["shared"] < 0.4 * possible["adaptive"]
    assert control.gain(trainer.exported(), 2048) > 0.7 * possible["adaptive"]
    loaded = load_policy(tmp_path, control)
    assert loaded.card["kind"] == "residual" and loaded.card["training"]["engine"] == engine
    ours = next(sample(control, trainer.exported(), seed_range(0, 6)))
    theirs = next(sample(control, loaded, seed_range(0, 6)))
    assert torch.equal(ours.knobs, theirs.knobs) and ours.knobs.std(0).max() > 1e-4


def test_contract_of_the_residual_policy() -> None:
    testing.check_policy(ResidualPolicy)


def test_rate_is_the_learning_rate_of_the_residual_alone() -> None:
    """Adam's first step has the size of the learning rate, whatever the gradient."""
    control = Control()
    moved = {}
    for rate in (0.1, 1.0):
        trainer = create_trainer(
            config(policy={"options": {"rate": rate}}, ppo={"epochs": 1, "minibatches": 1}), control, control_reward
        )
        trainer.step()
        actor = trainer.policy.actor
        assert isinstance(actor, nn.Module)
        moved[rate] = float(actor.last().detach().abs().median()), float(actor.table.weight.detach().abs().median())  # type: ignore[operator]
    assert moved[0.1] == pytest.approx((5e-4, 5e-3), rel=0.02)
    assert moved[1.0] == pytest.approx((5e-3, 5e-3), rel=0.02)


def test_the_penalty_is_counted_once_however_states_are_split() -> None:
    control = Control()
    options = ResidualOptions(penalty=0.5)
    policy = ResidualPolicy(options, space=control.bind(None, 2), grid=(2, 2), feature_dim=control.feature_dim)
    nn.init.constant_(policy.actor.head.weight, 2.0)
    free = ResidualPolicy(ResidualOptions(), space=control.bind(None, 2), grid=(2, 2), feature_dim=control.feature_dim)
    assert policy.penalty() is not None and free.penalty() is None
    found = []
    for size in (12, 5):
        gradients: list[Tensor] = []
        optimiser = torch.optim.SGD(policy.parameters(), lr=0.0)

        def record(gradients: list[Tensor] = gradients) -> None:
            assert policy.actor.head.weight.grad is not None
            gradients.append(policy.actor.head.weight.grad.clone())

        nothing = torch.zeros(12)
        batch = Batch(None, nothing.long(), nothing[:, None], nothing, nothing, nothing, torch.arange(12))
        descend(
            optimiser,
            batch,
            lambda own, count: (own.targets.sum(), {"loss": own.targets.sum()}),
            PPOConfig(epochs=1, minibatches=1, max_gradient_norm=None),
            total=12,
            seed=0,
            micro_batch=size,
            on_step=record,
            penalty=policy.penalty,
        )
        found.append(gradients[0])
    # penalty x (rate x w)^2 -> 2 x penalty x rate^2 x w
    assert torch.allclose(found[0], torch.full_like(found[0], 2 * 0.5 * 0.3**2 * 2.0)) and torch.allclose(*found)


def test_a_penalty_makes_the_residual_small_and_leaves_the_table() -> None:
    sizes = {}
    for penalty in (0.0, 1.0):
        trainer = create_trainer(
            config(trajectories=4096, engine="adanat", policy={"options": {"penalty": penalty}}),
            Control(),
            control_reward,
        )
        for _ in range(16):
            trainer.step()
        actor = trainer.policy.actor
        assert isinstance(actor, nn.Module)
        sizes[penalty] = float(actor.last().detach().square().sum()), float(actor.table.weight.detach().square().sum())  # type: ignore[operator]
    assert sizes[1.0][0] < 0.2 * sizes[0.0][0] and sizes[1.0][1] > 0.5 * sizes[0.0][1]


def test_a_penalty_is_refused_by_the_engine_that_has_no_place_for_it() -> None:
    with pytest.raises(ConfigError, match="adds a penalty to the loss, which engine 'sb3' has no place for"):
        create_trainer(config(engine="sb3", policy={"options": {"penalty": 0.1}}), Control(), control_reward)
