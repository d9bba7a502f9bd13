"""Alarms: each is provoked, by a real run where that is cheap, and stays silent where nothing is wrong."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
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


def check(found: list[dict[str, Any]]) -> list[alarms.Alarm]:
    return alarms.Watch(found).now


def message(name: str, found: list[dict[str, Any]]) -> str | None:
    return next((alarm.message for alarm in check(found) if alarm.name == name), None)


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
    assert "ppo.target_kl" in next(a for a in alarms.Watch(found).ever if a.name == "kl-explodes").message


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
    alarm = next(a for a in check(found) if a.name == "reward-against-yardstick")
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
    assert alarms.Watch(healthy).ever == [] and alarms.Watch().now == []


def test_reward_against_yardstick_needs_both():
    def reward(slope: float) -> Any:
        return lambda i: 0.5 + slope * i + 0.001 * (-1) ** i

    def distance(i: int) -> float | None:  # best at 20
        return 5 + 0.05 * abs(i - 20) if i % 5 == 0 else None

    found = check(rows(60, reward__mean=reward(0.01), yardstick__frechet=distance))
    assert names(found) == ["reward-against-yardstick"]
    # 5.25 at 25 is no worse than the limit, 30 and 35 are the first two readings above it.
    assert found[0].since == 35 and "iteration 20" in found[0].message
    for slope in (0.0, -0.01):
        assert (
            message("reward-against-yardstick", rows(60, reward__mean=reward(slope), yardstick__frechet=distance))
            is None
        )
    falling = rows(60, reward__mean=reward(0.01), yardstick__frechet=lambda i: 10 - 0.1 * i)
    assert message("reward-against-yardstick", falling) is None


def test_a_mixture_and_a_distance_are_held_against_the_yardstick_by_their_terms():
    columns = {
        "reward/mean": lambda i: 1e-9 * (-1) ** i,
        "yardstick/frechet": lambda i: 5 + 0.1 * i if i % 5 == 0 else None,
    }
    exploited = {"reward/clip-score/mean": lambda i: 20 + 0.1 * i, "reward/aesthetic/mean": 5.0}
    found = message("reward-against-yardstick", rows(60, **columns, **exploited))
    assert found is not None and "reward/clip-score/mean went from" in found
    for frechet, raised in ((lambda i: 10 - 0.05 * i, True), (lambda i: 10 + 0.05 * i, False)):
        own = rows(60, **columns, **{"reward/frechet/mean": frechet})
        assert (message("reward-against-yardstick", own) is not None) == raised
    still = {"reward/clip-score/mean": 20.0, "reward/aesthetic/mean": 5.0}
    assert message("reward-against-yardstick", rows(60, **columns, **still)) is None


def test_a_single_noisy_row_is_no_reward_to_have_risen_from():
    def reward(i: int) -> float:
        return 0.4 if i == 1 else 0.5 + 0.05 * (-1) ** i

    noisy = rows(40, reward__mean=reward, yardstick__frechet=lambda i: 5 + 0.1 * i if i % 5 in (0, 1) else None)
    assert message("reward-against-yardstick", noisy) is None


def test_an_alarm_goes_out_again_and_is_remembered():
    found = rows(
        60, reward__mean=lambda i: 0.01 * i, yardstick__frechet=lambda i: 9.0 if 20 < i <= 40 else 5.0 - 0.001 * i
    )
    assert check(found) == []
    (past,) = alarms.Watch(found).ever
    assert past.name == "reward-against-yardstick" and past.since == 22


@pytest.mark.parametrize("name", ["yardstick/diversity", "diversity"])
def test_diversity_collapse(name):
    sound, collapsed = (rows(30, **{name: lambda i, end=end: max(1 - i / 30, end)}) for end in (0.7, 0.2))
    assert message("diversity-collapse", sound) is None
    assert names(check(collapsed)) == ["diversity-collapse"]
    assert name in check(collapsed)[0].message


@pytest.mark.parametrize("prefix", ["reward_model/", "reward_model/adversarial/"])
@pytest.mark.parametrize("every", [1, 4, 20])
def test_discriminator_saturated(prefix, every):
    def figures(real: float, fake: float) -> list[dict[str, Any]]:
        columns = {"accuracy_real": real, "accuracy_fake": fake}
        return rows(
            40 if every < 8 else 120,
            **{prefix + name: (lambda i, v=value: v if i % every == 0 else None) for name, value in columns.items()},
        )

    assert names(check(figures(0.995, 1.0))) == ["discriminator-saturated"]
    assert message("discriminator-saturated", figures(0.995, 0.9)) is None
    assert message("discriminator-saturated", figures(0.9, 1.0)) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_divergence_that_is_no_number(value):
    found = check(rows(10, **{"ppo/approx_kl": lambda i: value if i == 10 else 0.01}))
    assert names(found) == ["kl-explodes"] and found[0].since == 10


def test_one_large_update_is_no_explosion():
    assert check(rows(10, **{"ppo/approx_kl": lambda i: 0.9 if i == 10 else 0.01})) == []


def test_a_frozen_reward_that_does_not_rise_is_flat_but_a_learned_one_may_stand_still():
    assert names(check(rows(alarms.FLAT_AFTER))) == ["reward-flat"]
    assert check(rows(alarms.FLAT_AFTER - 1)) == []
    assert check(rows(60, reward__mean=lambda i: min(i, 10) / 10)) == []  # risen, then at its best
    assert check(rows(60, **{"reward_model/loss": 0.6})) == []
    lazy = rows(60, **{"reward_model/loss": lambda i: 0.6 if i % 4 == 1 else None})
    assert check(lazy) == []


@pytest.mark.parametrize(("figure", "remedy"), [("fit/loss", "fit.actions"), ("fit/slope", "Raise fit.pull")])
def test_engines_without_a_divergence_have_updates_too(figure, remedy):
    found = check(rows(alarms.FLAT_AFTER, **{"ppo/approx_kl": None, figure: 0.01}))
    assert names(found) == ["reward-flat"] and remedy in found[0].message and "ppo.group" not in found[0].message
    assert check(rows(60, reward__mean=lambda i: i / 10, **{"ppo/approx_kl": None, figure: 0.01})) == []
    assert check(rows(60, **{"ppo/approx_kl": None})) == []  # warming up: nothing was updated


def test_a_row_without_the_spread_of_its_rewards_is_not_flat():
    flat = {"reward/mean": 0.5, "reward/std": 0.0}
    assert names(check(rows(10, **flat))) == ["reward-flat"]
    assert check([{"iteration": 1}, *rows(4, **flat)]) == []


def test_a_mixture_is_judged_by_its_terms():
    columns = {"reward/mean": 0.0, "reward/clip-score/mean": 0.3}
    rising = rows(60, **columns, **{"reward/fid/mean": lambda i: -10 + 0.1 * i})
    assert check(rising) == []
    assert names(check(rows(60, **columns, **{"reward/fid/mean": -10.0}))) == ["reward-flat"]


def test_a_distance_among_the_terms_improves_downwards():
    columns = {"reward/mean": 0.0, "reward/std": 1.0}
    assert check(rows(60, **columns, **{"reward/frechet/mean": lambda i: 10 - 0.1 * i})) == []
    worse = rows(60, **columns, **{"reward/frechet/mean": lambda i: 10 + 0.1 * i})
    assert names(check(worse)) == ["reward-flat"]


# --- row by row -------------------------------------------------------------------------------------------------------


def stretches(name: str, found: list[dict[str, Any]]) -> list[int]:
    """Numbers of the rows after which an alarm is raised."""
    watch, raised = alarms.Watch(), []
    for number, row in enumerate(found, 1):
        watch.see(row)
        if name in names(watch.now):
            raised.append(number)
    return raised


def test_updates_of_a_discriminator_are_forgotten():
    figures = {
        f"reward_model/accuracy_{side}": lambda i: 1.0 if i in (1, 2, 3, 4, 9) else None for side in ("real", "fake")
    }
    raised = stretches("discriminator-saturated", rows(alarms.LOOK_BACK + 9, **figures))
    assert raised == list(range(9, alarms.LOOK_BACK + 1))  # then the first of the five is too long ago


def test_a_discriminator_that_recovers_is_not_saturated():
    columns = {f"reward_model/{name}": lambda i: 1.0 if i < 10 else 0.5 for name in ("accuracy_real", "accuracy_fake")}
    assert stretches("discriminator-saturated", rows(20, **columns)) == list(range(5, 10))


def test_of_two_saturated_or_collapsed_figures_the_first_is_named():
    columns = {f"reward_model/{term}/accuracy_{side}": 1.0 for term in "ba" for side in ("real", "fake")}
    columns |= {name: lambda i: 1 / i for name in ("diversity", "yardstick/diversity")}
    found = rows(20, **columns)
    assert str(message("discriminator-saturated", found)).startswith("reward_model/a/accuracy_real ")
    assert str(message("diversity-collapse", found)).startswith("yardstick/diversity ")


def test_a_learned_reward_is_a_frozen_one_when_its_last_update_is_long_ago():
    found = rows(300, **{"reward_model/loss": lambda i: 0.6 if i == 20 else None})
    assert stretches("reward-flat", found) == list(range(20 + alarms.LOOK_BACK, 301))


def test_updates_of_the_policy_are_forgotten():
    found = rows(40, **{"ppo/approx_kl": lambda i: 0.9 if i in (3, 8) else None})
    assert stretches("kl-explodes", found) == list(range(8, 3 + 10 * alarms.KL_WINDOW))


@pytest.mark.parametrize("best", [1, 2, 5, 6, 20])
def test_a_reward_is_measured_from_the_best_reading_on(best):
    """Five rows up to that reading, or the first five of the run; the last five, but none up to that reading."""
    found = rows(
        60,
        reward__mean=lambda i: float(i),
        yardstick__frechet=lambda i: 5.0 + abs(i - best) if i in (best, 25, 26) else None,
    )
    first, last = max(best, 5) - 2, 24
    text = message("reward-against-yardstick", found[:26])
    assert text is not None and f"from {first} to {last}," in text and f"(iteration {best}) to {31 - best}:" in text
    assert stretches("reward-against-yardstick", found) == list(range(26, 61))


def test_the_first_of_equal_readings_is_the_best():
    found = rows(9, reward__mean=float, yardstick__frechet=lambda i: 5.0 if i in (2, 4) else 9.0)
    assert "(iteration 2)" in str(message("reward-against-yardstick", found))


def test_after_a_better_reading_two_more_must_fall_behind():
    readings = {10: 5.0, 11: 6.0, 12: 6.0, 13: 4.0, 14: 6.0, 15: 6.0}
    found = rows(15, reward__mean=float, yardstick__frechet=readings.get)
    assert stretches("reward-against-yardstick", found) == [12, 15]
    assert "from 11 to 14.5," in str(message("reward-against-yardstick", found))  # means of 9 to 13, and of 14 and 15


def test_what_could_be_seen_of_a_rise_is_said():
    """Means of five rows that differ by 2 from row to row have a standard error of about 0.5 each."""
    found = message("reward-flat", rows(60, reward__mean=lambda i: 10.0 + 2 * (i % 2)))
    assert "nothing is learned, or less than the 1.4 that could be told from noise." in str(found)


def test_rows_without_an_update_leave_the_terms_of_the_last_one():
    columns = {name: lambda i, value=value: value if i <= 50 else None for name, value in
               (("ppo/approx_kl", 0.01), ("reward/term/mean", 3.0))}  # fmt: skip
    assert str(message("reward-flat", rows(60, **columns))).startswith(
        "reward/term/mean was 3 at the start and is 3 after 50 "
    )


@pytest.mark.parametrize(
    ("start", "end"),
    [([0, 3, 1, 0, 1], [3, 5, 4, 3, 0]), ([0.2, 0.5, 0.0, 0.2, 0.1], [0.4, 0.2, 0.5, 0.5, 0.4])],
)
def test_a_gain_as_large_as_its_noise_is_judged_by_the_exact_deviation(start, end):
    def rising(i: int) -> float:
        return start[i - 1] if i <= 5 else end[i - 36] if i > 35 else 0.0

    noise = alarms.STANDARD_ERRORS * math.sqrt(stdev(start) ** 2 / 5 + stdev(end) ** 2 / 5)
    gain = fmean(end) - fmean(start)
    assert gain == pytest.approx(noise, rel=1e-12)
    assert (check(rows(alarms.FLAT_AFTER, reward__mean=rising)) == []) == (gain > noise)


def random_rows(draw: random.Random) -> list[dict[str, Any]]:
    """A run in which figures are missing now and then, or no numbers, and every alarm may be raised."""

    def now_and_then(value: Any, share: float = 0.3) -> Any:
        other = (None, math.nan, math.inf)
        return lambda i: draw.choice(other) if draw.random() < share else value(i) if callable(value) else value

    best = draw.randrange(1, 40)
    columns = {
        "reward/mean": lambda i: draw.choice((0.0, 0.01 * i)) + 0.1 * draw.random(),
        "reward/std": draw.choice((0.1, 0.0, lambda i: 0.1 * (i % 9 == 0))),
        "ppo/approx_kl": now_and_then(lambda i: draw.choice((0.01, 0.01, 0.9)), 0.1),
        "yardstick/frechet": now_and_then(lambda i: 5 + abs(i - best) // 4, draw.choice((0.1, 0.8))),
        "yardstick/diversity": now_and_then(lambda i: 1 / i**0.2),
        "diversity": now_and_then(lambda i: draw.choice((1.0, 0.5)), 0.5),
    }
    if draw.random() < 0.5:
        columns["reward/frechet/mean"] = now_and_then(lambda i: 5 - 0.02 * i + draw.random())
    if draw.random() < 0.5:
        for name in (
            "reward_model/accuracy_real",
            "reward_model/term/accuracy_fake",
            "reward_model/term/accuracy_real",
        ):
            columns[name] = now_and_then(0.99, 0.7)
    return rows(draw.choice((12, 90)), **columns)


def test_a_run_that_is_resumed_after_any_row_raises_the_same_alarms():
    draw = random.Random(0)
    seen = set()
    for _ in range(20):
        found, whole = random_rows(draw), AlarmWatch([])
        plain = [dict(row) for row in found]
        for row in found:
            whole.on_iteration(row)
        cut = draw.randrange(len(found))
        resumed = AlarmWatch(found[:cut])
        for row, expected in zip(plain[cut:], found[cut:], strict=True):
            resumed.on_iteration(row)
            assert str(row) == str(expected)  # NaN is not equal to itself
        seen |= {alarm["name"] for row in found for alarm in row.get("alarms", ())}
    assert seen == set(alarms.RULES)


class Looked(dict):
    """A row that counts how often it is looked at."""

    looks = 0

    def _look(self) -> None:
        self.looks += 1

    def __getitem__(self, key: str) -> Any:
        self._look()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._look()
        return super().get(key, default)

    def __contains__(self, key: object) -> bool:
        self._look()
        return super().__contains__(key)

    def __iter__(self) -> Iterator[str]:
        self._look()
        return super().__iter__()


def test_a_row_is_looked_at_as_often_in_a_long_run_as_in_a_short_one():
    columns = {
        "reward/mean": lambda i: 0.5 + 0.001 * (-1) ** i,
        "reward/std": 0.1,
        "reward/term/mean": 1.0,
        "yardstick/frechet": lambda i: 5 + 0.1 * i if i > 30 else 5,
        "yardstick/diversity": lambda i: 1 / i,
        "diversity": lambda i: 1 / i,
        "ppo/approx_kl": 0.9,
    }

    def most(count: int) -> int:
        found = [Looked(row) for row in rows(count, **columns)]
        assert len(alarms.Watch(found).now) == 3
        return max(row.looks for row in found)

    assert most(100) == most(1000) < 100


def test_alarms_are_json():
    (alarm,) = check(rows(60))
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
