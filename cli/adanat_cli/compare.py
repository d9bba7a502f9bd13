"""``adanat compare``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import note, print_json, stdout

if TYPE_CHECKING:
    from adanat_toolkit.compare import Table


def compare(
    generator: options.FrozenGenerator = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|fixed:SCHEDULE",
            help="Learned kind, or further hand-made baseline (repeatable); default shared, adaptive.",
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Reward or mixture that policies learn from (repeatable); default adversarial."
        ),
    ] = None,
    steps: Annotated[str, typer.Option(metavar="T,T,...", help="Steps of an image.")] = "4",
    seeds: Annotated[
        str, typer.Option(metavar="S,S,...", help="Seeds; each is one training and one block of images.")
    ] = "0,1,2",
    hand_made_steps: Annotated[
        str,
        typer.Option(metavar="T,T,...", help="Further T of the hand-made schedules, to see how many steps are saved."),
    ] = "",
    search_steps: Annotated[
        str | None,
        typer.Option(metavar="T,T,...", help="T at which hand-made schedules are searched; default: --steps."),
    ] = None,
    candidates: Annotated[
        int, typer.Option(min=0, help="Hand-made schedules that each search tries; 0: no search.")
    ] = 32,
    search: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="What is searched: schedule (whole ones at random; default), constant (one guidance for all steps), or "
            "interval (guidance on some steps, none at the others); repeatable.",
        ),
    ] = None,
    trajectories: Annotated[int | None, typer.Option(help="Images for each training and each search.")] = None,
    batch: Annotated[int | None, typer.Option(help="Trajectories of one iteration.")] = None,
    controls: Annotated[
        bool,
        typer.Option(
            "--controls",
            help="Also the mean schedule of policies that see their samples, and their actions shuffled: did they adapt?",
        ),
    ] = False,
    num: Annotated[int, typer.Option(help="Images of each cell in the table.")] = 2000,
    features: options.Features = None,
    evaluate_every: Annotated[
        int | None, typer.Option(min=0, help="Iterations between held-out readings in training; default: eight a run.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Compute type of the generator: auto, float32 or bfloat16.")] = None,
    data: options.Data = None,
    weights: options.Weights = None,
    offline: options.Offline = False,
    preset: Annotated[str, typer.Option(metavar="NAME", help="Settings of the trainings to start from.")] = "default",
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.yaml", help="Settings of the trainings; flags override them.")
    ] = None,
    set_: options.Set = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Runs and results; the same command goes on.")
    ] = Path("runs/compare"),
    report: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where table and pictures go; default: --out.")
    ] = None,
    reuse: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FOLDER",
            help="Report of another comparison; its cells of the same settings are taken over (repeatable).",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the grid and what it will need, and stop.")] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Train and score a grid of policies, rewards, steps and seeds beside hand-made schedules, and write the table.

    Finished cells are skipped and an interrupted one goes on; --reuse takes over those of another report, made at another
    time or on another machine. Where a cell fails, the others go on and the exit code is 1. compare.md, compare.json,
    compare.csv and the pictures are written to --report.
    """
    from adanat_toolkit.compare import Comparison, configure, failures, write_report
    from adanat_toolkit.training import resolve

    from .progress import image_progress

    flags: dict[str, Any] = {
        "trajectories": trajectories,
        "batch": batch,
        "device": device,
        "dtype": dtype,
        "offline": offline or None,
        "evaluate_every": evaluate_every,
        "generator": _given(name=generator, options=_given(weights=weights)),
        "data": _given(path=data),
    }
    base = resolve(preset=preset, file=config, flags=_given(**flags), overrides=set_ or (), by_policy=False)
    if "evaluate_every" not in base.model_fields_set:
        base = base.model_copy(update={"evaluate_every": max(1, base.iterations // 8)})
    settings = configure(
        base=base,
        policies=tuple(policy or ("shared", "adaptive")),
        **_given(rewards=tuple(reward) if reward else None),
        steps=_numbers("--steps", steps),
        seeds=_numbers("--seeds", seeds),
        hand_made_steps=_numbers("--hand-made-steps", hand_made_steps),
        search_steps=None if search_steps is None else _numbers("--search-steps", search_steps),
        candidates=candidates,
        searches=tuple(search or ("schedule",)),
        controls=controls,
        images=num,
        features=features,
    )
    with image_progress(quiet=quiet) as show:
        comparison = Comparison(settings, out, reuse=reuse or (), progress=show)
        if not dry_run:
            results = comparison.run()
    if dry_run:
        print_json({"plan": comparison.plan(), "cells": [cell.name for cell in comparison.cells]})
        return
    table = comparison.table(results)
    if json:
        print_json(table.to_json())
    else:
        _print_table(table)
    folder = report or out
    command = shlex.join(["adanat", *sys.argv[1:]]) if Path(sys.argv[0]).name in ("adanat", "__main__.py") else None
    write_report(results, table, folder, sheets=out / "cells", command=command)
    note(f"written: {folder / 'compare.md'}", quiet=quiet)
    if failures(table):
        raise typer.Exit(1)


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    from adanat_toolkit.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise ConfigError(
            f"{flag} {text!r} is no list of whole numbers; write them with commas, such as 4,8."
        ) from None


def _given(**values: Any) -> dict[str, Any]:
    """The values that are neither None nor empty."""
    return {key: value for key, value in values.items() if value not in (None, {})}


SHOWN = ("frechet", "precision", "recall")
"""Figures that fit on a terminal; the written table has all of them, with intervals."""


def _print_table(table: Table) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Grid

    from adanat_toolkit.compare import HEADS, TAILS, caption, cells_of, columns, failures, saved_text
    from adanat_toolkit.metrics import FIGURES

    title = f"{table.facts['generator']}, {table.facts['images']:,} images a seed"
    grid = Grid(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = [*SHOWN, *(name for name in columns(table) if name not in FIGURES)]
    for name in (*HEADS, *names, *TAILS):
        text = name in ("policy", "reward", "notes")
        grid.add_column(name, justify="left" if text else "right", overflow="fold", no_wrap=not text)
    for row in table.rows:
        grid.add_row(*cells_of(row, names, intervals=False))
    console = stdout()
    console.print(grid)
    for line in [*caption(table), *table.adapted, *table.against_shared, *map(saved_text, table.saved)]:
        console.print(line)
    for line in failures(table):
        console.print(f"failed: {line}")
