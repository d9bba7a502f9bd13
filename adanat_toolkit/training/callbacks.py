"""Who watches a run: an ordered list of callbacks, each given every row of metrics.

A run has those of this page, in this order: held-out readings, alarms (``held_out.py``), ``metrics.jsonl``, trackers,
checkpoints; then those of the caller. An earlier one may add figures to the row for the later ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ..runtime import distributed
from ..storage import MetricsLog


class Callback:
    """Base of all that watches a run; every method may be left as it is."""

    everywhere: bool = False
    """Called in all processes of a run, together; otherwise in the main one alone."""

    def on_start(self, iteration: int) -> None:
        """Before the first iteration, after ``iteration`` of them (0: a new run)."""

    def on_iteration(self, row: dict[str, Any]) -> None:
        """After each iteration, with its row of metrics (docs/logged-names.md)."""

    def on_end(self) -> None:
        """After the last iteration, and after an error or an interruption."""


class Calls(Callback):
    """A function that is called with every row."""

    def __init__(self, function: Callable[[dict[str, Any]], None]) -> None:
        self.function = function

    def on_iteration(self, row: dict[str, Any]) -> None:
        self.function(row)


class MetricsFile(Callback):
    """Writes ``metrics.jsonl``."""

    def __init__(self, log: MetricsLog) -> None:
        self.log = log

    def on_iteration(self, row: dict[str, Any]) -> None:
        self.log.append(row)


class Checkpoints(Callback):
    """Saves after every ``every``-th iteration and after the last.

    Args:
        save: writes a checkpoint of the run as it is; called in the main process.
    """

    everywhere = True

    def __init__(self, save: Callable[[], None], *, every: int, last: int) -> None:
        self.save, self.every, self.last = save, every, last

    def on_iteration(self, row: dict[str, Any]) -> None:
        if row["iteration"] != self.last and row["iteration"] % self.every:
            return
        if distributed.is_main():
            self.save()
        # A process that fails in the next iteration must not take a half written checkpoint with it; and what the main
        # process wrote is complete when any of them returns.
        distributed.barrier()


@contextmanager
def watched(callbacks: Sequence[Callback], iteration: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Around a run: starts those callbacks that this process calls, yields what to call with each row, ends all."""
    here = [callback for callback in callbacks if callback.everywhere or distributed.is_main()]
    with ExitStack() as ends:
        for callback in here:
            ends.callback(callback.on_end)
        for callback in here:
            callback.on_start(iteration)

        def tell(row: dict[str, Any]) -> None:
            for callback in here:
                callback.on_iteration(row)

        yield tell
