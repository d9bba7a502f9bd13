"""Loading: containers, wrappers, untrusted pickles, named mismatches, memory, and where files are looked for."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adanat_plugins.catalogue import list_assets
from adanat_plugins.generators.mage import MAGE
from adanat_plugins.generators.maskgit import MaskGIT
from adanat_plugins.generators.muse import Muse
from adanat_plugins.weights import (
    ASSETS,
    Asset,
    Inert,
    asset,
    build,
    load_into,
    place,
    plain,
    read_state,
    read_tree,
    resolve,
)
from adanat_toolkit.errors import WeightsError


def example() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {
        "first.weight": torch.randn(4, 3, generator=random),
        "first.bias": torch.randn(4, generator=random),
        "index": torch.arange(5),
    }


class Example(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.register_buffer("index", torch.zeros(5, dtype=torch.int64))


def pack_array(value: Tensor) -> msgpack.ExtType:
    name = str(value.dtype).removeprefix("torch.")
    raw = value.reshape(-1).view(torch.uint8).numpy().tobytes()
    return msgpack.ExtType(1, msgpack.packb((list(value.shape), name, raw)))


def assert_same(own: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert own.keys() == expected.keys()
    for name, value in expected.items():
        assert own[name].dtype == value.dtype
        assert torch.equal(own[name], value), name


# --- containers -------------------------------------------------------------------------------------------------------


def write_container(kind: str, folder: Path) -> Path:
    state = example()
    file = folder / "weights"
    if kind in ("zip", "legacy"):
        torch.save({"model": state, "epoch": 3}, file, _use_new_zipfile_serialization=kind == "zip")
    elif kind == "namespace":
        torch.save({"state_dict": state, "args": argparse.Namespace(lr=0.1)}, file)
    elif kind == "safetensors":
        save_file(state, file)
    elif kind == "diffusers":
        (folder / "config.json").write_text("{}")
        save_file(state, folder / "diffusion_pytorch_model.safetensors")
        return folder
    elif kind == "sharded":
        names = {name: f"part-{i}.safetensors" for i, name in enumerate(state)}
        for name, part in names.items():
            save_file({name: state[name]}, folder / part)
        (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
        return folder
    return file


@pytest.mark.parametrize("kind", ["zip", "legacy", "namespace", "safetensors", "diffusers", "sharded"])
def test_every_container_gives_the_same_tensors(kind: str, tmp_path: Path) -> None:
    assert_same(read_state(write_container(kind, tmp_path)), example())


def test_half_precision_is_taken_only_where_nothing_better_lies_beside_it(tmp_path: Path) -> None:
    half = {name: value.half() if value.is_floating_point() else value for name, value in example().items()}
    save_file(half, tmp_path / "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "config.json").write_text("{}")
    assert_same(read_state(tmp_path), half)
    save_file(example(), tmp_path / "diffusion_pytorch_model.safetensors")
    assert_same(read_state(tmp_path), example())
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    names = dict.fromkeys(half, "diffusion_pytorch_model.fp16.safetensors")
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert_same(read_state(tmp_path), half)
    full = {name: "full.safetensors" for name in half}
    save_file(example(), tmp_path / "full.safetensors")
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": full}))
    assert_same(read_state(tmp_path), example())


NAMES = {
    "full": ({"model.safetensors"}, None),
    "bin": ({"model.bin"}, None),
    "half": ({"model.fp16.safetensors"}, None),
    "raw": ({"model.non_ema.safetensors"}, None),
    "full shards": ({"model-1-of-2.safetensors", "model-2-of-2.safetensors"}, "model.safetensors.index.json"),
    "bin shards": ({"model-1-of-2.bin", "model-2-of-2.bin"}, "model.bin.index.json"),
    "half shards": ({"model.fp16-1-of-2.safetensors", "model.fp16-2-of-2.safetensors"}, "model.safetensors.index.fp16.json"),
    "raw shards": (
        {"model.non_ema-1-of-2.safetensors", "model.non_ema-2-of-2.safetensors"}, "model.safetensors.index.non_ema.json",
    ),
}  # fmt: skip
"""Sets of weights in a model's folder, as diffusers names them: the files, and the index of several."""


