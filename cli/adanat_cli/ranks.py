"""Commands that run in several processes: with ``--gpus N``, or under torchrun."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

import typer


class Ranks:
    """The processes of one command.

    Attributes:
        main: this is the one that prints, shows progress and writes. It is known from the start.
    """

    def __init__(self, context: typer.Context) -> None:
        from adanat_toolkit.runtime import environment

        self.context = context
        self.gpus: int | None = context.params["gpus"]
        self.rank, self.number = environment()
        self.main = self.rank == 0

    def start(self, device: str) -> None:
        """Meet the other processes; or, with ``--gpus N``, start them and end when they have.

        Raises:
            ConfigError: too few devices. ProcessError: a process failed. typer.Exit: the processes have done the work.
        """
        from adanat_toolkit.errors import ConfigError
        from adanat_toolkit.runtime import check_devices, join, launch, local_size

        from .console import handed_on

        if self.number == 1 and (self.gpus or 1) > 1:
            assert self.gpus is not None
            check_devices(self.gpus, device)
            with handed_on():
                launch(self.gpus, [sys.executable, "-m", "adanat_cli", *_arguments(self.context)])
            raise typer.Exit()
        local = local_size()
        if self.gpus not in (None, local):
            raise ConfigError(
                f"--gpus {self.gpus} under a launcher that started {local} processes on this machine; leave --gpus out."
            )
        join(device)


@contextlib.contextmanager
def ranks(context: typer.Context) -> Iterator[Ranks]:
    """Around all that a command does: other processes than the main one print nothing, and an error of one is reported once.

    A rank that fails ends at once: its launcher stops the others, which may be waiting for it.
    """
    from adanat_toolkit.runtime import LAUNCHED, ProcessError, leave, record_failure

    here = Ranks(context)
    if here.number == 1:
        try:
            yield here
        except ProcessError as error:
            if error.details is not None:
                print(error.details, file=sys.stderr)
            raise
        return
    from .console import results, results_to

    with open(os.devnull, "w") as nowhere, results_to(results() if here.main else nowhere):
        try:
            yield here
            leave()
        except typer.Exit:
            raise
        except KeyboardInterrupt:  # every process got it
            _end(130)
        except Exception as raised:
            from adanat_toolkit.errors import explained

            told = explained(raised) or raised
            first = record_failure(told)
            if first and LAUNCHED not in os.environ and (here.main or _has_met()):
                _print_error(told, here)
            _end(1)


def _has_met() -> bool:
    """Whether the ranks have met: before, all fail alike, and one message is enough."""
    import torch.distributed as dist

    return dist.is_initialized()


def _print_error(error: Exception, here: Ranks) -> None:
    import traceback

    from adanat_toolkit.errors import AdaNATError

    from .console import note

    if not isinstance(error, AdaNATError) or os.environ.get("ADANAT_DEBUG") == "1":
        traceback.print_exc()
    note(f"error: rank {here.rank} of {here.number} failed: {error}")


def _end(code: int) -> None:
    # Not by returning: a process group that is torn down while others are in a collective can wait for them.
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _arguments(context: typer.Context) -> list[str]:
    """The command line of a command, from what was parsed."""
    out = [context.info_name or ""]
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if value is None:
            continue
        name = next(option for option in parameter.opts if option.startswith("--"))
        if isinstance(value, bool):
            out += [name] if value else []
        else:
            out += [f"{name}={each}" for each in (value if isinstance(value, list | tuple) else [value])]
    return out
