"""``adanat stats``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import note, print_json


def stats(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.safetensors", help="Where the statistics go.")],
    data: options.Data = None,
    features: options.Features = None,
    generator: options.FrozenGenerator = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    gpus: options.Gpus = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Store the feature statistics of real images, for adanat evaluate --data FILE.

    Images are brought to the generator's size, and the statistics serve generators of that size alone.
    """
    from adanat_toolkit.commands.feature_statistics import write_statistics
    from adanat_toolkit.evaluation import choose_features, require_real_images
    from adanat_toolkit.policies import open_generator
    from adanat_toolkit.registry import create_features

    from .progress import image_progress
    from .ranks import ranks

    with ranks(context) as here:
        here.start(device)
        quiet = quiet or not here.main
        model = open_generator(
            generator, weights=weights, options=generator_option, device=device, offline=offline
        )
        extractor = create_features(choose_features(model, features), device=model.device, offline=offline)
        with image_progress(quiet=quiet) as show:
            result = write_statistics(
                extractor,
                require_real_images(model, data),
                out,
                generator=model,
                progress=lambda done, total: show("images", done, total),
            )
        if not here.main:
            return
        height, width = result["image_size"]
        of = f"{result['images']} images of {height}x{width} under {result['protocol']}"
        note(f"{of}: {result['file']}", quiet=quiet)
        if json:
            print_json(result)