def write_set(folder: Path, name: str, lacking: int = 0) -> dict[str, Tensor]:
    """Tensors of one name a file and of values that are the set's own; the last ``lacking`` files are not written."""
    files, index = sorted(NAMES[name][0]), NAMES[name][1]
    state = {f"part{i}": torch.full((2,), float(list(NAMES).index(name))) for i in range(len(files))}
    for file, (key, value) in list(zip(files, state.items(), strict=True))[: len(files) - lacking]:
        torch.save({key: value}, folder / file) if file.endswith(".bin") else save_file({key: value}, folder / file)
    if index is not None:
        (folder / index).write_text(json.dumps({"weight_map": dict(zip(state, files, strict=True))}))
    return state


@pytest.mark.parametrize(
    ("whole", "others"),
    [
        ("full", ["half", "raw"]),
        ("full", ["half shards", "raw shards"]),
        ("full shards", ["bin shards", "half shards", "half", "raw shards"]),
        ("bin shards", ["half shards"]),
        ("bin", ["half", "half shards"]),
        ("half shards", ["raw shards"]),
        ("half", ["raw"]),
    ],
)
@pytest.mark.parametrize("torn", [None, "bin shards", "full shards"])
def test_the_best_whole_set_of_a_folder_is_taken(whole: str, others: list[str], torn: str | None, tmp_path: Path) -> None:
    expected = write_set(tmp_path, whole)
    for name in others:
        write_set(tmp_path, name)
    if torn not in (None, whole, *others):
        write_set(tmp_path, torn, lacking=2 if torn == "bin shards" else 1)
    assert_same(read_state(tmp_path), expected)


@pytest.mark.parametrize("lacking", [1, 2])
def test_a_folder_without_a_whole_set_is_refused(lacking: int, tmp_path: Path) -> None:
    write_set(tmp_path, "full shards", lacking)
    write_set(tmp_path, "raw")
    with pytest.raises(WeightsError, match=r"lacks .*model-2-of-2\.safetensors, listed in model\.safetensors\.index\.json"):
        read_state(tmp_path)


def test_flax_tree_with_chunks_scalars_and_bfloat16(tmp_path: Path) -> None:
    big = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
    flat = big.reshape(-1)
    chunked = {
        "__msgpack_chunked_array__": True,
        "shape": {"0": 2, "1": 3, "2": 4},
        "chunks": {"0": pack_array(flat[:10]), "1": pack_array(flat[10:])},
    }
    half = torch.randn(2, 2).bfloat16()
    scalar = msgpack.ExtType(3, pack_array(torch.tensor(7.0)).data)
    tree = {"params": {"block": {"kernel": chunked, "scale": pack_array(half)}, "step": scalar}}
    file = tmp_path / "checkpoint"
    file.write_bytes(msgpack.packb(tree))
    assert_same(read_state(file), {"block/kernel": big, "block/scale": half, "step": torch.tensor(7.0)})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "nnet.", "ema.", "module._orig_mod.", "nnet.module."])
@pytest.mark.parametrize("wrapper", [None, "model", "model_state_dict", "state_dict"])
def test_wrappers_and_prefixes_are_removed(prefix: str, wrapper: str | None, tmp_path: Path) -> None:
    state: dict[str, Any] = {prefix + name: value for name, value in example().items()}
    file = tmp_path / "weights.pth"
    torch.save(state if wrapper is None else {wrapper: state, "iter": 1}, file)
    assert_same(read_state(file), example())


@pytest.mark.parametrize("wrappers", [["net"], ["network"], ["weights"], ["checkpoint", "model", "state_dict"]])
def test_tensors_beside_the_weights_are_left_out(wrappers: list[str], tmp_path: Path) -> None:
    tree: dict[str, Any] = example()
    for wrapper in reversed(wrappers):
        tree = {wrapper: tree, "rng_state": torch.get_rng_state(), "step": torch.tensor(7)}
    torch.save(tree, tmp_path / "weights.pth")
    assert_same(read_state(tmp_path / "weights.pth"), example())


