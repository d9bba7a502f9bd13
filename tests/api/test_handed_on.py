"""What a function is given reaches all that it calls: the generator that is loaded, and that nothing may be fetched."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import adanat_toolkit as adanat
from adanat_toolkit.errors import DataError
from adanat_toolkit.report import Settings
from adanat_toolkit.testing import Control, control_reward

gather = import_module("adanat_toolkit.report.gather")  # not the function of that name


def test_a_report_is_of_the_generator_of_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError("another generator was loaded")

    monkeypatch.setattr(gather, "open_generator", refused)
    monkeypatch.setattr(gather, "PROBED", 24)
    run = adanat.train(
        generator=Control(), reward=control_reward, policy="shared", steps=2, trajectories=16, batch=16, out=tmp_path / "run"
    )
    assert "<img" in run.report().read_text()


@pytest.mark.parametrize(
    ("settings", "offline"), [(Settings(), True), (Settings(images=16), False), (Settings(images=16, offline=True), True)]
)
def test_a_report_fetches_no_network_that_nobody_asked_for(
    settings: Settings, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def judge(*_: Any, **given: Any) -> Any:
        told.append(given["offline"])
        raise DataError("stop")

    for name in ("choose_features", "create_features", "real_side", "own_contexts"):
        monkeypatch.setattr(gather, name, lambda *_, **__: None)
    monkeypatch.setattr(gather, "evaluate_policies", judge)
    run: Any = SimpleNamespace(name="run", path=Path("run"), config=SimpleNamespace(data=SimpleNamespace(path=None)))
    try:
        gather._judge(Control(), [run], settings, [], lambda what, done, total: None)
    except DataError:
        assert settings.images is not None
    assert told == [offline]


@pytest.mark.parametrize("offline", [True, False])
def test_nothing_is_fetched_offline(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def local_spec(spec: Any, *, offline: bool = False) -> str:
        told.append(offline)
        raise DataError("stop")

    monkeypatch.setattr("adanat_toolkit.policies.local_spec", local_spec)
    monkeypatch.setattr("adanat_toolkit.evaluation.evaluate.local_spec", local_spec)
    for act in (
        lambda: adanat.headroom(Control(), control_reward, policy="owner/name", offline=offline),
        lambda: adanat.load_policy("owner/name", Control(), offline=offline),
    ):
        with pytest.raises(DataError, match="stop"):
            act()
    assert told == [offline, offline]
