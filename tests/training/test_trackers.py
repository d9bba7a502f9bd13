"""Trackers: every row reaches TensorBoard, a resumed run hides what it makes again, a failing tracker stops nothing."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from adanat_plugins.trackers.tensorboard import TensorBoardTracker
from adanat_plugins.trackers.wandb import WandbTracker
from adanat_toolkit import testing
from adanat_toolkit.errors import PluginError
from adanat_toolkit.interfaces import Tracker
from adanat_toolkit.training import RunConfig, Trainer, resolve, validate
from adanat_toolkit.training.trackers import Trackers

from ..helpers.tiny import install_tiny


def settings(**changed: Any) -> RunConfig:
    return validate(
        {"generator": {"name": "tiny"}, "reward": {"name": "dark"}, "steps": 2, "batch": 8, "trajectories": 24}
        | {"device": "cpu", "ppo": {"epochs": 1}, "checkpoint_every": 2}
        | changed
    )


def scalars(run: Path, name: str) -> dict[int, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    found = events.Scalars(name)
    assert len({event.step for event in found}) == len(found), "a step is shown twice"
    return {event.step: event.value for event in found}


@pytest.mark.parametrize("killed_at", [1, 3])  # before the first checkpoint, and after it
def test_tensorboard_has_the_rows_of_an_interrupted_run_once(
    killed_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    install_tiny(tmp_path / "site", monkeypatch)
    run = tmp_path / "run"

    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["iteration"] == killed_at:
            raise Killed

    with pytest.raises(Killed):  # after a row of which no checkpoint was kept
        Trainer(settings(trajectories=32, tracker=("tensorboard",))).run(run, on_iteration=kill)
    assert sorted(scalars(run, "reward/mean")) == [8, 16, 24][:killed_at]
    Trainer(settings(trajectories=32, tracker=("tensorboard",))).run(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("reward/mean", "ppo/clip_fraction", "knob/mask_ratio/0"):
        found = scalars(run, name)
        assert found == pytest.approx({row["trajectories"]: row[name] for row in rows}, rel=1e-5), name
        assert list(found) == [8, 16, 24, 32]


def test_a_resumed_run_may_change_its_trackers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    install_tiny(tmp_path / "site", monkeypatch)
    run = tmp_path / "run"
    Trainer(settings()).run(run)
    assert not (run / "tensorboard").exists()
    config = resolve(flags={"tracker": ["tensorboard"]}, overrides=["ppo.epochs=1"])
    assert config.tracker == ("tensorboard",)
    assert Trainer(settings(tracker=("tensorboard",))).run(run)["iteration"] == 3  # complete: nothing is opened
    assert not (run / "tensorboard").exists()


def test_unknown_trackers_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    with pytest.raises(PluginError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        Trainer(settings(tracker=("tensorbord",)))


def test_the_contract_of_trackers() -> None:
    pytest.importorskip("tensorboard")
    testing.check_tracker(TensorBoardTracker)


@pytest.mark.parametrize(("tracker", "package"), [(TensorBoardTracker, "tensorboard"), (WandbTracker, "wandb")])
def test_a_missing_package_names_the_extra(
    tracker: type[Tracker], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package or name == "torch.utils.tensorboard":
            raise ModuleNotFoundError(f"No module named {package!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PluginError, match=rf"pip install 'adanat-toolkit\[{package}\]'"):
        tracker.create(tmp_path, {})


class Full(Tracker):
    """Its disk is full at the second row."""

    rows = 0

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> Full:
        return cls()

    def log(self, figures: dict[str, float], trajectories: int) -> None:
        self.rows += 1
        if self.rows == 2:
            raise OSError("disk full")


def test_a_failing_tracker_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "full-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[adanat.trackers]\nfull = {__name__}:Full\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    trackers = Trackers(["full"], tmp_path, {})
    trackers.on_iteration({"trajectories": 1, "x": 1.0})
    with pytest.warns(UserWarning, match=r"left out from now on: tracker 'full' failed in log: .*disk full"):
        trackers.on_iteration({"trajectories": 2, "x": 1.0})
    trackers.on_iteration({"trajectories": 3, "x": 1.0})
    assert trackers.open == {}
