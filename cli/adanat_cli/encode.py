"""``adanat encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from adanat_toolkit.limits import MOST_IMAGES

from . import options
from .console import note, print_json


def encode(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE.safetensors", help="Where the tokens go.")],
    generator: options.FrozenGenerator = None,
    data: options.Data = None,
    num: Annotated[int | None, typer.Option(min=1, max=MOST_IMAGES, help="Only the first images.")] = None,
    batch: options.Batch = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Turn real images into a generator's tokens; a picture beside the file shows them rebuilt."""
    from adanat_toolkit.commands.prepare_data import encode_to_file
    from adanat_toolkit.evaluation import require_real_images
    from adanat_toolkit.policies import open_generator

    from .progress import image_progress

    model = open_generator(generator, weights=weights, options=generator_option, device=device, dtype=dtype, offline=offline)
    with image_progress(quiet=quiet) as show:
        result = encode_to_file(
            model,
            require_real_images(model, data),
            out,
            count=num,
            batch=batch,
            on_images=lambda done, total: show("encode", done, total),
        )
    note(f"{result['images']} images in {result['file']}, picture {result['picture']}", quiet=quiet)
    if json:
        print_json(result)
