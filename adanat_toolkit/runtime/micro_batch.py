"""Batches larger than memory: how many samples go through the networks at once, and what happens when they are too many.

The number is measured where that is cheap to do (CUDA counts its bytes), and halved where the measurement was too hopeful. It
changes no result beyond rounding: samples do not depend on each other, and gradients of parts add up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from ..errors import AdaNATError
from . import distributed
from .devices import CPU_CHUNK
from .threads import side_by_side

log = logging.getLogger("adanat_toolkit")

T = TypeVar("T")

PROBES = (2, 6)
"""Samples of the two probes, none so few that networks pad them (``compute.MINIMUM_ON_DEVICE``): their difference is what the
samples between them need, the rest is needed once."""
SHARE = 0.6
"""Share of the free memory that is used: fragments and other programs take some, and at 0.8 the decoder of 256x256 images ran
out of 80 GB (docs/results/throughput.md)."""
SHORT = 4 * 2**30
"""Free bytes below which a CPU's chunk is measured too; with more, a chunk of :data:`compute.CPU_CHUNK` fits any generator
that a CPU runs in a bearable time."""


class MemoryShortage(AdaNATError):
    """Memory runs out even with one sample at a time."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)


class MicroBatch:
    """How many items go through at once; it halves itself when memory runs out, and says so.

    Args:
        size: items at once; None for all of them.
        what: the items, in words. remedy: what helps where one at a time is still too many.
    """

    def __init__(self, size: int | None = None, *, what: str = "samples", remedy: str | None = None) -> None:
        self.size, self.what = size, what
        self.remedy = remedy or (
            "use a smaller batch (it is stored between rollout and update), fewer steps, --dtype bfloat16, or a device with "
            "more memory"
        )

    @classmethod
    def of(cls, value: MicroBatch | int | None) -> MicroBatch:
        """``value`` itself, or one of that size."""
        return value if isinstance(value, MicroBatch) else cls(value)

    def map(self, function: Callable[[slice], T], total: int, *, threads: bool = False) -> list[T]:
        """``function(rows)`` over consecutive rows that cover ``total`` items. Only what ran out of memory is done again.

        Args:
            threads: it may be called from several threads at once, each with some of the items that go through at once.

        Raises:
            MemoryShortage: with one item.
        """
        parts: list[T] = []
        start = 0
        while start < total:
            stop = min(start + (self.size or total), total)
            rows = slice(start, stop)
            part = self._try(lambda rows=rows: side_by_side(function, rows) if threads else [function(rows)], stop - start)  # type: ignore[misc]
            if part is not None:
                parts += part
                start = stop
        return parts

    def attempt(self, function: Callable[[int], T], total: int) -> T:
        """``function(size)``, from the start with half the size whenever memory ran out: for work whose parts add up.

        Raises:
            MemoryShortage: with one item.
        """
        while True:
            size = max(1, min(self.size or total, total))
            done = self._try(lambda size=size: [function(size)], size)  # type: ignore[misc]
            if done is not None:
                return done[0]

    def _try(self, function: Callable[[], list[T]], size: int) -> list[T] | None:
        try:
            return function()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # After the except block, which keeps the failed call's tensors alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if size <= 1:
            raise MemoryShortage(
                f"memory ran out with one of the {self.what} at a time ({reason}); there is nothing left to halve: "
                f"{self.remedy}."
            )
        self.size = size // 2
        where = f"rank {distributed.rank()}: " if distributed.world_size() > 1 else ""
        log.warning(
            "%smemory ran out with %d %s at once (%s); going on with %d", where, size, self.what, reason, self.size
        )
        return None


@contextmanager
def whole(what: str, remedy: str) -> Iterator[None]:
    """Around work that cannot be done in parts.

    Raises:
        MemoryShortage: memory ran out; names what for, and the remedy.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise MemoryShortage(
            f"memory ran out in {what} ({reason}), which cannot be cut into parts: {remedy}."
        ) from None


def measured_size(probe: Callable[[int], object], device: torch.device, *, most: int, stored: int = 0) -> int | None:
    """How many samples fit, of at most ``most``, from the memory that a few need.

    Args:
        probe: does the work of so many samples. stored: bytes that will be needed besides.

    Returns:
        The number; None where nothing is measured: on a CPU with memory to spare, on other devices, or where the probe
        itself runs out of memory.
    """
    if device.type == "cpu":
        free = free_host_memory()
        if free is None or free >= SHORT:
            return None
        most, free, measure = min(most, CPU_CHUNK), free - stored, _peak_of_host
    elif device.type == "cuda":
        free, measure = None, _peak_of_cuda
    else:
        return None
    if most <= PROBES[-1]:
        return most
    try:
        probe(PROBES[0])  # what the first call alone allocates: workspaces, caches, compiled kernels
        if free is None:  # only now: caches that the first call filled stay
            free = torch.cuda.mem_get_info(device)[0] - stored
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        needed = [measure(lambda count=count: probe(count), device) for count in PROBES]  # type: ignore[misc]
    except Exception as error:
        if is_out_of_memory(error):
            return PROBES[0]
        raise
    if None in needed:
        return None
    return fitting(needed[0] or 0, needed[1] or 0, free, most)


def fitting(one: int, several: int, free: int, most: int) -> int:
    """Samples that fit into :data:`SHARE` of ``free`` bytes, 1 to ``most``, where the probes of :data:`PROBES` samples needed
    ``one`` and ``several`` bytes."""
    each = max(1, several - one) / (PROBES[1] - PROBES[0])
    once = max(0.0, one - each * PROBES[0])
    return max(1, min(most, int((SHARE * free - once) / each)))


def free_host_memory() -> int | None:
    """Bytes that this machine can still give (Linux; None elsewhere), within the limit of its container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such container, or "max": no limit
        return free
    return min(free, max(0, limit - used))


def _peak_of_cuda(function: Callable[[], object], device: torch.device) -> int | None:
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_host(function: Callable[[], object], device: torch.device) -> int | None:
    """Growth of the resident set at its highest; None where the kernel does not tell."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        return next(int(x.split()[1]) * 1024 for x in status.read_text().splitlines() if x.startswith(name))

    try:
        clear.write_text("5")  # the high-water mark starts again from here
        before = read("VmRSS")
    except (OSError, StopIteration):
        return None
    function()
    return max(0, read("VmHWM") - before)
