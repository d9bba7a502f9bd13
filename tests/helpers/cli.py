"""The command line in this process: runs of ``adanat`` whose exit code, stdout and stderr tests look at."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from typer.testing import CliRunner, Result

from adanat_cli.main import app

TRAIN = ("--steps", "2", "--trajectories", "16", "--batch", "8", "--device", "cpu", "--dtype", "float32")
SETTINGS = (
    "ppo.minibatches=1",
    "ppo.epochs=1",
    "reward.options.batch=8",
    "reward.options.updates=1",
    "checkpoint_every=1",
)


def adanat(*arguments: str | Path) -> Result:
    """One command. It catches what it reports; a bug's exception is raised here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def train_arguments(images: Path, out: Path, *more: str | Path) -> list[str | Path]:
    """A training run of two short iterations on the embedded generator and a few images."""
    changed = [part for setting in SETTINGS for part in ("--set", setting)]
    return ["train", *TRAIN, *changed, "--data", images, "--out", out, *more]


def refused(result: Result, *parts: str, code: int = 1) -> str:
    """The message of a command that must have failed: one red line without a traceback, with these parts."""
    message = " ".join(result.stderr.split())
    assert result.exit_code == code, message
    assert "Traceback" not in message
    assert result.stdout == ""
    for part in parts:
        assert part in message, message
    return message


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file of this process may grow beyond ``size`` bytes: what a full disk looks like to a writer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
