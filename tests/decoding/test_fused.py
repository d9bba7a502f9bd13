"""The fused decoding step: that its kernels give what PyTorch gives, compile for GPUs, and are left alone on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from adanat_toolkit.decoding import StepKnobs, StepNoise, fused, masked_decoding_step

CASES = Path(__file__).with_name("kernel_cases.py")


def test_kernels_give_what_pytorch_gives() -> None:
    """Interpreted, in a process of its own (see ``kernel_cases``)."""
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CASES)],
        cwd=CASES.parents[2],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("vocabulary", [100, 1024, pytest.param(16_384, marks=pytest.mark.slow)])
def test_kernels_compile_for_a_gpu(vocabulary: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To machine code of an A100, which needs no GPU; that it is fast there is not said by this."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from adanat_toolkit.decoding import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kinds = {"tokens": "*i64", "proposal": "*i64", "editable": "*i1"}
    constants = {
        "VOCABULARY": vocabulary, "BLOCK": triton.next_power_of_2(vocabulary), "GUIDED": True, "EDITED": True,
    }  # fmt: skip
    for kernel in (kernels._draw, kernels._remask):
        own = {name: value for name, value in constants.items() if name in kernel.arg_names}
        own["BLOCK"] = min(own["BLOCK"], kernels.LARGEST_BLOCK) if kernel is kernels._remask else own["BLOCK"]
        numbers = [name for name in kernel.arg_names if name in ("mask_id", "cells") or name[-7:] in STRIDES]
        types = {name: "i32" if name in numbers else kinds.get(name, "*fp32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=types | dict.fromkeys(own, "constexpr"), constexprs=own)
        code = triton.compile(source, target=GPUTarget("cuda", 80, 32))
        assert len(code.asm["cubin"]) > 1000


STRIDES = ("_stride", "_sample", "al_cell")


def test_a_cpu_takes_pytorchs_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def kernels(*arguments: object) -> None:
        raise AssertionError("kernels on a CPU")

    monkeypatch.setattr(fused, "_by_kernels", kernels)
    draw = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 10, generator=draw)
    noise = StepNoise(torch.rand(2, 4, generator=draw), torch.rand(2, 4, generator=draw))
    knobs = StepKnobs(*torch.rand(4, 2, generator=draw))
    tokens = torch.full((2, 4), 10)
    found = fused.decoding_step(tokens, logits, None, knobs, noise, 10)
    for own, expected in zip(found, masked_decoding_step(tokens, logits, None, knobs, noise, 10), strict=True):
        assert torch.equal(own, expected)


def test_importing_it_does_not_import_triton() -> None:
    """Which takes a second that a CPU need not spend."""
    code = "import sys, adanat_toolkit.decoding; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
