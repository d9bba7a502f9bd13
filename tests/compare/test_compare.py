"""``adanat compare``: the grid, resuming, the search, the table and its refusals, the pictures, the command."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import random
import re
import shlex
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import entrypoints
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adanat_plugins.diffusion.samplers import TIME_SHIFT
from adanat_toolkit.compare import Comparison, configure, saved_text, write_report
from adanat_toolkit.compare.grid import LARGEST_SEED
from adanat_toolkit.compare.plots import _one_seed
from adanat_toolkit.compare.render import markdown, to_csv
from adanat_toolkit.compare.result import Cell, Result
from adanat_toolkit.compare.search import SEARCH_SEED, SearchSpace, check_kind, search_schedule
from adanat_toolkit.compare.table import build_table
from adanat_toolkit.core import GUIDANCE, TIME, ActionSpace, next_scale_knobs, parse_schedule
from adanat_toolkit.errors import CheckpointError, ConfigError, DataError, OutputError, PluginError
from adanat_toolkit.evaluation import Yardstick
from adanat_toolkit.metrics import FIGURES, Evaluation, mean_interval
from adanat_toolkit.runtime import MemoryShortage
from adanat_toolkit.storage import held, sealed
from adanat_toolkit.testing import Control
from adanat_toolkit.training import Trainer, validate
from adanat_toolkit.training.held_out import HELD_OUT_SEED

from ..helpers.cli import adanat, refused
from ..helpers.tiny_plugins import Pixels, TinyWithData, tiny_plugins

__all__ = ["tiny_plugins"]

BASE: dict[str, Any] = {
    "generator": {"name": "tiny"},
    "batch": 16,
    "trajectories": 96,
    "device": "cpu",
    "evaluate_every": 3,
    "evaluate_images": 32,
}


def configuration(base: dict[str, Any] | None = None, **settings: Any) -> Any:
    defaults: dict[str, Any] = {
        "policies": ("shared",),
        "rewards": ("contrast",),
        "steps": (2,),
        "seeds": (0, 1),
        "candidates": 2,
        "images": 64,
    }
    return configure(base=validate({**BASE, **(base or {})}), **{**defaults, **settings})


# --- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", ["adversarial", "fid:influence", "fid", "contrast:1,adversarial:0.5"])
@pytest.mark.usefixtures("tiny_plugins")
def test_a_reward_that_would_do_nothing_is_refused(reward: str) -> None:
    """Where nothing is learned only a reward that stands still has scores to give."""
    for policies in ((), ("fixed:linear",)):
        with pytest.raises(ConfigError, match=rf"reward '{re.escape(reward)}' does nothing where no policy is"):
            configuration(policies=policies, rewards=("contrast", reward)).check()
        configuration(policies=policies).check()  # a frozen one scores every row
        configure(base=validate(BASE), policies=policies, candidates=0).check()  # the default was not asked for
    configuration(policies=("shared",), rewards=(reward,)).check()
    refused(adanat("compare", "--policy", "fixed:linear", "--reward", reward, "--dry-run"), "does nothing where")


@pytest.mark.parametrize("policy", ["runs/a", "owner/name@main", "a*0.5+b*0.5", "."])
@pytest.mark.usefixtures("tiny_plugins")
def test_a_trained_policy_is_sent_to_evaluate(policy: str) -> None:
    with pytest.raises(ConfigError) as told:
        configuration(policies=("shared", policy)).check()
    assert f"policy '{policy}' is a place or a blend, no kind of policy" in str(told.value)
    assert f"judged by adanat evaluate --policy {policy}, beside the hand-made schedule" in str(told.value)


def test_the_grid_has_every_combination_once():
    config = configuration(
        policies=("shared", "adaptive", "fixed:linear"),
        rewards=("contrast", "brightness:1,contrast:2"),
        steps=(4, 2),
        hand_made_steps=(2, 8),
    )
    cells = config.cells()
    names = [cell.name for cell in cells]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w.-]+", name) for name in names)
    rows = {cell.row[:3] for cell in cells}
    hand_made = {(policy, None, t) for policy in ("hand-made", "fixed:linear") for t in (2, 4, 8)}
    hand_made |= {("published", None, t) for t in (2, 4)}  # the longer curve is of what is held against what is learned
    learned = {(p, r, t) for p in ("shared", "adaptive") for r in config.rewards for t in (2, 4)}
    assert rows == hand_made | {("search", None, 2), ("search", None, 4)} | learned
    assert len(cells) == 2 * len(rows)
    assert {cell.row[:3] for cell in configuration(candidates=0).cells()}.isdisjoint({("search", None, 2)})
    searched = [cell for cell in configuration(searches=("constant", "interval")).cells() if cell.search]
    assert [(cell.policy, cell.seed) for cell in searched] == [
        ("search-constant", 0), ("search-constant", 1), ("search-interval", 0), ("search-interval", 1)
    ]  # fmt: skip


def test_cells_of_different_texts_have_different_names():
    kept = {
        "shared": "shared",
        "hand-made": "hand-made",
        "search-interval": "search-interval",
        "fixed:cosine": "fixed_cosine",
        "fixed:cosine,guidance=0:3,mask_temperature=4.5:0": "fixed_cosine_guidance_0_3_mask_temperature_4.5_0",
        "fixed:guidance=1,time_shift=0.42": "fixed_guidance_1_time_shift_0.42",
    }
    for text, name in kept.items():  # grids of before go on
        assert Cell(text, None, 4, 0).name == f"{name}-T4-s0"
        assert Cell("shared", text, 4, 0).name == f"shared-{name}-T4-s0"
    alike = ("0:3", "0/3", "0:3^2", "0:3/2", "0_3", "0_3 ", "0:3*2", "0+3")
    names = [Cell(f"fixed:cosine,guidance={text}", None, 4, 0).name for text in alike]
    assert len({*names}) == len(alike) and all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_settings_that_cannot_work_are_refused_before_any_work(tmp_path, tiny_plugins):
    for settings, error, message in (
        ({"policies": ("adaptve",)}, PluginError, "did you mean 'adaptive'"),
        ({"rewards": ("contrst",)}, PluginError, "did you mean 'contrast'"),
        ({"policies": ("fixed:linear",), "steps": (0,)}, ConfigError, "at least 1 step"),
        ({"seeds": (-1,)}, ConfigError, "seed -1"),
        ({"rewards": ()}, ConfigError, "need a reward"),
        ({"base": {"policy": {"options": {"sise": "small"}}}}, ConfigError, "option of no policy in the grid"),
        ({"base": {"reward": {"options": {"updates": 1}}}}, ConfigError, "option of no reward in the grid"),
        ({"features": "emoji65"}, PluginError, "did you mean 'emoji64'"),
        ({"policies": ("fixed:lineer",)}, ConfigError, "did you mean 'linear'"),
        ({"searches": ("intervall",)}, ConfigError, "did you mean 'interval'"),
        ({"candidates": 32}, ConfigError, "at least 2 schedules and 16 images each"),
        ({"candidates": 0, "searches": ("interval",)}, ConfigError, "of kind interval at T = 2 with 0 candidates"),
        ({"candidates": 0, "search_steps": (4, 8)}, ConfigError, "of kind schedule at T = 4, 8 with 0 candidates"),
        ({"search_steps": (), "searches": ("interval",)}, ConfigError, "at T = none with 2 candidates"),
        ({"policies": ("shared", "fixed:linear"), "controls": True}, ConfigError, "of shared, fixed:linear none does"),
        ({"rewards": ("adversarial",), "base": {"reward": {"options": {"updates": 0}}}}, ConfigError, "updates"),
    ):
        with pytest.raises(error, match=message):
            Comparison(configuration(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="images = 3"):
        configuration(images=3)


def test_options_go_to_those_that_have_them(tiny_plugins):
    base = {"policy": {"options": {"size": "small"}}, "reward": {"options": {"updates": 1}}}
    config = configuration(base, policies=("shared", "adaptive"), rewards=("contrast", "adversarial"))
    config.check()
    runs = {(c.policy, c.reward): config.run_of(c) for c in config.cells() if c.learned}
    assert runs["adaptive", "adversarial"].policy.options == {"size": "small"}
    assert runs["shared", "adversarial"].policy.options == {}
    assert runs["adaptive", "adversarial"].reward.options == {"updates": 1}
    assert runs["adaptive", "contrast"].reward.options == {}


# --- running ----------------------------------------------------------------------------------------------------------


def test_a_comparison_from_start_to_pictures_and_again(tmp_path, tiny_plugins, monkeypatch):
    config = configuration(rewards=("contrast", "prompts-only"), hand_made_steps=(4,))
    comparison = Comparison(config, tmp_path / "out")
    plan = comparison.plan()
    assert plan["cells"] == 10 and plan["learned"] == 4 and plan["searches"] == 2 and plan["finished"] == 0
    assert plan["images_for_learning"] == 6 * 96 and plan["images_for_held_out_readings"] == 4 * 3 * 32
    results = comparison.run()
    table = comparison.table(results)
    found = {(row.policy, row.reward, row.steps): row for row in table.rows}
    assert list(found) == [  # by T, hand-made before learned; tiny has no published sampler
        ("hand-made", None, 2), ("search", None, 2), ("shared", "contrast", 2), ("shared", "prompts-only", 2),
        ("hand-made", None, 4),
    ]  # fmt: skip
    learned, base = found["shared", "contrast", 2], found["hand-made", None, 2]
    distances = {r.cell.name: r.evaluation.figures["frechet"] for r in results if r.evaluation is not None}
    own = [distances[f"shared-contrast-T2-s{s}"] for s in (0, 1)]
    reference = [distances[f"hand-made-T2-s{s}"] for s in (0, 1)]
    assert learned.figures["frechet"].values == own
    assert learned.figures["frechet"].interval == pytest.approx(mean_interval(own))
    assert learned.ratio is not None and learned.ratio.values == [a / b for a, b in zip(own, reference, strict=True)]
    assert base.ratio is not None and base.ratio.values == [1.0, 1.0] and len(set(reference)) == 2
    assert learned.budget == 96 and found["search", None, 2].budget <= 96
    assert found["search", None, 2].partial and not learned.partial and not base.partial
    failed = found["shared", "prompts-only", 2]
    assert failed.figures == {} and list(failed.failed) == [0, 1] and "reads prompts" in failed.failed[0]
    assert [(s.policy, s.steps, s.longest) for s in table.saved] == [("shared", 2, 4)]

    files = write_report(
        results, table, tmp_path / "report", sheets=tmp_path / "out" / "cells", command="adanat compare"
    )
    assert {file.name for file in files} == {
        "compare.md", "compare.json", "compare.csv", "same-seeds-T2.png", "knobs-T2.png", "quality-against-steps.png",
        "reward-against-yardstick.png",
    }  # fmt: skip
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.mode == "P" and len(image.convert("L").getcolors(2**24) or ()) > 2
    page = (tmp_path / "report" / "compare.md").read_text()
    assert "pixels-v1" in page and "64 images a seed, seeds 0, 1" in page and "FAILED (seed 0)" in page
    stored = json.loads((tmp_path / "report" / "compare.json").read_text())
    assert stored["rows"][2]["figures"]["frechet"]["values"] == own and stored["facts"]["budget"] == 96

    again = Comparison(replaced(config, rewards=("contrast",)), tmp_path / "out")
    monkeypatch.setattr(Trainer, "step", never)
    monkeypatch.setattr(Yardstick, "make", never)
    assert again.plan()["finished"] == again.plan()["cells"] == 8
    finished = [r for r in results if r.cell.reward != "prompts-only"]
    assert plain(again.run()) == plain(finished)


def test_cells_of_another_report_are_taken_over_where_the_settings_are_the_same(tmp_path, tiny_plugins):
    first = Comparison(configuration(seeds=(0,)), tmp_path / "first")
    before = first.run()
    write_report(before, first.table(before), tmp_path / "report", sheets=tmp_path / "first" / "cells")
    report = tmp_path / "report" / "compare.json"
    rewritten(report, '"device": "cpu"', '"device": "cuda"')

    second = Comparison(configuration(seeds=(1, 0)), tmp_path / "second", reuse=[report.parent])
    assert [second.plan()[key] for key in ("finished", "cells")] == [3, 6]
    results = second.run()
    taken = [r for r in results if r.cell.seed == 0]
    assert plain([replace(r, training=[], device="cuda") for r in before]) == plain(taken)
    assert {r.device for r in results if r.cell.seed == 1} == {"cpu"}
    table = second.table(results)
    assert all(row.devices == ["cpu", "cuda"] for row in table.rows)
    assert ": cpu, cuda" in markdown(table) and "devices in the notes, float32" in markdown(table)
    assert next(csv.DictReader(io.StringIO(to_csv(table))))["devices"] == "cpu cuda"
    assert first.table(before).rows[0].devices == []
    # All of it from elsewhere: the table says where, not where it was written.
    only = first.table(taken)
    assert only.facts["device"] == "cuda" and ", cuda, float32" in markdown(only)
    # The pictures need no sheet of what was taken over, and this folder now stands for itself.
    files = write_report(results, table, tmp_path / "both", sheets=tmp_path / "second" / "cells")
    assert {"same-seeds-T2.png", "knobs-T2.png"} <= {file.name for file in files}
    assert Comparison(configuration(seeds=(1, 0)), tmp_path / "second").plan()["finished"] == 6

    for other in ({"images": 80}, {"first_seed": 7}):
        assert (
            Comparison(configuration(seeds=(0,), **other), tmp_path / "third", reuse=[report]).plan()["finished"] == 0
        )
    rounded = tmp_path / "rounded.json"
    shutil.copy(report, rounded)
    rewritten(rounded, '"dtype": "float32"', '"dtype": "bfloat16"')
    assert Comparison(configuration(seeds=(0,)), tmp_path / "third", reuse=[rounded]).plan()["finished"] == 0
    longer = Comparison(configuration({"trajectories": 112}, seeds=(0,)), tmp_path / "third", reuse=[report])
    assert longer.plan()["finished"] == 1  # the hand-made schedule needs no training
    for wrong in (tmp_path / "nothing", tmp_path / "first" / "cells" / "hand-made-T2-s0.json"):
        with pytest.raises(DataError, match=r"cannot reuse .*: .* Give the --report"):
            Comparison(configuration(), tmp_path / "third", reuse=[wrong])


def test_what_was_taken_over_replaces_what_is_stale(tmp_path, tiny_plugins, monkeypatch):
    """A cell of other settings in the same folder leaves neither its result nor its picture beside the new one."""
    settings: dict[str, Any] = {"seeds": (0,), "candidates": 0}
    stale = Comparison(configuration(**settings, first_seed=500), tmp_path / "out")
    stale.run()
    other = Comparison(configuration(**settings), tmp_path / "other")
    results = other.run()
    write_report(results, other.table(results), tmp_path / "report", sheets=tmp_path / "other" / "cells")
    monkeypatch.setattr(Yardstick, "make", never)
    sheets = tmp_path / "out" / "cells"
    old = (sheets / "hand-made-T2-s0.png").read_bytes()
    # From a report alone there is no picture; from the folder of the comparison there is.
    taken = Comparison(configuration(**settings), tmp_path / "out", reuse=[tmp_path / "report"])
    assert plain([replace(r, training=[]) for r in taken.run()]) == plain([replace(r, training=[]) for r in results])
    assert not (sheets / "hand-made-T2-s0.png").exists()
    assert Comparison(configuration(**settings), tmp_path / "out").plan()["finished"] == 2
    shutil.copy(tmp_path / "report" / "compare.json", tmp_path / "other" / "compare.json")
    Comparison(configuration(**settings), tmp_path / "third", reuse=[tmp_path / "other"]).run()
    copied = (tmp_path / "third" / "cells" / "hand-made-T2-s0.png").read_bytes()
    assert copied == (tmp_path / "other" / "cells" / "hand-made-T2-s0.png").read_bytes() != old


def test_what_a_result_depends_on(tmp_path, tiny_plugins, monkeypatch):
    settings: dict[str, Any] = {"seeds": (0,), "rewards": ("fid",)}

    def keys(base: dict[str, Any] | None = None) -> dict[str, str]:
        comparison = Comparison(
            configuration({"reward": {"options": {"features": "pixels"}}, **(base or {})}, **settings), tmp_path
        )
        return {cell.policy: comparison.files.key(cell) for cell in comparison.cells}

    first = keys()
    # A default that is written out, the spelling of the data's place and of the compute type change nothing.
    assert keys({"reward": {"options": {"features": "pixels", "variant": "shared"}}, "dtype": "float32"}) == first
    grouped = keys({"reward": {"options": {"features": "pixels", "group": 8}}})
    assert grouped["shared"] != first["shared"] and grouped["hand-made"] == first["hand-made"]
    monkeypatch.setattr(TinyWithData, "create", classmethod(lambda cls, *_, **__: cls()))
    tokenizer = keys({"generator": {"name": "tiny", "options": {"tokenizer": "other"}}})
    assert all(tokenizer[policy] != key for policy, key in first.items())
    init = TinyWithData.__init__

    def colder(self: Any) -> None:
        init(self)
        self.default_schedule = "cosine,mask_temperature=0.5:0"

    monkeypatch.setattr(TinyWithData, "__init__", colder)
    assert all(key != first[policy] for policy, key in keys().items())


def test_a_grid_is_the_same_however_often_a_part_is_named():
    once, twice = (
        configuration(policies=("shared", "fixed:linear")),
        configuration(policies=("shared", "fixed:linear", "shared", "fixed:linear"), rewards=("contrast", "contrast")),
    )
    assert once.cells() == twice.cells()


def test_a_cell_that_runs_out_of_memory_does_not_stop_the_others(tmp_path, tiny_plugins, monkeypatch):
    step = Trainer.step

    def short(self: Trainer) -> Any:
        if self.config.seed == 0:
            raise MemoryShortage("not enough memory")
        return step(self)

    monkeypatch.setattr(Trainer, "step", short)
    comparison = Comparison(configuration(candidates=0), tmp_path / "out")
    results = comparison.run()
    assert [r.error for r in results if r.cell.learned] == ["not enough memory", None]
    (learned,) = (row for row in comparison.table(results).rows if row.policy == "shared")
    # One of two seeds is left: no interval over seeds, and the one over images is another thing.
    assert learned.figures["frechet"].interval is None and learned.failed == {0: "not enough memory"}


def test_the_plan_is_of_what_is_left(tmp_path, tiny_plugins):
    config = configuration({"evaluate_every": 1}, candidates=0)
    first = Comparison(config, tmp_path / "out").plan()
    assert first["images_for_held_out_readings"] == 2 * 6 * 32 and first["images_for_the_table"] == 4 * 64
    Comparison(replaced(config, seeds=(0,)), tmp_path / "out").run()
    left = Comparison(config, tmp_path / "out").plan()
    assert (left["cells"], left["finished"], left["learned"]) == (4, 2, 1)
    assert left["images_for_learning"] == 96 and left["images_for_the_table"] == 2 * 64


def test_many_seeds_are_planned_at_once(tmp_path, tiny_plugins, monkeypatch):
    """Plug-ins are looked up on the disk once, however many seeds there are."""
    read: Counter[str] = Counter()
    on_disk = entrypoints.get_group_all
    monkeypatch.setattr(entrypoints, "get_group_all", lambda group, path: read.update(path) or on_disk(group, path))
    for seeds in (2, 200):
        plan = Comparison(configuration(seeds=tuple(range(seeds)), candidates=0), tmp_path / "out").plan()
        assert plan["learned"] == seeds
        if seeds == 2:
            read.clear()
    assert not read


def test_processes_share_a_grid(tmp_path, tiny_plugins, monkeypatch):
    """What another process is at is left to it; its result is taken once it is there."""
    settings: dict[str, Any] = {"seeds": (0, 1), "candidates": 0}
    whole = Comparison(configuration(**settings), tmp_path / "whole").run()
    monkeypatch.setattr("adanat_toolkit.compare.cells.POLL_SECONDS", 0.01)
    name, cells = "shared-contrast-T2-s0", tmp_path / "shared" / "cells"
    cells.mkdir(parents=True)
    trained: list[str] = []
    with contextlib.ExitStack() as other:
        other.enter_context(held(cells / f"{name}.lock"))

        def watch(what: str, done: int, total: int) -> None:
            if what.endswith("training"):
                trained.append(what.partition(":")[0])
            if what == "cells of other processes":
                assert (done, total) == (3, 4)
                shutil.copy(tmp_path / "whole" / "cells" / f"{name}.json", cells)
                (cells / f"{name}.lock").unlink()
                other.close()

        results = Comparison(configuration(**settings), tmp_path / "shared", progress=watch).run()
    assert set(trained) == {"shared-contrast-T2-s1"}
    assert plain(results) == plain(whole)
    assert not list(cells.glob("*.lock"))


@pytest.mark.parametrize("part", ["cells", "runs", "cells/hand-made-T2-s0.lock", "runs/shared-contrast-T2-s0"])
def test_a_comparison_is_not_written_through_links(part, tmp_path, tiny_plugins):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out" / part).parent.mkdir(parents=True)
    (tmp_path / "out" / part).symlink_to(tmp_path / "outside" / ("new" if part.endswith(".lock") else "."))
    with pytest.raises(OutputError, match=rf"{re.escape(part)} is a link"):
        Comparison(configuration(seeds=(0,), candidates=0), tmp_path / "out").run()
    assert not list((tmp_path / "outside").iterdir())


def rewritten(file: Path, old: str, new: str) -> None:
    """As another machine would have written it: with a digest of its own."""
    file.write_text(json.dumps(sealed(json.loads(file.read_text().replace(old, new)))))


def never(*_: Any, **__: Any) -> None:
    raise AssertionError("a finished cell was run again")


def plain(results: list[Result]) -> Any:
    return json.loads(json.dumps([result.to_json() for result in results]))


def replaced(config: Any, **changes: Any) -> Any:
    return config.model_copy(update=changes)


def test_a_cell_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(tmp_path, tiny_plugins):
    settings: dict[str, Any] = {"seeds": (0,), "candidates": 0, "base": {"checkpoint_every": 2}}
    whole = Comparison(configuration(**settings), tmp_path / "whole").run()

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what == "shared-contrast-T2-s0: training" and done == 16 * 5:
            raise Killed

    with pytest.raises(Killed):
        Comparison(configuration(**settings), tmp_path / "cut", progress=kill).run()
    seen: list[int] = []

    def watch(what: str, done: int, total: int) -> None:
        if what.endswith("training"):
            seen.append(done)

    resumed = Comparison(configuration(**settings), tmp_path / "cut", progress=watch).run()
    assert seen == [16 * 5, 16 * 6]  # from the checkpoint of iteration 4
    assert plain(resumed) == plain(whole)


def test_changed_settings_evaluate_again_but_never_retrain_silently(tmp_path, tiny_plugins):
    settings: dict[str, Any] = {"seeds": (0,), "candidates": 0}
    Comparison(configuration(**settings), tmp_path / "out").run()
    more = Comparison(configuration(**settings, images=80), tmp_path / "out")
    assert more.plan()["finished"] == 0
    assert {r.evaluation.n_fake for r in more.run() if r.evaluation is not None} == {80}
    (tmp_path / "out" / "cells" / "hand-made-T2-s0.json").write_text("{")
    assert more.plan()["finished"] == 1
    longer = Comparison(configuration(**settings, base={"trajectories": 112}), tmp_path / "out")
    with pytest.raises(CheckpointError, match="other settings"):
        longer.run()


def test_rewards_that_read_the_yardsticks_features_are_marked(tmp_path, tiny_plugins):
    rewards = ("contrast", "fid", "contrast:1,fid:2")
    config = configuration(
        {"reward": {"options": {"features": "pixels", "group": 8, "options": {"fid": {"features": "pixels", "group": 8}}}}},
        rewards=rewards, seeds=(0,), candidates=0,
    )  # fmt: skip
    comparison = Comparison(config, tmp_path / "out")
    table = comparison.table(comparison.run())
    assert {row.reward: row.partial for row in table.rows} == dict(
        zip((None, *rewards), (False, False, True, True), strict=True)
    )
    assert ": partial" in markdown(table)


# --- the search -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yardstick() -> Yardstick:
    generator = TinyWithData()
    return Yardstick(generator, Pixels(), generator.real_images())


def test_the_search_stays_within_its_budget_and_halves_its_candidates(yardstick):
    seen: list[tuple[int, int]] = []
    found = search_schedule(yardstick, 3, budget=1000, candidates=9, seed=4, progress=lambda i, n: seen.append((i, n)))
    rounds = [len(each["frechet"]) for each in found.tried]
    assert sorted(rounds) == [1] * 6 + [2] * 2 + [3]
    assert found.images == seen[-1][0] == seen[-1][1] == 9 * 37 + 3 * 111 + 333 <= 1000
    (best,) = (each for each in found.tried if len(each["frechet"]) == 3)
    assert best["schedule"] == found.schedule
    assert found.tried[0]["schedule"] == yardstick.generator.default_schedule
    second = sorted(found.tried, key=lambda each: each["frechet"][0])[:3]
    assert all(len(each["frechet"]) > 1 for each in second)
    assert search_schedule(yardstick, 3, budget=1000, candidates=9, seed=4).to_json() == found.to_json()


def test_a_search_that_would_vary_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"varies none of the knobs of control \(knob_0, knob_1\): leave it out"):
        check_kind("schedule", Control())


def test_the_search_finds_what_is_better(yardstick):
    """The real images are made at the mask temperature 0: the search leaves the default schedule for less noise."""
    space = SearchSpace(guidance_start=(0, 0), guidance_end=(0, 0), mask_temperature_start=(0, 0.2))
    found = search_schedule(yardstick, 2, budget=2400, candidates=12, seed=0, space=space)
    assert found.schedule != yardstick.generator.default_schedule
    default = found.tried[0]["frechet"][0]
    assert min(each["frechet"][0] for each in found.tried) < default


def test_the_search_uses_images_of_its_own(yardstick, monkeypatch):
    used: set[int] = set()
    make = Yardstick.make

    def record(self: Yardstick, policy: Any, seeds: Any, **rest: Any) -> Any:
        used.update(seeds.tolist())
        return make(self, policy, seeds, **rest)

    monkeypatch.setattr(Yardstick, "make", record)
    search_schedule(yardstick, 2, budget=200, candidates=2, seed=1)
    assert min(used) == SEARCH_SEED + 200 and max(used) < SEARCH_SEED + 400
    assert SEARCH_SEED > HELD_OUT_SEED + 10**9 > LARGEST_SEED * 10**5  # the other sources of seeds lie below


def test_candidates_lie_in_the_space_and_on_the_generators_knobs():
    generator, space, dice = TinyWithData(), SearchSpace(), random.Random(0)
    for text in {space.draw(generator, dice) for _ in range(50)}:
        table = parse_schedule(text, generator.action_space, 5)
        guidance, mask, token = (
            table[:, generator.action_space.names.index(n)]
            for n in ("guidance", "mask_temperature", "token_temperature")
        )
        assert 0 <= guidance[0] <= 4 and 0 <= guidance[-1] <= 8
        assert 0 <= mask[0] <= 12 and mask[-1] == 0
        assert 0.7 <= token[0] <= 1.3 and (token == token[0]).all()
        assert text.split(",")[0] in space.curves
    bare = TinyWithData()
    bare.action_space = replace(bare.action_space, knobs=bare.action_space.knobs[:1])
    assert space.draw(bare, dice) in space.curves


@pytest.mark.parametrize("own", ["time=0.9:0.01,guidance=1", "time=0.01:0.99,guidance=1"])
def test_candidates_of_times_go_the_generators_way(own):
    generator, space, dice = TinyWithData(), SearchSpace(), random.Random(0)
    generator.action_space, generator.default_schedule = ActionSpace((TIME, GUIDANCE)), own
    falls, middles = own.startswith("time=0.9"), set()
    for _ in range(50):
        time = parse_schedule(space.draw(generator, dice), generator.action_space, 5)[:, 0]
        away = 1 - time if falls else time  # from the noise
        assert (away.diff() > 0).all() and away[0] <= 0.3 and 0.9 <= away[-1] <= 0.995
        middles.add(round(float((away[2] - away[0]) / (away[-1] - away[0])), 2))
    assert min(middles) < 0.4 and max(middles) > 0.6  # 0.5 is even


def test_candidates_of_next_scale_generators():
    generator, space, dice = TinyWithData(), SearchSpace(), random.Random(0)
    generator.action_space, generator.default_schedule = ActionSpace(next_scale_knobs(4096)), "guidance=1"
    tables = [parse_schedule(space.draw(generator, dice), generator.action_space, 3) for _ in range(50)]
    assert all((table[:, 1:] == table[0, 1:]).all() for table in tables)
    top_k, top_p = (torch.stack([table[0, column] for table in tables]) for column in (1, 2))
    assert 204 <= top_k.min() < 1000 and 3000 < top_k.max() <= 4096
    assert 0.7 <= top_p.min() < 0.8 and 0.9 < top_p.max() <= 1


def test_candidates_of_guidance_alone_keep_the_other_knobs():
    generator, space = TinyWithData(), SearchSpace(guidance=(0.5, 3))
    column = generator.action_space.names.index("guidance")
    own = parse_schedule(generator.default_schedule, generator.action_space, 5)

    def tables(kind: str) -> tuple[list[str], torch.Tensor]:
        texts = space.candidates(kind, generator, 5, 60, random.Random(0))
        assert texts[0] == generator.default_schedule and len(texts) == 60
        found = torch.stack([parse_schedule(text, generator.action_space, 5) for text in texts[1:]])
        assert torch.equal(found[..., :column], own[:, :column].expand(59, -1, -1))
        assert torch.equal(found[..., column + 1 :], own[:, column + 1 :].expand(59, -1, -1))
        return texts[1:], found[..., column]

    constant = tables("constant")[1]
    assert (constant == constant[:, :1]).all() and (constant[0, 0], constant[-1, 0]) == (0.5, 3)
    assert (constant[:, 0].diff() > 0).all()
    interval = tables("interval")[1]
    on = interval > 0
    assert ((on[:, 1:] != on[:, :-1]).sum(1) + on[:, 0].int() <= 2).all()  # one stretch each
    assert ((interval == interval.amax(1, keepdim=True)) | ~on).all() and on.any(1).all()
    assert 0.5 <= interval[on].min() < 0.9 and 2.8 < interval.max() <= 3
    assert len({tuple(row) for row in on.tolist()}) == 15  # every interval of five steps


def test_candidates_of_times_between_the_schedulers_own():
    generator, space, dice = TinyWithData(), SearchSpace(), random.Random(0)
    generator.action_space, generator.default_schedule = ActionSpace((GUIDANCE, TIME_SHIFT)), "guidance=6.5"
    tables = [parse_schedule(space.draw(generator, dice), generator.action_space, 4) for _ in range(50)]
    shifts = torch.stack([table[:, 1] for table in tables])
    assert (shifts == shifts[:, :1]).all() and shifts.min() < 0.4 and shifts.max() > 0.6


@pytest.mark.parametrize("kind", ["constant", "interval"])
def test_a_search_of_guidance_is_refused_where_there_is_none(kind):
    bare = TinyWithData()
    bare.action_space = replace(bare.action_space, knobs=bare.action_space.knobs[:1])
    with pytest.raises(ConfigError, match="does not have; use the kind schedule"):
        SearchSpace().candidates(kind, bare, 2, 4, random.Random(0))


@pytest.mark.parametrize(
    ("budget", "candidates", "remedy"),
    [
        (96, 3, "Use between 2 and 2 candidates"), (1000, 1, "Use between 2 and 20 candidates"),
        (64, 4, r"Use at least 96 trajectories, or no search \(0 candidates\)\."),
    ],
)  # fmt: skip
def test_a_search_that_ranks_nothing_is_refused(yardstick, budget, candidates, remedy):
    with pytest.raises(ConfigError, match=rf"at least 2 schedules and 16 images each\. {remedy}"):
        search_schedule(yardstick, 2, budget=budget, candidates=candidates)


# --- the table --------------------------------------------------------------------------------------------------------

FACTS = {
    "generator": "tiny:pixels", "generator_fingerprint": "0", "toolkit": "0", "device": "cpu", "dtype": "float32",
    "seeds": [0, 1], "budget": 96,
}  # fmt: skip


def result(
    policy: str, steps: int, frechet: float, *, seed: int = 0, reward: str | None = None, **changes: Any
) -> Result:
    evaluation = Evaluation(
        "pixels-v1", 64, 300, "tiny-images", {"frechet": frechet}, {"frechet": (frechet - 1, frechet + 1)}
    )
    return Result(Cell(policy, reward, steps, seed), replace(evaluation, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "dinov2"}, "unlike feature protocols"),
        ({"n_fake": 65}, "unlike numbers of generated images"),
        ({"data": "other"}, "unlike real data"),
        ({"settings": {"seed": 1}}, "unlike estimator settings"),
    ],
)
def test_unlike_figures_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        build_table([result("hand-made", 4, 5.0), result("fixed:linear", 4, 6.0, **changes)], FACTS)


def test_a_table_of_failures_alone_says_why():
    with pytest.raises(DataError, match="shared-r-T4-s0: no prompts"):
        build_table([Result(Cell("shared", "r", 4, 0), None, error="no prompts")], FACTS)


def test_one_seed_shows_the_bootstrap_interval():
    (row,) = build_table([result("hand-made", 4, 5.0)], FACTS).rows
    assert row.figures["frechet"].interval == (4.0, 6.0) and row.ratio is not None and row.ratio.interval is None


def test_pictures_are_of_one_seed():
    results = [result("hand-made", 4, 5.0, seed=s) for s in (0, 1, 2)]
    results += [result("adaptive", 4, 4.0, seed=s, reward="r") for s in (1, 2)]  # seed 0 failed
    assert [(r.cell.policy, r.cell.seed) for r in _one_seed(results)] == [("hand-made", 1), ("adaptive", 1)]


def test_steps_saved_is_read_off_the_best_hand_made_curve():
    by_hand = [result("hand-made", t, v) for t, v in ((4, 10.0), (6, 8.0), (8, 5.0), (12, 5.5))]
    by_hand.append(result("search", 4, 9.0))
    learned = [result("adaptive", 4, v, reward=str(v)) for v in (9.5, 8.5, 6.5, 5.0, 4.9)]
    saved = build_table([*by_hand, *learned], FACTS).saved
    assert [s.equal_at for s in saved] == [4.0, 5.0, 7.0, 8.0, None]
    assert saved_text(saved[0]).endswith("no steps are saved.")
    assert "T=5.0, which saves 1.0 steps" in saved_text(saved[1])
    assert "no hand-made schedule up to T=12 is as good" in saved_text(saved[4])


def test_csv_and_markdown_carry_protocol_counts_and_intervals():
    alarm = {"name": "kl-explodes", "since": 3, "message": "too far"}
    learned = [replace(result("shared", 4, v, seed=s, reward="a|b"), alarms=[alarm]) for s, v in enumerate((4.0, 6.0))]
    table = build_table([result("hand-made", 4, 10.0), *learned], {**FACTS, "alarms": [{"cell": "shared", **alarm}]})
    (first, second) = csv.DictReader(io.StringIO(to_csv(table)))
    assert first["policy"] == "hand-made" and first["images"] == "64" and first["protocol"] == "pixels-v1"
    low, high = mean_interval([4.0, 6.0])
    assert (float(second["frechet"]), float(second["frechet_low"]), float(second["frechet_high"])) == (5.0, low, high)
    assert float(second["ratio"]) == 0.4 and second["alarms"] == "kl-explodes" and second["seeds"] == "0 1"
    page = markdown(table, pictures=["knobs-T4.png"], command="adanat compare --steps 4")
    assert "| shared | a\\|b | 4 | 2 | 5.000 [" in page and "kl-explodes (2/2)" in page
    assert "from iteration 3: **kl-explodes**: too far" in page and "![knobs T4](knobs-T4.png)" in page
    assert "adanat compare --steps 4" in page


def test_lines_of_the_page_are_short_and_texts_of_others_mark_nothing():
    message = "the reward rose while - # 1. === ``` * the distance fell " * 9
    rewards = ("adversarial:1,clip-score:0.3", "fid:influence")
    learned = [result("adaptive", 4, 4.0, seed=s, reward=reward) for reward in rewards for s in (0, 1)]
    learned = [replace(r, alarms=[{"name": "kl-explodes", "since": 3, "message": message}]) for r in learned]
    evaluations = [replace(r.evaluation, figures={**dict.fromkeys(FIGURES, 0.1234), "frechet": 4.0}) for r in learned]
    learned = [replace(r, evaluation=e, partial=True) for r, e in zip(learned, evaluations, strict=True)]
    table = build_table(learned, {**FACTS, "alarms": [{"cell": "a", **learned[0].alarms[0]}]})
    words = ["adanat", "compare", *(word for i in range(40) for word in ("--set", f"reward.options.prompt=a {i}"))]
    page = markdown(table, command=shlex.join(words))
    assert max(map(len, page.splitlines())) <= 120
    heads = [line for line in page.splitlines() if line.startswith("| policy")]
    assert len(heads) > 1 and all(sum(f" {name} " in line for line in heads) == 1 for name in FIGURES)
    assert shlex.split(page.partition("```bash")[2].partition("\n```\n")[0].replace("\\\n", "")) == words
    alarms = page.partition("## Alarms")[2].strip().splitlines()
    assert len(alarms) > 3 and alarms[0].startswith("- a, from") and all(line[:3].strip().isalpha() for line in alarms[1:])


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path, tiny_plugins):
    from adanat_cli.main import app

    flags = [
        "compare",
        "--generator",
        "tiny",
        "--policy",
        "shared",
        "--reward",
        "contrast",
        "--steps",
        "2",
        "--seeds",
        "3",
    ]
    flags += ["--trajectories", "32", "--batch", "16", "--num", "32", "--candidates", "0", "--device", "cpu"]
    flags += ["--set", "evaluate_images=16", "--out", str(tmp_path / "out"), "--report", str(tmp_path / "report")]
    runner = CliRunner()
    dry = runner.invoke(app, [*flags, "--dry-run"])
    assert dry.exit_code == 0, dry.output
    assert (
        json.loads(dry.stdout)["cells"] == ["hand-made-T2-s3", "shared-contrast-T2-s3"]
        and not (tmp_path / "out").exists()
    )
    done = runner.invoke(app, [*flags, "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert [row["policy"] for row in value["rows"]] == ["hand-made", "shared"] and value["facts"]["images"] == 32
    shown = runner.invoke(app, [*flags, "--quiet"])
    assert shown.exit_code == 0 and "hand-made" in shown.stdout and "Student" not in shown.stdout
    assert (tmp_path / "report" / "compare.md").is_file() and not (tmp_path / "out" / "compare.md").exists()
    failing = runner.invoke(app, [*flags, "--quiet", "--reward", "prompts-only"])
    assert failing.exit_code == 1 and "hand-made" in failing.stdout and "failed: shared, prompts-only" in failing.stdout
    assert "FAILED (seed 3)" in (tmp_path / "report" / "compare.md").read_text()
    wrong = runner.invoke(app, ["compare", "--seeds", "a"])
    assert wrong.exit_code == 1 and "no list of whole numbers" in wrong.output


@pytest.mark.parametrize(
    ("flags", "readings"),
    [
        ([], 8),
        (["--preset", "demo"], 8),
        (["--evaluate-every", "0"], 0),
        (["--set", "evaluate_every=0"], 0),
        (["--config", "zero.yaml"], 0),
        (["--config", "zero.yaml", "--set", "evaluate_every=4"], 3),  # the first one too
    ],
)
def test_readings_are_the_default_only_where_nobody_set_them(flags, readings, tmp_path, tiny_plugins, monkeypatch):
    from adanat_cli.main import app

    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero.yaml").write_text("evaluate_every: 0\n")
    some = ["--generator", "tiny", "--policy", "shared", "--reward", "contrast", "--seeds", "0", "--candidates", "0"]
    some += ["--trajectories", "128", "--batch", "16", "--device", "cpu", "--set", "evaluate_images=16", "--dry-run"]
    done = CliRunner().invoke(app, ["compare", *some, *flags])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["plan"]["images_for_held_out_readings"] == 16 * readings
