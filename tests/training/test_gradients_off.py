"""A program that has switched gradients off, as notebooks for inference do, trains all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import adanat_toolkit as adanat
from adanat_toolkit.commands.distill import distill
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import RewardModel
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import create_trainer, validate

from ..helpers.tiny import TinyGenerator

OFF = [torch.no_grad, torch.inference_mode, lambda: torch.set_grad_enabled(False)]


def trained(out: Path, generator: Any = None, engine: str = "adanat") -> dict[str, torch.Tensor]:
    run = adanat.train(
        generator=generator or Control(), reward=control_reward, policy="adaptive", steps=2, trajectories=16, batch=16,
        settings={"engine": engine, "policy": {"options": {"size": "small"}}}, out=out,
    )  # fmt: skip
    return {key: value.clone() for key, value in run.policy.network.state_dict().items()}


@pytest.mark.parametrize("off", OFF)
@pytest.mark.parametrize("engine", ["adanat", "offline", "sb3"])
def test_a_training(off: Callable[[], Any], engine: str, tmp_path: Path, one_thread: None) -> None:
    plain = trained(tmp_path / "plain", engine=engine)
    with off():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        found = trained(tmp_path / "off", Control() if engine == "adanat" else None, engine)  # made inside, too
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert found.keys() == plain.keys() and all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("off", OFF[:2])
def test_a_distilled_decoder(off: Callable[[], Any]) -> None:
    with off():
        generator = adanat.load_generator("maskgit", device="cpu", dtype="float32")
        found = distill(generator, images=32, steps=1, width=4)
    assert found.figures["steps"] == 1


def test_weights_that_can_never_learn_are_refused() -> None:
    generator = TinyGenerator()
    with torch.inference_mode():
        network = torch.nn.Linear(15, 1)

    class Learns(RewardModel):
        name, learns = "mine", True

        def __init__(self) -> None: ...

        def score(self, images: Any, context: Any) -> Any:
            raise NotImplementedError

        def state(self) -> dict[str, torch.Tensor]:
            return dict(network.state_dict())

    config = validate({"generator": {"name": "tiny"}, "policy": {"name": "shared"}, "steps": 2, "batch": 8, "trajectories": 8})
    with pytest.raises(ConfigError, match=r"'mine' learns, and was made inside torch\.inference_mode"):
        create_trainer(config, generator, Learns())
