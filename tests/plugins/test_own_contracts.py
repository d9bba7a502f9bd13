"""``adanat plugins check`` on every registered plug-in that needs nothing of third parties, through its entry point."""

from __future__ import annotations

from typing import Any

import pytest

from adanat_toolkit.registry import GROUPS, discover
from adanat_toolkit.testing.check import check_plugin

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
