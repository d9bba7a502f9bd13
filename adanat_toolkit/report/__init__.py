"""``adanat report``: what runs did, in one HTML file that needs nothing else.

Curves and alarms come from the run folders; the yardstick table, the pictures and the knobs' spread take the generator.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core import Generator
from ..errors import OutputError
from ..storage import prepare_folder, read_head, write_file
from .gather import IMAGES, Progress, Settings, gather
from .page import MARKER, render
from .reading import Run, read_runs
from .yardstick import Block

__all__ = ["IMAGES", "NAME", "Run", "Settings", "default_file", "make_report", "read_runs"]
NAME = "report.html"


def default_file(runs: Sequence[Path]) -> Path:
    """``RUN/report.html``; of several runs, ``report.html`` beside the first one's folder."""
    return (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / NAME


def make_report(
    paths: Sequence[Path],
    file: Path | None = None,
    settings: Settings | None = None,
    *,
    generator: Generator | None = None,
    command: str | None = None,
    progress: Progress | None = None,
    on_figures: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Write the report of one or several runs, aside and renamed: an older one stays whole until the new one is.

    Args:
        paths: run folders. file: where to; None: :func:`default_file`. command: printed at the bottom.
        generator: what the runs were trained on, loaded; None: it is loaded as their settings say.
        progress: called with what is being done, how many images of it are done, and how many there are.
        on_figures: called with what ``runs`` of the result will hold of a run, once it is judged: before pictures are made
            and anything is written, so that neither can lose figures that took long.

    Returns:
        ``report``, ``bytes``, ``left_out``, and for each of ``runs`` its name, path, iterations, trajectories, alarms and,
        where it was judged, figures, ratio to the hand-made schedule, number of images and protocol.

    Raises:
        ConfigError: not a run folder, no finished iteration, or settings that make no sense. CheckpointError: damaged files.
        OutputError: the file cannot be written, or is something else than a report. PluginError, WeightsError, DataError:
        the generator or the yardstick cannot be loaded.
    """
    chosen = settings or Settings()
    chosen.check()
    runs = read_runs(paths)
    target = file or default_file(paths)
    _check_target(target)

    def judged(members: Sequence[Run], tables: Sequence[Block]) -> None:
        for run in members:
            if on_figures is not None:
                on_figures(_about(run, tables))

    gathered = gather(runs, chosen, progress or (lambda what, done, total: None), judged, generator)
    text = render(runs, gathered, command=command)
    write_file(target, text)
    found = [_about(run, gathered.blocks) for run in runs]
    return {"report": str(target), "bytes": target.stat().st_size, "runs": found, "left_out": gathered.notes}


def _about(run: Run, tables: Sequence[Block]) -> dict[str, Any]:
    """A run in the result of :func:`make_report`, with the figures of the first table that it is in."""
    about: dict[str, Any] = {
        "name": run.name,
        "run": str(run.path),
        "iterations": run.rows[-1]["iteration"],
        "trajectories": run.rows[-1]["trajectories"],
        "alarms": [{**alarm.to_json(), "active": alarm.name in run.active} for alarm in run.raised],
    }
    for block in tables:
        for line in block.lines:
            if line.learned and line.label == run.name and "figures" not in about:
                about |= {
                    "figures": line.evaluation.figures,
                    "ratio": line.ratio,
                    "ratio_interval": line.ratio_interval,
                }
                about |= {"images": block.facts["images"], "protocol": block.facts["protocol"]}
    return about


def _check_target(file: Path) -> None:
    """Before any long work: the file can be written, and is not something else that would be lost."""
    if file.is_dir():
        raise OutputError(f"{file} is a folder; give --out a file, such as {file / NAME}.")
    if file.exists():
        head = read_head(file, 4096, error=OutputError, remedy="Give another --out.")
        if head and MARKER.encode() not in head:
            raise OutputError(f"{file} is no report of adanat and would be lost; give another --out.")
    prepare_folder(file.parent)
