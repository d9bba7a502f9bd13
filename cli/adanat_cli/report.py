"""``adanat report``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import note, print_json, print_result


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders; several are compared.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE",
            help="Default: RUN/report.html; of several runs, beside the first one's folder.",
        ),
    ] = None,
    num: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Images of each policy for the yardstick table; 0: none, only what is stored. Default: what adanat evaluate "
            "--out RUN/evaluation stored, else 500.",
        ),
    ] = None,
    seed: options.Seed = 0,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ZIP|FILE",
            help="Real images of the yardstick; default: the generator's own. Those of a run must be given again.",
        ),
    ] = None,
    features: options.Features = None,
    curves_only: Annotated[
        bool, typer.Option("--curves-only", help="Leave out what takes the generator: pictures, knobs, new figures.")
    ] = False,
    batch: options.Batch = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    open_: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Write one HTML file about a run, or one that compares several: it needs no network and no other file.

    Settings, curves, alarms, the yardstick table, the same seeds under hand-made and learned policies, the knobs over the
    steps, simple and hard samples, and an image after each step.
    """
    from adanat_toolkit.errors import AdaNATError
    from adanat_toolkit.report import Settings, make_report

    from .progress import image_progress

    settings = Settings(
        images=num,
        seed=seed,
        pictures=not curves_only,
        data=data,
        features=features,
        weights=weights,
        options=generator_option or (),
        offline=offline,
        device=device,
        dtype=dtype,
        batch=batch,
    )
    command = shlex.join(["adanat", *sys.argv[1:]]) if Path(sys.argv[0]).name in ("adanat", "__main__.py") else None
    judged: list[dict[str, Any]] = []

    def tell(run: dict[str, Any]) -> None:
        judged.append(run)
        if not json and "figures" in run:
            print_result(
                f"{run['name']}: Frechet distance {run['figures']['frechet']:.4f}, {run['ratio']:.3f} of the hand-made "
                f"schedule's ({run['images']:,} images, {run['protocol']})"
            )

    try:
        with image_progress(quiet=quiet) as show:
            result = make_report(runs, out, settings, command=command, progress=show, on_figures=tell)
    except AdaNATError:
        if json and any("figures" in run for run in judged):
            print_json({"report": None, "runs": judged})
        raise
    for line in result["left_out"]:
        note(f"left out: {line}", quiet=quiet)
    note(f"written: {result['report']} ({result['bytes'] / 2**20:.1f} MiB)", quiet=quiet)
    if json:
        print_json(result)
    if open_:
        import webbrowser

        if not webbrowser.open(Path(result["report"]).resolve().as_uri()):
            note(f"no browser was found; open {result['report']} yourself", quiet=quiet)
