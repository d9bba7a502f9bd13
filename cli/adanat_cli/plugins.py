"""``adanat plugins``: without a subcommand, the list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from . import options
from .console import Command, note, print_json, print_result, results_alone, stdout

app = typer.Typer(help="List every plug-in with its origin, status and load error.", invoke_without_command=True)


@app.callback()
def plugins(
    context: typer.Context,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long the import of a third party's plug-in may take.")
    ] = 10.0,
    json: options.Json = False,
) -> None:
    """List every plug-in with its origin, status and load error.

    Plug-ins of third parties are imported in another process: one that hangs is listed as slow, one that crashes as broken.
    """
    if context.invoked_subcommand is not None:
        return
    from adanat_toolkit.registry import plugin_report

    with results_alone():
        rows = plugin_report(timeout)
        if json:
            print_json(rows)
        else:
            _print(rows)


@app.command(cls=Command)
def check(
    name: Annotated[str, typer.Argument(metavar="NAME[:VARIANT]", help="Plug-in to check.")],
    kind: Annotated[
        str | None, typer.Option(metavar="KIND", help="generator, reward, policy, features or tracker; default: all.")
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(metavar="NAME[:VARIANT]", help="Whose images rewards and features are tried on."),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the plug-in (repeatable).")
    ] = None,
    json: options.Json = False,
) -> None:
    """Run the contract tests on one plug-in; the exit code is 1 when it fails any."""
    from adanat_toolkit.registry import parse_override
    from adanat_toolkit.testing.check import check_plugin
    from adanat_toolkit.training import merge

    values: dict[str, Any] = {}
    for text in set_ or ():
        values = merge(values, parse_override(text))
    outcomes = check_plugin(name, kind=kind, options=values, judge=generator)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if json:
        print_json([vars(outcome) for outcome in outcomes])
    else:
        for outcome in outcomes:
            mark = "ok  " if outcome.error is None else "FAIL"
            print_result(f"{mark} {outcome.kind} {outcome.name}: {outcome.check}")
            if outcome.error is not None:
                print_result(f"       {outcome.error}")
        print_result(f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed")
    if failed:
        raise typer.Exit(1)


@app.command(cls=Command)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What users will type, such as my-reward.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help="generator, reward or policy.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where; default ./adanat-NAME.")
    ] = None,
) -> None:
    """Write a small installable project with a plug-in that works, its contract test and a README."""
    from adanat_toolkit.registry import new_plugin

    folder = new_plugin(name, kind, out)
    note(f"pip install -e {folder}, then: adanat plugins check {name} --kind {kind}")
    print_result(str(folder))


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("kind", "name", "distribution", "status")
    for row in rows:
        status = Text(row["status"], "green" if row["status"] == "ok" else "red")
        name = row["name"] + "".join(f"\n  :{variant}" for variant in row["variants"])
        table.add_row(row["kind"], name, f"{row['distribution']} {row['version']}", status)
    console = stdout()
    console.print(table)
    for row in rows:
        if row["error"]:
            console.print(Text.assemble((f"{row['kind']} {row['name']}:", "red"), f" {row['error']}"))
