"""The run folder: config, metrics, checkpoints, policy.

config.json            the whole resolved configuration
metrics.jsonl          one JSON object an iteration
checkpoints/NNNNNN/    state.safetensors + state.json after iteration NNNNNN
policy/                policy.safetensors + policy.json, all that ``adanat sample`` needs
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError
from .documents import Line, read_document
from .files import CheckpointCard, each_row, read_card, read_rows, refuse_links, write_file
from .replace import previous_of, standing

CHECKPOINT = "[0-9]{6,}"
"""What a checkpoint's folder is called."""


class RunFolder:
    """A run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> dict[str, Any] | None:
        """The stored configuration, None for a new run.

        Raises:
            CheckpointError: config.json is damaged.
        """
        file = self.path / "config.json"
        if not os.path.lexists(file):
            return None
        found: dict[str, Any] = read_document(
            file, dict[str, Any], error=CheckpointError, remedy="Restore it or choose another --out."
        )
        return found

    def checkpoints(self) -> list[int]:
        """Iterations with a complete checkpoint, ascending."""
        found = (self.path / "checkpoints").glob("[0-9]*")
        return sorted(int(p.name) for p in found if p.name.isdecimal() and p.is_dir())

    def checkpoint(self, iteration: int) -> Path:
        return self.path / "checkpoints" / f"{iteration:06d}"

    @property
    def policy(self) -> Path:
        """The folder of the exported policy, which may be replaced at this moment; it need not exist."""
        return standing(self.path / "policy")

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` checkpoints."""
        for iteration in self.checkpoints()[:-keep]:
            folder = self.checkpoint(iteration)
            aside = folder.with_name(f".{folder.name}.pruned.tmp")
            with contextlib.suppress(OSError):  # what cannot be removed stays; it is complete
                os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def recover(self) -> None:
        """Tidy up after a kill: put back a folder that was moved aside for its successor, remove what was half written.

        Only what bears a name that a run gives, and only where a run was begun: the rest is the user's.
        """
        if not os.path.lexists(self.path / "config.json"):
            return
        for parent, folders, files in (
            (self.path, "policy", r"config\.json|metrics\.jsonl"),
            (self.path / "checkpoints", CHECKPOINT, None),
        ):
            for path in list(parent.iterdir()) if parent.is_dir() else ():
                if moved := re.fullmatch(rf"\.({folders})\.old", path.name):
                    _put_back(path, path.with_name(moved[1]))
                elif re.fullmatch(rf"\.({folders})\.([0-9]+|pruned)\.tmp", path.name):
                    shutil.rmtree(path, ignore_errors=True)
                elif files is not None and re.fullmatch(rf"\.({files})\.[0-9]+\.tmp", path.name):
                    path.unlink(missing_ok=True)

    def refuse_links(self, *more: str) -> None:
        """Before a run writes to the folder: none of its parts leads elsewhere.

        Args:
            more: names of parts beside those of every run.

        Raises:
            OutputError: one is a link.
        """
        names = "config.json", "metrics.jsonl", "checkpoints", "policy", previous_of(Path("policy")).name, *more
        parts = [self.path / name for name in names]
        refuse_links(*parts)
        refuse_links(*(p for p in (self.path / "checkpoints").glob("*") if re.match(rf"\.?{CHECKPOINT}", p.name)))

    def without_config(self) -> str | None:
        """What of a run there is in a folder that has no configuration, for messages; None for nothing."""
        parts = {"metrics.jsonl": "rows of metrics", "policy": "a policy", previous_of(Path("policy")).name: "a policy"}
        found = [what for name, what in parts.items() if os.path.lexists(self.path / name)]
        return "checkpoints" if self.checkpoints() else next(iter(found), None)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl (see :func:`read_rows`)."""
        return read_rows(self.path / "metrics.jsonl")

    def each_row(self) -> Iterator[dict[str, Any]]:
        """The rows of metrics.jsonl, one in memory at a time (see :func:`each_row`)."""
        return (line.value for line in each_row(self.path / "metrics.jsonl"))

    def metrics_lines(self) -> Iterator[Line[dict[str, Any]]]:
        """The whole lines of metrics.jsonl in whatever order, one in memory at a time, none where there is no file.

        Raises:
            CheckpointError: it is damaged, see :func:`each_row`.
        """
        lines = each_row(self.path / "metrics.jsonl", rising=False)
        return (line for line in lines if line.data.endswith(b"\n"))

    def check_metrics(self, iteration: int, record: Mapping[str, Any] | None) -> None:
        """Every row that a checkpoint counts is there, as it was written; rows beyond it do not matter.

        Args:
            iteration: the checkpoint's. record: rows and sha256 of its card; None: made by a version without it.

        Raises:
            CheckpointError: rows are missing or were changed.
        """
        file = self.path / "metrics.jsonl"
        rows = iteration if record is None else int(record["rows"])
        remedy = (
            "Restore the file from a copy, or choose another --out to start anew (removing the checkpoints starts this run "
            "anew too). Nothing was changed."
        )
        count, in_order, digest = 0, True, hashlib.sha256()
        for count, line in enumerate(self.metrics_lines(), 1):
            if count <= rows:
                in_order &= line.value["iteration"] == count
                digest.update(line.data)
        if count < rows:
            raise CheckpointError(
                f"{file} has {count} rows, but the checkpoint after iteration {iteration} counts {rows}: rows were "
                f"deleted or cut off. {remedy}"
            )
        if not in_order or (record is not None and digest.hexdigest() != record["sha256"]):
            raise CheckpointError(
                f"{file} was changed or damaged since the checkpoint after iteration {iteration} was written: its first "
                f"{rows} rows are not those it counts, or it is of another run. {remedy}"
            )

    def check_counted(self) -> int | None:
        """:meth:`check_metrics` of the newest checkpoint, for who shows the rows.

        Returns:
            How many rows it counts; None where there is no checkpoint.

        Raises:
            CheckpointError: as there, or the checkpoint's card is damaged.
        """
        while saved := self.checkpoints():
            try:
                record = read_card(self.checkpoint(saved[-1]), "state", CheckpointCard).get("metrics")
                self.check_metrics(saved[-1], record)
            except CheckpointError:
                if self.checkpoints()[-1:] == saved[-1:]:
                    raise
                continue  # the run that is being trained has a newer one
            return saved[-1] if record is None else int(record["rows"])
        return None

    def truncate_metrics(self, iterations: int) -> None:
        """Keep the rows of the first ``iterations`` iterations (what the checkpoint stands for), byte for byte."""
        # By their places: what comes after them is dropped, whatever iterations it says it is of.
        kept = (line.data for line in itertools.islice(self.metrics_lines(), iterations))
        write_file(self.path / "metrics.jsonl", kept)


def _put_back(previous: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
    else:
        os.replace(previous, folder)


class MetricsLog:
    """The rows that a run writes to a folder that is open: on disk before the checkpoint that counts them.

    The folder is the one that was opened. One that was deleted, moved or replaced meanwhile ends the run: it must not come
    back without its configuration.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self._rows, self._hash = 0, hashlib.sha256()
        for line in folder.metrics_lines():
            self._rows += 1
            self._hash.update(line.data)
        self._identity = self._look()

    def _look(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.folder.path)
            os.stat(self.folder.path / "config.json")
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def require_folder(self) -> None:
        """
        Raises:
            OutputError: the run's folder is not there any more.
        """
        if self._look() != self._identity:
            raise OutputError(
                f"the run folder {self.folder.path} was deleted, moved or replaced while the run was writing to it. The run "
                "was stopped and nothing was written elsewhere. Put the folder back and run the same command, or begin anew."
            )

    def append(self, row: Mapping[str, Any]) -> None:
        """Write a row. What is no finite number, which JSON has no word for, is left out: a share of a variance of 0.

        Raises:
            OutputError: the folder or the file is not there any more, or the disk is full.
        """
        self.require_folder()
        told = {name: value for name, value in row.items() if not isinstance(value, float) or math.isfinite(value)}
        line = json.dumps(told, allow_nan=False).encode() + b"\n"
        file = self.folder.path / "metrics.jsonl"
        try:
            with open(os.open(file, os.O_WRONLY | os.O_APPEND), "wb") as handle:  # not made again where it is missing
                handle.write(line)
        except OSError as error:
            raise OutputError(
                f"cannot write {file}: {error.strerror}. Restore it, or free space, and run again."
            ) from None
        self._hash.update(line)
        self._rows += 1

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of the rows so far, which are on disk now (``rows`` and ``sha256``)."""
        self.require_folder()
        file = self.folder.path / "metrics.jsonl"
        try:
            with open(os.open(file, os.O_WRONLY | os.O_APPEND), "wb") as handle:
                os.fsync(handle.fileno())
        except OSError as error:
            raise OutputError(f"cannot write {file}: {error.strerror}. Restore it and run again.") from None
        return {"rows": self._rows, "sha256": self._hash.hexdigest()}
