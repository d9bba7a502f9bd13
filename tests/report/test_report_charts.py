"""Charts of a report: where points lie, what is thinned, and which logged figures make up which chart."""

from __future__ import annotations

import json
import re

import pytest

from adanat_toolkit.report import charts, curves
from adanat_toolkit.report.probing import KnobSpread

from ..helpers.report_runs import made_run, rows_of

# --- charts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (128, 1024, [200, 400, 600, 800, 1000]),
        (-0.05, 0.02, [-0.04, -0.02, 0, 0.02]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected, abs=1e-12)


def test_ticks_of_counts_are_whole() -> None:
    assert charts.ticks(1, 4, 8, whole=True) == [1, 2, 3, 4]
    assert charts.ticks(3, 3) == [3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1000, "1k"),
        (1024, "1024"),
        (4_096_000, "4.096M"),
        (153_600, "153.6k"),
        (-20_000, "-20k"),
        (0.00012, "1.20e-4"),
        (0.48719, "0.4872"),
    ],
)
def test_numbers_for_people(value: float, text: str) -> None:
    assert charts.number(value) == text


def test_points_lie_where_the_axes_say() -> None:
    line = charts.Series("reward", [(0, 1.0), (50, 3.0), (100, 2.0)])
    chart = charts.Chart("Reward", [line])
    text = str(chart.svg())
    x_low, x_high, y_low, y_high = charts.limits(chart)
    assert (x_low, x_high) == (0, 100) and y_low < 1 < 3 < y_high
    drawn = [tuple(map(float, p.split(","))) for p in re.findall(r'<polyline[^>]* points="([^"]+)"', text)[0].split()]
    width, height = charts.WIDTH - charts.LEFT - charts.RIGHT, charts.HEIGHT - charts.TOP - charts.BOTTOM
    for (px, py), (x, y) in zip(drawn, line.points, strict=True):
        assert px == pytest.approx(charts.LEFT + x / 100 * width, abs=0.06)
        assert py == pytest.approx(charts.TOP + (y_high - y) / (y_high - y_low) * height, abs=0.06)
    attached = json.loads(re.findall(r'data-series="([^"]+)"', text)[0].replace("&#34;", '"'))
    assert attached[0]["x"] == [0, 50, 100] and attached[0]["y"] == [1, 3, 2]
    assert 'aria-label="Reward over trajectories. reward: 1 at first, 2 at last, between 1 and 3."' in text


def test_a_chart_begins_at_zero_where_asked_and_possible() -> None:
    line = charts.Series("kl", [(0, 0.5), (1, 0.6)])
    assert charts.limits(charts.Chart("kl", [line], zero=True))[2] == 0
    assert 0.4 < charts.limits(charts.Chart("kl", [line]))[2] < 0.5
    below = charts.Series("kl", [(0, -0.5), (1, 0.6)])
    assert charts.limits(charts.Chart("kl", [below], zero=True))[2] < -0.5


def test_one_point_and_equal_points_are_drawn() -> None:
    for points in ([(128.0, 0.5)], [(0.0, 0.0), (1.0, 0.0)]):
        text = str(charts.Chart("flat", [charts.Series("flat", points)]).svg())
        assert "nan" not in text and "inf" not in text and "<polyline" in text
    assert "<circle" in str(charts.Chart("one", [charts.Series("one", [(1, 1)])]).svg())
    assert str(charts.Chart("none", [charts.Series("none", [])]).svg()) == ""


def test_long_lines_are_thinned_to_means() -> None:
    count = 3 * charts.MOST_POINTS
    line = charts.Series("y", [(float(i), float(i % 3)) for i in range(count)], band=[(0.0, 2.0)] * count)
    thin = charts.thin(line)
    assert len(thin.points) == charts.MOST_POINTS == len(thin.band or ())
    assert thin.points[1] == (4.0, 1.0)  # the mean of 3, 4, 5 and of 0, 1, 2
    assert charts.Chart("y", [line]).thinned == 3
    assert charts.thin(charts.Series("y", line.points[:10])).points == line.points[:10]


def test_texts_in_charts_are_escaped() -> None:
    text = str(charts.Chart('a"<b>', [charts.Series("<script>", [(0, 1), (1, 2)])], x_label="x<y").svg())
    assert "<script>" not in text and "<b>" not in text and "x<y" not in text


