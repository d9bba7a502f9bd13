"""What others wrote is printed as it is, and a stream that is closed is none."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adanat_cli import compare, doctor, evaluate, plugins
from adanat_cli.progress import TrainingProgress, image_progress
from adanat_toolkit.compare.table import build_table
from adanat_toolkit.evaluation import Comparison, Judged
from adanat_toolkit.metrics import Evaluation

from ..compare.test_compare import FACTS, result
from ..helpers.cli import adanat, refused

ODD = "[/x][red]:cat:"
"""Brackets that rich would take for the end of a style, a style, and a picture's name."""


def doctors() -> dict[str, Any]:
    return {
        "versions": dict.fromkeys(("adanat-toolkit", "python", "platform"), ODD),
        "devices": [{"device": ODD, "name": ODD, "memory_bytes": None, "note": ODD}],
        "parts": [{"distribution": ODD, "version": ODD, "works": False, "error": ODD, "extra": None, "serves": ODD}],
        "embedded": [],
        "folders": [{"what": ODD, "path": ODD, "writable": True}],
        "problems": [ODD],
    }


def judged() -> Comparison:
    facts = {"generator": ODD, "images": 16, "seeds": [0, 15], "protocol": ODD, "real_images": 9, "data": ODD, "toolkit": ODD}
    one = Judged(ODD, 4, {}, Evaluation(ODD, 16, 9, ODD, {"frechet": 1.0}), None, None)  # type: ignore[arg-type]
    return Comparison([], [one], facts)


def installed() -> list[dict[str, Any]]:
    row: dict[str, Any] = dict.fromkeys(("kind", "name", "distribution", "version", "status", "error"), ODD)
    return [{**row, "variants": [ODD]}]


@pytest.mark.parametrize(
    ("show", "value", "times"),
    [
        (doctor._print, doctors(), 11),
        (evaluate._print_table, judged(), 5),
        (plugins._print, installed(), 9),
        (compare._print_table, build_table([result("hand-made", 4, 5.0)], {**FACTS, "generator": ODD}), 1),
    ],
)
def test_texts_of_others_are_no_markup(
    show: Callable[[Any], None], value: Any, times: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    show(value)
    shown = capsys.readouterr().out
    assert shown.count(ODD) >= times and "\\[" not in shown, shown


def test_a_folder_of_weights_is_shown_as_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / ODD))
    assert ODD in "".join(adanat("weights").stdout.split())


def test_progress_is_of_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "400")
    with image_progress(quiet=False) as show:
        show(ODD, 1, 2)
    row = {"iteration": 1, "trajectories_per_second": 1.0, "reward/mean": 0.0, "reward/std": 0.0, f"knob/{ODD[2:]}": 1.0}
    with TrainingProgress(2, quiet=False) as progress:
        progress.update({**row, "alarms": [{"name": ODD, "message": ODD}]})
    assert sys.stderr.getvalue().count(ODD) >= 3  # type: ignore[attr-defined]


def test_closed_streams_lead_nowhere(tmp_path: Path) -> None:
    code = (
        "import json, os, sys; from adanat_cli.__main__ import _open_closed; _open_closed(); print('x', flush=True);"
        "print('x', file=sys.stderr, flush=True); read = sys.stdin.read(); terminal = sys.stderr.isatty();"
        "file = open(sys.argv[1], 'w');"  # gets no stream's number, whatever a library writes to 1 and 2
        "json.dump([read, terminal, file.fileno() > 2], file); file.flush(); os.write(1, b'x'); os.write(2, b'x')"
    )
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        command = f'exec "$@" {closed}'
        file = tmp_path / "said"
        done = subprocess.run(
            ["sh", "-c", command, "sh", sys.executable, "-c", code, str(file)], stdin=subprocess.DEVNULL, timeout=60
        )
        assert done.returncode == 0 and json.loads(file.read_text()) == ["", False, True], closed


def test_a_command_without_streams_does_its_work(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "adanat_cli", "plugins", "new"]
    done = subprocess.run([*command, "mine", "--kind", "reward", "--out", str(tmp_path / "mine")], timeout=120)
    assert done.returncode == 0 and (tmp_path / "mine" / "pyproject.toml").is_file()


@pytest.mark.parametrize("local", ["abc", "0", "2"])
def test_a_launchers_numbers_are_numbers(local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", local)):
        monkeypatch.setenv(name, value)
    done = adanat("sample", "--policy", "fixed", "--num", "1", "--gpus", "1", "--out", tmp_path / "s")
    refused(done, f"LOCAL_WORLD_SIZE='{local}'", "1 <= LOCAL_WORLD_SIZE <= WORLD_SIZE", "torchrun")
    assert not (tmp_path / "s").exists()
