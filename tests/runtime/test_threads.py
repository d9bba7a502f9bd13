"""Samples side by side on a CPU: what runs where, and that nothing of the result depends on it."""

from __future__ import annotations

import threading
import time
from contextvars import ContextVar
from functools import partial

import pytest
import torch

import adanat_toolkit as adanat
from adanat_toolkit.core import Noise
from adanat_toolkit.decoding import SamplingPolicy
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy
from adanat_toolkit.runtime import MicroBatch
from adanat_toolkit.runtime.threads import LEAST, Aside, _idle, helped, side_by_side, together
from adanat_toolkit.sampling import collect
from adanat_toolkit.testing import Control, control_reward
from adanat_toolkit.training import create_trainer, resolve

SOMETHING: ContextVar[str] = ContextVar("SOMETHING", default="nothing")


@pytest.mark.parametrize(
    ("threads_of_torch", "count", "parts", "each"),
    [(1, 64, 1, 1), (2, 64, 2, 1), (2, 2 * LEAST - 1, 1, 2), (4, 64, 4, 1), (3, 50, 3, 1), (8, 64, 4, 2), (2, 0, 1, 2)],
)
def test_samples_are_dealt_out(threads_of_torch: int, count: int, parts: int, each: int, threads: None) -> None:
    torch.set_num_threads(threads_of_torch)

    def look(rows: slice) -> tuple[list[int], int, int]:
        return list(range(rows.start, rows.stop)), torch.get_num_threads(), threading.get_ident()

    found = side_by_side(look, slice(7, 7 + count))
    assert [i for rows, _, _ in found for i in rows] == list(range(7, 7 + count))
    assert len(found) == parts and {number for _, number, _ in found} == {each}
    assert (threading.get_ident() in {ident for _, _, ident in found}) == (parts == 1)
    assert torch.get_num_threads() == threads_of_torch


def test_a_thread_has_the_modes_of_its_caller(threads: None) -> None:
    torch.set_num_threads(2)
    SOMETHING.set("something")

    def look(rows: slice) -> tuple[bool, bool, str]:
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), SOMETHING.get()

    assert side_by_side(look, slice(0, 64)) == [(True, False, "something")] * 2
    with torch.no_grad():
        assert side_by_side(look, slice(0, 64)) == [(False, False, "something")] * 2
    with torch.inference_mode():
        assert side_by_side(look, slice(0, 64)) == [(False, True, "something")] * 2


def wait_for_a_free_thread() -> None:
    idle, end = _idle.get(), time.monotonic() + 30
    assert idle is not None
    while not idle._number and time.monotonic() < end:
        time.sleep(0.01)


def test_a_thread_that_has_ended_helps_the_others(threads: None) -> None:
    torch.set_num_threads(2)
    ended = threading.Event()

    def work(number: int) -> tuple[int, int, int, bool]:
        if number == 0:  # whoever else is free takes the others meanwhile
            assert ended.wait(30)
        elif number == 5:
            ended.set()
        return number, threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()

    def long() -> list[tuple[int, int, int, bool]]:
        assert short_ended.wait(30)
        wait_for_a_free_thread()  # given back a moment after its function has returned
        return helped(*(partial(work, number) for number in range(6)))

    short_ended = threading.Event()
    with torch.no_grad():
        found, _ = together(long, short_ended.set)
    assert [number for number, *_ in found] == list(range(6))
    assert len({thread for _, thread, _, _ in found}) == 2 and {rest for *_, rest in found} == {False}
    assert {number for _, _, number, _ in found} == {1} and torch.get_num_threads() == 2
    ended.set()
    assert len({thread for _, thread, _, _ in helped(*(partial(work, number) for number in range(6)))}) == 1  # none has ended


def test_what_goes_wrong_while_others_help_is_said(threads: None) -> None:
    torch.set_num_threads(2)

    def fails() -> int:
        raise IndexError("a head")  # as a list that ran empty would

    def long() -> list[int]:
        wait_for_a_free_thread()
        return helped(lambda: 1, fails, lambda: 3)

    with pytest.raises(IndexError, match="a head"):
        together(long, lambda: [0])
    assert torch.get_num_threads() == 2


def test_what_goes_wrong_in_a_thread_is_said_and_a_lack_of_memory_is_mended(threads: None) -> None:
    torch.set_num_threads(2)

    def fails(rows: slice) -> int:
        raise KeyError(f"rows from {rows.start}")

    with pytest.raises(KeyError, match="rows from 0"):
        side_by_side(fails, slice(0, 64))
    assert torch.get_num_threads() == 2

    def hungry(rows: slice) -> range:
        if rows.stop - rows.start > 20:
            raise MemoryError("too many")
        return range(rows.start, rows.stop)

    at_once = MicroBatch(80)
    parts = at_once.map(hungry, 100, threads=True)
    assert [i for part in parts for i in part] == list(range(100)) and at_once.size == 40


