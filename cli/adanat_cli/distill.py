"""``adanat distill``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adanat_toolkit.limits import MOST_IMAGES, MOST_WIDTH

from . import options
from .console import note, print_json


def distill(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.safetensors", help="Where the decoder goes.")],
    generator: options.FrozenGenerator = None,
    data: options.Data = None,
    images: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Images to learn from.")] = 8192,
    steps: Annotated[int, typer.Option(min=1, max=MOST_IMAGES, help="Steps of 32 images.")] = 4000,
    width: Annotated[int, typer.Option(min=1, max=MOST_WIDTH, help="Channels at the finest resolution.")] = 32,
    features: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Feature protocol of the Frechet distance, or none; default: the generator's own."),
    ] = None,
    seed: options.Seed = 0,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Teach a small decoder what the generator's own one does, for adanat train --decoder FILE."""
    from adanat_toolkit.commands.distill import distill_to_file
    from adanat_toolkit.evaluation import choose_features
    from adanat_toolkit.images import images_for
    from adanat_toolkit.policies import open_generator
    from adanat_toolkit.registry import create_features

    from .progress import image_progress

    model = open_generator(generator, weights=weights, options=generator_option, device=device, dtype=dtype, offline=offline)
    extractor = None
    if features != "none":
        extractor = create_features(choose_features(model, features), device=model.device, offline=offline)
    with image_progress(quiet=quiet) as show:
        found = distill_to_file(
            model,
            out,
            real=images_for(model, data),
            extractor=extractor,
            images=images,
            steps=steps,
            width=width,
            seed=seed,
            progress=show,
        )
    note(f"{found!r}: {out}", quiet=quiet)
    if json:
        print_json({"file": str(out), **found.figures})
