"""Devices, compute dtypes and chunks: the few places where hardware shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import ConfigError

CPU_CHUNK = 64
"""Samples that go through a network at once on a CPU: much larger chunks fall out of the cache and are up to twice as slow
(docs/results/throughput.md); with 64 instead of 32 an iteration has fewer calls and takes as long (docs/results/profile.md)."""
IMAGES_ON_CPU = 32
"""The same of networks that read or make images: what they hold is larger, and at 64 they were a tenth slower in float32."""
MINIMUM_BATCH = {torch.bfloat16: 8, torch.float32: 2}
"""Smallest batches of networks on a CPU: below, the matrix library picks other kernels, whose rounding would make an image
depend on the batch it is made in. In float32 it is convolutions of a single image, on CPUs without AVX-512."""
MINIMUM_ON_DEVICE = 2
"""The same elsewhere: single samples take other kernels, and a compiled network would be compiled once more for them."""
MINIMUM_ROWS = 4
"""The same for networks that have one row a sample in a matrix product (float32)."""
CHEAP_ROWS = 16
"""The same where more rows cost next to nothing, as in policies: on CPUs with AVX-512 the kernels of wide products depend on
the number of rows up to here."""
COMPILED: dict[str, Any] = {"dynamic": True}
"""How networks are compiled (arguments of ``torch.compile``): once for all batch sizes, since micro-batches differ."""


def resolve_device(name: str | torch.device) -> torch.device:
    """``auto``, ``cpu``, ``cuda``, ``cuda:1`` -> a device that exists.

    In one of several processes ``auto`` and ``cuda`` are the process's own CUDA device (see ``launching.join``).

    Raises:
        ConfigError: the device is not there, with what is.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available() and dist.is_available() and dist.is_initialized():
        return torch.device("cuda", torch.cuda.current_device())
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps") or not isinstance(name, str | torch.device):
            raise ValueError
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(f"device {name!r} is not a device; use auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            found = (
                f"{count} CUDA device(s) found" if count else "no CUDA device was found (driver or CPU build of torch)"
            )
            raise ConfigError(f"device {name!r} is not available: {found}. Use --device cpu, or see adanat doctor.")
    elif device.type == "mps":
        raise ConfigError(
            "device 'mps' is not supported: contexts and figures are computed in float64, which Apple's GPUs do not have. Use "
            "--device cpu."
        )
    return device


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Inside (or in a function that it decorates), tensors and networks without a type are float32, whatever the user's
    program has set with ``torch.set_default_dtype``: images must not depend on that, and neither must weights fit it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def ready_to_learn() -> Iterator[None]:
    """:func:`float32_by_default`, and gradients are taken, whatever the user's program has switched off: notebooks begin with
    ``torch.set_grad_enabled(False)`` or ``torch.inference_mode()``, and a training must not fail after its first rollout."""
    with float32_by_default(), torch.inference_mode(False), torch.enable_grad():
        yield


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``bfloat16``, as settings and tables have it."""
    return str(dtype).removeprefix("torch.")


def fastest_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    """The compute type that ``auto`` takes, bfloat16 where its matrix products are faster, and what decides it, in words.

    A CPU is asked for instructions, not timed: a short measurement on a busy machine could choose either type, and a run would
    not be the same twice. Measured: AMX, and AVX-512 with bfloat16 (docs/results/profile.md). Other CPUs only emulate it.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU multiplies in bfloat16"
        return torch.float32, "the GPU has no bfloat16"
    if device.type != "cpu":
        return torch.float32, f"bfloat16 was not measured on {device.type}"
    if not torch.backends.mkldnn.is_available():
        return torch.float32, "this build of torch has no oneDNN, which bfloat16 needs to be fast on a CPU"
    for question, name in FAST_ON_CPU.items():
        # Private, and newer than the oldest torch that is supported: where it is missing, float32 is the safe answer.
        if getattr(torch.cpu, question, lambda: False)():
            return torch.bfloat16, f"the CPU has {name}"
    return torch.float32, f"the CPU has neither {' nor '.join(FAST_ON_CPU.values())}"


