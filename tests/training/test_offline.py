"""Engine ``offline``: regression to what K sequences of actions a context gained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import Trainer, create_trainer, resolve

STEPS = 3


def trainer(control: Control, policy: str = "shared", **flags: Any) -> Trainer:
    settings = {"steps": STEPS, "batch": 256, "trajectories": 4096, "device": "cpu", "policy": {"name": policy}, **flags}
    ppo = {"learning_rate": 0.01, "sigma_drop": 0.0}
    return create_trainer(
        resolve(preset="demo", flags={"engine": "offline", "ppo": ppo, **settings}), control, control_reward
    )


@pytest.mark.parametrize(("keep", "share"), [("all", 0.8), ("best", 0.4)])
def test_it_finds_what_there_is_to_find(keep: str, share: float) -> None:
    control = Control(shared=0.05, by_context=0, by_state=0)
    run = trainer(control, trajectories=8192, fit={"keep": keep})
    while run.iteration < run.config.iterations:
        row = run.step()
    assert {"fit/loss", "fit/best", "fit/gradient_norm"} <= set(row)
    assert control.gain(run.exported()) > share * control.possible(STEPS)["shared"]


def test_what_a_state_wants_is_learned() -> None:
    control = Control(shared=0, by_context=0, by_state=0.05)
    run = trainer(control, "lean", trajectories=20480)
    while run.iteration < run.config.iterations:
        run.step()
    assert control.gain(run.exported()) > 0.2 * control.possible(STEPS)["adaptive"]


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    control = Control()
    trainer(control, checkpoint_every=1, trajectories=1024, fit={"repeats": 2}).run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    broken = {"checkpoint_every": 1, "trajectories": 1024, "fit": {"repeats": 2}}
    with pytest.raises(KeyboardInterrupt):
        trainer(control, **broken).run(tmp_path / "broken", on_iteration=stop)
    trainer(control, **broken).run(tmp_path / "broken")
    first, second = (load_policy(tmp_path / name, control).network.state_dict() for name in ("whole", "broken"))
    assert first and all(torch.equal(value, second[name]) for name, value in first.items())
    with pytest.raises(CheckpointError, match=r"fit\.repeats"):
        trainer(control, **{**broken, "fit": {"repeats": 1}}).run(tmp_path / "whole")
    assert RunFolder(tmp_path / "whole").config is not None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"batch": 100}, r"batch = 100 must be a multiple of fit.actions x fit.repeats = 8 x 1 = 8"),
        ({"fit": {"actions": 64, "repeats": 128}}, "too small a budget for engine 'offline'.*Use more trajectories"),
        ({"ppo": {"group": 4}}, r"ppo.group = 4 is PPO's and has no meaning for engine 'offline'"),
        ({"ppo": {"target_kl": 0.1}}, "ppo.target_kl"),
    ],
)
def test_what_it_cannot_do_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(Control(), **flags)
