"""``adanat plugins``: without a subcommand, the list."""

from __future__ import annotations

from typing import Any

import typer

from . import options
from .console import print_json, stdout

app = typer.Typer(help="List every plug-in with its origin, status and load error.", invoke_without_command=True)


@app.callback()
def plugins(context: typer.Context, json: options.Json = False) -> None:
    """List every plug-in with its origin, status and load error."""
    if context.invoked_subcommand is not None:
        return
    from adanat_toolkit.doctor import plugin_report

    rows = plugin_report()
    if json:
        print_json(rows)
    else:
        _print(rows)


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("kind", "name", "distribution", "status")
    for row in rows:
        status = "[green]ok[/green]" if row["status"] == "ok" else f"[red]{row['status']}[/red]"
        name = row["name"] + "".join(f"\n  :{variant}" for variant in row["variants"])
        table.add_row(row["kind"], escape(name), f"{row['distribution']} {row['version']}", status)
    console = stdout()
    console.print(table)
    for row in rows:
        if row["error"]:
            console.print(f"[red]{row['kind']} {row['name']}:[/red] {escape(row['error'])}")
