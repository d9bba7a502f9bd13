"""Samples side by side on a CPU: each thread takes some of them from beginning to end.

torch's own threads share every operation and wait for each other after each of them. The operations of a rollout are short, so
that much of the time is waiting: on two cores, one thread a core with samples of its own makes a rollout 1.1 to 1.4 times as
fast (docs/results/profile.md). Samples do not depend on each other, so the results are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")

LEAST = 16
"""Samples of a thread. With fewer, the threads wait for Python instead: only one of them can be in it at a time."""


class ThreadSafe(Protocol):
    """What says whether it may be called from several threads at once."""

    thread_safe: bool


def may_go_side_by_side(device: torch.device, *called: ThreadSafe) -> bool:
    """Whether samples may: on a CPU, if all that is called says so. A GPU is one device for all threads."""
    return device.type == "cpu" and all(one.thread_safe for one in called)


def side_by_side(function: Callable[[slice], T], rows: slice) -> list[T]:
    """``function`` of consecutive parts of ``rows`` that cover them, each in a thread of its own.

    torch's threads (``torch.get_num_threads()``) are shared out among them. With one of them, or with few samples,
    ``[function(rows)]``.

    Args:
        function: may be called from several threads at once; it runs in the gradient mode of the caller.
    """
    size = rows.stop - rows.start
    parts = min(torch.get_num_threads(), size // LEAST)
    if parts < 2:
        return [function(rows)]
    edges = [rows.start + size * i // parts for i in range(parts + 1)]
    return together(*(partial(function, slice(*edge)) for edge in pairwise(edges)))


def together(*functions: Callable[[], T]) -> list[T]:
    """What each of them returns, in their order; each runs in a thread of its own.

    torch's threads (``torch.get_num_threads()``) are shared out among them. With fewer threads than functions they run one
    after the other.

    Raises:
        Exception: of the first function that fails, after all have ended.
    """
    threads = torch.get_num_threads()
    if threads < len(functions):
        return [function() for function in functions]
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def work(function: Callable[[], T]) -> T:
        torch.set_num_threads(threads // len(functions))  # of this thread alone
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return function()

    try:
        with ThreadPoolExecutor(len(functions), thread_name_prefix="beside") as pool:
            begun = [pool.submit(copy_context().run, work, function) for function in functions]
            return [one.result() for one in begun]
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads, which they have changed


class Aside:
    """A thread for functions that keep the CPU busy while ``device`` works for the caller. It is a context: all of them have
    ended when it is left.

    One function runs at a time: the next one waits for it, so that few have their inputs in memory. On a CPU nothing is idle
    meanwhile, and a function runs at once, in the caller's thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._pool = None if device.type == "cpu" else ThreadPoolExecutor(1, thread_name_prefix="aside")
        self._last: list[Future[Any]] = []

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self, function: Callable[[], T]) -> Future[T]:
        """The result to come. What goes wrong in ``function`` is raised by it (on a CPU: at once)."""
        if self._pool is None:
            done: Future[T] = Future()
            done.set_result(function())
            return done
        wait(self._last)
        inference = torch.is_inference_mode_enabled()

        def work() -> T:
            with torch.inference_mode(inference):
                return function()

        begun = self._pool.submit(copy_context().run, work)
        self._last = [begun]
        return begun
