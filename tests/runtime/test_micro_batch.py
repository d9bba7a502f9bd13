"""Batches larger than memory: halved where it runs out, with the results of the smaller size; measured where it is short."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adanat_toolkit.core import Noise
from adanat_toolkit.interfaces import Context, RewardModel
from adanat_toolkit.policies import load_policy
from adanat_toolkit.runtime import MemoryShortage, MicroBatch, measured_size
from adanat_toolkit.runtime import micro_batch as memory
from adanat_toolkit.runtime.micro_batch import fitting, free_host_memory, is_out_of_memory
from adanat_toolkit.sampling import collect, sample, seed_range
from adanat_toolkit.training import PPOConfig, Trainer, validate
from adanat_toolkit.training.ppo import Batch, ppo_update

from ..helpers.tiny import Dark, TinyGenerator, install_tiny

SETTINGS: dict[str, Any] = {
    "generator": {"name": "tiny", "options": {}}, "reward": {"name": "dark"}, "steps": 2, "trajectories": 16, "batch": 8,
    "device": "cpu", "dtype": "float32",
}  # fmt: skip


def out_of_memory() -> None:
    """What the CPU's allocator raises; no machine has so much."""
    torch.empty(2**60, dtype=torch.uint8)


def needs_memory(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, most: int) -> list[int]:
    """``owner.name`` fails as on a device for more than ``most`` samples; returns the sizes that went through."""
    original, sizes = getattr(owner, name), []

    def limited(self: Any, first: Tensor, *rest: Any) -> Any:
        if len(first) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore lines")
        sizes.append(len(first))
        return original(self, first, *rest)

    monkeypatch.setattr(owner, name, limited)
    return sizes