def test_averaged_weights_are_preferred(tmp_path: Path) -> None:
    raw = {name: torch.zeros_like(value) for name, value in example().items()}
    torch.save({"model": raw, "model_ema": example()}, tmp_path / "a.pth")
    torch.save({**{f"nnet.{k}": v for k, v in raw.items()}, **{f"ema.{k}": v for k, v in example().items()}},
               tmp_path / "b.pth")
    torch.save({"params": raw, "ema_params": example(), "step": 3}, tmp_path / "c.pth")  # as Flax's trainers name them
    made_with = {"num_updates": torch.tensor(7), "decay": torch.tensor(0.999)}
    torch.save({"ema": made_with, "model": example()}, tmp_path / "d.pth")
    for name in "abcd":
        assert_same(read_state(tmp_path / f"{name}.pth"), example())


# --- untrusted pickles ------------------------------------------------------------------------------------------------


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_yields_tensors_and_runs_nothing(zipped: bool, tmp_path: Path) -> None:
    proof = tmp_path / "ran"
    bomb = Malicious(f"touch {proof}")
    content = {"model": example(), "args": argparse.Namespace(lr=0.5, names=["a"], bomb=bomb), "bomb": bomb}
    file = tmp_path / "old.pth"
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    assert_same(read_state(file), example())
    tree = read_tree(file)
    assert isinstance(tree["bomb"], Inert)
    assert plain(tree) == {"args": {"lr": 0.5, "names": ["a"]}}
    assert not proof.exists()
    torch.load(file, weights_only=False)  # the file does run code where pickle is trusted
    assert proof.exists()


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "flax", "empty"])
def test_a_truncated_file_is_named(kind: str, tmp_path: Path) -> None:
    if kind == "flax":
        file = tmp_path / "weights"
        file.write_bytes(msgpack.packb({"params": {"a": pack_array(torch.randn(100))}}))
    elif kind == "empty":
        file = tmp_path / "weights"
        file.write_bytes(b"")
    else:
        file = write_container(kind, tmp_path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(WeightsError, match=f"{file.name}.*[Ff]etch it again"):
        read_state(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><html>too many downloads</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git-lfs pointer"),
        (b"hello, this is just some text", "no torch, safetensors or Flax file"),
    ],
)
def test_files_that_are_no_weights(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    file.write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        read_state(file)


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        read_state(tmp_path / "a.pth")


# --- into a module ----------------------------------------------------------------------------------------------------


def test_every_mismatch_is_listed_by_name_and_nothing_changes() -> None:
    module = Example()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {"first.weight": torch.zeros(4, 5), "index": torch.arange(5), "second.bias": torch.zeros(2)}
    with pytest.raises(WeightsError) as error:
        load_into(module, state, source="file.pth")
    message = str(error.value)
    assert "file.pth does not fit Example" in message
    assert "missing   first.bias, expected [4]" in message
    assert "misshapen first.weight [4, 5], expected [4, 3]" in message
    assert "extra     second.bias [2]" in message
    assert_same(dict(module.state_dict()), before)


def test_unused_tensors_may_be_absent_and_are_checked_when_present() -> None:
    state = example()
    load_into(Example(), state, source="file", unused={"mask": (2,)})
    load_into(Example(), {**state, "mask": torch.zeros(2)}, source="file", unused={"mask": (2,)})
    with pytest.raises(WeightsError, match=r"misshapen mask \[3\], expected \[2\]"):
        load_into(Example(), {**state, "mask": torch.zeros(3)}, source="file", unused={"mask": (2,)})


def test_a_module_on_the_meta_device_takes_the_tensors_themselves() -> None:
    state = example()
    module = build(Example, state, source="file")
    assert module.first.weight.data_ptr() == state["first.weight"].data_ptr()
    assert not module.training and not module.first.weight.requires_grad
    half = build(Example, {k: v.half() if v.is_floating_point() else v for k, v in state.items()}, source="file")
    assert half.first.weight.dtype == torch.float32
    assert torch.equal(half.first.weight, state["first.weight"].half().float())
    place(module, "cpu", torch.bfloat16)
    assert module.first.weight.dtype == torch.bfloat16 and module.index.dtype == torch.int64
    assert torch.equal(module.first.weight, state["first.weight"].bfloat16())


def test_a_tensor_outside_the_state_dict_is_refused() -> None:
    class Hidden(Example):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(3), persistent=False)

    with pytest.raises(WeightsError, match="table"):
        build(Hidden, example(), source="file")