# --- which figures make up which chart --------------------------------------------------------------------------------


def test_every_logged_figure_has_its_chart() -> None:
    extra = {f"reward_model/a/{k}": 0.7 for k in ("accuracy_real", "accuracy_fake", "logit_real", "logit_fake", "loss")}
    extra |= {"reward/a/mean": 0.3, "reward/a/std": 0.1, "my_own/figure": 3.0, "yardstick/frechet": 9.0}
    main, other = curves.training_charts([made_run(rows_of(3, **extra))])
    titles = [chart.title for chart in main]
    for title in ("Reward", "Reward term a", "Discriminator accuracy of a", "KL divergence of the update"):
        assert title in titles
    assert {"Frechet distance, held out", "Exploration sigma", "Discriminator loss of a"} <= set(titles)
    assert "Explained variance" not in titles  # not logged
    accuracy = next(chart for chart in main if chart.title == "Discriminator accuracy of a")
    assert [s.label for s in accuracy.series] == ["real", "generated"]
    assert accuracy.series[0].points == [(8.0, 0.7), (16.0, 0.7), (24.0, 0.7)]
    assert "my_own/figure" in [chart.title for chart in other]
    assert not [c.title for c in (*main, *other) if "seconds" in c.title or c.title.endswith("std")]
    reward = main[0]
    assert reward.series[0].band == [(0.4, 0.6)] * 3


def test_numbers_that_are_not_finite_are_left_out() -> None:
    rows = rows_of(4, **{"ppo/approx_kl": lambda i: float("nan") if i == 2 else 0.1 * i, "note": "text"})
    run = made_run(rows)
    assert run.values("ppo/approx_kl") == [(8.0, 0.1), (24.0, pytest.approx(0.3)), (32.0, 0.4)]
    assert run.values("note") == [] and run.last("note") is None and run.last("ppo/approx_kl") == 0.4


def test_several_runs_share_a_chart() -> None:
    runs = [made_run(rows_of(3, **{"yardstick/precision": 0.5, "yardstick/recall": 0.4}), name) for name in "ab"]
    main, _ = curves.training_charts(runs)
    both = next(chart for chart in main if chart.title.startswith("Precision"))
    assert [(s.label, s.colour, s.dash) for s in both.series] == [
        ("a: precision", 0, 0), ("a: recall", 0, 1), ("b: precision", 1, 0), ("b: recall", 1, 1),
    ]  # fmt: skip
    assert both.keys == [("a", "c0", 0), ("b", "c1", 0), ("precision", "cn", 0), ("recall", "cn", 1)]
    assert main[0].series[0].band is None and "Band" not in main[0].note


def test_unlike_rewards_share_no_axis() -> None:
    rewards = {"a": "clip-score", "b": "adversarial", "c": "clip-score"}
    runs = [made_run(rows_of(3), name, reward={"name": reward}) for name, reward in rewards.items()]
    main, _ = curves.training_charts(runs)
    found = {c.title: [(s.label, s.colour) for s in c.series] for c in main if c.title.startswith("Reward")}
    assert found == {"Reward clip-score": [("a", 0), ("c", 2)], "Reward adversarial": [("b", 1)]}


def test_knobs_over_training_show_some_of_many_steps() -> None:
    knobs = {f"knob/guidance/{t}": (lambda i, t=t: float(i + t)) for t in range(20)}
    main, _ = curves.training_charts([made_run(rows_of(3, **knobs))])
    chart = next(chart for chart in main if chart.title == "guidance during training")
    assert len(chart.series) == curves.SHOWN_STEPS
    assert (chart.series[0].label, chart.series[-1].label) == ("step 1", "step 20")


def test_knob_charts_have_the_spread() -> None:
    ours = [KnobSpread("mask_ratio", [0.9, 0.2], [0.8, 0.1], [0.95, 0.3])]
    (chart,) = curves.knob_charts([(2, "run", ours)], [KnobSpread("mask_ratio", [0.7, 0.0], [0.7, 0.0], [0.7, 0.0])])
    assert chart.series[0].points == [(1, 0.9), (2, 0.2)] and chart.series[0].band == [(0.8, 0.95), (0.1, 0.3)]
    assert chart.series[1].points == [(1, 0.7), (2, 0.0)] and chart.series[1].band is None
