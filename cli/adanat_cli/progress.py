"""Progress on stderr: a live display on a terminal, plain lines elsewhere, nothing when quiet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .console import note, stderr

PLAIN_SECONDS = 10.0
"""Plain progress prints at most one line in so many seconds."""


def duration(seconds: float) -> str:
    """``1:02:03``, ``4:05`` or ``0:07``."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


@contextmanager
def image_progress(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function to call with (what, done, total); one bar for each ``what``."""
    if quiet:
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
        with Progress(*columns, console=stderr(wrap=False)) as display:
            tasks: dict[str, Any] = {}

            def update(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = display.add_task(what, total=total)
                display.update(tasks[what], completed=done)

            yield update
    else:
        last: dict[str, float] = {}

        def line(what: str, done: int, total: int) -> None:
            now = time.monotonic()
            started = last.setdefault(what, now)
            if done == total or now - started >= PLAIN_SECONDS:
                note(f"{what}: {done}/{total} images")
                last[what] = now

        yield line


class TrainingProgress:
    """Shows the rows of a training run.

    Args:
        iterations: of the whole run. quiet: print nothing.
    """

    def __init__(self, iterations: int, *, quiet: bool) -> None:
        self.iterations, self.quiet = iterations, quiet
        self.start: int | None = None
        """Iterations that were done before this call (a resumed run)."""
        self.live: Any = None
        self.alarms: set[str] = set()
        """Names of the alarms that were raised after the last row."""
        self.began = self.printed = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        if not self.quiet and sys.stderr.isatty():
            from rich.live import Live
            from rich.text import Text

            self.live = Live(Text("first iteration ..."), console=stderr(wrap=False), auto_refresh=False)
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show one row of metrics."""
        if self.start is None:
            self.start = row["iteration"] - 1
        if self.quiet:
            return
        facts = self._facts(row)
        found = {alarm["name"]: alarm["message"] for alarm in row.get("alarms", ())}
        for name in found.keys() - self.alarms:
            self._print(f"alarm: {name}: {found[name]}")
        self.alarms = set(found)
        if self.live is not None:
            self.live.update(self._panel(row, facts), refresh=True)
            return
        now = time.monotonic()
        assert self.start is not None
        done = row["iteration"]
        if done in (self.start + 1, self.iterations) or now - self.printed >= PLAIN_SECONDS:
            self.printed = now
            note("  ".join([f"{done}/{self.iterations}", *(f"{name} {value}" for name, value in facts.items())]))

    def _print(self, text: str) -> None:
        if self.live is None:
            note(text)
        else:  # above the live display
            self.live.console.print(text)

    def _facts(self, row: dict[str, Any]) -> dict[str, str]:
        assert self.start is not None
        done = row["iteration"] - self.start
        elapsed = time.monotonic() - self.began
        facts = {
            "left": duration(elapsed / done * (self.iterations - row["iteration"])),
            "trajectories/s": f"{row['trajectories_per_second']:.1f}",
            "reward": f"{row['reward/mean']:.3f} +- {row['reward/std']:.3f}",
        }
        accuracies = [
            row[f"reward_model/accuracy_{side}"] for side in ("real", "fake") if f"reward_model/accuracy_{side}" in row
        ]
        if accuracies:
            facts["discriminator accuracy"] = f"{sum(accuracies) / len(accuracies):.2f}"
        if "ppo/approx_kl" in row:
            facts["KL"] = f"{row['ppo/approx_kl']:.4f}"
        facts |= {
            name.replace("_", " "): " ".join(f"{v:.2f}" for v in values) for name, values in self._knobs(row).items()
        }
        return facts

    def _knobs(self, row: dict[str, Any]) -> dict[str, list[float]]:
        """Mean of each knob by step."""
        out: dict[str, list[float]] = {}
        for key, value in row.items():
            if key.startswith("knob/"):
                out.setdefault(key.split("/")[1], []).append(value)
        return out

    def _panel(self, row: dict[str, Any], facts: dict[str, str]) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_row(
            f"iteration {row['iteration']} of {self.iterations}",
            ProgressBar(self.iterations, row["iteration"], width=40),
        )
        for name, value in facts.items():
            table.add_row(name, value)
        return table
