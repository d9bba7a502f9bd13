"""Engine ``slopes``: what contexts want, in closed form, and nothing where they want nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.policies import LinearPolicy, load_policy
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import Trainer, create_trainer, resolve
from adanat_toolkit.training.diversity import context_diversity
from adanat_toolkit.training.slopes import slopes

from ..helpers.tiny import TinyGenerator

STEPS = 3


def trainer(control: Control, policy: str = "linear", **flags: Any) -> Trainer:
    settings = {"steps": STEPS, "batch": 256, "trajectories": 8192, "device": "cpu", "policy": {"name": policy}}
    found = resolve(
        preset="demo",
        flags={"engine": "slopes", "ppo": {"sigma_drop": 0.0}, "fit": {"pull": 0.25}, **settings, **flags},
    )
    return create_trainer(found, control, control_reward)


def trained(control: Control, **flags: Any) -> tuple[Trainer, dict[str, Any]]:
    run, row = trainer(control, **flags), dict[str, Any]()
    while run.iteration < run.config.iterations:
        row = run.step()
    return run, row


def test_it_finds_what_each_context_wants() -> None:
    control = Control(shared=0.02, by_context=0.02, by_state=0)
    run, row = trained(control)
    possible = control.possible(STEPS)
    assert possible["context"] > 1.5 * possible["shared"]
    assert control.gain(run.exported()) > 0.9 * possible["context"] and row["fit/kept"] > 0.6
    assert {"fit/slope", "fit/kept", "fit/most_kept"} <= set(row)


def test_where_contexts_want_nothing_of_their_own_it_stays_shared() -> None:
    control = Control(shared=0.02, by_context=0, by_state=0)
    run, row = trained(control)
    assert control.gain(run.exported()) > 0.95 * control.possible(STEPS)["shared"] and row["fit/kept"] < 0.5


def test_diversity_is_that_of_images_with_noise_of_their_own() -> None:
    """The K images of a group share their noise, and differ in their exploration alone."""
    flags = {"policy": {"name": "linear"}, "fit": {"actions": 8}, "batch": 256, "trajectories": 256, "steps": 2}
    config = resolve(flags={"engine": "slopes", **flags, "device": "cpu"})
    run = create_trainer(config, TinyGenerator(), lambda images, context: images.mean((1, 2, 3)))
    rollout, _, _ = run._rollout(config.ppo.sigma_at(0, 1))
    alone = slice(None, None, 8)
    assert rollout.embedded is not None
    expected = context_diversity(rollout.embedded[alone], rollout.context.select(alone))
    assert expected is not None and run.step()["diversity"] == expected


def test_slopes_of_noiseless_products_are_exact() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = torch.randn(50, 6, generator=draw, dtype=torch.float64) + 2
    seen[:, 5] = seen[:, 4]  # the vectors do not span their space
    table, weight = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in ((3, 2), (6, 3, 2)))
    weight[5] = 0
    products = table + torch.einsum("bp,pta->bta", seen - seen.mean(0), weight)
    count = torch.tensor([50.0, 0.0], dtype=torch.float64)  # as if of so many that nothing is noise
    found, own, kept = slopes(
        count, seen.sum(0), seen.T @ seen, products.sum(0), torch.einsum("bp,bta->pta", seen, products)
    )
    torch.testing.assert_close(found, table)
    torch.testing.assert_close(
        torch.einsum("bp,pta->bta", seen - seen.mean(0), own), products - table, rtol=1e-6, atol=1e-8
    )
    assert torch.equal(kept, torch.ones(3, 2, dtype=torch.float64))


def test_slopes_that_are_noise_are_left_out() -> None:
    draw = torch.Generator().manual_seed(0)
    seen = torch.nn.functional.one_hot(torch.arange(2000) % 20, 20).double()
    products = torch.randn(2000, 4, 10, generator=draw, dtype=torch.float64)
    products[:, 0, 0] += seen[:, :10].sum(1) - 0.5  # one knob at one step does depend on the context
    count = torch.tensor([2000.0, 2000.0], dtype=torch.float64)
    _, own, kept = slopes(
        count, seen.sum(0), seen.T @ seen, products.sum(0), torch.einsum("bp,bta->pta", seen, products)
    )
    assert float(kept[0, 0]) > 0.9 and float(kept.flatten()[1:].mean()) < 0.25
    away = own.square().sum(0).sqrt().flatten()
    assert float(away[0]) > 5 * float(away[1:].mean())


def test_where_there_is_one_context_nothing_of_its_own_is_kept() -> None:
    seen = torch.ones(100, 1, dtype=torch.float64)
    products = torch.randn(100, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    count = torch.tensor([100.0, 100.0], dtype=torch.float64)
    common, own, kept = slopes(
        count, seen.sum(0), seen.T @ seen, products.sum(0), torch.einsum("bp,bta->pta", seen, products)
    )
    torch.testing.assert_close(common, products.mean(0))
    assert not own.any() and not kept.any()


def test_a_run_that_goes_on_is_the_same_run(tmp_path: Path) -> None:
    control, settings = Control(), {"checkpoint_every": 1, "trajectories": 1024}
    trainer(control, **settings).run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer(control, **settings).run(tmp_path / "broken", on_iteration=stop)
    trainer(control, **settings).run(tmp_path / "broken")
    first, second = (load_policy(tmp_path / name, control).network.state_dict() for name in ("whole", "broken"))
    assert first["actor.weight"].any() and all(torch.equal(value, second[name]) for name, value in first.items())
    run = trainer(control, **settings)
    state = {name: value for name, value in run.state().items() if name != "slopes.vectors"}
    with pytest.raises(CheckpointError, match=r"slopes\.vectors"):
        run.load_state(state)


def test_a_linear_policy_may_be_trained_by_ppo_too() -> None:
    control = Control(shared=0.05, by_context=0, by_state=0)
    run, _ = trained(control, engine="adanat", ppo={"learning_rate": 0.01, "sigma_drop": 0.0}, fit={})
    assert isinstance(run.policy, LinearPolicy)
    assert control.gain(run.exported()) > 0.6 * control.possible(STEPS)["shared"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"policy": "adaptive"}, "engine 'slopes' trains the policy 'linear' alone, and policy.name = 'adaptive'"),
        ({"batch": 100}, "batch = 100 must be a multiple of fit.actions = 8"),
        ({"fit": {"repeats": 4}}, "fit.repeats = 4 is of engine 'offline' alone"),
        ({"fit": {"keep": "best"}}, "fit.keep = 'best' is of engine 'offline' alone"),
        ({"ppo": {"group": 4}}, "ppo.group = 4 is PPO's and has no meaning for engine 'slopes'"),
    ],
)
def test_what_it_cannot_do_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer(Control(), **flags)
