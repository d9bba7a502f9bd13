"""The positive control: what it says of itself is what is measured on it."""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from adanat_toolkit.core import Noise
from adanat_toolkit.decoding import SamplingPolicy
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.policies import SharedOptions, SharedPolicy, load_policy
from adanat_toolkit.testing import Control, check_generator, control_reward

COUNT = 20_000


def test_contract() -> None:
    check_generator(Control())


def _rewards(control: Control, sigma: float, best: bool = False) -> torch.Tensor:
    """Rewards of COUNT samples under exploration around the schedule, or around the best actions."""
    noise, steps = Noise(torch.arange(COUNT)), 3
    context = control.sample_contexts(noise)
    assert context.classes is not None
    raw = sigma * torch.randn(COUNT, steps, control.options.knobs, generator=torch.Generator().manual_seed(1))
    if best:
        raw = raw + control.best_actions(context.classes, control.states(noise, steps))
    state = control.reset(context, noise, steps)
    for t in range(steps):
        state = control.step(state, raw[:, t].sigmoid(), noise)
    return control_reward(control.decode(state), context)


def test_variance_under_exploration_is_one() -> None:
    control = Control(context=0.2, shared=0.05, by_context=0.04, by_state=0.03)
    assert float(_rewards(control, control.options.sigma).var()) == pytest.approx(1, abs=0.04)
    assert sum(control.shares(3).values()) - control.shares(3)["slope"] == pytest.approx(1)


def test_best_actions_gain_what_is_said() -> None:
    control = Control(context=0.1, shared=0.05, by_context=0.04, by_state=0.03)
    gained = _rewards(control, 0.0, best=True) - _rewards(control, 0.0)  # on the same noise
    assert float(gained.mean()) == pytest.approx(control.possible(3)["adaptive"], rel=0.03)


def test_gain_of_policies() -> None:
    control = Control()
    assert control.gain(load_policy("fixed", control, 3), 64) == pytest.approx(0, abs=1e-6)
    space = control.bind(None, 3)
    network = SharedPolicy(SharedOptions(), space=space, grid=control.grid, feature_dim=control.feature_dim)
    network.forward = lambda features, step: control.law(3).shared[step]  # type: ignore[method-assign]
    gained = control.gain(SamplingPolicy(network, space), 8192)
    assert gained == pytest.approx(control.possible(3)["shared"], rel=0.1)


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="sum to at most 1"):
        Control(context=0.9, shared=0.2)


# --- benchmarks/control.py --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("control_script", Path(__file__).parents[2] / "benchmarks" / "control.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_effects_are_one_share_or_three(script: ModuleType) -> None:
    assert script.sizes_of("0.02") == (0.02,) * 3
    assert script.sizes_of("0.019:0.004:0") == (0.019, 0.004, 0.0)
    for wrong in ("", "x", "0.1:0.1", "-0.1", "0.4", "nan", "0.1:inf:0.1"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"0\.019:0\.004:0\.004"):
            script.sizes_of(wrong)


def test_the_script_gives_each_effect_its_size(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = "--policies shared --effects 0.03:0.02:0.01 --trajectories 32 --batch 16 --readings 1 --set ppo.epochs=1"
    monkeypatch.setattr("sys.argv", ["control.py", *settings.split()])
    threads = torch.get_num_threads()
    try:
        assert script.main() == 0
    finally:
        torch.set_num_threads(threads)
    row = json.loads(capsys.readouterr().out)
    assert row["effects"] == [0.03, 0.02, 0.01] and row["trajectories"] == 32
    assert row["possible_shared"] == pytest.approx(3 / 6, abs=1e-3)
    assert row["possible_context"] == pytest.approx(5 / 6, abs=1e-3)
