"""``adanat plugins check`` on every registered plug-in that needs nothing of third parties, through its entry point."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adanat_toolkit.core import Engine
from adanat_toolkit.registry import GROUPS, discover
from adanat_toolkit.testing import check_engine
from adanat_toolkit.testing.check import check_plugin
from adanat_toolkit.training import create_trainer, resolve

ELSEWHERE = {
    ("generator", "amused"),
    ("generator", "diffusers"),
    ("reward", "imagereward"),
    ("reward", "aesthetic"),
    ("features", "inception-fidelity"),
    ("features", "inception-adanat"),
    ("features", "dinov2"),
    ("features", "clip"),
    ("tracker", "tensorboard"),
    ("tracker", "wandb"),
}
"""Those with third-party weights, packages or services; each has tests of its own with small stand-ins."""
OPTIONS: dict[tuple[str, str], dict[str, Any]] = {
    ("reward", "adversarial"): {"updates": 1, "batch": 16},
    ("reward", "mix"): {"terms": "clip-score:1,fid:influence:-0.3"},
}
REGISTERED = [(kind, plugin.name) for kind in GROUPS for plugin in discover(kind) if not plugin.shadowed]


def test_what_is_left_out_is_registered() -> None:
    assert set(REGISTERED) >= ELSEWHERE


@pytest.mark.parametrize(("kind", "name"), [pair for pair in REGISTERED if pair not in ELSEWHERE])
def test_it_keeps_its_contract(kind: str, name: str) -> None:
    outcomes = check_plugin(name, kind=kind, options=OPTIONS.get((kind, name)))
    assert len(outcomes) > 1
    assert [f"{o.check} {o.error}" for o in outcomes if o.error is not None] == []


class Small(Engine):
    """As the contract says, and no more."""

    def __init__(self, config: Any, generator: Any = None, reward: Any = None, data: Any = None) -> None:
        self.given = config, generator, reward, data

    def plan(self) -> dict[str, Any]:
        return {}

    def run(self, out: Path, *, callbacks: Any = (), on_iteration: Any = None) -> dict[str, Any]:
        return {"run": str(out)}


class Alone(Small):
    def __init__(self, config: Any) -> None:
        super().__init__(config)


class Deaf(Small):
    def run(self, out: Path, *, on_iteration: Any = None) -> dict[str, Any]:  # type: ignore[override]
        return {}


def test_engines_take_what_they_are_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    check_engine(Small)
    monkeypatch.setattr("adanat_toolkit.training.engines.load", lambda kind, name: Small)
    made = create_trainer(resolve(), None, None, "data")
    assert made.given == (resolve(), None, None, "data")  # type: ignore[attr-defined]
    for engine, message in ((Alone, r"Alone\(config, generator, reward, data\)"), (Deaf, "callbacks")):
        with pytest.raises(AssertionError, match=message):
            check_engine(engine)
