"""Our Adam computes what torch's does, and keeps its state under the same names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adanat_toolkit.runtime import Adam, clip_gradients


def network() -> tuple[nn.Module, nn.Parameter]:
    """A few layers, and a parameter that has no gradient in the first steps."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(30, 50), nn.GELU(), nn.LayerNorm(50), nn.Linear(50, 7))
    return layers, nn.Parameter(torch.ones(3))


def test_it_is_torchs() -> None:
    (own, own_late), (other, other_late) = network(), network()
    ours = Adam([*own.parameters(), own_late], lr=1e-3, betas=(0.8, 0.99), eps=1e-5)
    theirs = torch.optim.Adam([*other.parameters(), other_late], lr=1e-3, betas=(0.8, 0.99), eps=1e-5)
    draw = torch.Generator().manual_seed(1)
    for step in range(8):
        x = torch.randn(11, 30, generator=draw)
        for layers, late, adam in ((own, own_late, ours), (other, other_late, theirs)):
            adam.zero_grad()
            (layers(x).square().sum() + (late.square().sum() if step > 3 else 0)).backward()
            for group in adam.param_groups:
                group["lr"] = 1e-3 / (step + 1)
        parameters = [adam.param_groups[0]["params"] for adam in (ours, theirs)]
        limit = 1.0 if step % 2 else float("inf")
        norm = clip_gradients(parameters[0], limit)
        assert torch.equal(norm, nn.utils.clip_grad_norm_(parameters[1], limit))
        for a, b in zip(*parameters, strict=True):
            assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
        ours.step()
        theirs.step()
        assert all(torch.equal(a, b) for a, b in zip(*parameters, strict=True)), step
    states = [adam.state_dict()["state"] for adam in (ours, theirs)]
    assert states[0].keys() == states[1].keys()
    for index, entry in states[0].items():
        assert entry.keys() == states[1][index].keys()
        assert all(torch.equal(entry[key], states[1][index][key]) for key in entry)
    assert len({float(entry["step"]) for entry in states[0].values()}) == 2


def test_a_loaded_state_goes_on() -> None:
    (layers, late), (copy, copied_late) = network(), network()
    ours, other = (Adam([*m.parameters(), p], lr=0.01) for m, p in ((layers, late), (copy, copied_late)))
    for _ in range(2):
        ours.zero_grad()
        layers(torch.ones(2, 30)).sum().backward()
        ours.step()
    saved = ours.state_dict()
    other.load_state_dict({**saved, "state": {i: {k: v.clone() for k, v in e.items()} for i, e in saved["state"].items()}})
    copy.load_state_dict(layers.state_dict())
    for module, adam in ((layers, ours), (copy, other)):
        adam.zero_grad()
        module(torch.ones(2, 30)).square().sum().backward()
        adam.step()
    assert all(torch.equal(a, b) for a, b in zip(layers.parameters(), copy.parameters(), strict=True))


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_its_state_does_not_follow_the_default_dtype(default: torch.dtype) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    own = Adam([parameter], lr=0.1)
    own.step()
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        assert own.state[parameter]["step"].dtype == torch.float32
    finally:
        torch.set_default_dtype(before)
