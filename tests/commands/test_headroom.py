"""``adanat headroom``: right on the control, whose shares are known, and clear where it cannot say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

import adanat_toolkit as adanat
from adanat_toolkit.commands.headroom import FEWEST, Headroom, block_shape, find_headroom, reward_for
from adanat_toolkit.core import Context, Noise, RewardModel
from adanat_toolkit.errors import ConfigError, DataError, PluginError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.storage import RunFolder, load_checkpoint
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import FunctionReward

from ..helpers.cli import adanat as command
from ..helpers.cli import refused, train_arguments
from ..helpers.tiny import TinyGenerator, install_tiny
from ..helpers.train_process import write_images

REWARD = FunctionReward(control_reward)


def measured(control: Control, trajectories: int = 8192, steps: int = 3, seed: int = 0) -> Headroom:
    return find_headroom(
        control, load_policy("fixed", control, steps), REWARD, trajectories=trajectories, batch=1024, seed=seed
    )


@pytest.mark.parametrize("context", [0.1, 0.3])
def test_shares_of_the_control(context: float) -> None:
    control = Control(context=context, shared=0.02, by_context=0.03, by_state=0.04)
    shares, truth = measured(control).shares, control.shares(3)
    assert shares.action_state is not None and shares.state_slope is not None
    pairs = {
        "context": shares.context,
        "action": shares.action,
        "slope": shares.slope.share,
        "action_context": shares.context_slope.share,
        "action_state": shares.action_state,
        "noise": shares.noise,
    }
    for name, share in pairs.items():
        half = (share.interval[1] - share.interval[0]) / 2
        assert abs(share.value - truth[name]) < 1.5 * half, (name, share, truth[name])
    low, high = shares.action_context.interval
    assert low <= truth["action_context"] <= high
    assert shares.variance == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ({"by_context": 0, "by_state": 0}, "shared"),
        ({"by_context": 0.04, "by_state": 0}, "adaptive"),
        ({"by_context": 0, "by_state": 0.03}, "adaptive"),
        ({"shared": 0, "by_context": 0, "by_state": 0}, "nothing"),
    ],
)
def test_verdict(effects: dict[str, float], verdict: str) -> None:
    found = measured(Control(**effects), 16384)
    assert found.verdict.kind == verdict, found
    assert found.verdict.text.split(":")[0].split()[0] == verdict


def test_too_few_to_decide_says_how_many_could() -> None:
    control = Control(shared=0, by_context=0, by_state=0)
    undecided = [one for one in (measured(control, FEWEST, 4, seed) for seed in range(3)) if one.verdict.kind == "undecided"]
    assert undecided
    for found in undecided:
        assert found._to_decide() > FEWEST
        assert f"About {found._to_decide():,} trajectories could" in found.verdict.text
        assert measured(control, 2 * found._to_decide(), 4).verdict.kind == "nothing"


def test_needed_trajectories() -> None:
    control = Control(shared=0.03, by_context=0, by_state=0.03)
    needed, shares = measured(control).needed, control.shares(3)
    exact = 6 * (1 - shares["context"]) / shares["slope"]
    assert needed["shared"]["estimate"] == pytest.approx(exact, rel=0.5)
    assert needed["state"]["estimate"] == pytest.approx(4 * exact, rel=0.5)  # four numbers of the state
    assert needed["context"]["estimate"] is None and (needed["context"]["at_least"] or 0) > 5 * exact


def test_a_seed_gives_the_same_result_in_any_batch() -> None:
    control = Control()
    policy = load_policy("fixed", control, 2)
    first, second = (find_headroom(control, policy, REWARD, trajectories=FEWEST, batch=b) for b in (64, 1024))
    assert first.shares.context.value == pytest.approx(second.shares.context.value, abs=1e-5)
    other = find_headroom(control, policy, REWARD, trajectories=FEWEST, batch=1024, seed=1)
    assert other.shares.context.value != first.shares.context.value


def test_starts_from_a_learned_policy(tmp_path: Path) -> None:
    """At the best shared actions no shared slope is left."""
    control = Control(shared=0.05, by_context=0, by_state=0)
    run = adanat.train(generator=control, reward=control_reward, policy="shared", steps=2, trajectories=16, batch=8,
                       device="cpu", out=tmp_path / "run")  # fmt: skip
    policy = run.policy
    policy.network.forward = lambda features, step: control.law(2).shared[step]  # type: ignore[method-assign]
    found = find_headroom(control, policy, REWARD, trajectories=4096, batch=1024)
    assert abs(found.shares.slope.share.value) < 0.01
    assert measured(control, 4096, 2).shares.slope.share.value > 0.03


def test_starts_from_a_blend() -> None:
    """Around what the blend does, which is neither of its schedules."""
    control = Control()

    def around(spec: str) -> Headroom:
        return find_headroom(control, load_policy(spec, control, 2), REWARD, trajectories=FEWEST, batch=1024)

    blend = around("fixed:knob_0=0.2*0.5+fixed:knob_0=0.8*0.5").to_dict()  # knobs are sigmoids of raw actions
    middle, first = (around(f"fixed:knob_0={value}").to_dict() for value in (0.5, 0.2))
    assert blend["reward_mean"] == pytest.approx(middle["reward_mean"], abs=1e-5)
    assert abs(blend["reward_mean"] - first["reward_mean"]) > 1e-3


def test_frozen_rewards_that_read_real_images() -> None:
    generator = adanat.load_generator("maskgit", device="cpu")
    reward, told = reward_for("fid:1,clip-score:1", None, generator=generator, real=generator.real_images())
    assert told == "fid:1,clip-score:1" and not reward.learns


# --- what is refused, and what is said ------------------------------------------------------------------------------------


def test_too_few_trajectories() -> None:
    with pytest.raises(ConfigError, match=f"1,000 trajectories are too few for an interval: give at least {FEWEST:,}"):
        measured(Control(), 1000)
    blocks, contexts, actions, draws = block_shape(FEWEST)
    assert blocks * contexts * actions * draws == FEWEST


def test_more_slopes_than_trajectories_carry_are_refused_before_images_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise ValueError("images are made")

    control = Control()
    monkeypatch.setattr(control, "reset", made)
    with pytest.raises(ConfigError, match=r"1,024 trajectories are too few.*40 steps.*give at least ([\d,]+)") as caught:
        measured(control, 1024, 40)
    enough = int(str(caught.value).split("at least ")[1].split(" ")[0].replace(",", ""))
    with pytest.raises(ConfigError, match="too few"):
        measured(control, enough - 1, 40)
    with pytest.raises(PluginError, match="images are made"):
        measured(control, enough, 40)


def test_constant_reward() -> None:
    control = Control()
    with pytest.raises(DataError, match=r"'flat': the reward is constant \(0.5 for all"):
        adanat.headroom(control, flat, trajectories=FEWEST, batch=1024)


def flat(images: torch.Tensor, context: object) -> torch.Tensor:
    return torch.full((len(images),), 0.5)


def test_generator_without_statistics_says_what_is_unknown() -> None:
    class Silent(Control):
        statistic_names = ()

    found = measured(Silent(by_context=0, by_state=0))
    assert found.shares.action_state is None
    assert "what the state decides is unknown" in found.verdict.text
    assert ("action x state (slopes)", None) in found.rows
    assert found.to_dict()["shares"]["action_state"] is None


def test_reward_that_learns_needs_a_run() -> None:
    generator = adanat.load_generator("maskgit", device="cpu")
    with pytest.raises(ConfigError, match="give --policy RUN"):
        reward_for("adversarial", None, generator=generator, real=generator.real_images())


def test_published_sampler_is_refused() -> None:
    tiny = TinyGenerator()
    with pytest.raises(ConfigError, match="published sampler"):
        find_headroom(tiny, load_policy("fixed:maskgit", tiny, 2), FunctionReward(lambda i, c: i.mean((1, 2, 3))))


def test_reward_of_a_run_is_as_the_run_left_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    result = command(*train_arguments(write_images(tmp_path / "real"), run))
    assert result.exit_code == 0, result.stderr
    generator = adanat.load_generator("maskgit", device="cpu", dtype="float32")
    reward, told = reward_for(None, str(run), generator=generator, real=generator.real_images())
    assert told == "adversarial of run, iteration 2"
    stored, _ = load_checkpoint(RunFolder(run).checkpoint(2))
    for key, value in reward.state().items():
        assert torch.equal(value, stored[f"reward.{key}"]), key


class Ranks(RewardModel):
    """Judges the set."""

    set_level = True

    def __init__(self) -> None:
        pass

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return images.mean((1, 2, 3)).argsort().argsort().float() / len(images)


@pytest.mark.parametrize(("kind", "contexts"), [("none", 1), ("text", 4)])
def test_any_context_and_rewards_that_judge_the_set(kind: Literal["none", "text"], contexts: int) -> None:
    found = adanat.headroom(TinyGenerator(kind), Ranks(), steps=1, trajectories=FEWEST, batch=512)
    assert found.contexts == contexts
    assert found.shares.mean == pytest.approx(0.5, abs=1e-3)  # ranks of all images, not of a batch's
    assert ("context" in found.needed) == (contexts > 1)
    if contexts == 1:
        low, high = found.shares.context.interval
        assert low < 0.03 and high > -0.03


# --- the command and the page --------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    install_tiny(tmp_path / "site", monkeypatch)
    return ["headroom", "--generator", "tiny", "--reward", "dark", "--steps", "2", "--device", "cpu", "--batch", "512"]


def test_command(tiny: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = command(*tiny, "--trajectories", str(FEWEST), "--json", "--out", out)
    assert result.exit_code == 0, result.stderr
    printed = json.loads(result.stdout)
    assert json.loads((out / "headroom.json").read_text()) == printed
    assert (out / "headroom.png").read_bytes().startswith(b"\x89PNG")
    assert printed["generator"] == "tiny:class" and printed["trajectories"] == FEWEST
    assert printed["verdict"] in ("adaptive", "shared", "nothing", "undecided")
    assert sum(share["share"] for share in printed["shares"].values()) == pytest.approx(1)


def test_tables(tiny: list[str]) -> None:
    result = command(*tiny, "--trajectories", str(FEWEST), "--quiet")
    assert result.exit_code == 0 and result.stderr == ""
    for text in ("action x context", "token_temperature", "by state", "trajectories until the policy gradient"):
        assert text in result.stdout


def test_command_refuses_before_it_works(tiny: list[str]) -> None:
    refused(command(*tiny, "--trajectories", "100"), "too few for an interval", f"{FEWEST:,}")
    with pytest.raises(PluginError, match="unknown reward 'nosuch'"):
        reward_for("nosuch", None, generator=TinyGenerator(), real=None)


def test_page() -> None:
    found = adanat.headroom(Control(), control_reward, steps=2, trajectories=FEWEST, batch=1024)
    page = found._repr_html_()  # type: ignore[attr-defined]
    assert found.verdict.text in page and "knob_1" in page and "step 2" in page


def test_picture(tmp_path: Path) -> None:
    measured(Control(), FEWEST).save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"headroom.json", "headroom.png"}


def test_contexts_are_drawn_by_the_generator() -> None:
    """Of a class generator all classes count, whether they were drawn or not."""
    control = Control(classes=40)
    assert len(control.sample_contexts(Noise(torch.arange(4))).distinct()[0]) < 40
    assert measured(control, FEWEST).contexts == 40
