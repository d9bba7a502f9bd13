"""How the command line ends, prints and starts: what belongs to no single command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.table import Table
from rich.text import Text

from adanat_cli.console import note, stderr, stdout
from adanat_cli.main import SHARED, app
from adanat_toolkit.errors import AdaNATError, DataError, explained

from ..helpers.cli import adanat, refused

ROOT = Path(__file__).parents[2]


# --- errors that nobody expected ----------------------------------------------------------------------------------------


def test_an_input_that_ends_too_early_is_not_just_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """click turns an EOFError into "Aborted."."""

    def read(*_: Any, **__: Any) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("adanat_toolkit.evaluation.require_real_images", read)
    result = adanat("stats", "--out", "x.safetensors", "--generator", "maskgit")
    refused(result, "Ran out of input", "ends too early", "test_command_line.py", "ADANAT_DEBUG=1")
    monkeypatch.setenv("ADANAT_DEBUG", "1")
    with pytest.raises(DataError) as caught:
        adanat("stats", "--out", "x.safetensors", "--generator", "maskgit")
    assert isinstance(caught.value.__cause__, EOFError)


def test_what_the_system_refuses_is_one_message() -> None:
    error = explained(PermissionError(13, "Permission denied", "/there"))
    assert type(error) is AdaNATError and str(error).startswith("/there: Permission denied.")
    assert explained(BrokenPipeError(32, "Broken pipe", "x")) is None and explained(OSError("no file")) is None
    assert explained(ValueError("a bug")) is None
    assert str(explained(MemoryError("11"))).startswith("this machine's memory does not suffice: 11 (")
    try:
        Path("/proc/self/mem").read_bytes() if sys.platform == "linux" else os.read(-1, 1)
    except OSError as unnamed:
        told = explained(unnamed)
    assert type(told) is AdaNATError and "the system refused something" in str(told) and "ADANAT_DEBUG=1" in str(told)


def test_results_and_notes_are_no_commands_of_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A name in a file of statistics, say, in a sentence, in a table or in a note."""
    bad = "\x1b[31m\x9b2J\u202eé"
    table = Table(title=bad)
    table.add_column(bad)
    table.add_row(bad)
    table.add_row(Text(bad, "bold"))
    for console in (stdout(), stderr()):
        console.print(table)
        console.print(f"data {bad}", f"[b]{bad}")
    note(f"data {bad}\n{bad}")
    for text in capsys.readouterr():
        assert all(character.isprintable() or character == "\n" for character in text)
        assert text.count("\\x1b[31m\\x9b2J\\u202eé") >= 6
        edges = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
        assert len(edges) == 3 and len({len(line) for line in edges}) == 1


def test_messages_are_no_commands_of_the_terminal_and_have_an_end() -> None:
    quoted = f"\x1b[31m\x07\u202e{'é' * 20_000}\n  the end"
    result = adanat("train", "--preset", quoted)
    refused(result, "\\x1b[31m\\x07\\u202eéé", "é [...] é", "the end")
    assert str(AdaNATError(quoted)).count("\n") == 1 and len(str(AdaNATError(quoted))) < 5000
    assert str(AdaNATError("two\nlines, 1\xa0%")) == "two\nlines, 1\xa0%" and str(AdaNATError()) == ""


# --- torchrun -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", SHARED)
def test_torchrun_leaves_every_option_to_us(command: str) -> None:
    """It takes a prefix of its own options for one of them, wherever it stands: --num is ambiguous with --numa-binding."""
    from torch.distributed.run import get_args_parser

    options = [name for parameter in typer.main.get_command(app).commands[command].params for name in parameter.opts]  # type: ignore[attr-defined]
    assert "--out" in options
    for option in options:
        arguments = [command, option, "4"]
        given = get_args_parser().parse_args(["--nproc-per-node=2", "-m", "adanat_cli", "--", *arguments])
        assert given.training_script == "adanat_cli"
        assert given.training_script_args in (arguments, ["--", *arguments])  # some versions of argparse keep it
    with pytest.raises(SystemExit):  # so that the pages go back to the short form when torchrun takes it
        get_args_parser().parse_args(["-m", "adanat_cli", "sample", "--num", "4"])


