"""``adanat doctor``."""

from __future__ import annotations

from pathlib import Path

import typer

from . import options
from .console import print_json, stdout


def doctor(json: options.Json = False) -> None:
    """Say what works here: versions, devices, optional parts, embedded files, write permission.

    The exit code is 1 when something that is required does not work.
    """
    from adanat_plugins.catalogue import list_assets
    from adanat_plugins.emoji64 import FOLDER
    from adanat_plugins.weights import weights_folder
    from adanat_toolkit.commands.doctor import diagnose

    files = {asset.path: asset.sha256 for asset in list_assets() if asset.embedded}
    files |= {FOLDER / name: None for name in ("images.zip", "metadata.jsonl.gz", "classes.json")}
    report = diagnose(files, {"runs and samples": Path.cwd(), "weights of others": weights_folder()})
    if json:
        print_json(report)
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def _print(report: dict) -> None:
    from rich.table import Table
    from rich.text import Text

    console = stdout()
    versions = report["versions"]
    console.print(f"adanat-toolkit {versions['adanat-toolkit']}, Python {versions['python']}, {versions['platform']}")
    devices = Table("device", "name", "memory", "note", title="Devices", title_justify="left")
    for device in report["devices"]:
        memory = "" if device["memory_bytes"] is None else f"{device['memory_bytes'] / 2**30:.1f} GiB"
        devices.add_row(device["device"], device["name"], memory, device["note"])
    console.print(devices)
    parts = Table("package", "version", title="Parts", title_justify="left")
    parts.add_column("state", overflow="fold")
    parts.add_column("serves")
    for part in report["parts"]:
        state = Text("works", "green")
        if not part["works"]:
            remedy = f" (pip install 'adanat-toolkit[{part['extra']}]')" if part["extra"] else ""
            state = Text(part["error"] + remedy, "yellow" if part["extra"] else "red")
        parts.add_row(part["distribution"], part["version"] or "", state, part["serves"])
    console.print(parts)
    whole = sum(file["state"] == "ok" for file in report["embedded"])
    console.print(f"embedded files: {whole} of {len(report['embedded'])} whole")
    for folder in report["folders"]:
        console.print(f"{folder['what']}: {folder['path']} {'can' if folder['writable'] else 'cannot'} be written")
    for problem in report["problems"]:
        console.print(Text(problem, "red"))
    if not report["problems"]:
        console.print(Text("everything that is required works", "green"))
