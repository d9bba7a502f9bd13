"""What rewards may return, and numbers that are not finite: a run stops before it learns from them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.core import Context, RewardModel
from adanat_toolkit.errors import AdaNATError, ConfigError, NotFiniteError, PluginError
from adanat_toolkit.registry.mixture import MixReward
from adanat_toolkit.runtime import MicroBatch, environment
from adanat_toolkit.sampling import checked_scores, embed
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.storage.files import load_tensors
from adanat_toolkit.testing.rewards import RewardCase, reward_scores
from adanat_toolkit.training import Trainer, create_trainer, merge, validate
from adanat_toolkit.training.scoring import score

from ..helpers import tiny as plugins
from ..helpers.tiny import TinyGenerator, install_tiny
from ..helpers.train_process import write_images


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    install_tiny(tmp_path / "site", monkeypatch)
    return {
        "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 2,
        "trajectories": 32, "batch": 8, "checkpoint_every": 1, "keep_checkpoints": 1, "device": "cpu",
    }  # fmt: skip


def scores_from(monkeypatch: pytest.MonkeyPatch, call: int, change: Callable[[torch.Tensor], Any]) -> None:
    """The reward's ``call``-th answer (from 1) is changed."""
    score, calls = plugins.Dark.score, iter(range(1, 100))

    def changed(self: Any, images: Any, context: Any) -> Any:
        found = score(self, images, context)
        return change(found) if next(calls) == call else found

    monkeypatch.setattr(plugins.Dark, "score", changed)


