"""The running estimate of the headroom: what a run logs of its own rollouts, on the control."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adanat_toolkit.metrics import batch_shares
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import create_trainer, resolve


def mean_shares(engine: str, iterations: int, group: int = 1) -> tuple[dict[str, float], dict[str, float]]:
    """Means over a run that learns nothing, and the truth."""
    control = Control(context=0.3, shared=0.1, by_context=0, by_state=0)
    flags: dict[str, Any] = {"steps": 2, "batch": 256, "trajectories": 256 * iterations, "device": "cpu", "engine": engine}
    flags |= {"policy": {"name": "shared"}, "ppo": {"learning_rate": 1e-9, "epochs": 1, "sigma_drop": 0.0, "group": group}}
    trainer = create_trainer(resolve(flags=flags), control, control_reward)
    rows = [trainer.step() for _ in range(iterations)]
    names = ("share/context", "share/slope")
    truth = control.shares(2)
    return (
        {name: sum(row[name] for row in rows) / len(rows) for name in names},
        {"share/context": truth["context"], "share/slope": truth["slope"]},
    )


@pytest.mark.parametrize(("engine", "iterations", "group"), [("adanat", 40, 1), ("adanat", 40, 2), ("sb3", 8, 1)])
def test_mean_over_iterations_is_right(engine: str, iterations: int, group: int) -> None:
    found, truth = mean_shares(engine, iterations, group)
    for name, value in truth.items():
        assert found[name] == pytest.approx(value, abs=0.05), name


def test_left_out_where_a_batch_cannot_tell() -> None:
    draw = torch.Generator().manual_seed(0)
    reward, action = torch.randn(16, generator=draw), torch.randn(16, 4, 3, generator=draw)
    assert batch_shares(reward, action, torch.arange(16)) == {}
    assert batch_shares(torch.ones(16), action[:, :1], torch.zeros(16, dtype=torch.int64)) == {}
    assert set(batch_shares(reward, action[:, :1], torch.arange(16) % 4)) == {"context", "slope"}