def test_a_separator_before_the_command_is_nothing() -> None:
    assert adanat("--", "weights", "--json").stdout == adanat("weights", "--json").stdout


# --- stdout belongs to results ------------------------------------------------------------------------------------------

LOUD = """
import os
from adanat_toolkit.interfaces import RewardModel

print("a plug-in says hello")


class Loud(RewardModel):
    def __init__(self, options, *, generator, real, device, seed):
        print("a plug-in is made")

    def score(self, images, context):
        print("a plug-in works")
        os.system("echo a program of a plug-in works")
        return images.mean((1, 2, 3))
"""


@pytest.fixture
def loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "site" / "loud-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(
        "[adanat.generators]\ntiny = tests.helpers.tiny:TinyGenerator\n[adanat.rewards]\nloud = loud_rewards:Loud\n"
    )
    (info.parent / "loud_rewards.py").write_text(LOUD)
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (info.parent, ROOT, ROOT / "plugins", ROOT / "cli"))))


@pytest.mark.parametrize("more", [(), ("--gpus", "2")])
def test_what_a_plug_in_prints_is_no_result(more: tuple[str, ...], loud: None, tmp_path: Path) -> None:
    arguments = ["--reward", "loud", "--generator", "tiny", "--trajectories", "4", "--batch", "4", "--device", "cpu"]
    command = [sys.executable, "-m", "adanat_cli", "train", *arguments, "--out", str(tmp_path / "run"), "--json", *more]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iteration"] == 1
    for text in ("says hello", "is made", "works", "a program of a plug-in works"):
        assert text in done.stderr, text


def test_in_this_process_too(loud: None, tmp_path: Path) -> None:
    arguments = ["--reward", "loud", "--generator", "tiny", "--trajectories", "4", "--batch", "4", "--device", "cpu"]
    before = sys.stdout
    result = adanat("train", *arguments, "--out", tmp_path / "run", "--json")
    assert json.loads(result.stdout)["iteration"] == 1 and "a plug-in works" in result.stderr
    assert json.loads(adanat("train", *arguments, "--dry-run", "--json").stdout)["plan"]["iterations"] == 1
    assert sys.stdout is before


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m adanat_cli weights --json | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert done.stdout and "Traceback" not in done.stderr and "error" not in done.stderr


# --- starting and stopping ----------------------------------------------------------------------------------------------

INTERRUPTED = """
import os, runpy, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            print("interrupted at", name, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupts())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["adanat", "sample", "--policy", "fixed", "--num", "1", "--out", {out!r}]
runpy.run_module("adanat_cli", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["typer", "adanat_cli.train", "adanat_cli.ranks", "torch", "torch.nn", "pydantic"])
def test_ctrl_c_while_it_starts(module: str, tmp_path: Path) -> None:
    program = INTERRUPTED.format(module=module, out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == f"interrupted at {module}" and done.stdout == ""
    assert done.returncode in (130, -signal.SIGINT)


def test_the_console_script_starts_there() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"adanat": "adanat_cli.__main__:start"}


@pytest.mark.parametrize("columns", ["80", "20", "1"])
@pytest.mark.parametrize("command", [(), ("sample",), ("plugins", "check")])
def test_help_on_a_terminal_without_unicode(command: tuple[str, ...], columns: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "COLUMNS": columns}
    call = [sys.executable, "-m", "adanat_cli", *command, "--help"]
    done = subprocess.run(call, capture_output=True, env=environment)
    assert done.returncode == 0 and done.stderr == b""
    assert (b"Options" in done.stdout or columns != "80") and done.stdout.isascii()
    assert b"\\u2026" not in done.stdout  # what was cut


def test_names_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    new = ["plugins", "new", "my-reward", "--kind", "reward", "--out", str(tmp_path / "ünï")]
    call = [sys.executable, "-m", "adanat_cli", *new]
    done = subprocess.run(call, capture_output=True, env=environment)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert b"\\xfcn\\xef" in done.stdout


def test_a_terminal_of_no_size_shows_errors() -> None:
    environment = {**os.environ, "COLUMNS": "0"}
    done = subprocess.run([sys.executable, "-m", "adanat_cli", "sample", "--nope"], env=environment, capture_output=True)
    assert done.returncode == 2 and b"No such option" in done.stderr
