"""Runs a training in a process of its own, that can be made to stop dead at a chosen moment, for tests that kill it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

SERVER = multiprocessing.get_context("forkserver")
"""Its processes are forked from one that has imported torch and the toolkit, so that each starts in a moment."""
PRELOADED = [
    "adanat_plugins.generators.maskgit",
    "adanat_plugins.rewards.adversarial",
    "adanat_plugins.rewards.clip_tower",
    "adanat_toolkit.training.trainer",
    "tests.helpers.train_process",
]


def write_images(folder: Path, classes: int = 3, each: int = 4) -> Path:
    """A small set of real images in class folders ``0``, ``1``, ...: stripes of the class's colour."""
    for label in range(classes):
        (folder / str(label)).mkdir(parents=True)
        for number in range(each):
            image = Image.new("RGB", (64, 64), "white")
            for row in range(number, 64, 8):
                image.paste((80 * label, 40 * number, 200 - 60 * label), (0, row, 64, row + 3))
            image.save(folder / str(label) / f"{number}.png")
    return folder


def train(
    settings: Mapping[str, Any],
    out: str,
    stop_before: str | None,
    stop_after: int | None,
    exchange: bool,
    marker: str,
) -> None:
    """Train (or resume); hang at the moment asked for, with the file ``marker`` as a sign.

    Args:
        stop_before: hang before a file or folder whose path ends so is put in its place.
        stop_after: hang after this iteration. exchange: False as on systems that cannot exchange two folders.
    """
    import torch

    from adanat_toolkit.storage import replace as replacing
    from adanat_toolkit.training import Trainer, validate

    torch.set_num_threads(1)
    if not exchange:
        replacing.exchange = lambda first, second: False

    def hang() -> None:
        Path(marker).touch()
        time.sleep(600)

    replace = os.replace

    def stopping_replace(source: Any, target: Any) -> None:
        if stop_before is not None and str(target).endswith(stop_before):
            hang()
        replace(source, target)

    os.replace = stopping_replace  # type: ignore[assignment]
    Trainer(validate(settings)).run(
        Path(out), on_iteration=lambda row: hang() if row["iteration"] == stop_after else None
    )


def run_process(
    settings: Mapping[str, Any],
    out: Path,
    *,
    stop_before: str | None = None,
    stop_after: int | None = None,
    exchange: bool = True,
) -> None:
    """:func:`train` in a process; killed with SIGKILL at the moment asked for."""
    SERVER.set_forkserver_preload(PRELOADED)
    marker = out.parent / f"{out.name}.stopped"
    marker.unlink(missing_ok=True)
    process = SERVER.Process(
        target=train, args=(dict(settings), str(out), stop_before, stop_after, exchange, str(marker))
    )
    process.start()
    stops = stop_before is not None or stop_after is not None
    while process.is_alive() and not marker.exists():
        process.join(0.02)
    if stops:
        assert marker.exists(), f"the run ended (exit code {process.exitcode}) before the moment to kill it"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    else:
        process.join()
        assert process.exitcode == 0
