"""A critic that reads statistics of the prediction besides what its policy sees: off, it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adanat_toolkit.core import Context
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.policies import StatisticsCritic
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import Trainer, create_trainer, resolve

from ..helpers.tiny import TinyGenerator

STEPS = 3


def trainer(
    policy: str = "shared", on: bool = True, reward: Any = control_reward, generator: Any = None, **flags: Any
) -> Trainer:
    settings = {"steps": STEPS, "batch": 64, "trajectories": 256, "device": "cpu", "policy": {"name": policy}, **flags}
    config = resolve(preset="demo", flags=settings, overrides=[f"ppo.critic_statistics={str(on).lower()}"])
    return create_trainer(config, generator or Control(), reward)


def steady(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if "second" not in key}


def last_state(images: Tensor, context: Context) -> Tensor:
    """What the control's last statistics decide, and nothing else: no action changes it."""
    return images[:, 2].mean((1, 2)).logit()


def test_a_value_depends_on_the_statistics_and_begins_as_its_own() -> None:
    own = nn.Linear(4, 1)
    critic = StatisticsCritic(OnFeatures(own), 5, STEPS)
    features, step, statistics = torch.randn(6, 4), torch.arange(6) % STEPS, torch.randn(6, 1, 5)
    assert torch.equal(critic(features, step, statistics), own(features))
    with torch.no_grad():
        critic.added.head.weight.normal_()
    changed = critic(features, step, statistics + 1) - critic(features, step, statistics)
    assert changed.abs().min() > 1e-4 and torch.equal(own(features), critic.own(features, step))


class OnFeatures(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        return self.layer(features)


@pytest.mark.parametrize("policy", ["shared", "context", "linear", "residual", "adaptive"])
def test_policy_and_own_critic_begin_as_without(policy: str) -> None:
    """The first rollout and its values are the same; what is kept, and what the update moves, is not."""
    runs = [trainer(policy, on) for on in (False, True)]
    without, with_it = (run.state() for run in runs)
    added = {key for key in with_it if key.startswith("critic.added.")}
    assert added and not [key for key in without if "added" in key]
    names = {key: key.replace("critic.", "critic.own.") if key.startswith("critic.") else key for key in without}
    assert {*names.values(), *added} == with_it.keys()
    assert all(torch.equal(value, with_it[names[key]]) for key, value in without.items())
    (plain, _, _), (rich, _, _) = (run._rollout(0.6) for run in runs)
    assert torch.equal(plain.actions, rich.actions) and torch.equal(plain.values, rich.values)
    assert plain.statistics is None and rich.statistics is not None
    assert rich.statistics.shape == (64, STEPS, 1, len(Control().statistic_names))
    rows = [run.step() for run in runs]
    assert rows[0]["reward/mean"] == rows[1]["reward/mean"]
    assert {"statistic/state_0/0", "statistic_spread/state_0/2"} <= rows[1].keys() - rows[0].keys()
    assert runs[1].state()["critic.added.head.weight"].any()  # zero at first


def test_it_explains_what_the_statistics_decide() -> None:
    """The last of three states decides the score, so that a third of the returns' variance can be known."""
    explained = []
    for on in (False, True):
        run = trainer("shared", on, last_state, trajectories=64 * 60, ppo={"learning_rate": 0.01})
        rows = [run.step()["ppo/explained_variance"] for _ in range(60)]
        explained.append(sum(rows[-10:]) / 10)
    assert abs(explained[0]) < 0.03 and 0.2 < explained[1] < 1 / 3


@pytest.mark.parametrize("policy", ["shared", "adaptive"])
def test_a_run_that_goes_on_is_the_same_run(policy: str, tmp_path: Path) -> None:
    generator = TinyGenerator()

    def bright(images: Tensor, context: Context) -> Tensor:
        return images.mean((1, 2, 3))

    def made(on: bool = True) -> Trainer:
        return trainer(policy, on, bright, generator, checkpoint_every=1, steps=2)

    made().run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made().run(tmp_path / "broken", on_iteration=stop)
    last = made()
    last.run(tmp_path / "broken")
    rows = [[steady(row) for row in RunFolder(tmp_path / name).metrics()] for name in ("whole", "broken")]
    assert rows[0] == rows[1] and len(rows[0]) == 4
    whole = made()
    whole.run(tmp_path / "whole")  # complete: its state is loaded
    assert all(torch.equal(value, whole.state()[key]) for key, value in last.state().items())
    with pytest.raises(CheckpointError, match=r"ppo\.critic_statistics: True -> False"):
        made(on=False).run(tmp_path / "whole")


def test_micro_batches_change_nothing() -> None:
    whole, parts = trainer(micro_batch=64), trainer(micro_batch=24)
    rows = [[steady(run.step()) for _ in range(2)] for run in (whole, parts)]
    for own, other in zip(*rows, strict=True):
        assert own == pytest.approx(other, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ("lean", {}, "policy 'lean' sees the statistics, and so does its critic; leave it out"),
        (
            "shared",
            {"engine": "offline"},
            "ppo.critic_statistics = True is PPO's and has no meaning for engine 'offline'",
        ),
        (
            "linear",
            {"engine": "slopes"},
            "ppo.critic_statistics = True is PPO's and has no meaning for engine 'slopes'",
        ),
        ("shared", {"engine": "sb3"}, "engine 'sb3' has no ppo.critic_statistics"),
    ],
)
def test_what_it_does_not_go_with_is_refused(policy: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(policy, **settings)


def test_a_generator_without_statistics_is_refused() -> None:
    class Silent(TinyGenerator):
        statistic_names = ()  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"ppo\.critic_statistics = true: tiny:class gives no statistics"):
        trainer(generator=Silent())
