"""What only a CUDA device can show; skipped without one.

The device is held against the CPU in float32: the same random numbers to the bit, the same tokens but for ties that rounding
decides, and training, resume and memory as they are promised.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.core import ACTION, REMASK, TOKEN, Noise
from adanat_toolkit.interfaces import TokenGenerator
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import collect, sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.storage.files import load_tensors
from adanat_toolkit.training import Trainer, merge, validate

from .sampling.test_sampling import Recorder

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SMALL: dict[str, Any] = {
    "generator": {"name": "maskgit"},
    "steps": 3,
    "trajectories": 256,
    "batch": 64,
    "checkpoint_every": 2,
    "device": "cuda",
    "seed": 5,
}
REWARDS = [
    {"name": "adversarial"},
    {
        "name": "adversarial",
        "options": {"loss": "relativistic", "r1": 1.0, "augment": ["color", "translation", "cutout"]},
    },
    {"name": "adversarial", "options": {"loss": "hinge", "replay": 64, "norm": "local", "r1": 1.0}},
    {"name": "adversarial", "options": {"backbone": "latents"}},
    {"name": "adversarial", "options": {"backbone": "none"}},
    {"name": "fid"},
    {"name": "fid:influence", "options": {"features": "clip-emoji64"}},
    {"name": "clip-score"},
    {"name": "adversarial:1,clip-score:0.3"},
]


def tokens_of(generator: TokenGenerator, count: int, batch: int) -> torch.Tensor:
    """Final tokens of the hand-made schedule."""
    policy = load_policy("fixed:cosine,guidance=0:3,mask_temperature=4.5:0", generator, 4)
    contexts = generator.encode_classes([i % 98 for i in range(count)])
    with pytest.MonkeyPatch.context() as patch:
        recorder = Recorder(generator, patch)
        for _ in sample(generator, policy, seed_range(0, count), contexts, batch=batch):
            pass
        return recorder.take().cpu()


def make(name: str, device: str, dtype: torch.dtype = torch.float32) -> TokenGenerator:
    generator = create_generator(name, {}, device=torch.device(device), dtype=dtype, offline=True)
    assert isinstance(generator, TokenGenerator)
    return generator


def test_random_numbers_are_those_of_the_cpu() -> None:
    here, there = Noise(seed_range(0, 50)), Noise(seed_range(0, 50).cuda())
    for stream in (TOKEN, REMASK, ACTION):
        assert torch.equal(here.uniform(stream, 3, (64,)), there.uniform(stream, 3, (64,)).cpu())
        assert torch.allclose(here.normal(stream, 3, (4,)), there.normal(stream, 3, (4,)).cpu(), atol=1e-5)


def test_tokens_are_those_of_the_cpu_and_do_not_depend_on_the_batch() -> None:
    here, there = (tokens_of(make("maskgit", device), 64, 32) for device in ("cpu", "cuda"))
    # A near tie that rounding decides changes a token, and what is drawn after it.
    assert (here == there).float().mean() > 0.97
    generator = make("maskgit", "cuda")
    alone, together = tokens_of(generator, 64, 7), tokens_of(generator, 64, 64)
    assert (alone == together).float().mean() > 0.97


@pytest.mark.parametrize("name", ["maskgit", "mage", "muse"])
def test_bfloat16_features_stay_near_float32(name: str) -> None:
    generator, exact = make(name, "cuda", torch.bfloat16), make(name, "cuda")
    noise = Noise(seed_range(0, 16).cuda())
    for g in (generator, exact):
        g.kept = g.observe(g.reset(g.sample_contexts(noise), noise, 4))  # type: ignore[attr-defined]
    error = (generator.kept - exact.kept).norm() / exact.kept.norm()  # type: ignore[attr-defined]
    assert error < 0.02


@pytest.mark.parametrize("reward", REWARDS, ids=lambda r: r["name"] + "".join(r.get("options", {})))
def test_training_with_every_reward(reward: dict[str, Any]) -> None:
    name = "muse" if "clip" in reward["name"] and "fid" not in reward["name"] else "maskgit"
    trainer = Trainer(validate(merge(SMALL, {"reward": reward, "generator": {"name": name}})))
    before = [p.detach().clone() for p in trainer.policy.parameters()]
    for _ in range(2):
        row = trainer.step()
    assert all(math.isfinite(v) for v in row.values() if isinstance(v, float) and v == v)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.policy.parameters(), strict=True))
    assert all(value.device.type == "cuda" for value in trainer.average.values())


@pytest.mark.parametrize("policy", ["adaptive", "shared"])
def test_resume(policy: str, tmp_path: Path) -> None:
    values = merge(SMALL, {"policy": {"name": policy, "average": 0.9}, "reward": {"options": {"replay": 32}}})
    whole = Trainer(validate(values))
    whole.run(tmp_path / "whole")

    first = Trainer(validate(values))

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.run(tmp_path / "parts", on_iteration=stop)
    assert RunFolder(tmp_path / "parts").checkpoints() == [2]
    second = Trainer(validate(values))
    second.run(tmp_path / "parts")
    end = whole.iteration
    a, _ = load_tensors(RunFolder(tmp_path / "whole").checkpoint(end), "state")
    b, _ = load_tensors(RunFolder(tmp_path / "parts").checkpoint(end), "state")
    assert a.keys() == b.keys()
    for key in a:  # sums by atomics end in another rounding, which Adam amplifies
        assert torch.allclose(a[key].float(), b[key].float(), atol=2e-2, rtol=2e-2), key


def test_cpu_and_device_train_alike() -> None:
    values = merge(SMALL, {"dtype": "float32", "policy": {"options": {"feature_dtype": "float32"}}})
    rows = [Trainer(validate(merge(values, {"device": device}))).step() for device in ("cpu", "cuda")]
    for key in ("reward/mean", "reward/std", "ppo/policy_loss", "ppo/value_loss", "reward_model/loss"):
        assert rows[0][key] == pytest.approx(rows[1][key], abs=2e-2), key


def test_memory_that_runs_out_halves_the_batch(caplog: pytest.LogCaptureFixture) -> None:
    generator = make("maskgit", "cuda")
    policy = load_policy("fixed:cosine,guidance=0:3", generator, 2)
    noise = Noise(seed_range(0, 4096).cuda())
    context = generator.sample_contexts(noise)
    arguments: dict[str, Any] = {"keep_features": False, "keep_images": 4096}
    whole = collect(generator, policy, context, noise, micro_batch=512, **arguments).images
    assert whole is not None
    whole = whole.cpu()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + 2.5e9) / total)
    try:
        with caplog.at_level(logging.WARNING):
            halved = collect(generator, policy, context, noise, **arguments).images
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert halved is not None and "going on with" in caplog.text
    assert (whole - halved.cpu()).abs().mean() < 0.01


def test_commands(tmp_path: Path) -> None:
    """doctor, train with a launcher (nccl), sample, evaluate."""

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "adanat_cli", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    report = json.loads(run("doctor", "--json"))
    assert "cuda:0" in json.dumps(report)
    small = ["--steps", "2", "--trajectories", "128", "--batch", "64", "--quiet", "--json"]
    run("train", "--gpus", "1", *small, "--out", str(tmp_path / "run"))
    assert RunFolder(tmp_path / "run").metrics()[-1]["trajectories"] == 128
    run("sample", "--policy", str(tmp_path / "run"), "--num", "20", "--out", str(tmp_path / "images"), "--quiet")
    assert len(list((tmp_path / "images").rglob("*.png"))) >= 20
    figures = json.loads(run("evaluate", "--policy", str(tmp_path / "run"), "--num", "64", "--json", "--quiet"))
    assert figures["device"] == "cuda" and figures["dtype"] == "bfloat16"
