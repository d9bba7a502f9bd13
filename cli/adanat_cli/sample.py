"""``adanat sample``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import note, print_json


def sample(
    context: typer.Context,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|FOLDER|HUB_ID|fixed[:SCHEDULE|:SAMPLER]",
            help="Or a blend of such, A*0.7+B*0.3. Default: the policy that ships for the generator, else its best "
            "hand-made schedule (fixed).",
        ),
    ] = None,
    generator: options.Generator = None,
    num: Annotated[
        int | None, typer.Option(help="Images; default 16, or one a class or prompt where more are given.")
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="3,17", help="Class ids or names, taken in turn.")] = None,
    prompt: Annotated[list[str] | None, typer.Option(help="Prompt, taken in turn (repeatable).")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts, one a line.")] = None,
    image: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Masked editing: an image of which to fill in a part; see --mask."),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|L,T,R,B",
            help="The part to fill in: an image of the same size, white there, or a box LEFT,TOP,RIGHT,BOTTOM in its pixels.",
        ),
    ] = None,
    keep_pixels: Annotated[
        bool, typer.Option("--keep-pixels", help="Outside the mask, the image's own pixels instead of the tokenizer's.")
    ] = False,
    refine: options.Refine = None,
    judge: options.Judge = None,
    seed: options.Seed = 0,
    steps: Annotated[
        int | None, typer.Option(metavar="T", help="Steps of a hand-made schedule or published sampler.")
    ] = None,
    batch: options.Batch = None,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    gpus: options.Gpus = None,
    out: options.Out = Path("samples"),
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Make images: a PNG a seed, grid.png, and samples.json with the knobs of every step.

    An image depends on its seed, its class or prompt and the policy alone. The same command makes what is missing.
    """
    from adanat_plugins.pretrained import pretrained_policy
    from adanat_toolkit.commands.inputs import (
        choose_contexts,
        choose_refinement,
        context_of,
        refuse_lone_judge,
    )
    from adanat_toolkit.commands.sample_folder import sample_to_folder
    from adanat_toolkit.errors import ConfigError
    from adanat_toolkit.policies import load_policy, local_spec, open_generator
    from adanat_toolkit.sampling import Edit, read_edit, seed_range
    from adanat_toolkit.storage import read_prompts

    from .progress import image_progress
    from .ranks import ranks

    with ranks(context) as here:
        if (image is None) != (mask is None) or (keep_pixels and image is None):
            raise ConfigError(
                "masked editing needs both --image and --mask (and --keep-pixels only with them); give both."
            )
        refuse_lone_judge(refine, judge)
        if num is not None and num < 1:
            raise ConfigError(f"--num {num}: at least 1 image must be made.")
        if refine is not None and image is not None:
            raise ConfigError("--refine does not go with masked editing; leave one of them out.")
        here.start(device)
        quiet = quiet or not here.main
        texts = [*(prompt or ()), *(read_prompts(prompts) if prompts else ())]
        policy = local_spec(policy, offline=offline) if policy else None
        named = [policy] if policy else []
        model = open_generator(
            generator,
            named,
            weights=weights,
            options=generator_option,
            device=device,
            dtype=dtype,
            offline=offline,
        )
        spec = policy or str(pretrained_policy(model, steps) or "fixed")
        loaded = load_policy(spec, model, steps)
        editing = None
        if image is not None and mask is not None:
            editing = Edit(*read_edit(image, mask, model.image_size), keep_pixels)
        refinement = choose_refinement(model, refine, judge or spec, offline=offline)
        asked = None if classes is None else _names(classes)
        count = max(16, len(asked or ()), len(texts)) if num is None else num
        contexts = choose_contexts(model, asked, texts, count, source=f"--num {num}")
        note(f"{model.name}, policy {spec}, {loaded.steps} steps, on {model.device}", quiet=quiet)
        assert out is not None
        with image_progress(quiet=quiet) as show:
            result = sample_to_folder(
                model,
                loaded,
                out,
                seeds=seed_range(seed, count),
                context=context_of(model, contexts, count),
                batch=batch,
                editing=editing,
                refinement=refinement,
                on_image=lambda done: show("sample", done, count),
            )
        if refinement is not None:
            result |= {"refine": refinement.facts(model, loaded.space)}
            note(options.told_of(result["refine"]), quiet=quiet)
        note(f"{result['made']} made, {result['kept']} kept: {result['grid']}", quiet=quiet)
        if json:
            print_json(result)


def _names(classes: str) -> list[str]:
    """
    Raises:
        ConfigError: there is none.
    """
    from adanat_toolkit.errors import ConfigError

    names = [part.strip() for part in classes.split(",") if part.strip()]
    if not names:
        raise ConfigError(f"--classes {classes!r} names no class; give ids or names, separated by commas.")
    return names