def test_what_goes_together_has_a_thread_each(threads: None) -> None:
    torch.set_num_threads(4)
    at_once = threading.Barrier(2, timeout=60)  # passed only if both run at the same time

    def look() -> tuple[int, str]:
        at_once.wait()
        return torch.get_num_threads(), threading.current_thread().name

    first, second = together(look, look)
    assert first[0] == second[0] == 2 and first[1] != second[1] and torch.get_num_threads() == 4

    ended = []

    def fails() -> None:
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        together(fails, lambda: ended.append("second"))
    assert ended == ["second"]

    torch.set_num_threads(1)
    assert together(threading.current_thread, threading.current_thread) == [threading.current_thread()] * 2


def test_what_is_begun_aside_runs_while_a_device_works() -> None:
    let_go, ended = threading.Event(), []

    def judge(name: str) -> int:
        assert let_go.wait(timeout=60)
        ended.append(name)
        return threading.get_ident()

    with torch.inference_mode(), Aside(torch.device("cuda")) as meanwhile:
        first = meanwhile.begin(lambda: judge("first"))
        assert not ended  # the caller goes on
        let_go.set()
        second = meanwhile.begin(lambda: judge("second"))
        assert first.done()  # one at a time
        failing = meanwhile.begin(lambda: [][0])
        mode = meanwhile.begin(torch.is_inference_mode_enabled)
    assert ended == ["first", "second"] and first.result() == second.result() != threading.get_ident()
    assert mode.result()
    with pytest.raises(IndexError):
        failing.result()


def test_on_a_cpu_nothing_waits() -> None:
    with Aside(torch.device("cpu")) as meanwhile:
        assert meanwhile.begin(threading.get_ident).result() == threading.get_ident()
        with pytest.raises(IndexError):
            meanwhile.begin(lambda: [][0])


@pytest.mark.parametrize(("engine", "policy"), [("adanat", "adaptive"), ("offline", "adaptive"), ("slopes", "linear")])
def test_training_is_the_same_with_two_threads(engine: str, policy: str, threads: None) -> None:
    """To the last bit: each thread has samples, images or an update of its own."""
    flags = {"batch": 2 * LEAST, "trajectories": 2 * LEAST, "steps": 2, "device": "cpu", "dtype": "float32"}
    flags |= {"engine": engine, "policy": {"name": policy}}
    small = ["evaluate_every=0", "reward.options.updates=1", "reward.options.batch=32"]
    states = []
    for number in (1, 2):
        torch.set_num_threads(number)
        trainer = create_trainer(resolve(preset="demo", flags=flags, overrides=small))
        row = trainer.step()
        assert row["seconds_policy"] > 0 and row["seconds_reward"] > 0
        states.append(trainer.state())
    one, two = states
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("name", ["maskgit", "muse", "mage", "var", "sit", "dit"])
def test_images_are_the_same(name: str, threads: None) -> None:
    torch.set_num_threads(1)
    rollouts = []
    for number in (1, 3):
        generator = adanat.load_generator(name, device="cpu", dtype="float32")  # anew: with nothing kept from before
        assert generator.thread_safe
        space = generator.bind(None, 3)
        torch.manual_seed(0)
        policy = AdaptivePolicy(AdaptiveOptions(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
        noise = Noise(torch.arange(3 * LEAST))
        torch.set_num_threads(number)
        rollouts.append(
            collect(
                generator,
                SamplingPolicy(policy, space),
                generator.sample_contexts(noise),
                noise,
                sigma=0.5,
                keep_images=3 * LEAST,
                micro_batch=3 * LEAST,
            )
        )
        torch.set_num_threads(1)
    one, three = rollouts
    assert one.images is not None and three.images is not None and len(one.images) == 3 * LEAST
    assert torch.allclose(one.actions, three.actions, atol=1e-4) and torch.allclose(one.physical, three.physical, atol=1e-3)
    # A token whose random number lies on a boundary may change with rounding, and its image with it.
    changed = ((one.images - three.images).flatten(1).abs().amax(1) > 1e-2).sum()
    assert changed <= 2


@pytest.mark.parametrize("name", ["maskgit", "var", "sit"])
def test_a_compiled_generator_stays_in_one_thread(name: str) -> None:
    generator = adanat.load_generator(name, device="cpu", dtype="float32")
    generator.compile()  # nothing is compiled before it is called
    assert not generator.thread_safe and type(generator).thread_safe


def test_a_generator_that_is_not_thread_safe_stays_in_one_thread(threads: None) -> None:
    torch.set_num_threads(2)
    seen: set[int] = set()
    both = threading.Barrier(2)  # a pool gives a thread that is done the next part, so that one could make both

    class Watched(Control):
        def step(self, *arguments, **keywords):  # type: ignore[no-untyped-def]
            seen.add(threading.get_ident())
            if self.thread_safe:
                both.wait(timeout=60)
            return super().step(*arguments, **keywords)

    flags = {"steps": 2, "batch": 64, "trajectories": 64, "device": "cpu", "policy": {"name": "shared"}}
    for safe, number in ((True, 2), (False, 1)):
        control = Watched()
        control.thread_safe = safe
        create_trainer(resolve(flags=flags), control, control_reward).step()
        assert len(seen) == number and (threading.get_ident() in seen) == (not safe)
        seen.clear()
