"""Controls of policies that see their samples: what is replayed, what the table says, and that no training is spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.compare import Comparison, write_report
from adanat_toolkit.compare.controls import control_actions
from adanat_toolkit.compare.result import Cell, Result
from adanat_toolkit.compare.table import build_table
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.metrics import Evaluation
from adanat_toolkit.training import Trainer

from ..helpers.tiny_plugins import tiny_plugins
from .test_compare import FACTS, configuration, never, plain

__all__ = ["tiny_plugins"]


def test_what_is_replayed() -> None:
    actions = torch.randn(60, 2, 3)
    groups = torch.arange(60) % 4
    mean = control_actions("mean", actions, groups, 0)
    assert mean.shape == actions.shape and torch.allclose(mean[7], actions.mean(0))
    rows = actions.flatten(1).tolist()
    for control in ("within", "overall"):
        shuffled = control_actions(control, actions, groups, 0).flatten(1).tolist()
        source = torch.tensor([rows.index(row) for row in shuffled])
        assert sorted(source.tolist()) == list(range(60)) and not (source == torch.arange(60)).any()
        assert torch.equal(groups[source], groups) == (control == "within")
    with pytest.raises(ConfigError, match="60 of 60 images are the only one"):
        control_actions("within", actions, torch.arange(60), 0)


def test_a_comparison_with_controls(tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"ppo": {"learning_rate": 0.02}}
    settings: dict[str, Any] = {"policies": ("shared", "lean", "context"), "candidates": 0, "controls": True}
    comparison = Comparison(configuration(base, **settings), tmp_path / "out")
    plan = comparison.plan()
    assert plan["learned"] == 6 and plan["cells"] == 2 * (1 + 1 + 4 + 4)
    results = comparison.run()
    table = comparison.table(results)
    titles = [row.title for row in table.rows]
    assert titles[:6] == [
        "hand-made", "shared", "lean", "lean: mean schedule for all", "lean: actions shuffled within contexts",
        "lean: actions shuffled",
    ]  # fmt: skip
    rows = {row.title: row for row in table.rows}
    lean, mean = rows["lean"], rows["lean: mean schedule for all"]
    assert lean.figures["frechet"].values != mean.figures["frechet"].values and mean.ratio is not None
    # Of one class all have the same actions under this policy: nothing is changed by shuffling within.
    same = rows["context: actions shuffled within contexts"].figures["frechet"].values
    assert same == pytest.approx(rows["context"].figures["frechet"].values, rel=1e-3)
    assert [line.partition(",")[0] for line in table.adapted] == ["lean", "context"]
    write_report(results, table, tmp_path / "report", sheets=tmp_path / "out" / "cells")
    page = (tmp_path / "report" / "compare.md").read_text()
    assert "## Did it adapt?" in page and "| lean: actions shuffled |" in page
    # The reward does not learn, so every row has its mean score, and each sentence says what controls lose of it.
    assert all("reward contrast" in row.figures for row in table.rows) and "reward contrast" in page
    assert lean.figures["reward contrast"].values == [lean.scores[seed][0] for seed in lean.seeds]
    assert all("By its own reward, it " in line for line in table.adapted)
    within = rows["context: actions shuffled within contexts"].figures["reward contrast"].values
    assert within == pytest.approx(rows["context"].figures["reward contrast"].values, rel=1e-3)
    # Without their own cells the controls are made again from the runs that are there.
    for file in (tmp_path / "out" / "cells").glob("lean*-mean.json"):
        file.unlink()
    monkeypatch.setattr(Trainer, "step", never)
    again = Comparison(configuration(base, **settings), tmp_path / "out")
    assert again.plan()["finished"] == 18 and plain(again.run()) == plain(results)
    taken = Comparison(configuration(base, **settings), tmp_path / "other", reuse=[tmp_path / "report"])
    assert taken.plan()["finished"] == 20


@pytest.mark.parametrize(
    ("controls", "said"),
    [
        ({"mean": 5.5, "within": 5.2, "overall": 5.3}, "it adapted. Frechet"),
        ({"mean": 5.5, "within": 5.0, "overall": 5.3}, "it adapted to contexts, not to the samples of one"),
        ({"mean": 5.5, "within": 5.0, "overall": 5.0}, "it gained by variety"),
        ({"mean": 5.0, "within": 5.2, "overall": 5.3}, "it did not adapt as far as these seeds tell"),
        ({"mean": 5.5, "overall": 5.3}, "it adapted, to contexts or to samples. Frechet"),
    ],
)
def test_the_sentence(controls: dict[str, float], said: str) -> None:
    results = [judged("hand-made", None, 6.0, seed, None) for seed in range(3)]
    results += [judged("adaptive", "r", 5.0, seed, None) for seed in range(3)]
    results += [judged("adaptive", "r", value, seed, name) for name, value in controls.items() for seed in range(3)]
    (sentence,) = build_table(results, FACTS).adapted
    assert sentence.startswith(f"adaptive, r at T=4: {said}")
    assert f"{controls['mean'] / 5 - 1:.1%} [" in sentence and "mean schedule for all" in sentence
    (unknown,) = build_table([r for r in results if r.cell.seed == 0], FACTS).adapted
    assert "cannot be told from fewer than two seeds" in unknown


@pytest.mark.parametrize("mean", [True, False, None])
@pytest.mark.parametrize("overall", [True, False, None])
@pytest.mark.parametrize("within", [True, False, None])
def test_what_is_not_measured_shows_nothing(mean: bool | None, overall: bool | None, within: bool | None) -> None:
    """Each control is worse than the policy, as good, or of one seed; it adapted where one shows it and none denies it."""
    if mean is None and overall is None and within is None:
        return
    results = [judged("hand-made", None, 6.0, seed, None) for seed in range(3)]
    results += [judged("adaptive", "r", 5.0, seed, None) for seed in range(3)]
    for name, worse in (("mean", mean), ("overall", overall), ("within", within)):
        seeds = range(1 if worse is None else 3)
        results += [judged("adaptive", "r", 5.5 + 0.01 * seed if worse else 5.0, seed, name) for seed in seeds]
    (sentence,) = build_table(results, FACTS).adapted
    denied = mean is False or overall is False
    shown = mean is True and (overall is True or within is True)
    assert ("it adapted" in sentence.replace("whether it adapted", "")) == (shown and not denied), sentence
    if overall is None and within is None and mean:
        assert "whether it adapted cannot be told" in sentence
    assert ("it adapted. " in sentence) == (shown and not denied and within is True)


def test_its_own_reward_has_a_sentence_of_its_own() -> None:
    """A policy may do for its reward what the distance does not see."""
    results = [judged("hand-made", None, 6.0, seed, None) for seed in range(3)]
    results += [scored(judged("adaptive", "r", 5.0, seed, None), 1.0 + 0.1 * seed) for seed in range(3)]
    for name, lost in (("mean", 0.4), ("within", 0.0), ("overall", 0.3)):
        controls = [judged("adaptive", "r", 5.0, seed, name) for seed in range(3)]
        results += [scored(c, 1.0 + 0.1 * c.cell.seed - lost - 0.01 * c.cell.seed) for c in controls]
    table = build_table(results, FACTS)
    (sentence,) = table.adapted
    assert ": it did not adapt as far as these seeds tell, its mean schedule is as good for all. Frechet" in sentence
    assert " By its own reward, it adapted to contexts, not to the samples of one. What its controls lose" in sentence
    assert "mean schedule for all +0.205 [+0.193, +0.217]" in sentence  # (0.40, 0.41, 0.42) / 2
    # Of a reward that learns the scores of two rows are not those of one judge, and make no column.
    assert not any("reward r" in row.figures for row in table.rows)
    still = [replace(result, scores=result.scores or {"r": (0.5, 2.0)}) for result in results]
    column = {row.title: row.figures["reward r"].mean for row in build_table(still, FACTS).rows}
    assert column["hand-made"] == 0.5 and column["adaptive"] == pytest.approx(1.1)


def test_what_a_policy_gains_over_shared_is_a_sentence() -> None:
    results = [scored(judged("hand-made", None, 6.0, seed, None), 0.0) for seed in range(3)]
    results += [scored(judged("shared", "r", 5.0, seed, None), 1.0 * seed) for seed in range(3)]
    results += [scored(judged("context", "r", 5.5, seed, None), 1.0 * seed + 0.4 + 0.01 * seed) for seed in range(3)]
    (sentence,) = build_table(results, FACTS).against_shared
    assert sentence == (
        "context, r at T=4 against shared: Frechet distance +10.0% [+10.0%, +10.0%] (below 0 is better); reward +0.205 "
        "[+0.193, +0.217] standard deviations of the scores (above 0 is better)."
    )
    # A discriminator learns: each row's own is another judge. One seed tells nothing, and no shared row nothing at all.
    learning = [replace(r, scores={}) if r.cell.policy == "hand-made" else r for r in results]
    (sentence,) = build_table(learning, FACTS).against_shared
    assert "Frechet distance" in sentence and "reward" not in sentence
    assert not build_table([r for r in results if r.cell.seed == 0], FACTS).against_shared
    assert not build_table([r for r in results if r.cell.policy != "shared"], FACTS).against_shared


def scored(result: Result, mean: float) -> Result:
    return replace(result, scores={"r": (mean, 2.0)})


def test_a_control_that_failed_hides_no_other() -> None:
    results = [judged("hand-made", None, 6.0, seed, None) for seed in range(3)]
    results += [judged("adaptive", "r", 5.0, seed, None) for seed in range(3)]
    results += [judged("adaptive", "r", 5.4, seed, name) for name in ("mean", "overall") for seed in range(3)]
    (sentence,) = build_table([*results, judged("adaptive", "r", 5.2, 0, "within")], FACTS).adapted
    assert "it adapted, to contexts or to samples" in sentence and "mean schedule for all" in sentence
    assert sentence.endswith("Fewer than two seeds have actions shuffled within contexts.")


def judged(policy: str, reward: str | None, frechet: float, seed: int, control: str | None) -> Result:
    value = frechet * (1 + 0.01 * seed) + (0.01 * (seed - 1) if control else 0)
    evaluation = Evaluation("pixels-v1", 64, 300, "tiny-images", {"frechet": value})
    return Result(Cell(policy, reward, 4, seed, control), evaluation)
