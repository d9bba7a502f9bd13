"""``adanat compare``: what counts as finished, what it was made with, and what is done with what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.compare import Comparison, caption, write_report
from adanat_toolkit.compare.grid import cell_key
from adanat_toolkit.compare.render import markdown, to_csv
from adanat_toolkit.errors import CheckpointError, DataError, NotFiniteError
from adanat_toolkit.evaluation import Yardstick
from adanat_toolkit.interfaces import PluginOptions, Source
from adanat_toolkit.storage import sealed
from adanat_toolkit.training import Trainer

from ..helpers.tiny_plugins import Contrast, TinyImages, TinyWithData, tiny_plugins
from .test_compare import configuration, never, plain

__all__ = ["tiny_plugins"]

BY_HAND: dict[str, Any] = {"policies": ("fixed:linear",), "candidates": 0, "seeds": (0,)}


def test_a_reward_that_cannot_be_made_leaves_the_hand_made_rows_finished(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configuration(**BY_HAND, rewards=("prompts-only",))
    first = Comparison(config, tmp_path / "out")
    results = first.run()
    write_report(results, first.table(results), tmp_path / "report", sheets=tmp_path / "out" / "cells")
    monkeypatch.setattr(Yardstick, "make", never)
    again = Comparison(config, tmp_path / "out")
    assert again.plan()["finished"] == 2 and plain(again.run()) == plain(results)
    assert Comparison(config, tmp_path / "other", reuse=[tmp_path / "report"]).plan()["finished"] == 2
    # One that can be made, and was not asked yet, is asked.
    assert Comparison(configuration(**BY_HAND), tmp_path / "out").plan()["finished"] == 0


def test_a_reward_whose_scores_are_not_finite_was_asked(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Contrast, images: Tensor, context: Any) -> Tensor:
        return torch.full((len(images),), torch.inf)

    monkeypatch.setattr(Contrast, "score", score)
    results = Comparison(configuration(**BY_HAND), tmp_path / "out").run()
    assert all(not result.scores and result.unscored == ["contrast"] for result in results)
    again = Comparison(configuration(**BY_HAND), tmp_path / "out")
    assert again.plan()["finished"] == 2 and plain(again.run()) == plain(results)


def test_a_reward_that_fails_takes_only_its_own_figure_with_it(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(self: Contrast, images: Tensor, context: Any) -> Tensor:
        raise RuntimeError("no such device")

    monkeypatch.setattr(Contrast, "score", score)
    comparison = Comparison(configuration(**BY_HAND), tmp_path / "out")
    results = comparison.run()
    assert all(result.evaluation is not None and result.unscored == ["contrast"] for result in results)
    table = comparison.table(results)
    assert table.rows[0].ratio is not None
    assert any("reward contrast: no scores." in line and "no such device" in line for line in caption(table))


def test_a_reward_that_turns_out_to_learn_judges_no_hand_made_row(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Contrast.__init__

    def learning(self: Contrast, *values: Any, **more: Any) -> None:
        made(self, *values, **more)
        self.learns = True

    monkeypatch.setattr(Contrast, "__init__", learning)
    assert all(not result.scores for result in Comparison(configuration(**BY_HAND), tmp_path / "out").run())


def test_a_report_that_is_reused_in_its_own_folder_keeps_its_pictures(tmp_path: Path, tiny_plugins: None) -> None:
    config, out = configuration(**BY_HAND), tmp_path / "out"
    comparison = Comparison(config, out)
    results = comparison.run()
    write_report(results, comparison.table(results), out, sheets=out / "cells")
    picture = (out / "cells" / "hand-made-T2-s0.png").read_bytes()
    (out / "cells" / "hand-made-T2-s0.json").unlink()
    Comparison(config, out, reuse=[out]).run()
    assert (out / "cells" / "hand-made-T2-s0.png").read_bytes() == picture


def test_controls_are_of_the_policy_that_the_training_ended_with(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = TinyImages()
    monkeypatch.setattr(TinyWithData, "real_images", lambda self: real)  # made once
    base = {"evaluate_every": 0, "checkpoint_every": 1, "trajectories": 32, "ppo": {"learning_rate": 0.02}}
    settings: dict[str, Any] = {"policies": ("lean",), "candidates": 0, "seeds": (0,), "images": 32}

    class Killed(Exception):
        pass

    def kill(what: str, done: int, total: int) -> None:
        if what == "lean-contrast-T2-s0: training" and done == 16:
            raise Killed

    with pytest.raises(Killed):
        Comparison(configuration(base, **settings), tmp_path / "cut", progress=kill).run()
    settings["controls"] = True
    whole = Comparison(configuration(base, **settings), tmp_path / "whole")
    results = whole.run()
    write_report(results[:2], whole.table(results), tmp_path / "report", sheets=tmp_path / "whole" / "cells")
    again = Comparison(configuration(base, **settings), tmp_path / "cut", reuse=[tmp_path / "report"])
    assert again.plan()["finished"] == 2
    assert [r.evaluation for r in again.run()] == [r.evaluation for r in results]
    # Nor of a run that was finished with other settings.
    other = {**base, "ppo": {"learning_rate": 0.03}}
    Comparison(configuration(other, **{**settings, "controls": False}), tmp_path / "other").run()
    with pytest.raises(CheckpointError, match="learning_rate"):
        Comparison(configuration(base, **settings), tmp_path / "other", reuse=[tmp_path / "report"]).run()


def test_a_training_that_diverges_does_not_stop_the_others(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(self: Trainer) -> Any:
        raise NotFiniteError("iteration 1: not finite")

    monkeypatch.setattr(Trainer, "step", diverge)
    results = Comparison(configuration(candidates=0, seeds=(0,)), tmp_path / "out").run()
    assert [r.error for r in results] == [None, "iteration 1: not finite"]


def test_a_file_that_settings_name_counts_by_what_it_holds(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Options(PluginOptions):
        weights: Source = None

    monkeypatch.setattr(Contrast, "Options", Options)
    file, elsewhere = tmp_path / "head.bin", tmp_path / "moved.bin"
    settings: dict[str, Any] = {"candidates": 0, "seeds": (0,)}

    def comparison(path: Path, out: str = "out", **more: Any) -> Comparison:
        base = {"evaluate_every": 0, "trajectories": 16, "reward": {"options": {"weights": str(path)}}}
        return Comparison(configuration(base, **settings), tmp_path / out, **more)

    file.write_bytes(b"one")
    first = comparison(file)
    results = first.run()
    write_report(results, first.table(results), tmp_path / "report", sheets=tmp_path / "out" / "cells")
    assert comparison(file).plan()["finished"] == 2
    file.rename(elsewhere)
    assert comparison(elsewhere).plan()["finished"] == 2
    file.write_bytes(b"another")
    assert comparison(file).plan()["finished"] == 0
    reuse = [tmp_path / "report"]
    assert comparison(file, "new", reuse=reuse).plan()["finished"] == 0
    assert comparison(elsewhere, "new", reuse=reuse).plan()["finished"] == 2


def test_a_decoder_counts_by_what_it_holds(tmp_path: Path) -> None:
    facts: dict[str, Any] = dict.fromkeys(("generator", "protocol", "data", "dtype", "base_schedule"), "0")

    def key(decoder: str) -> str:
        config = configuration({"generator": {"name": "maskgit"}, "decoder": decoder}, rewards=("clip-score",))
        cell = next(cell for cell in config.cells() if cell.learned)
        return cell_key(config, cell, schedule=None, sources=config.sources(), **facts)

    file = tmp_path / "decoder.safetensors"
    file.write_bytes(b"one")
    before = key(str(file))
    assert before == key(str(file.rename(tmp_path / "moved.safetensors")))
    file.write_bytes(b"another")
    assert key(str(file)) != before
    assert key("own") == "0222863e4ef41826"  # of a grid that names no file, as it always was


def test_a_cell_or_report_that_was_changed_is_no_result(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, out = configuration(**BY_HAND), tmp_path / "out"
    comparison = Comparison(config, out)
    results = comparison.run()
    write_report(results, comparison.table(results), out, sheets=out / "cells")
    cell, report = out / "cells" / "hand-made-T2-s0.json", out / "compare.json"
    whole, written = json.loads(cell.read_text()), json.loads(report.read_text())
    better = json.loads(cell.read_text())
    better["result"]["evaluation"]["figures"]["kid"] /= 10
    cell.write_text(json.dumps(better))
    again = Comparison(config, out)
    assert [again.plan()["finished"] for _ in range(2)] == [1, 1]
    (said,) = (record.getMessage() for record in caplog.records)
    assert str(cell) in said and "checksum (digest) differs. The cell counts as not finished" in said
    assert plain(again.run()) == plain(results) and json.loads(cell.read_text()) == whole
    # Of a version without a digest it is taken as it is, unless it contradicts itself.
    del whole["digest"], written["digest"]
    cell.write_text(json.dumps(whole))
    report.write_text(json.dumps(written))
    assert Comparison(config, out, reuse=[report]).plan()["finished"] == 2
    whole["result"]["evaluation"]["figures"]["frechet"] = 1e-3
    cell.write_text(json.dumps(whole))
    assert Comparison(config, out).plan()["finished"] == 1 and "outside of its interval" in caplog.records[-1].getMessage()
    report.write_text(json.dumps(sealed(written)).replace('"n_fake": 64', '"n_fake": 64000'))
    with pytest.raises(DataError, match=r"compare\.json was changed or damaged since .* Give the --report"):
        Comparison(config, out, reuse=[report])


STRANGE = "<img src=x onerror=alert(1)>|\n## no\x1b[31m\u202e [a](https://b)"


def test_names_of_rewards_are_text_on_a_page(tmp_path: Path, tiny_plugins: None) -> None:
    comparison = Comparison(configuration(**BY_HAND), tmp_path / "out")
    results = [replace(result, scores={STRANGE: (1.0, 0.1)}) for result in comparison.run()]
    table = comparison.table(results)
    for text in (markdown(table), to_csv(table)):
        assert all(character.isprintable() or character == "\n" for character in text)
    page = markdown(table)
    assert "<img" not in page and "\n## no" not in page and "](https://b)" not in page and "\\u202e" in page
    for block in page.split("\n\n"):  # a bar in a name makes no column
        assert len({line.replace("\\|", "").count("|") for line in block.splitlines() if line.startswith("|")}) <= 1
    # From a cell it is not taken at all.
    cell = tmp_path / "out" / "cells" / "hand-made-T2-s0.json"
    stored = json.loads(cell.read_text())
    stored["result"]["scores"] = {STRANGE: [1.0, 0.1]}
    cell.write_text(json.dumps(sealed(stored)))
    assert Comparison(configuration(**BY_HAND), tmp_path / "out").plan()["finished"] == 1
