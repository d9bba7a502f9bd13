"""Many processes: starting them on this machine, joining those that torchrun started, and stopping all when one fails.

A launcher (torchrun, or :func:`launch`) sets RANK, LOCAL_RANK, WORLD_SIZE and where the ranks meet; :func:`join` reads these.
Both launchers are torch's elastic one: it watches the processes, and when one ends with an error it stops the others.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import tempfile
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ..errors import AdaNATError, ConfigError
from . import distributed
from .devices import resolve_device

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for another one in a collective. A rank that fails is noticed at once, because its process ends; this
limit only ends a run whose rank hangs. It must exceed the longest work that rank 0 does alone while the others wait: writing
a checkpoint, the figures of a held-out reading, the list of a folder of 50,000 images; an hour on a slow disk."""
LAUNCHED = "ADANAT_LAUNCHED"
"""Set in processes of :func:`launch`: their errors are reported by the process that started them."""
CPU_PROCESSES = 16
"""Processes that any machine may start on its CPU; more need as many cores."""
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
_store: dist.Store | None = None


class ProcessError(AdaNATError):
    """One of several processes failed; the message names it and its error.

    Attributes:
        details: its traceback, where the error is not one that a user can act on.
    """

    def __init__(self, message: str, details: str | None = None) -> None:
        super().__init__(message)
        self.details = details


# --- a rank -----------------------------------------------------------------------------------------------------------


def environment() -> tuple[int, int]:
    """(rank, number of ranks) that a launcher gave to this process; (0, 1) without one.

    Raises:
        ConfigError: what stands there are no such numbers; nobody would answer a rank that does not exist.
    """
    return _place()[:2]


def local_size() -> int:
    """Ranks on this machine; 1 without a launcher.

    Raises:
        ConfigError: as of :func:`environment`.
    """
    return _place()[2]


def _place() -> tuple[int, int, int]:
    """Rank, number of ranks, and how many of them are on this machine."""
    names: tuple[str, ...] = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    if not set(names) <= os.environ.keys():
        return 0, 1, 1
    if "LOCAL_WORLD_SIZE" in os.environ:  # not of every launcher
        names = (*names, "LOCAL_WORLD_SIZE")
    given = ", ".join(f"{name}={os.environ[name]!r}" for name in names)
    try:
        rank, local, size, *here = (int(os.environ[name]) for name in names)
    except ValueError:
        rank, local, size, here = -1, -1, -1, []
    if not (0 <= rank < size and 0 <= local < size and all(1 <= number <= size for number in here)):
        raise ConfigError(
            f"the environment has {given}; whole numbers with 0 <= RANK, LOCAL_RANK < WORLD_SIZE are needed, and 1 <= "
            "LOCAL_WORLD_SIZE <= WORLD_SIZE where it is set. Start the processes with torchrun or --gpus, or unset these "
            "variables to run in one process."
        )
    return rank, size, here[0] if here else size


def join(device: str) -> None:
    """Meet the other ranks, where a launcher started several: nccl between CUDA devices, gloo between CPU processes.

    Args:
        device: ``auto``, ``cuda`` (each rank takes the device of its local rank) or ``cpu``.

    Raises:
        ConfigError: a device that several processes cannot use, or too few of them.
    """
    global _store
    if environment()[1] == 1 or dist.is_initialized():
        return
    where = _local_device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    _store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if where.type == "cuda" else "gloo",
        store=_store,
        rank=rank,
        world_size=size,
        timeout=TIMEOUT,
        device_id=where if where.type == "cuda" else None,
    )


def leave() -> None:
    """Wait for the others and part from them."""
    if dist.is_initialized():
        distributed.barrier()
        dist.destroy_process_group()


def _local_device(name: str) -> torch.device:
    if name not in ("auto", "cuda", "cpu"):
        raise ConfigError(
            f"device {name!r} cannot be used by {environment()[1]} processes; use cuda (each takes its own) or cpu."
        )
    if name == "cpu" or not torch.cuda.is_available():
        return resolve_device(name)
    index, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"process {index} of this machine has no CUDA device: {count} found. Start at most {count} processes a machine "
            "(--gpus, --nproc-per-node), or use --device cpu."
        )
    return torch.device("cuda", index)


