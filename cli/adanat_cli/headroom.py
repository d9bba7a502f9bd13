"""``adanat headroom``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import note, print_json, stdout

if TYPE_CHECKING:
    from adanat_toolkit.commands.headroom import Headroom


def headroom(
    reward: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Reward (see adanat plugins); default: that of --policy RUN, else clip-score."),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            metavar="RUN|FOLDER|fixed[:SCHEDULE]",
            help="Where to start; a reward that learns is taken as this run left it.",
        ),
    ] = "fixed",
    generator: options.Generator = None,
    steps: Annotated[
        int | None, typer.Option(metavar="T", help="Steps of a hand-made schedule; a learned policy has its own.")
    ] = None,
    trajectories: Annotated[int, typer.Option(metavar="N", help="Images to make.")] = 3584,
    seed: options.Seed = 0,
    data: options.Data = None,
    batch: options.Batch = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    out: options.Out = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Measure what shared and adaptive policies can gain on a generator and a reward, before any training.

    Images are made under random actions around a schedule, and the reward's variance is split into what the context does, the
    actions, what they do together, and noise. With --out, headroom.json and headroom.png are written there.
    """
    from adanat_toolkit import api
    from adanat_toolkit.commands.headroom import block_shape
    from adanat_toolkit.policies import local_spec, open_generator
    from adanat_toolkit.storage import prepare_folder

    from .progress import image_progress

    block_shape(trajectories)  # refused before anything is loaded
    spec = local_spec(policy, offline=offline)
    model = open_generator(
        generator, [spec], weights=weights, options=generator_option, device=device, dtype=dtype, offline=offline
    )
    if out is not None:
        prepare_folder(out)
    with image_progress(quiet=quiet) as show:
        found = api.headroom(
            model,
            reward,
            policy=spec,
            steps=steps,
            trajectories=trajectories,
            seed=seed,
            data=data,
            batch=batch,
            offline=offline,
            progress=show,
        )
    if json:
        print_json(found.to_dict())
    else:
        _print_tables(found)
    if out is not None:
        found.save(out)
        note(f"written: {out}", quiet=quiet)


def _print_tables(found: Headroom) -> None:
    """Shares, slopes, trajectories, verdict."""
    from rich.table import Table
    from rich.text import Text

    from adanat_toolkit.commands.headroom import percent, span

    console = stdout()
    table = Table(title=found.title())
    table.add_column("of the reward's variance")
    for name in ("share", "95 % interval"):
        table.add_column(name, justify="right")
    for name, share in found.rows:
        table.add_row(name, percent(share), span(share))
    console.print(table)
    slopes = Table(title="slopes, % of the variance (bold: clear of 0)")
    slopes.add_column("knob")
    slopes.add_column("")
    for t in range(found.steps):
        slopes.add_column(f"step {t + 1}", justify="right")
    before = None
    for knob, whose, cells in found.slope_rows():
        if before not in (None, knob):
            slopes.add_section()
        texts = [Text(f"{100 * value:.2f}", "bold" if clear else "") for value, clear in cells]
        slopes.add_row("" if knob == before else knob, whose, *texts)
        before = knob
    console.print(slopes)
    console.print(found.needed_text())
    console.print(found.verdict.text, style="bold")
