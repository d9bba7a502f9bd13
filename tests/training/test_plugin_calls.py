"""Rewards, trackers and generators that fail, end the program, or return something else: named, at every call."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import Context, RewardModel, Tracker
from adanat_toolkit.errors import NotFiniteError, PluginError
from adanat_toolkit.metrics import extract_features
from adanat_toolkit.registry import create_generator
from adanat_toolkit.registry.mixture import MixReward
from adanat_toolkit.runtime import plugin_call
from adanat_toolkit.sampling import checked_scores
from adanat_toolkit.storage import MetricsLog, RunFolder, write_json
from adanat_toolkit.training import Trainer, create_trainer, validate
from adanat_toolkit.training.scoring import require_finite_update
from adanat_toolkit.training.trackers import Trackers

from ..helpers import tiny as plugins
from ..helpers.tiny import TinyGenerator, install_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = validate(
    {
        "generator": {"name": "tiny"}, "policy": {"name": "shared"}, "steps": 2, "trajectories": 24, "batch": 8,
        "device": "cpu", "ppo": {"epochs": 1}, "checkpoint_every": 1,
    }
)  # fmt: skip


class Own(BaseException):
    pass


class Learner(RewardModel):
    """A reward that learns, one of whose methods answers otherwise from its ``after``-th call on."""

    learns = True
    name = "learner"

    def __init__(self, method: str = "", answer: Callable[[], Any] = dict, after: int = 1) -> None:
        self.method, self.answer, self.left = method, answer, after
        self.weight = torch.zeros(2)

    def _said(self, method: str, usual: Any) -> Any:
        if method != self.method:
            return usual
        self.left -= 1
        return usual if self.left >= 0 else self.answer()

    def embed(self, images: Tensor, context: Context) -> Tensor:
        return self._said("embed", images)

    def score(self, images: Tensor, context: Context) -> Tensor:
        return 1 - images.mean((1, 2, 3))

    def terms(self) -> dict[str, Tensor]:
        return self._said("terms", {})

    def update(self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int) -> Any:
        self.weight = self.weight + 1
        return self._said("update", {"loss": 1.0})

    def state(self) -> dict[str, Tensor]:
        return self._said("state", {"weight": self.weight})

    def load_state(self, state: dict[str, Tensor]) -> None:
        self._said("load_state", None)
        self.weight = state["weight"]


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def run(reward: RewardModel, out: Path, **settings: Any) -> Trainer:
    trainer = create_trainer(validate({**CONFIG.model_dump(exclude_unset=True), **settings}), TinyGenerator(), reward)
    trainer.run(out)
    return trainer


ERRORS = (SystemExit(0), GeneratorExit(), StopIteration("x"), Own("mine"), ValueError(), KeyError("k"))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["embed", "terms", "update", "state"])
def test_whatever_a_reward_raises_names_it(method: str, error: BaseException, tmp_path: Path) -> None:
    words = "tried to end the program in" if isinstance(error, SystemExit) else "failed in"
    with pytest.raises(PluginError, match=f"iteration 2: reward 'learner' {words} {method}") as caught:
        run(Learner(method, raising(error), after=5 if method == "state" else 1), tmp_path / "run")
    assert type(error).__name__ in str(caught.value)


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("embed", None, "embed of reward 'learner'.*not NoneType"),
        ("embed", [1.0], "embed of reward 'learner'.*not list"),
        ("embed", torch.zeros(7, 3), r"8 entries.*not torch.float32 of shape \(7, 3\)"),
        ("embed", torch.zeros(()), r"of shape \(\)"),
        ("terms", None, r"terms\(\) of reward 'learner' must be a dict of tensors, not NoneType"),
        ("terms", {"part": 1.0}, "'part': float"),
        ("update", None, "update of reward 'learner' returns must be a dict.*not NoneType"),
        ("update", [1.0], "not list"),
        ("update", {1: 1.0}, "not 1"),
        ("update", {"": 1.0}, "not ''"),
        ("update", {"loss": "a"}, "'loss' must be one real number, not str"),
        ("update", {"loss": 1j}, "'loss' must be one real number, not complex"),
        ("update", {"loss": torch.ones(2)}, r"'loss' must be one real number.*\(2,\)"),
        ("update", {"loss": 10**400}, "'loss' is a whole number too large"),
    ],
    ids=str,
)
def test_what_a_reward_returns_is_checked_before_it_is_kept(
    engine: str, method: str, answer: Any, message: str, tmp_path: Path
) -> None:
    reward = Learner(method, lambda: answer)
    with pytest.raises(PluginError, match=f"^iteration 2: .*{message}"):
        run(reward, tmp_path / "run", engine=engine)
    assert reward.weight.tolist() == [1, 1], "the update of an iteration that failed was kept"


def test_a_state_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="state of reward 'learner' returns must be a dict of tensors, not NoneType"):
        run(Learner("state", lambda: None, after=0), tmp_path / "run")
    with pytest.raises(PluginError, match="reward 'learner' tried to end the program in load_state"):
        run(Learner("load_state", raising(SystemExit(0)), after=0), tmp_path / "run").load_state(run_state(tmp_path))


def run_state(tmp_path: Path) -> dict[str, Tensor]:
    return run(Learner(), tmp_path / "other").state()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_figure_that_is_not_finite_stops_the_run(value: float, tmp_path: Path) -> None:
    reward = Learner("update", lambda: {"accuracy": 0.5, "loss": value})
    with pytest.raises(NotFiniteError, match=f"iteration 2: the figure 'loss'.*'learner' is not finite .{value}"):
        run(reward, tmp_path / "run")
    assert reward.weight.tolist() == [1, 1]


def test_figures_of_one_number_are_floats(tmp_path: Path) -> None:
    figures = {"a": torch.tensor(1.0, requires_grad=True), "b": np.float32(2), "c": np.int64(3), "d": True, "e": 5}
    run(Learner("update", lambda: figures, after=0), tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    found = [row[f"reward_model/{name}"] for name in figures]
    assert found == [1.0, 2.0, 3.0, 1.0, 5.0] and all(type(value) is float for value in found)


def test_rows_are_json(tmp_path: Path) -> None:
    """JSON has no word for NaN, which a share of a variance of 0 is."""
    write_json(tmp_path / "config.json", {})
    (tmp_path / "metrics.jsonl").touch()
    MetricsLog(RunFolder(tmp_path)).append({"iteration": 1, "share": float("nan"), "reward/mean": 2.0})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"iteration": 1, "reward/mean": 2.0}\n'


def test_state_of_any_type_is_looked_at() -> None:
    good = {
        "double": torch.tensor([1e200, 1.0], dtype=torch.float64), "complex": torch.tensor([3e38 + 3e38j]),
        "half": torch.tensor([6e4], dtype=torch.half), "byte": torch.ones(2, dtype=torch.float8_e4m3fn),
        "counter": torch.tensor([2]), "single": torch.tensor([3e38]),
    }  # fmt: skip
    require_finite_update(1, {}, good)
    for key, value in {"complex": complex(float("nan"), 0), "double": float("inf"), "half": float("nan")}.items():
        with pytest.raises(NotFiniteError, match=f"first {key}"):
            require_finite_update(1, {}, {**good, key: torch.full_like(good[key], value)})


def test_a_term_of_a_mixture_is_named() -> None:
    images, context = torch.rand(4, 3, 2, 2), Context(4)
    bad = MixReward({"good": plugins_dark(), "bad": Learner("embed", lambda: None, after=0)}, {"good": 1, "bad": 1})
    with pytest.raises(PluginError, match=r"embed of the term 'bad'.*not NoneType"):
        bad.embed(images, context)
    bad = MixReward({"good": plugins_dark(), "bad": Learner("update", raising(Own()), after=0)}, {"good": 1, "bad": 1})
    embedded = bad.embed(images, context)
    with pytest.raises(PluginError, match="term 'bad' failed in update: Own"):
        bad.update(embedded, context, embedded, context, seed=0)


def plugins_dark() -> plugins.Dark:
    return plugins.Dark(None, generator=None, real=None, device=None, seed=0)  # type: ignore[arg-type]


def test_what_create_does_is_guarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    cpu = torch.device("cpu")
    for answer, message in ((raising(SystemExit(0)), "tried to end the program in create"), (dict, "not dict")):
        monkeypatch.setattr(TinyGenerator, "create", lambda *_, answer=answer, **__: answer())
        with pytest.raises(PluginError, match=f"generator 'tiny'.*{message}"):
            create_generator("tiny", device=cpu, dtype=torch.float32)
    monkeypatch.undo()
    install_tiny(tmp_path / "other", monkeypatch)
    monkeypatch.setattr(plugins.Dark, "__init__", lambda *_, **__: raising(Own("no"))())
    with pytest.raises(PluginError, match="reward 'dark' failed in create: Own: no"):
        create_trainer(validate({**CONFIG.model_dump(exclude_unset=True), "reward": {"name": "dark"}}))


def test_a_generator_that_ends_the_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TinyGenerator, "decode_tokens", lambda *_: raising(SystemExit(0))())
    with pytest.raises(PluginError, match="iteration 1: generator 'tiny:class' tried to end the program in decode"):
        run(Learner(), tmp_path / "run")


def test_features_that_fail_are_named() -> None:
    class Bad:
        protocol = "bad"

        def __call__(self, images: Tensor) -> Tensor:
            raise SystemExit(0)

    with pytest.raises(PluginError, match="features 'bad' tried to end the program"):
        extract_features(Bad(), torch.rand(2, 3, 4, 4))  # type: ignore[arg-type]


def test_a_tracker_that_ends_the_program_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(Tracker):
        @classmethod
        def create(cls, folder: Path, config: dict[str, Any]) -> Tracker:
            return cls()

        def log(self, figures: dict[str, float], trajectories: int) -> None:
            raise SystemExit(0)

    monkeypatch.setattr("adanat_toolkit.training.trackers.load", lambda kind, name: Ends)
    trackers = Trackers(["ends"], tmp_path, {})
    with pytest.warns(UserWarning, match="left out.*tracker 'ends' tried to end the program in log"):
        trackers.on_iteration({"trajectories": 8, "reward/mean": 1.0})
    assert not trackers.open


def test_a_nested_tensor_is_no_score() -> None:
    class Nested(Learner):
        def score(self, images: Tensor, context: Context) -> Tensor:
            return torch.nested.nested_tensor([images.mean((1, 2, 3))])

    with pytest.raises(PluginError, match=r"scores of reward 'learner'.*not a nested tensor"):
        checked_scores(Nested(), "learner", torch.rand(4, 3, 2, 2), Context(4))


def test_our_own_errors_and_those_of_memory_go_on() -> None:
    for error in (NotFiniteError("x"), MemoryError(), RuntimeError("CUDA out of memory"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, plugin_call("reward 'a'", "score"):
            raise error
        assert caught.value is error
