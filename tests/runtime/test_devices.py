"""The compute type that ``auto`` takes: by what the device says it can, in runs as they were begun."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.runtime import fastest_dtype, resolve_device, resolve_dtype
from adanat_toolkit.storage import RunFolder, write_json
from adanat_toolkit.training import RunConfig, as_begun

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512", "wanted", "reason"),
    [
        (False, False, torch.float32, "neither AMX tiles nor AVX-512"),
        (False, True, torch.bfloat16, "AVX-512 with bfloat16"),
        (True, True, torch.bfloat16, "AMX tiles"),
    ],
)
def test_a_cpu_is_asked_for_its_instructions(
    amx: bool, avx512: bool, wanted: torch.dtype, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    dtype, told = fastest_dtype(CPU)
    assert dtype == wanted and reason in told
    assert resolve_dtype("auto", CPU) == wanted
    assert resolve_dtype("float32", CPU) == torch.float32 and resolve_dtype("bfloat16", CPU) == torch.bfloat16
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert fastest_dtype(CPU)[0] == torch.float32


def test_apples_gpu_is_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"'mps' is not supported: .* float64"):
        resolve_device("mps")


def test_a_torch_that_cannot_tell_computes_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert fastest_dtype(CPU)[0] == torch.float32


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_auto_goes_on_as_the_run_was_begun(stored: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert as_begun(RunConfig(), folder).dtype == "auto"  # nothing is there
    write_json(tmp_path / "config.json", RunConfig(dtype=stored).model_dump(mode="json"))
    assert as_begun(RunConfig(), folder).dtype == stored
    assert as_begun(RunConfig(dtype="float32"), folder).dtype == "float32"  # what is asked for is compared later
    write_json(tmp_path / "config.json", {"dtype": ["float32"]})
    assert as_begun(RunConfig(), folder).dtype == "auto"
