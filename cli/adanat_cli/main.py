"""``adanat``: every command is one file; this one collects them and reports errors."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from adanat_toolkit.errors import AdaNATError, ConfigError, explained

from .compare import compare
from .console import Command
from .distill import distill
from .doctor import doctor
from .encode import encode
from .evaluate import evaluate
from .headroom import headroom
from .plugins import app as plugins
from .publish import publish
from .report import report
from .sample import sample
from .stats import stats
from .train import train
from .weights import weights

# Threads that wait for each other give the core away instead of spinning: where another program shares the cores, spinning
# makes training 5 to 10 times slower. It must be set before torch starts its threads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class ReportingGroup(TyperGroup):
    """Prints an :class:`AdaNATError`, and what ``errors.explained`` makes one, as one clear message and exits with 1;
    ``ADANAT_DEBUG=1`` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (AdaNATError, EOFError, MemoryError, OSError) as error:
            known = error if isinstance(error, AdaNATError) else explained(error)
            if known is None:
                raise
            if os.environ.get("ADANAT_DEBUG") == "1":
                if known is error:
                    raise
                raise known from error  # not the EOFError itself, to which click says "Aborted."
            from rich.text import Text

            from .console import stderr

            stderr().print(Text.assemble(("error: ", "bold red"), (str(known), "red")))
            raise typer.Exit(1) from None


SHARED = ("train", "sample", "evaluate", "stats")
"""Commands that several processes share (see ``ranks``)."""


def _refuse_copies(command: str | None) -> None:
    """Under torchrun the other commands would do everything once a process, in the same folder."""
    number = os.environ.get("WORLD_SIZE", "1") if "LOCAL_RANK" in os.environ else "1"
    if number != "1" and command not in SHARED:
        raise ConfigError(
            f"adanat {command} runs in one process, and a launcher started {number}; start it without torchrun "
            f"({', '.join(SHARED)} share their work)."
        )


app = typer.Typer(
    name="adanat",
    cls=ReportingGroup,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        from adanat_toolkit.registry import toolkit_version

        print(f"adanat-toolkit {toolkit_version()}")
        raise typer.Exit()


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Learned per-sample sampling policies for frozen image generators (AdaNAT).

    Results go to stdout, progress and errors to stderr. ADANAT_DEBUG=1 shows the traceback of an error.
    """
    _refuse_copies(context.invoked_subcommand)


app.command(cls=Command)(train)
app.command(cls=Command)(sample)
app.command(cls=Command)(evaluate)
app.command(cls=Command)(compare)
app.command(cls=Command)(headroom)
app.add_typer(plugins, name="plugins")
app.command(cls=Command)(doctor)
app.command(cls=Command)(weights)
app.command(cls=Command)(encode)
app.command(cls=Command)(distill)
app.command(cls=Command)(stats)
app.command(cls=Command)(report)
app.command(cls=Command)(publish)
