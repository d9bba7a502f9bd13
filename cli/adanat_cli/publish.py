"""``adanat publish``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from . import options
from .console import note, print_json


def publish(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder or policy folder.")],
    target: Annotated[str, typer.Argument(metavar="FOLDER|HUB_ID", help="Where: ./folder, or owner/name on the hub.")],
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Result of adanat evaluate --out; default RUN/evaluation, where it is."),
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", "--license", metavar="NAME", help="Licence of the policy's weights.")
    ] = "apache-2.0",
    public: Annotated[
        bool, typer.Option("--public", help="Make a new hub repository public; default: private.")
    ] = False,
    seed: options.Seed = 0,
    weights: options.Weights = None,
    generator_option: options.GeneratorOptions = None,
    offline: options.Offline = False,
    device: options.Device = "auto",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Publish a policy: its two files, a model card with figures, protocol and licence, and pictures.

    adanat sample --policy FOLDER (or HUB_ID) loads it.
    """
    from adanat_toolkit.commands.publish import publish as publish_policy
    from adanat_toolkit.errors import ConfigError
    from adanat_toolkit.policies import open_generator
    from adanat_toolkit.storage import is_hub_id

    if offline and is_hub_id(target):
        raise ConfigError(f"--offline forbids publishing to the hub repository {target}; give a folder (./{target}).")
    model = open_generator(None, [str(run)], weights=weights, options=generator_option, device=device, offline=offline)
    result = publish_policy(run, target, model, evaluation=evaluation, licence=licence, public=public, seed=seed)
    if not result["evaluated"]:
        note(f"no figures on the card; first: adanat evaluate --policy {run} --out {run / 'evaluation'}", quiet=quiet)
    note(f"published: {result['url'] or result['target']}", quiet=quiet)
    if json:
        print_json(result)