def record_failure(error: BaseException) -> bool:
    """Leave this rank's error for the launcher.

    Returns:
        Whether this rank is the first to fail: the others fail because of it.
    """
    first = True
    if _store is not None:
        with contextlib.suppress(Exception):  # the store is gone with the process that kept it
            first = _store.add("adanat_toolkit/failures", 1) == 1
    known = isinstance(error, AdaNATError)
    text = str(error) if known else f"{type(error).__name__}: {error}"
    details = text if known else traceback.format_exc()
    facts = {"timestamp": str(int(time.time())), "py_callstack": details, "first": first, "known": known}
    if file := os.environ.get(_ERROR_FILE):
        with contextlib.suppress(OSError), open(file, "w") as handle:
            json.dump({"message": {"message": text, "extraInfo": facts}}, handle)
    return first


# --- the process that starts them --------------------------------------------------------------------------------------


def check_devices(count: int, device: str) -> None:
    """Refuse to start more processes than there are CUDA devices, or so many that a CPU does nothing else than switch.

    Raises:
        ConfigError: says how many there are.
    """
    if device == "cpu":
        most = max(CPU_PROCESSES, os.cpu_count() or 1)
        if count > most:
            raise ConfigError(
                f"--gpus {count} --device cpu starts {count} processes; at most {most} are started on this machine's "
                f"{os.cpu_count() or 1} CPU cores."
            )
        return
    if device not in ("auto", "cuda"):
        raise ConfigError(
            f"--gpus {count} takes the first {count} CUDA devices, so --device {device} does not fit; use cuda."
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count > found:
        raise ConfigError(
            f"--gpus {count} needs {count} CUDA devices, and {found or 'none'} {'was' if found < 2 else 'were'} found on this "
            f"machine. Use {f'--gpus {found}' if found else 'no --gpus'}, or --device cpu for {count} processes on the CPU."
        )


def launch(count: int, command: Sequence[str]) -> None:
    """``count`` processes of a command on this machine; returns when all have ended well.

    Raises:
        ProcessError: one failed; the others were stopped. KeyboardInterrupt: by Ctrl-C; all were stopped.
    """
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = max(1, (os.cpu_count() or 1) // count)
    with (
        tempfile.TemporaryDirectory(prefix="adanat-ranks-") as folder,
        _environment(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", str(threads)), **{LAUNCHED: "1"}),
        _silent_launcher(),
    ):
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except ChildFailedError as error:
            raise _explain(error.failures, count) from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise SystemExit(128 + error.sigval) from None


def _explain(failures: dict[int, Any], count: int) -> ProcessError:
    """The failure that the others followed: a process that was killed, or the first one that reported its error."""

    def order(rank: int) -> tuple[bool, bool, int]:
        failure = failures[rank]
        killed = failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM
        return not killed, not _facts(failure).get("first", False), failure.timestamp

    rank = min(failures, key=order)
    failure, facts = failures[rank], _facts(failures[rank])
    if facts:
        text = failure.message["message"]
    elif failure.exitcode < 0:
        text = f"it was stopped by {signal.Signals(-failure.exitcode).name}"
        if failure.exitcode == -signal.SIGKILL:
            text += " (the system does this to a process when memory runs out)"
        text += "."
    else:
        text = f"it ended with exit code {failure.exitcode}."
    return ProcessError(
        f"rank {rank} of {count} failed, the others were stopped: {text}",
        None if facts.get("known", True) else facts["py_callstack"],
    )


def _facts(failure: Any) -> dict[str, Any]:
    return failure.message["extraInfo"] if isinstance(failure.message, dict) else {}


@contextlib.contextmanager
def _environment(**values: str) -> Iterator[None]:
    """These variables set inside: the launcher hands its environment on."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _silent_launcher() -> Iterator[None]:
    """Its log says in several lines what :class:`ProcessError` says in one."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
