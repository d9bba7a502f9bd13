"""``adanat compare``: what counts as finished, what it was made with, and what is done with what is there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.compare import Comparison, write_report
from adanat_toolkit.evaluation import Yardstick

from ..helpers.tiny_plugins import Contrast, tiny_plugins
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


def test_a_report_that_is_reused_in_its_own_folder_keeps_its_pictures(tmp_path: Path, tiny_plugins: None) -> None:
    config, out = configuration(**BY_HAND), tmp_path / "out"
    comparison = Comparison(config, out)
    results = comparison.run()
    write_report(results, comparison.table(results), out, sheets=out / "cells")
    picture = (out / "cells" / "hand-made-T2-s0.png").read_bytes()
    (out / "cells" / "hand-made-T2-s0.json").unlink()
    Comparison(config, out, reuse=[out]).run()
    assert (out / "cells" / "hand-made-T2-s0.png").read_bytes() == picture
