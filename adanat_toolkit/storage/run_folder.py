"""The run folder: config, metrics, checkpoints, policy.

config.json            the whole resolved configuration
metrics.jsonl          one JSON object an iteration
checkpoints/NNNNNN/    state.safetensors + state.json after iteration NNNNNN
policy/                policy.safetensors + policy.json, all that ``adanat sample`` needs
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, OutputError
from .documents import read_document
from .files import read_rows, write_file


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

    def prune(self, keep: int) -> None:
        """Remove all but the newest ``keep`` checkpoints."""
        for iteration in self.checkpoints()[:-keep]:
            folder = self.checkpoint(iteration)
            aside = folder.with_name(f".{folder.name}.pruned.tmp")
            with contextlib.suppress(OSError):  # what cannot be removed stays; it is complete
                os.replace(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def recover(self) -> None:
        """Tidy up after a kill: put back a folder that was moved aside for its successor, remove what was half written."""
        for parent in (self.path, self.path / "checkpoints"):
            for previous in parent.glob(".*.old"):
                folder = previous.with_name(previous.name.removeprefix(".").removesuffix(".old"))
                if folder.exists():
                    shutil.rmtree(previous, ignore_errors=True)
                else:
                    os.replace(previous, folder)
            for temporary in parent.glob(".*.tmp"):
                if temporary.is_dir():
                    shutil.rmtree(temporary, ignore_errors=True)
                else:
                    temporary.unlink(missing_ok=True)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows of metrics.jsonl (see :func:`read_rows`)."""
        return read_rows(self.path / "metrics.jsonl")

    def truncate_metrics(self, iterations: int) -> None:
        """Keep the rows of the first ``iterations`` iterations (what the checkpoint stands for)."""
        rows = [row for row in self.metrics() if row["iteration"] <= iterations]
        write_file(self.path / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        try:
            with open(self.path / "metrics.jsonl", "a") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OutputError(
                f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror}. Free space and run again."
            ) from None
