"""Samples side by side on a CPU: each thread takes some of them from beginning to end.

torch's own threads share every operation and wait for each other after each of them. The operations of a rollout are short, so
that much of the time is waiting: on two cores, one thread a core with samples of its own makes a rollout 1.1 to 1.4 times as
fast (docs/results/profile.md). Samples do not depend on each other, so the results are the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar, copy_context
from functools import partial
from itertools import pairwise
from threading import Lock
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
    idle = _Idle()
    mode = _mode(threads // len(functions))

    def work(function: Callable[[], T]) -> T:
        token = _idle.set(idle)
        try:
            with mode():
                return function()
        finally:
            _idle.reset(token)
            idle.add()

    try:
        with ThreadPoolExecutor(len(functions), thread_name_prefix="beside") as pool:
            begun = [pool.submit(copy_context().run, work, function) for function in functions]
            return [one.result() for one in begun]
    finally:
        torch.set_num_threads(threads)  # MKL has one number for all threads, which they have changed


def helped(*functions: Callable[[], T]) -> list[T]:
    """What each of them returns, in their order: run by the caller, and where it runs :func:`together` with others that have
    ended, by their threads too.

    Each function has as many of torch's threads as the caller, whoever runs it, so that its results are the same.

    Raises:
        Exception: of the first function that fails, after all that had begun have ended.
    """
    idle, waiting = _idle.get(), deque(range(len(functions)))
    results: dict[int, T] = {}
    if idle is None or len(functions) < 2:
        return [function() for function in functions]
    mode = _mode(torch.get_num_threads())

    def work(before_each: Callable[[], None] = lambda: None) -> None:
        while waiting:
            before_each()
            try:
                number = waiting.popleft()
            except IndexError:  # another thread has taken the last one since
                return
            try:
                results[number] = functions[number]()
            except BaseException:
                waiting.clear()
                raise

    def help_out() -> None:
        try:
            with mode():
                work()
        finally:
            idle.add()

    helpers: list[Future[None]] = []
    with ThreadPoolExecutor(len(functions), thread_name_prefix="helping") as pool:

        def call_helpers() -> None:
            while len(waiting) > 1 and idle.take():
                helpers.append(pool.submit(copy_context().run, help_out))

        work(call_helpers)
    for helper in helpers:
        helper.result()
    return [results[number] for number in range(len(functions))]


def may_be_helped() -> bool:
    """Whether the caller runs :func:`together` with others, so that it pays to give :func:`helped` several functions."""
    return _idle.get() is not None


class _Idle:
    """How many threads of :func:`together` have nothing more to do."""

    def __init__(self) -> None:
        self._number, self._lock = 0, Lock()

    def add(self) -> None:
        with self._lock:
            self._number += 1

    def take(self) -> bool:
        """Whether there was one; it is the caller's until it is added again."""
        with self._lock:
            taken = self._number > 0
            self._number -= int(taken)
            return taken


_idle: ContextVar[_Idle | None] = ContextVar("idle", default=None)


def _mode(threads: int) -> Callable[[], AbstractContextManager[None]]:
    """A context for another thread: so many of torch's threads, and the caller's gradient mode."""
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    @contextmanager
    def mode() -> Iterator[None]:
        torch.set_num_threads(threads)  # of this thread alone
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            yield

    return mode


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
