"""A full disk loses no figures: every command writes and tells its results before its pictures."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from adanat_toolkit.commands.publish import publish
from adanat_toolkit.compare import Comparison, configure, write_report
from adanat_toolkit.errors import OutputError
from adanat_toolkit.evaluation import Yardstick
from adanat_toolkit.training import validate

from ..helpers.cli import adanat
from ..helpers.report_runs import plugins, trained
from ..helpers.tiny_plugins import TinyWithData

__all__ = ["plugins", "trained"]  # fixtures


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Disk:
    """Counts what is written; from ``fill`` on there is room for so many bytes more, in whole files."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room, self.patch = 0, patch
        self._sync = os.fsync

    def fill(self, room: int) -> None:
        self.room = room
        self.patch.setattr(os, "fsync", self._written)

    def empty(self) -> None:
        self.patch.setattr(os, "fsync", self._sync)

    def _written(self, descriptor: int) -> None:
        self.room -= os.fstat(descriptor).st_size
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failed(result: Any) -> str:
    assert result.exit_code == 1 and "Traceback" not in result.stderr and "No space left" in result.stderr
    return str(result.stdout)


def sizes(folder: Path, *names: str) -> int:
    return sum((folder / name).stat().st_size for name in names)


def test_evaluate(trained: Path, tmp_path: Path, disk: Disk) -> None:
    command = ["evaluate", "--policy", trained / "shared", "--num", "32", "--features", "pixels", "--device", "cpu", "-q"]
    whole = adanat(*command, "--json", "--out", tmp_path / "whole")
    assert whole.exit_code == 0, whole.stderr
    disk.fill(sizes(tmp_path / "whole", "evaluation.json"))
    told = failed(adanat(*command, "--json", "--out", tmp_path / "short"))
    assert json.loads(told) == json.loads(whole.stdout)
    assert json.loads((tmp_path / "short" / "evaluation.json").read_text()) == json.loads(whole.stdout)
    assert not (tmp_path / "short" / "comparison.png").exists()
    disk.fill(0)
    assert "Frechet distance" in failed(adanat(*command, "--out", tmp_path / "none"))


def test_sample(plugins: None, tmp_path: Path, disk: Disk) -> None:
    command = ["sample", "--generator", "tiny", "--policy", "fixed", "--num", "3", "--device", "cpu", "-q"]
    assert adanat(*command, "--out", tmp_path / "whole").exit_code == 0
    listed = json.loads((tmp_path / "whole" / "samples.json").read_text())
    first = len(json.dumps({**listed, "images": []}, indent=2)) + 1  # before the first image is there
    disk.fill(first + sizes(tmp_path / "whole", "samples.json", *(f"{i:06d}.png" for i in range(3))))
    failed(adanat(*command, "--out", tmp_path / "short"))
    assert json.loads((tmp_path / "short" / "samples.json").read_text()) == listed
    assert not (tmp_path / "short" / "grid.png").exists()


def comparison(out: Path) -> Comparison:
    base = {"generator": {"name": "tiny"}, "batch": 16, "trajectories": 32, "device": "cpu"}
    return Comparison(configure(base=validate(base), policies=(), candidates=0, images=64, seeds=(0,)), out)


def test_cells_of_a_comparison(
    plugins: None, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = comparison(tmp_path / "whole").run()
    cells = tmp_path / "whole" / "cells"
    disk.fill(sizes(cells, "hand-made-T4-s0.json"))
    with pytest.raises(OutputError, match=r"No space left.*The figures of hand-made-T4-s0 are kept; remove .*T4-s0.json"):
        comparison(tmp_path / "short").run()
    disk.empty()
    monkeypatch.setattr(Yardstick, "make", None)
    (kept,) = comparison(tmp_path / "short").run()
    assert kept.evaluation == whole.evaluation


def test_the_table_of_a_comparison(plugins: None, tmp_path: Path, disk: Disk) -> None:
    made = comparison(tmp_path / "out")
    made.config = made.config.model_copy(update={"hand_made_steps": (2,)})
    made.cells = made.config.cells()[1:]
    results = made.run()
    table, report = made.table(results), {"sheets": tmp_path / "out" / "cells"}
    write_report(results, table, tmp_path / "whole", **report)
    tables = ("compare.json", "compare.csv", "compare.md")
    disk.fill(sizes(tmp_path / "whole", *tables))
    with pytest.raises(OutputError, match="No space left"):
        write_report(results, table, tmp_path / "short", **report)
    assert {file.name for file in (tmp_path / "short").iterdir()} == set(tables)
    assert sizes(tmp_path / "short", *tables[:2]) == sizes(tmp_path / "whole", *tables[:2])
    assert "| hand-made |" in (tmp_path / "short" / "compare.md").read_text()
    disk.fill(0)
    command = ["compare", "--generator", "tiny", "--policy", "fixed:cosine", "--steps", "4", "--seeds", "0", "--num", "64"]
    command += ["--candidates", "0", "--out", tmp_path / "out", "--report", tmp_path / "none", "--device", "cpu"]
    disk.empty()
    assert adanat(*command, "--features", "pixels").exit_code == 0
    disk.fill(0)
    assert "| hand-made" not in (told := failed(adanat(*command, "--features", "pixels"))) and "hand-made" in told


def test_report(trained: Path, tmp_path: Path, disk: Disk) -> None:
    command = ["report", trained / "shared", "--num", "32", "--features", "pixels", "--device", "cpu", "-q"]
    whole = adanat(*command, "--json", "--out", tmp_path / "whole.html")
    assert whole.exit_code == 0, whole.stderr
    (expected,) = json.loads(whole.stdout)["runs"]
    disk.fill(0)
    told = json.loads(failed(adanat(*command, "--json", "--out", tmp_path / "none.html")))
    assert told == {"report": None, "runs": [expected]} and "figures" in expected
    line = f"shared: Frechet distance {expected['figures']['frechet']:.4f}, {expected['ratio']:.3f} of the hand-made"
    assert line in failed(adanat(*command, "--out", tmp_path / "none.html"))
    assert not (tmp_path / "none.html").exists()


def test_publish(trained: Path, tmp_path: Path, disk: Disk) -> None:
    generator = TinyWithData()
    publish(trained / "shared", str(tmp_path / "whole"), generator)
    first = {"policy.safetensors", "README.md", "comparison.png"}  # without the last file it is no policy yet
    disk.fill(sizes(tmp_path / "whole", *first) + 16)
    with pytest.raises(OutputError, match="No space left"):
        publish(trained / "shared", str(tmp_path / "short"), generator)
    assert {file.name for file in (tmp_path / "short").iterdir()} == first
