"""Alarms: each is provoked, by a real run where that is cheap, and stays silent where nothing is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.errors import DataError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import RunConfig, Trainer, alarms, create_trainer, validate
from adanat_toolkit.training.diversity import context_diversity
from adanat_toolkit.training.held_out import AlarmWatch

from ..helpers.tiny_plugins import TinyWithData, tiny_plugins

__all__ = ["tiny_plugins"]


def rows(count: int, **columns: Any) -> list[dict[str, Any]]:
    """Rows of a run; a column is a number or a function of the iteration. None leaves the name out of a row."""
    out = []
    for i in range(1, count + 1):
        row = {
            "iteration": i,
            "reward/mean": 0.5 + 0.001 * (-1) ** i,
            "reward/std": 0.1,
            "ppo/approx_kl": 0.01,
            **columns,
        }
        row = {key.replace("__", "/"): value(i) if callable(value) else value for key, value in row.items()}
        out.append({key: value for key, value in row.items() if value is not None})
    return out


def names(found: list[alarms.Alarm]) -> list[str]:
    return [alarm.name for alarm in found]


def configuration(**settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "generator": {"name": "tiny"},
        "reward": {"name": "brightness"},
        "policy": {"name": "shared"},
        "steps": 2,
        "batch": 16,
        "trajectories": 16 * 8,
        "device": "cpu",
        "evaluate_images": 64,
    }
    return validate({**values, **settings})


def run(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    create_trainer(configuration(**settings)).run(folder)
    return RunFolder(folder).metrics()


# --- provoked by a real run -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_a_huge_learning_rate_makes_the_divergence_explode(tmp_path, tiny_plugins, engine):
    found = run(tmp_path / "run", engine=engine, ppo={"learning_rate": 0.3, "max_gradient_norm": None})
    assert any("kl-explodes" in [a["name"] for a in row.get("alarms", [])] for row in found)
    calm = run(tmp_path / "calm", engine=engine)
    assert not any("kl-explodes" in [a["name"] for a in row.get("alarms", [])] for row in calm)
    assert "ppo.target_kl" in next(a for a in alarms.raised(found) if a.name == "kl-explodes").message


def test_a_constant_reward_is_flat(tmp_path, tiny_plugins):
    found = run(tmp_path / "run", reward={"name": "constant"})
    assert [a["name"] for a in found[-1]["alarms"]] == ["reward-flat"]
    assert found[-1]["alarms"][0]["since"] == alarms.WINDOW
    assert "0.25" in found[-1]["alarms"][0]["message"]
    assert "alarms" not in found[alarms.WINDOW - 2]


def test_a_reward_that_pays_for_the_wrong_thing_rises_while_the_yardstick_falls(tmp_path, tiny_plugins):
    settings = {
        "trajectories": 128 * 12,
        "batch": 128,
        "ppo": {"learning_rate": 0.003, "epochs": 2},
        "evaluate_every": 4,
    }
    found = run(tmp_path / "run", reward={"name": "contrast"}, **settings)
    readings = {row["iteration"]: row["yardstick/frechet"] for row in found if "yardstick/frechet" in row}
    assert list(readings) == [1, 4, 8, 12]
    assert found[-1]["reward/mean"] > found[0]["reward/mean"] and readings[12] > 2 * readings[1]
    alarm = next(a for a in alarms.check(found) if a.name == "reward-against-yardstick")
    assert 4 < alarm.since <= 12 and "Frechet" in alarm.message


def test_a_resumed_run_raises_the_same_alarms(tmp_path, tiny_plugins):
    whole = run(tmp_path / "whole", reward={"name": "constant"}, checkpoint_every=2)

    class Killed(Exception):
        pass

    def kill(row: dict[str, Any]) -> None:
        if row["iteration"] == 5:
            raise Killed

    settings = {"reward": {"name": "constant"}, "checkpoint_every": 2}
    with pytest.raises(Killed):
        Trainer(configuration(**settings)).run(tmp_path / "cut", on_iteration=kill)
    resumed = run(tmp_path / "cut", **settings)
    assert [row.get("alarms") for row in resumed] == [row.get("alarms") for row in whole]


def test_a_standing_alarm_is_not_traced_again(monkeypatch):
    """Its stretch is looked for once, however long a run stands still."""
    looked: list[int] = []
    rule = alarms.RULES["reward-flat"]
    monkeypatch.setitem(alarms.RULES, "reward-flat", lambda seen: looked.append(len(seen)) or rule(seen))
    found, whole = rows(alarms.FLAT_AFTER + 30), AlarmWatch([])
    for row in found:
        whole.on_iteration(row)
    assert len(looked) <= len(found) + 1
    assert {alarm["since"] for row in found for alarm in row.get("alarms", ())} == {alarms.FLAT_AFTER}
    later = AlarmWatch(found[:-1])  # resumed
    again = {key: value for key, value in found[-1].items() if key != "alarms"}
    later.on_iteration(again)
    assert again == found[-1]


def test_held_out_readings_do_not_change_the_run(tmp_path, tiny_plugins):
    plain = run(tmp_path / "plain", trajectories=48)
    watched = run(tmp_path / "watched", trajectories=48, evaluate_every=1)
    for a, b in zip(plain, watched, strict=True):
        shared = {key for key in a if not key.startswith("seconds") and key != "trajectories_per_second"}
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}
        assert {"yardstick/frechet", "yardstick/recall", "yardstick/diversity", "seconds_yardstick"} <= b.keys()
        assert "seconds_yardstick" not in a


def test_the_averaged_policy_is_read_where_it_is_exported(tmp_path, tiny_plugins):
    settings = {"trajectories": 32, "evaluate_every": 1, "ppo": {"learning_rate": 0.1}}
    last = run(tmp_path / "last", **settings)
    average = run(tmp_path / "average", **settings, policy={"name": "shared", "average": 0.999})
    assert last[-1]["reward/mean"] == average[-1]["reward/mean"]
    assert last[-1]["yardstick/frechet"] != average[-1]["yardstick/frechet"]


def test_readings_without_real_images_are_refused(monkeypatch, tiny_plugins):
    monkeypatch.setattr(TinyWithData, "real_images", lambda self: None)
    with pytest.raises(DataError, match="evaluate_every = 2 needs real images"):
        Trainer(configuration(evaluate_every=2))


# --- provoked by rows -------------------------------------------------------------------------------------------------


def test_nothing_is_raised_where_nothing_is_wrong():
    healthy = rows(
        100,
        reward__mean=lambda i: 0.4 + 0.002 * i,
        yardstick__frechet=lambda i: 10 / (1 + 0.02 * i),
        yardstick__diversity=lambda i: 0.9 - 0.001 * i,
        diversity=lambda i: 3 + 0.2 * math.sin(i),
        **{"reward_model/accuracy_real": 0.8, "reward_model/accuracy_fake": 0.75},
    )
    assert alarms.raised(healthy) == [] and alarms.check([]) == []


def test_reward_against_yardstick_needs_both():
    def reward(slope: float) -> Any:
        return lambda i: 0.5 + slope * i + 0.001 * (-1) ** i

    def distance(i: int) -> float | None:  # best at 20
        return 5 + 0.05 * abs(i - 20) if i % 5 == 0 else None

    found = alarms.check(rows(60, reward__mean=reward(0.01), yardstick__frechet=distance))
    assert names(found) == ["reward-against-yardstick"]
    # 5.25 at 25 is no worse than the limit, 30 and 35 are the first two readings above it.
    assert found[0].since == 35 and "iteration 20" in found[0].message
    for slope in (0.0, -0.01):
        assert (
            alarms.reward_against_yardstick(rows(60, reward__mean=reward(slope), yardstick__frechet=distance)) is None
        )
    falling = rows(60, reward__mean=reward(0.01), yardstick__frechet=lambda i: 10 - 0.1 * i)
    assert alarms.reward_against_yardstick(falling) is None


def test_a_mixture_and_a_distance_are_held_against_the_yardstick_by_their_terms():
    columns = {
        "reward/mean": lambda i: 1e-9 * (-1) ** i,
        "yardstick/frechet": lambda i: 5 + 0.1 * i if i % 5 == 0 else None,
    }
    exploited = {"reward/clip-score/mean": lambda i: 20 + 0.1 * i, "reward/aesthetic/mean": 5.0}
    found = alarms.reward_against_yardstick(rows(60, **columns, **exploited))
    assert found is not None and "reward/clip-score/mean went from" in found
    for frechet, raised in ((lambda i: 10 - 0.05 * i, True), (lambda i: 10 + 0.05 * i, False)):
        own = rows(60, **columns, **{"reward/frechet/mean": frechet})
        assert (alarms.reward_against_yardstick(own) is not None) == raised
    still = {"reward/clip-score/mean": 20.0, "reward/aesthetic/mean": 5.0}
    assert alarms.reward_against_yardstick(rows(60, **columns, **still)) is None


def test_a_single_noisy_row_is_no_reward_to_have_risen_from():
    def reward(i: int) -> float:
        return 0.4 if i == 1 else 0.5 + 0.05 * (-1) ** i

    noisy = rows(40, reward__mean=reward, yardstick__frechet=lambda i: 5 + 0.1 * i if i % 5 in (0, 1) else None)
    assert alarms.reward_against_yardstick(noisy) is None


def test_an_alarm_goes_out_again_and_is_remembered():
    found = rows(
        60, reward__mean=lambda i: 0.01 * i, yardstick__frechet=lambda i: 9.0 if 20 < i <= 40 else 5.0 - 0.001 * i
    )
    assert alarms.check(found) == []
    (past,) = alarms.raised(found)
    assert past.name == "reward-against-yardstick" and past.since == 22


@pytest.mark.parametrize("name", ["yardstick/diversity", "diversity"])
def test_diversity_collapse(name):
    sound, collapsed = (rows(30, **{name: lambda i, end=end: max(1 - i / 30, end)}) for end in (0.7, 0.2))
    assert alarms.diversity_collapse(sound) is None
    assert names(alarms.check(collapsed)) == ["diversity-collapse"]
    assert name in alarms.check(collapsed)[0].message


@pytest.mark.parametrize("prefix", ["reward_model/", "reward_model/adversarial/"])
@pytest.mark.parametrize("every", [1, 4, 20])
def test_discriminator_saturated(prefix, every):
    def figures(real: float, fake: float) -> list[dict[str, Any]]:
        columns = {"accuracy_real": real, "accuracy_fake": fake}
        return rows(
            40 if every < 8 else 120,
            **{prefix + name: (lambda i, v=value: v if i % every == 0 else None) for name, value in columns.items()},
        )

    assert names(alarms.check(figures(0.995, 1.0))) == ["discriminator-saturated"]
    assert alarms.discriminator_saturated(figures(0.995, 0.9)) is None
    assert alarms.discriminator_saturated(figures(0.9, 1.0)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_that_is_no_number(value):
    found = alarms.check(rows(10, **{"ppo/approx_kl": lambda i: value if i == 10 else 0.01}))
    assert names(found) == ["kl-explodes"] and found[0].since == 10


def test_one_large_update_is_no_explosion():
    assert alarms.check(rows(10, **{"ppo/approx_kl": lambda i: 0.9 if i == 10 else 0.01})) == []


def test_a_frozen_reward_that_does_not_rise_is_flat_but_a_learned_one_may_stand_still():
    assert names(alarms.check(rows(alarms.FLAT_AFTER))) == ["reward-flat"]
    assert alarms.check(rows(alarms.FLAT_AFTER - 1)) == []
    assert alarms.check(rows(60, reward__mean=lambda i: min(i, 10) / 10)) == []  # risen, then at its best
    assert alarms.check(rows(60, **{"reward_model/loss": 0.6})) == []
    lazy = rows(60, **{"reward_model/loss": lambda i: 0.6 if i % 4 == 1 else None})
    assert alarms.check(lazy) == []


def test_a_mixture_is_judged_by_its_terms():
    columns = {"reward/mean": 0.0, "reward/clip-score/mean": 0.3}
    rising = rows(60, **columns, **{"reward/fid/mean": lambda i: -10 + 0.1 * i})
    assert alarms.check(rising) == []
    assert names(alarms.check(rows(60, **columns, **{"reward/fid/mean": -10.0}))) == ["reward-flat"]


def test_a_distance_among_the_terms_improves_downwards():
    columns = {"reward/mean": 0.0, "reward/std": 1.0}
    assert alarms.check(rows(60, **columns, **{"reward/frechet/mean": lambda i: 10 - 0.1 * i})) == []
    worse = rows(60, **columns, **{"reward/frechet/mean": lambda i: 10 + 0.1 * i})
    assert names(alarms.check(worse)) == ["reward-flat"]


def test_alarms_are_json():
    (alarm,) = alarms.check(rows(60))
    assert json.loads(json.dumps(alarm.to_json())) == {"name": alarm.name, "since": 40, "message": alarm.message}


def test_progress_prints_an_alarm_once_while_it_lasts(capsys):
    from adanat_cli.progress import TrainingProgress

    alarm = {"name": "kl-explodes", "since": 2, "message": "too far"}
    with TrainingProgress(5, quiet=False) as progress:
        for row, found in zip(rows(5, trajectories_per_second=9.0), ([], [alarm], [alarm], [], [alarm]), strict=True):
            progress.update({**row, "alarms": found} if found else row)
    assert capsys.readouterr().err.count("alarm: kl-explodes: too far") == 2


# --- diversity of a batch ---------------------------------------------------------------------------------------------


def test_context_diversity_is_the_distance_within_a_context():
    draw = torch.Generator().manual_seed(3)
    embedded = torch.randn(20, 5, 7, generator=draw)
    classes = torch.tensor([0] * 11 + [1] * 8 + [2])
    embedded[classes == 1] += 100  # contexts may lie apart
    squares = [
        float((embedded[i] - embedded[j]).square().sum()) for c in (0, 1) for i in range(20) for j in range(20)
        if i != j and classes[i] == c == classes[j]
    ]  # fmt: skip
    own, other = torch.tensor(squares[: 11 * 10]).mean(), torch.tensor(squares[11 * 10 :]).mean()
    expected = float(((10 * own + 7 * other) / 17).sqrt())  # by degrees of freedom
    assert context_diversity(embedded, Context(20, classes=classes)) == pytest.approx(expected, rel=1e-4)


def test_context_diversity_of_scores_or_of_single_images_is_left_out():
    context = Context(20, classes=torch.zeros(20, dtype=torch.int64))
    assert context_diversity(torch.randn(20, 3), context) is None
    assert context_diversity(torch.randn(20, 99), Context(20, classes=torch.arange(20))) is None
    assert context_diversity(torch.ones(20, 99), context) == 0
