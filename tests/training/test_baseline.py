"""What a context lets expect of a score: learned from earlier iterations, taken off, and never more than it is worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import Trainer, create_trainer, resolve
from adanat_toolkit.training.baseline import ContextBaseline

CPU = torch.device("cpu")


def iterations(share: float, width: int, classes: int, number: int = 40, batch: int = 128) -> list[tuple[Tensor, Tensor]]:
    """Scores of which the context makes ``share``, at another level and scale in each iteration, and the contexts' vectors."""
    draw = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(classes, width, generator=draw), dim=1)
    effect = vectors @ torch.randn(width, generator=draw)
    effect = (effect - effect.mean()) / effect.std()
    out = []
    for i in range(number):
        chosen = torch.randint(classes, (batch,), generator=draw)
        scores = share**0.5 * effect[chosen] + (1 - share) ** 0.5 * torch.randn(batch, generator=draw)
        out.append((0.1 * i + (1 + 0.02 * i) * scores, vectors[chosen]))
    return out


@pytest.mark.parametrize(("share", "width", "classes"), [(0.5, 32, 2000), (0.2, 100, 100)])
def test_what_the_context_decides_is_taken_off(share: float, width: int, classes: int) -> None:
    baseline = ContextBaseline(width, CPU)
    made = iterations(share, width, classes)
    left = [(baseline.take(scores, vectors).var() / scores.var()).item() for scores, vectors in made]
    assert left[0] == 1  # nothing came before
    assert abs(sum(left[-10:]) / 10 - (1 - share)) < 0.06


def test_where_contexts_decide_nothing_nothing_is_taken_off() -> None:
    baseline = ContextBaseline(64, CPU)
    left = [(baseline.take(scores, vectors).var() / scores.var()).item() for scores, vectors in iterations(0, 64, 500)]
    assert 0.98 < sum(left) / len(left) < 1.02


@pytest.mark.parametrize("width", [1, 2, 32])
def test_a_single_context_has_no_baseline(width: int) -> None:
    baseline = ContextBaseline(width, CPU)
    draw = torch.Generator().manual_seed(0)
    vector = torch.nn.functional.normalize(torch.randn(width, generator=draw), dim=0)
    for _ in range(5):
        scores = 100 + torch.randn(64, generator=draw)
        assert torch.equal(baseline.take(scores, vector.expand(64, -1)), scores)


def test_an_image_has_no_part_in_its_own_baseline() -> None:
    first, second = ContextBaseline(8, CPU), ContextBaseline(8, CPU)
    made = iterations(0.5, 8, 50, number=3)
    for scores, vectors in made[:2]:
        first.take(scores, vectors), second.take(scores, vectors)
    scores, vectors = made[2]
    slopes = first.slope(), second.slope()
    other = scores.flip(0)  # the same mean and scale
    torch.testing.assert_close(scores - first.take(scores, vectors), other - second.take(other, vectors))
    assert torch.equal(*slopes) and slopes[0].any()


def trainer(control: Control, **settings: Any) -> Trainer:
    flags = {"steps": 3, "batch": 128, "trajectories": 1024, "device": "cpu", "policy": {"name": "shared"}, **settings}
    return create_trainer(
        resolve(preset="demo", flags=flags, overrides=["ppo.context_baseline=true"]), control, control_reward
    )


def test_training_says_what_was_taken_off() -> None:
    run = trainer(Control(context=0.5), trajectories=128 * 30)
    rows = [run.step() for _ in range(30)]
    explained = [row["ppo/context_explained"] for row in rows]
    assert explained[0] == 0 and 0.4 < sum(explained[10:]) / 20 < 0.6
    assert all(abs(row["ppo/explained_variance"]) < 0.01 for row in rows)  # the critic of ``shared`` sees nothing of it


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    control = Control(context=0.5)
    trainer(control, checkpoint_every=1).run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(control, checkpoint_every=1).run(tmp_path / "broken", on_iteration=stop)
    trainer(control, checkpoint_every=1).run(tmp_path / "broken")
    first, second = (load_policy(tmp_path / name, control).network.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    run = trainer(control)
    state = {name: value for name, value in run.state().items() if name != "baseline.vectors"}
    with pytest.raises(CheckpointError, match=r"baseline\.vectors"):
        run.load_state(state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ppo": {"group": 4}}, "context_baseline = true goes with neither ppo.group"),
        ({"ppo": {"standardise": "returns"}}, "context_baseline = true goes with neither ppo.group"),
        ({"engine": "offline"}, "ppo.context_baseline = True is PPO's and has no meaning for engine 'offline'"),
        ({"engine": "sb3"}, "engine 'sb3' has no ppo.context_baseline"),
    ],
)
def test_what_it_does_not_go_with_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(Control(), **settings)


def test_a_generator_without_contexts_is_refused() -> None:
    flags = {"generator": {"name": "mage"}, "device": "cpu", "dtype": "float32"}
    with pytest.raises(ConfigError, match="mage:emoji64 has no context to expect a score of"):
        create_trainer(resolve(flags=flags, overrides=["ppo.context_baseline=true"]))
