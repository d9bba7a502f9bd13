"""How the command line ends, prints and starts: what belongs to no single command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from adanat_cli.main import SHARED, app
from adanat_toolkit.errors import AdaNATError, DataError, explained

from ..helpers.cli import adanat, refused

ROOT = Path(__file__).parents[1]


# --- errors that nobody expected ----------------------------------------------------------------------------------------


def test_an_input_that_ends_too_early_is_not_just_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    """click turns an EOFError into "Aborted."."""

    def read(*_: Any, **__: Any) -> None:
        raise EOFError("Ran out of input")

    monkeypatch.setattr("adanat_toolkit.commands.inputs.require_real_images", read)
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