def one_bad(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda scores: torch.cat([scores[1:], scores.new_tensor([value])])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_a_score_that_is_not_finite_stops_the_run(
    engine: str, value: float, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_from(monkeypatch, 3, one_bad(value))
    trainer = create_trainer(validate(merge(tiny, {"engine": engine})))
    with pytest.raises(NotFiniteError, match=r"iteration 3: 1 of 8 scores of reward 'dark' are not finite"):
        trainer.run(tmp_path / "run")
    assert RunFolder(tmp_path / "run").checkpoints() == [2]
    state, _ = load_tensors(RunFolder(tmp_path / "run").checkpoint(2), "state")
    assert all(torch.equal(trainer.state()[key], value) for key, value in state.items()), "it was updated"


@pytest.mark.parametrize("engine", ["adanat", "sb3", "offline", "slopes"])
def test_scores_too_large_for_their_spread_are_named(
    engine: str, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their squares are infinite in float32: it is not the learning rate's fault."""
    policy = {"name": "linear"} if engine == "slopes" else {"name": "shared"}
    fit = {"actions": 2} if engine in ("offline", "slopes") else {}
    settings = validate(merge(tiny, {"engine": engine, "policy": policy, "fit": fit}))
    for large, fits in ((3e38, False), (9e17, True)):
        with monkeypatch.context() as patch:
            scores_from(patch, 2, lambda scores, large=large: torch.where(scores > scores.mean(), large, -large))
            trainer = create_trainer(settings)
            trainer.step()
            if fits:
                trainer.step()
                continue
            with pytest.raises(NotFiniteError, match=r"iteration 2: the scores of reward 'dark' are as large as 3e\+38"):
                trainer.step()


def test_a_term_that_is_not_finite_is_named(tiny: dict[str, Any], tmp_path: Path) -> None:
    """Standardised, one NaN of a term makes all scores of the mixture NaN."""
    bad = Answers(lambda images: one_bad(math.nan)(images.mean((1, 2, 3))))
    mixture = MixReward({"good": Answers(lambda images: images.mean((1, 2, 3))), "bad": bad}, {"good": 1.0, "bad": 0.1})
    with pytest.raises(NotFiniteError, match=r"iteration 1: 1 of 8 values of the term 'bad' of reward 'MixReward'"):
        create_trainer(validate(tiny), reward=mixture).step()


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_a_learning_rate_beyond_all_bounds_stops_the_run(engine: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(NotFiniteError, match="not finite"):
        create_trainer(validate(merge(tiny, {"engine": engine, "ppo": {"learning_rate": 1e30}}))).run(tmp_path / "run")
    for saved in RunFolder(tmp_path / "run").checkpoints():
        state, _ = load_tensors(RunFolder(tmp_path / "run").checkpoint(saved), "state")
        assert all(value.isfinite().all() for value in state.values())


def adversarial(tmp_path: Path) -> dict[str, Any]:
    return {
        "generator": {"name": "maskgit"}, "data": {"path": str(write_images(tmp_path / "images"))}, "batch": 4,
        "trajectories": 12, "reward": {"name": "adversarial", "options": {"batch": 4, "replay": 4}},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("engine", "part", "value"),
    [
        *(("adanat", part, value) for part in ("policy", "critic", "discriminator") for value in (math.nan, 1e38)),
        *(("offline", part, math.nan) for part in ("policy", "discriminator")), ("sb3", "policy", math.nan),
    ],
)  # fmt: skip
def test_a_gradient_that_is_not_finite_undoes_the_iteration(
    engine: str, part: str, value: float, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Who catches the error holds the run as it was, and the same trainer goes on from there as if nothing had been."""
    settings = merge(tiny, {"engine": engine, "fit": {"actions": 2, "repeats": 2} if engine == "offline" else {}})
    if part == "discriminator":
        settings = merge(settings, adversarial(tmp_path))
    trainer, other = (create_trainer(validate(settings)) for _ in range(2))
    assert isinstance(trainer, Trainer) and isinstance(other, Trainer)
    trainer.step(), other.step()
    expected = {key: tensor.clone() for key, tensor in trainer.state().items()}
    module = {"policy": trainer.policy, "critic": trainer.critic}.get(part) or trainer.reward.discriminator  # type: ignore[attr-defined]
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    hooks = [weight.register_hook(lambda gradient: torch.full_like(gradient, value)) for weight in weights[:1]]
    with pytest.raises(NotFiniteError, match=r"not finite.*run was stopped"):
        trainer.step()
    assert trainer.iteration == 1
    assert trainer.state().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trainer.state().items())
    for hook in hooks:
        hook.remove()
    rows = trainer.step(), other.step()
    assert {key for key in rows[0] if not key.startswith(("seconds", "trajectories_per"))} <= rows[1].keys()
    assert all(torch.equal(tensor, other.state()[key]) for key, tensor in trainer.state().items())


def test_an_iteration_that_is_interrupted_is_undone(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(validate(tiny))
    trainer.step()
    expected = {key: tensor.clone() for key, tensor in trainer.state().items()}

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "_average_weights", interrupted)  # after the optimiser's first step
    with pytest.raises(KeyboardInterrupt):
        trainer.step()
    assert all(torch.equal(tensor, expected[key]) for key, tensor in trainer.state().items())


def end(scores: torch.Tensor) -> None:
    raise SystemExit(0)


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: None, "not NoneType"),
        (lambda scores: scores.tolist(), "not list"),
        (lambda scores: scores[:, None], r"shape \(8, 1\)"),
        (lambda scores: scores[:-1], r"shape \(7,\)"),
        (lambda scores: scores.mean(), r"shape \(\)"),
        (lambda scores: scores.long(), "torch.int64"),
        (end, "SystemExit"),
    ],
    ids=["none", "list", "column", "short", "scalar", "integers", "exit"],
)
def test_what_is_no_score_names_the_reward(
    engine: str, change: Any, message: str, tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores_from(monkeypatch, 1, change)
    with pytest.raises(PluginError, match=rf"reward '[Dd]ark'.*{message}"):
        create_trainer(validate(merge(tiny, {"engine": engine}))).run(tmp_path / "run")


class Stop(Exception):
    pass


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_a_trainer_that_has_worked_before(engine: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Run again after an interruption, with or without a checkpoint, and then into other folders: always the same run."""
    settings = merge(tiny, {"engine": engine, "checkpoint_every": 3})
    create_trainer(validate(settings)).run(tmp_path / "expected")
    expected, _ = load_tensors(RunFolder(tmp_path / "expected").checkpoint(4), "state")
    trainer = create_trainer(validate(settings))
    for stopped_at in (2, 3):

        def stop(row: dict[str, Any], at: int = stopped_at) -> None:
            if row["iteration"] == at:
                raise Stop

        with pytest.raises(Stop):
            trainer.run(tmp_path / "again", on_iteration=stop)
    for name in ("again", "other"):
        trainer.run(tmp_path / name)
        found, _ = load_tensors(RunFolder(tmp_path / name).checkpoint(4), "state")
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected), name
        assert [row["iteration"] for row in RunFolder(tmp_path / name).metrics()] == [1, 2, 3, 4]


@pytest.mark.parametrize(("rank", "size"), [("5", "2"), ("-1", "2"), ("one", "2"), ("0", ""), ("0", "0")])
def test_rank_variables_that_cannot_be(rank: str, size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", rank), ("LOCAL_RANK", "0"), ("WORLD_SIZE", size)):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"RANK='{rank}'.*torchrun"):
        environment()


def test_ranks_with_other_settings(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    other = validate(merge(tiny, {"seed": 7, "ppo": {"epochs": 9}, "micro_batch": 3})).model_dump(mode="json")
    monkeypatch.setattr("adanat_toolkit.runtime.distributed.gather_on_main", lambda value: [value, other])
    with pytest.raises(AdaNATError, match=r"ranks 0 and 1 .*\(ppo\.epochs: 4 -> 9; seed: 0 -> 7\)"):
        Trainer(validate(tiny))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda images: 1 / 0, "reward 'Answers' failed in score: ZeroDivisionError: division by zero"),
        (lambda images: next(iter(())), "reward 'Answers' failed in score: StopIteration"),
        (lambda images: images.mean((1, 2, 3)).to_sparse(), "torch.sparse_coo"),
        (lambda images: images.mean((1, 2, 3)).to("meta"), "not one on the device meta"),
        (lambda images: images.mul_(2).mean((1, 2, 3)), "changed the images that it was given"),
    ],
)
def test_a_reward_that_fails_is_named(answer: Callable[[torch.Tensor], torch.Tensor], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        checked_scores(Answers(answer), "Answers", torch.rand(4, 3, 2, 2), Context(4))


class Centred(RewardModel):
    """Works in place where it embeds images."""

    def __init__(self) -> None:
        """Nothing to build."""

    def embed(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return images.sub_(0.5).mean((2, 3))

    def score_embedded(self, embedded: torch.Tensor, context: Context) -> torch.Tensor:
        return embedded.mean(1)

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return self.score_embedded(self.embed(images, context), context)


def test_a_reward_that_changes_the_images_it_embeds_is_named() -> None:
    images = torch.rand(8, 3, 5, 5)
    with pytest.raises(PluginError, match="reward 'Centred' changed the images"):
        embed(Centred(), TinyGenerator(), None, Context(8), images)
    mean = Answers(lambda images: images.mean((1, 2, 3)))
    for bad in (Centred(), Answers(lambda images: images.mul_(2).mean((1, 2, 3)))):
        for terms in ({"bad": bad, "mean": mean}, {"mean": mean, "bad": bad}):
            with pytest.raises(PluginError, match="term 'bad' changed the images"):
                MixReward(terms, dict.fromkeys(terms, 1.0)).score(images, Context(8))
        with pytest.raises(AssertionError, match="changes the images"):
            reward_scores(RewardCase(lambda seed, bad=bad: bad, images, Context(8)))  # type: ignore[misc]


def test_scores_are_the_callers_own() -> None:
    """A reward may fill one tensor at every call: the scores of the first samples must not become those of the last."""
    kept = torch.zeros(2)
    reward = Answers(lambda images: kept.copy_(images.mean((1, 2, 3))))
    images = torch.rand(6, 3, 2, 2)
    scores, _ = score(reward, "Answers", images, Context(6), MicroBatch(2))
    assert torch.equal(scores, images.mean((1, 2, 3)))


class Answers(RewardModel):
    def __init__(self, answer: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.answer = answer

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return self.answer(images)