MEASURE = """
import resource, sys, torch
from torch import nn
from adanat_plugins.weights import build, place, read_state
import safetensors.torch, ctypes
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
torch.zeros(8).bfloat16().sum()
before = peak()
def net():
    return nn.Sequential(*[nn.Linear(2048, 2048, bias=False) for _ in range(12)])
module = place(build(net, read_state(sys.argv[1]), source="file"), "cpu", getattr(torch, sys.argv[2]))
print(sum(float(p.sum()) for p in module.parameters()), peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured as on Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_stays_within_1_3_of_the_file(dtype: str, tmp_path: Path) -> None:
    file = tmp_path / "big.pth"
    torch.save({"model": {f"{i}.weight": torch.full((2048, 2048), float(i)) for i in range(12)}}, file)
    out = subprocess.run([sys.executable, "-c", MEASURE, str(file), dtype], capture_output=True, text=True, check=True)
    total, growth = (float(part) for part in out.stdout.split())
    assert total == 2048 * 2048 * sum(range(12))
    assert growth <= 1.3 * file.stat().st_size, f"{growth / file.stat().st_size:.2f} times the file"


# --- where files are --------------------------------------------------------------------------------------------------


def test_every_variant_lists_its_files() -> None:
    rows = [a.row() for a in list_assets()]
    listed = {variant for row in rows for variant in row["variants"]}
    for family, plugin in (("maskgit", MaskGIT), ("mage", MAGE), ("muse", Muse)):
        assert {f"{family}:{variant}" for variant in plugin.variants()} <= listed
    for row in rows:
        assert row["source"] and row["licence"] and row["obtain"] and row["size"]
    json.dumps(rows)


@pytest.mark.parametrize("known", [a for a in ASSETS if a.sha256], ids=lambda a: a.file)
def test_embedded_files_have_the_listed_hash(known: Asset) -> None:
    assert known.present()
    assert hashlib.sha256(known.path.read_bytes()).hexdigest() == known.sha256
    assert sum(v.numel() for v in read_state(known.path).values()) == known.parameters


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_a_missing_file_says_what_where_and_under_which_licence(empty_folder: Path) -> None:
    wanted = asset("mage:vit-b", "generator and tokenizer")
    for spec in (None, str(empty_folder / "nowhere.pth")):
        with pytest.raises(WeightsError) as error:
            resolve(spec, wanted, offline=False)
        message = str(error.value)
        for part in ("mage:vit-b", wanted.source, wanted.licence, wanted.obtain, str(wanted.path), "--weights"):
            assert part in message
    with pytest.raises(WeightsError, match=r"mage-vitb-1600\.pth"):
        MAGE.create("vit-b", {}, device=torch.device("cpu"), dtype=torch.float32, offline=True)


def test_a_file_is_found_in_the_weights_folder_a_named_folder_and_by_path(empty_folder: Path) -> None:
    wanted = asset("mage:vit-b", "generator and tokenizer")
    wanted.path.parent.mkdir()
    wanted.path.write_bytes(b"x")
    assert wanted.present()
    for spec in (None, str(wanted.path), str(wanted.path.parent), str(empty_folder)):
        assert resolve(spec, wanted, offline=True) == wanted.path


def test_offline_forbids_fetching_a_hub_id(empty_folder: Path) -> None:
    with pytest.raises(WeightsError, match=r"--offline forbids fetching .* of hub id owner/name"):
        resolve("owner/name@main", asset("mage:vit-b", "generator and tokenizer"), offline=True)