def test_what_running_out_of_memory_looks_like() -> None:
    with pytest.raises(RuntimeError) as found:
        out_of_memory()
    assert is_out_of_memory(found.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory.")) and is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(("most", "size"), [(3, 2), (4, 4), (1, 1)])
def test_rollout_halves_and_goes_on(
    most: int, size: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    generator = TinyGenerator()
    policy = load_policy("fixed:cosine", generator, 3)
    noise = Noise(seed_range(7, 10))
    context = generator.sample_contexts(noise)
    expected = collect(generator, policy, context, noise, micro_batch=size, keep_images=10)
    sizes = needs_memory(monkeypatch, TinyGenerator, "predict", most)
    at_once = MicroBatch(8)
    with caplog.at_level(logging.WARNING):
        found = collect(generator, policy, context, noise, micro_batch=at_once, keep_images=10)
    assert at_once.size == size and max(sizes) <= most
    assert torch.equal(found.images, expected.images) and torch.equal(found.physical, expected.physical)
    assert (
        "memory ran out with 8 samples at once (CUDA out of memory. Tried to allocate 2.00 GiB.)" in caplog.messages[0]
    )
    assert caplog.messages[-1].endswith(f"going on with {size}")


def test_only_what_failed_is_done_again() -> None:
    done: list[tuple[int, int]] = []

    def work(rows: slice) -> int:
        if rows.start >= 4 and rows.stop - rows.start > 2:
            out_of_memory()
        done.append((rows.start, rows.stop))
        return rows.stop - rows.start

    assert MicroBatch(4).map(work, 9) == [4, 2, 2, 1]
    assert done == [(0, 4), (4, 6), (6, 8), (8, 9)]
    assert MicroBatch(None).map(lambda rows: rows.stop, 5) == [5]
    assert MicroBatch(None).map(lambda rows: rows.stop, 0) == []


def test_one_sample_is_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TinyGenerator()
    policy = load_policy("fixed:cosine", generator, 3)
    needs_memory(monkeypatch, TinyGenerator, "predict", 0)
    with pytest.raises(MemoryShortage, match=r"one of the images at a time \(CUDA out of memory.*--dtype bfloat16"):
        list(sample(generator, policy, seed_range(0, 8)))


def test_other_errors_pass_through() -> None:
    def broken(rows: slice) -> None:
        raise RuntimeError("shapes differ")

    at_once = MicroBatch(4)
    with pytest.raises(RuntimeError, match="shapes differ"):
        at_once.map(broken, 8)
    assert at_once.size == 4


def test_sampling_keeps_the_smaller_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = TinyGenerator()
    policy = load_policy("fixed:cosine", generator, 3)
    expected = torch.cat([part.images for part in sample(generator, policy, seed_range(0, 12), batch=2)])
    refused = [0]
    sizes = needs_memory(monkeypatch, TinyGenerator, "decode_tokens", 2)
    monkeypatch.setattr(memory.log, "warning", lambda *a: refused.append(1))
    found = torch.cat([part.images for part in sample(generator, policy, seed_range(0, 12), batch=6)])
    assert torch.equal(found, expected)
    assert sum(refused) == 2 and sizes == [1] * 12  # 6, 3, 1: halved twice in the first batch, not again in the second


# --- training ---------------------------------------------------------------------------------------------------------


def run(tmp_path: Path, name: str, **more: Any) -> tuple[Trainer, dict[str, Tensor]]:
    trainer = Trainer(validate({**SETTINGS, **more}))
    trainer.run(tmp_path / name)
    return trainer, trainer.state()


def equal(own: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert own.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(
            own[key], expected[key], rtol=0, atol=tolerance, msg=lambda m, key=key: f"{key}: {m}"
        )


def test_training_goes_on_with_the_results_of_the_smaller_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    _, expected = run(tmp_path, "small", micro_batch=2)
    # The first state of a batch is computed once per context, so that it is the second step that runs out.
    needs_memory(monkeypatch, TinyGenerator, "decode_tokens", 3)
    trainer, found = run(tmp_path, "halved")
    assert trainer.micro_batch.size == 2
    equal(found, expected)


def test_scores_are_cut_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the terms that a reward logs of its last scores: all parts' are kept."""
    install_tiny(tmp_path / "site", monkeypatch)

    def terms(self: RewardModel) -> dict[str, Tensor]:
        return {"level": self.level}

    def score(self: Any, images: Tensor, context: Context) -> Tensor:
        self.level = images.mean((1, 2, 3))
        return 1 - self.level

    monkeypatch.setattr(Dark, "terms", terms)
    monkeypatch.setattr(Dark, "score", score)
    _, expected = run(tmp_path, "whole")
    sizes = needs_memory(monkeypatch, Dark, "score", 4)
    _, found = run(tmp_path, "cut")
    assert sizes == [4] * 4
    equal(found, expected)
    rows = [(tmp_path / name / "metrics.jsonl").read_text().count('"reward/level/mean"') for name in ("whole", "cut")]
    assert rows == [2, 2]


class Line(nn.Module):
    """A policy or critic over the step that cannot take many states."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.weight = nn.Parameter(torch.tensor([[0.3]]))
        self.passed: list[int] = []

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        if len(step) > self.most:
            out_of_memory()
        self.passed.append(len(step))
        return step.float()[:, None] @ self.weight


def update(actor_most: int, critic_most: int, micro_batch: int | None) -> tuple[dict[str, float], Line, Line]:
    generator = torch.Generator().manual_seed(2)
    actor, critic = Line(actor_most), Line(critic_most)
    states = 24
    batch = Batch(
        None,
        torch.arange(states) % 4,
        torch.randn(states, 1, generator=generator),
        torch.randn(states, generator=generator),
        torch.randn(states, generator=generator),
        torch.randn(states, generator=generator),
        torch.arange(states),
    )
    figures = ppo_update(
        actor, critic, torch.optim.Adam([actor.weight, critic.weight], lr=0.01), batch, sigma=0.5,
        config=PPOConfig(epochs=2, minibatches=2), total=states, seed=1, micro_batch=micro_batch,
    )  # fmt: skip
    return figures, actor, critic


def test_policy_update_adds_up_smaller_parts() -> None:
    """The critic fails after parts of the mini-batch have left gradients: they must not count twice."""
    expected, actor, critic = update(100, 100, 3)
    found, own_actor, own_critic = update(100, 4, None)
    assert max(own_critic.passed) == 3  # 12, 6, 3
    assert found == pytest.approx(expected, rel=1e-6)
    assert torch.equal(own_actor.weight, actor.weight) and torch.equal(own_critic.weight, critic.weight)
    with pytest.raises(MemoryShortage, match="one of the samples at a time"):
        update(0, 100, None)


# --- measuring --------------------------------------------------------------------------------------------------------


def test_what_fits() -> None:
    mib = 2**20
    # 10 MiB once and 5 a sample; 60 % of 100 MiB are left for (60 - 10) / 5 samples.
    assert fitting(20 * mib, 40 * mib, 100 * mib, 1000) == 10
    assert fitting(20 * mib, 40 * mib, 100 * mib, 8) == 8
    assert fitting(20 * mib, 40 * mib, mib, 8) == 1
    assert fitting(0, 0, mib, 8) == 8


def test_nothing_is_measured_with_memory_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_host_memory()
    assert free is None or free > 0
    monkeypatch.setattr(memory, "free_host_memory", lambda: 64 * 2**30)

    def probe(count: int) -> None:
        raise AssertionError("not needed")

    assert measured_size(probe, torch.device("cpu"), most=100) is None


@pytest.mark.skipif(free_host_memory() is None, reason="this system does not tell its free memory")
def test_a_cpu_short_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MiB a sample, really used, in 60 % of 500 MiB: 7 samples."""
    monkeypatch.setattr(memory, "free_host_memory", lambda: 500 * 2**20)

    def probe(count: int) -> None:
        torch.ones(count * 10 * 2**20)

    size = measured_size(probe, torch.device("cpu"), most=1000)
    if size is None:
        pytest.skip("this kernel does not tell the largest resident set")
    assert 6 <= size <= 8
    assert measured_size(probe, torch.device("cpu"), most=1000, stored=240 * 2**20) in (3, 4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_is_measured() -> None:
    device = torch.device("cuda")
    free = torch.cuda.mem_get_info(device)[0]
    each = free // 50

    def probe(count: int) -> None:
        torch.empty(count * each, dtype=torch.uint8, device=device)

    size = measured_size(probe, device, most=1000)
    assert size is not None and 27 <= size <= 32


def test_loading_a_policy_leaves_the_random_generator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    trainer, _ = run(tmp_path, "run")
    before = torch.get_rng_state()
    load_policy(str(tmp_path / "run"), trainer.generator)
    assert torch.equal(torch.get_rng_state(), before)
