"""``make demo`` takes minutes; here its script decides how long to train, and what it runs is checked to be understood."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..helpers.cli import adanat

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "examples" / "demo.sh").read_text().replace("\\\n", "")


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("venv", [None, "other", "/elsewhere/venv"])
def test_it_runs_in_the_environment_that_make_is_given(venv: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    command = ["make", "--dry-run", "demo", *([] if venv is None else [f"VENV={venv}"])]
    shown = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    (first,) = re.findall(r'^PATH="(.*?):\$PATH" sh examples/demo\.sh$', shown, re.MULTILINE)
    assert Path(first) == folder / (venv or ".venv") / "bin"


def test_it_decides_how_long_to_train() -> None:
    (program,) = re.findall(r"python -c '(.*?)'\)", SCRIPT, re.DOTALL)
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert told in ("6144\n", "8192\n")


def test_its_training_is_understood(tmp_path: Path) -> None:
    (line,) = re.findall(r"^adanat (train .*)$", SCRIPT, re.MULTILINE)
    values = {'"$trajectories"': "8192", '"$seed"': "0", '"$out/run"': str(tmp_path / "run")}
    done = adanat(*(values.get(word, word) for word in line.split()), "--dry-run")
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_its_options_exist(command: str) -> None:
    told = adanat(command, "--help").stdout
    lines = re.findall(rf"^adanat {command} (.*)$", SCRIPT, re.MULTILINE)
    assert lines and all(option in told for line in lines for option in re.findall(r"--[a-z-]+", line))