FAST_ON_CPU = {"_is_amx_tile_supported": "AMX tiles", "_is_avx512_bf16_supported": "AVX-512 with bfloat16"}
"""Functions of ``torch.cpu`` that ask for instructions with which bfloat16 is faster than float32, and their names."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """``auto`` (:func:`fastest_dtype`), ``float32``, ``bfloat16``, or one of these as torch has it.

    Raises:
        ConfigError: another name.
    """
    if name == "auto":
        return fastest_dtype(device)[0]
    if isinstance(name, torch.dtype):
        name = dtype_name(name)
    if not isinstance(name, str) or name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is not supported; use auto, {' or '.join(DTYPES)}.")
    return DTYPES[name]


def in_chunks(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    *tensors: Tensor,
    chunk: int | None = None,
    minimum: int = 1,
    convolves: bool = False,
) -> tuple[Tensor, ...]:
    """``function(*tensors)`` computed in chunks along the first axis, outputs concatenated (always a tuple).

    Args:
        chunk: samples at once; None picks :data:`CPU_CHUNK` on a CPU and everything at once elsewhere.
        minimum: smaller chunks are padded by repeating their last sample, and the surplus is cut.
        convolves: ``function`` is a convolutional network. Where a CPU's threads share one image, the last bits of its
            pixels are others than where each has whole images, so that they would depend on the batch. Hence no more
            threads work than there are images.
    """
    total, on_cpu = tensors[0].shape[0], tensors[0].device.type == "cpu"
    size = chunk or (CPU_CHUNK if on_cpu else total)
    threads = torch.get_num_threads() if on_cpu and convolves else 1
    parts: list[tuple[Tensor, ...]] = []
    for rows in _evenly(total, size, threads):
        pieces = [t[rows] for t in tensors]
        count = pieces[0].shape[0]
        with _sharing_evenly(max(count, minimum), threads):
            out = function(*(_at_least(minimum, piece) for piece in pieces))
        out = (out,) if isinstance(out, Tensor) else out
        parts.append(tuple(o[:count] for o in out))
    if len(parts) == 1:
        return parts[0]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@contextmanager
def _sharing_evenly(count: int, threads: int) -> Iterator[None]:
    """With as many of torch's ``threads`` as ``count`` samples divide evenly among."""
    sharing = next(n for n in range(threads, 0, -1) if count % n == 0)
    if sharing == threads:
        yield
        return
    torch.set_num_threads(sharing)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _evenly(total: int, size: int, threads: int) -> Iterator[slice]:
    """Parts of at most ``size`` samples: as many as divide evenly among the threads, then those that are left over."""
    if not total:
        yield slice(0, 0)
    for start in range(0, total, size):
        stop = min(start + size, total)
        even = stop - (stop - start) % threads
        yield from (part for part in (slice(start, even), slice(even, stop)) if part.start < part.stop)


def image_chunk(device: torch.device) -> int | None:
    """``chunk`` of :func:`in_chunks` for a network that reads or makes images."""
    return IMAGES_ON_CPU if device.type == "cpu" else None


def padded(network: Callable[..., Tensor], rows: int, *inputs: Tensor | None) -> Tensor:
    """``network(*inputs)`` of at least ``rows`` rows: the last one is repeated, and the surplus is cut from the output."""
    count = next(len(x) for x in inputs if x is not None)
    return network(*(None if x is None else _at_least(rows, x) for x in inputs))[:count]


def _at_least(rows: int, x: Tensor) -> Tensor:
    """``x`` with its last row repeated up to so many; an empty one stays empty."""
    return torch.cat([x, x[-1:].expand(rows - len(x), *x.shape[1:])]) if 0 < len(x) < rows else x


def minimum_batch(dtype: torch.dtype, device: torch.device, *, rows: bool = False) -> int:
    """The smallest batch for which an image does not depend on the batch (see :data:`MINIMUM_BATCH`).

    Args:
        rows: the network has one row a sample in a matrix product (see :data:`MINIMUM_ROWS`).
    """
    if device.type != "cpu":
        return MINIMUM_ON_DEVICE
    return max(MINIMUM_BATCH.get(dtype, 1), MINIMUM_ROWS if rows else 1)


def minimum_rows(device: torch.device) -> int:
    """Rows that a cheap network with one row a sample is filled up to, so that a sample does not depend on the batch."""
    return CHEAP_ROWS if device.type == "cpu" else MINIMUM_ON_DEVICE
