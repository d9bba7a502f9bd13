"""``adanat evaluate``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import note, print_json, stdout

if TYPE_CHECKING:
    from adanat_toolkit.evaluation import Comparison, Judged


def evaluate(
    context: typer.Context,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|FOLDER|fixed[:SCHEDULE]",
            help="Policy to judge (repeatable); default: the one that ships, where it takes --steps.",
        ),
    ] = None,
    blend: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="Judge blends of the two --policy given, at these weights of the first (0 to 1), and draw the curve.",
        ),
    ] = None,
    refine: options.Refine = None,
    judge: options.Judge = None,
    generator: options.Generator = None,
    num: Annotated[int, typer.Option(help="Images of each policy.")] = 2000,
    seed: options.Seed = 0,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ZIP|FILE",
            help="Real images, or their statistics (of adanat stats, or .npz); default: the images that ship.",
        ),
    ] = None,
    features: options.Features = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="SCHEDULE", help="Hand-made schedule to stand beside; default: the best known one."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(metavar="T", help="Steps of hand-made schedules; a learned policy has its own.")
    ] = None,
    batch: options.Batch = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    gpus: options.Gpus = None,
    out: options.Out = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Judge policies against the real images, beside the hand-made schedule on the same seeds and contexts.

    With --out, evaluation.json and comparison.png (the same seeds side by side) are written there, with --blend also
    blend.png.
    """
    from adanat_plugins.pretrained import pretrained_policy
    from adanat_toolkit import api
    from adanat_toolkit.commands.inputs import refuse_lone_judge
    from adanat_toolkit.errors import ConfigError
    from adanat_toolkit.evaluation import CURVE, blend_specs, draw_curve
    from adanat_toolkit.policies import local_spec, open_generator
    from adanat_toolkit.storage import prepare_folder

    from .progress import image_progress
    from .ranks import ranks

    with ranks(context) as here:
        here.start(device)
        refuse_lone_judge(refine, judge)
        quiet = quiet or not here.main
        named = [local_spec(spec, offline=offline) for spec in policy or ()]
        weights_of_first = [] if blend is None else numbers("--blend", blend)
        if blend is not None and len(named) != 2:
            raise ConfigError(f"--blend needs two policies, and there are {len(named)}; give --policy twice.")
        model = open_generator(
            generator,
            named,
            weights=weights,
            options=generator_option,
            device=device,
            dtype=dtype,
            offline=offline,
        )
        shipped = pretrained_policy(model, steps)
        chosen = named or ([str(shipped)] if shipped else None)
        if blend is not None:
            first, second = named
            chosen = blend_specs(first, second, weights_of_first)
        if out is not None and here.main:
            prepare_folder(out)
        with image_progress(quiet=quiet) as show:
            scores = api.evaluate(
                model,
                chosen,
                num=num,
                seed=seed,
                steps=steps,
                features=features,
                data=data,
                baseline=baseline,
                batch=batch,
                refine=refine,
                judge=judge or (named[0] if refine is not None and named else None),  # of a blend, the first's
                offline=offline,
                progress=show,
            )
        if not here.main:
            return
        if json:
            print_json(scores.to_dict())
        else:
            _print_table(scores.comparison)
        if out is not None:  # after the figures are told: a full disk must not lose them
            scores.save(out)
            if blend is not None:
                draw_curve(scores.comparison, weights_of_first, first, second, out / CURVE)
            note(f"written: {out}", quiet=quiet)


def numbers(flag: str, text: str) -> list[float]:
    """Numbers with commas between them.

    Raises:
        ConfigError: naming the flag.
    """
    from adanat_toolkit.errors import ConfigError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"{flag} {text!r} is no list of numbers; write them with commas, such as 0,0.5,1.") from None


def _print_table(comparison: Comparison) -> None:
    """One row a figure, one column a policy; hand-made schedules first."""
    from rich.table import Table
    from rich.text import Text

    from adanat_toolkit.metrics import FIGURES, direction, title

    facts = comparison.facts
    rows = [row for row in comparison.rows if row.judged is not row.baseline]
    judged = [*comparison.baselines, *(row.judged for row in rows)]
    first, last = facts["seeds"]
    table = Table(title=f"{facts['generator']}: {facts['images']:,} images each, seeds {first} to {last}")
    table.add_column("")
    for one in judged:
        made = "hand-made\n" if one in comparison.baselines else ""
        table.add_column(f"{made}{one.policy}, T={one.steps}", overflow="fold", justify="right")
    for name in FIGURES:
        if all(name in one.evaluation.figures for one in judged):
            table.add_row(f"{title(name)} ({direction(name)})", *(_cell(one, name) for one in judged))
    ratios = [f"{row.ratio:.3f}{_span(row.ratio_interval)}" for row in rows]
    if rows:
        table.add_section()
        blank = ["1"] * len(comparison.baselines)
        table.add_row(Text("Frechet / hand-made", "bold"), *blank, *(Text(text, "bold") for text in ratios))
    console = stdout()
    console.print(table)
    console.print(
        f"features {facts['protocol']}; {facts['real_images'] or 'unknown number of'} real images {facts['data']}; "
        f"adanat-toolkit {facts['toolkit']}; intervals: 95 %, bootstrap over the generated images"
    )
    for refined in facts.get("refine", ()):
        console.print(f"T={refined['steps']}, {options.told_of(refined)}")


def _cell(judged: Judged, name: str) -> str:
    return f"{judged.evaluation.figures[name]:.4f}{_span(judged.evaluation.intervals.get(name))}"


def _span(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"\n{interval[0]:.3f} to {interval[1]:.3f}"
