"""The trackers of a training run: opened before the first iteration, given every row, never able to stop the run."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core import Tracker
from ..registry import load
from ..runtime import plugin_call, require_made
from .callbacks import Callback


class Trackers(Callback):
    """Trackers by name, opened before the first iteration.

    A tracker that fails while the run is under way is reported once and dropped: ``metrics.jsonl`` has every row anyway.

    Raises:
        PluginError: a name is unknown, or its tracker cannot be opened.
    """

    def __init__(self, names: Sequence[str], folder: Path, config: dict[str, Any]) -> None:
        self.open: dict[str, Tracker] = {}
        try:
            for name in dict.fromkeys(names):
                kind = load("tracker", name)
                with plugin_call(f"tracker {name!r}", "create"):
                    made = kind.create(folder, config)
                require_made(f"tracker {name!r}", made, Tracker)
                self.open[name] = made
        except BaseException:
            self.on_end()
            raise

    def on_iteration(self, row: dict[str, Any]) -> None:
        """The finite numbers of a row of metrics, at its number of trajectories."""
        figures = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and math.isfinite(value) and name not in ("iteration", "trajectories")
        }
        for name, tracker in list(self.open.items()):
            try:
                with plugin_call(f"tracker {name!r}", "log"):
                    tracker.log(figures, int(row["trajectories"]))
            except Exception as error:  # the tracker's own code: a full disk, no network
                warnings.warn(f"a tracker is left out from now on: {error}", stacklevel=2)
                del self.open[name]

    def on_end(self) -> None:
        """Flush and release all."""
        for name, tracker in list(self.open.items()):
            try:
                with plugin_call(f"tracker {name!r}", "close"):
                    tracker.close()
            except Exception as error:
                warnings.warn(str(error), stacklevel=2)
        self.open.clear()
