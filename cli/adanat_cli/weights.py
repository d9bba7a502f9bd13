"""``adanat weights``."""

from __future__ import annotations

from typing import Annotated

import typer

from . import options
from .console import print_json, stdout


def weights(
    variant: Annotated[
        str | None,
        typer.Argument(metavar="[NAME[:VARIANT]]", help="Only the files of this generator, reward or feature protocol."),
    ] = None,
    json: options.Json = False,
) -> None:
    """List the weights of generators, and of rewards and feature protocols by default: files, sizes, sources, licences, and
    what is present."""
    from adanat_plugins.catalogue import list_assets
    from adanat_plugins.weights import weights_folder
    from adanat_toolkit.errors import ConfigError, nearest

    rows = [asset.row() for asset in list_assets()]
    if variant is not None:
        known = sorted({name for row in rows for name in row["variants"]})
        rows = [row for row in rows if any(variant in (name, name.partition(":")[0]) for name in row["variants"])]
        if not rows:
            raise ConfigError(
                f"no weights are known for {variant!r}{nearest(variant, known)} Known: {', '.join(known)}."
            )
    if json:
        print_json(rows)
        return
    from rich.text import Text

    console = stdout()
    for row in rows:
        state = "embedded" if row["embedded"] else "present" if row["present"] else "absent"
        about = f"  {row['size']}  {row['role']} of {', '.join(row['variants'])}"
        console.print(
            Text.assemble((row["file"], "bold"), "  ", (state, "" if state == "absent" else "green"), about)
        )
        if not row["embedded"]:
            console.print(f"  published: {row['source']}")
        console.print(f"  licence: {row['licence']}")
        if not row["present"]:
            console.print(f"  obtain: {row['obtain']}")
        if row["sha256"]:
            console.print(f"  sha256: {row['sha256']}")
    console.print(f"Files are looked for in {weights_folder()} (ADANAT_WEIGHTS names another folder).")
