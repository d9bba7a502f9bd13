"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from adanat_toolkit.limits import MOST_IMAGES, MOST_SEED

MOST_PROCESSES = 1024

Generator = Annotated[
    str | None,
    typer.Option(
        metavar="NAME[:VARIANT]", help="Generator; default: the policy's own, else maskgit (see adanat plugins)."
    ),
]
FrozenGenerator = Annotated[
    str | None, typer.Option(metavar="NAME[:VARIANT]", help="Frozen generator; default maskgit (see adanat plugins).")
]
"""Where there is no policy to tell it."""
Weights = Annotated[
    str | None,
    typer.Option(metavar="PATH|HUB_ID", help="The generator's weights: file, folder or hub id (see adanat weights)."),
]
GeneratorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--generator-option",
        metavar="NAME=VALUE",
        help="A further option of the generator, such as tokenizer=FILE (repeatable; train has --set "
        "generator.options.NAME=VALUE).",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER|ZIP", help="Real images; default: those the generator was trained on, where they ship."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Dtype = Annotated[str, typer.Option(help="Compute type of the generator: auto, float32 or bfloat16.")]
Offline = Annotated[bool, typer.Option("--offline", help="Download nothing.")]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        min=1,
        max=MOST_PROCESSES,
        metavar="N",
        help="Processes to start, one a CUDA device; with --device cpu N processes on the CPU.",
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--micro-batch",
        "--batch",
        min=1,
        max=MOST_IMAGES,
        metavar="N",
        help="Images in flight at once; it does not change the images. (--batch of train and compare is something else.)",
    ),
]
"""``--micro-batch`` as ``adanat train`` has it; ``--batch`` is the older name."""
Refine = Annotated[
    int | None,
    typer.Option(
        "--refine",
        min=1,
        max=MOST_IMAGES,
        metavar="N",
        help="Make N candidates an image and keep the one that a trained run's reward prefers.",
    ),
]
Judge = Annotated[
    str | None,
    typer.Option(metavar="RUN", help="Run folder whose reward --refine goes by; default: that of --policy."),
]
Seed = Annotated[int, typer.Option(min=0, max=MOST_SEED, help="First seed; the images take consecutive ones.")]
Features = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Feature protocol; default: the generator's own (see adanat plugins)."),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Any setting of the configuration, such as ppo.epochs=2 (repeatable)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where the results go.")]


def told_of(facts: dict[str, Any]) -> str:
    """What refinement cost, in a line."""
    return (
        f"best of {facts['candidates']} by {facts['judge']}: {facts['forwards']} forwards an image, of which "
        f"{facts['extra_forwards']} are refinement's"
    )
