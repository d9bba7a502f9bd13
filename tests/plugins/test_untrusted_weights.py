"""Weights files of other people: nothing in them is run or changed, and small files do not take the machine."""

from __future__ import annotations

import argparse
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from adanat_plugins.generators import dit_net
from adanat_plugins.generators.adanat import uvit_sizes
from adanat_plugins.generators.dit_net import DiT, dit_sizes
from adanat_plugins.generators.google_net import GoogleConfig, GoogleTransformer
from adanat_plugins.generators.halton_net import HaltonConfig, HaltonTransformer
from adanat_plugins.generators.mage_net import MAGEConfig, MAGENet
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.generators.var_net import VAR, VARConfig
from adanat_plugins.released_policy import load_published_policy
from adanat_plugins.rewards.imagereward_net import ImageRewardConfig, ImageRewardNet
from adanat_plugins.tokenizers.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from adanat_plugins.tokenizers.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from adanat_plugins.tokenizers.multi_scale import MultiScaleVQ, MultiScaleVQConfig
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig
from adanat_plugins.weights import build, plain, read_state, read_tree, restricted
from adanat_toolkit.errors import WeightsError

from ..helpers.released import TINY_MAGE, TINY_UVIT, TINY_VAR, TINY_VQGAN
from ..policies.test_untrusted import HEADERS, safetensors


def bare(file: Path, program: bytes) -> Path:
    """A bare pickle as torch before 1.6 wrote it: three small ones, the program, and no storages."""
    head = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + program + pickle.dumps([], 2))
    return file


def zipped(file: Path, program: bytes, compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive as torch writes it since, with one storage of four numbers."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in (
            ("data.pkl", program),
            ("byteorder", b"little"),
            ("data/0", b"\0" * 16),
            ("version", b"3\n"),
        ):
            archive.writestr(f"archive/{name}", data)
    return file


def nested(depth: int) -> bytes:
    """Dicts that hold the one before twice: small to write, 2^depth to walk."""
    tree: Any = {"x": 1}
    for _ in range(depth):
        tree = {"a": tree, "b": tree}
    return pickle.dumps({"model": tree}, 2)


def keyed(depth: int) -> bytes:
    """A dict with a key whose hash takes 2^depth steps."""
    return b"\x80\x02}" + b")" + b"2\x86" * depth + b"K\x01s."


def storage(elements: int, key: bytes = b"0") -> bytes:
    """Instructions that push a storage of float32."""
    pid = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX" + len(key).to_bytes(4, "little") + key + b"X\x03\0\0\0cpu"
    return pid + b"\x8a\x08" + elements.to_bytes(8, "little", signed=True) + b"tQ"


def tensor(elements: int, size: int, stride: int) -> bytes:
    """A program of one tensor in a dict."""
    numbers = b"".join(b"\x8a\x08" + n.to_bytes(8, "little") + b"\x85" for n in (size, stride))
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(elements) + b"K\0" + numbers + b"\x89}tR"
    return b"\x80\x02}X\x01\0\0\0w" + made + b"s."


PROGRAMS = {
    "shared dicts": nested(60),
    "deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "holds itself": b"\x80\x02]q\0h\0a.",
    "hash of nested tuples": keyed(60),
    "long integer": b"\x80\x02\x8b" + (10**6).to_bytes(4, "little") + b"\x01" * 10**6 + b".",
    "integer of many digits": b"\x80\x02L" + b"9" * 5000 + b"L\n.",
    "string beyond the end": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
    "bytearray beyond the end": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
    "frame beyond the end": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"N.",
    "huge storage": tensor(2**40, 4, 1),
    "tensor larger than its storage": tensor(4, 2**40, 0),
    "tensor beyond its storage": tensor(4, 8, 1),
    "negative storage": tensor(-1, 4, 1),
    "sets a function's defaults": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\0\0\0__defaults__)s\x86b.",
    "sets a function's attributes": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\0\0\0aK\x01sb.",
    "module of a persistent id": b"\x80\x02(X\x06\0\0\0moduleX\x01\0\0\0aX\x01\0\0\0bX\x01\0\0\0cX\x01\0\0\0dtQ.",
    "extension": b"\x80\x02\x82\x01.",
    "calls a number": b"\x80\x02K\x01)R.",
}


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("write", [bare, zipped])
def test_programs_that_are_no_weights(write: Any, name: str, tmp_path: Path) -> None:
    before = (torch._utils._rebuild_tensor_v2.__defaults__, dict(vars(torch._utils._rebuild_tensor_v2)))
    file = write(tmp_path / "weights.pth", PROGRAMS[name])
    with pytest.raises(WeightsError, match=r"weights\.pth cannot be read as a torch checkpoint"):
        read_state(file)
    assert (torch._utils._rebuild_tensor_v2.__defaults__, vars(torch._utils._rebuild_tensor_v2)) == before


def test_many_tensors_that_show_one_number_are_refused(tmp_path: Path) -> None:
    """Each is within the bound of a tensor: 16 MiB."""
    one = torch.zeros(1)
    torch.save({str(i): one.expand(2**21) for i in range(2)}, tmp_path / "some.pth")
    assert len(read_state(tmp_path / "some.pth")) == 2
    torch.save({str(i): one.expand(2**21) for i in range(40)}, tmp_path / "many.pth")
    with pytest.raises(WeightsError, match="its tensors show 4 bytes as 335,544,320"):
        read_state(tmp_path / "many.pth")
    tied = torch.zeros(2**21)
    torch.save({str(i): tied for i in range(9)}, tmp_path / "tied.pth")  # one tensor under many names
    assert len(read_state(tmp_path / "tied.pth")) == 9


def test_programs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = zipped(tmp_path / "x.pth", b"\x80\x02" + b"N0" * 600 + tensor(4, 4, 1)[2:])
    assert read_state(file).keys() == {"w"}
    monkeypatch.setattr(restricted._Counted, "left", 1000)
    with pytest.raises(WeightsError, match="more than 4,000,000 instructions"):
        read_state(file)
    monkeypatch.undo()
    monkeypatch.setattr(restricted, "MAX_PROGRAM", 1000)
    with pytest.raises(WeightsError, match="longer than 1,000 bytes"):
        read_state(file)


def test_a_tensor_of_the_same_instructions_is_read(tmp_path: Path) -> None:
    assert torch.equal(read_state(zipped(tmp_path / "x.pth", tensor(4, 4, 1)))["w"], torch.zeros(4))


def test_archives_that_torch_does_not_write(tmp_path: Path) -> None:
    program = pickle.dumps({"pad": "x" * 10**6}, 2)
    with pytest.raises(WeightsError, match="compressed"):
        read_state(zipped(tmp_path / "small.pth", program, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(zipped(tmp_path / "script.pt", program), "a") as archive:
        archive.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(WeightsError, match="TorchScript program, not weights"):
        read_state(tmp_path / "script.pt")
    member = tarfile.TarInfo("ab")
    member.name = b"\x80\x02".decode("utf-8", "surrogateescape")
    with tarfile.open(tmp_path / "old.pth", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(member, io.BytesIO(b""))
    with pytest.raises(WeightsError, match=r"it is a tar archive"):
        read_state(tmp_path / "old.pth")


@pytest.mark.parametrize("zip_format", [True, False])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_research_code_saves_is_still_read(zip_format: bool, protocol: int, tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimiser = torch.optim.AdamW(module.parameters())
    module(torch.randn(5, 3)).sum().backward()
    optimiser.step()
    noted = nn.Parameter(torch.ones(2))
    noted.note = "an attribute"  # type: ignore[attr-defined]
    base = torch.arange(12.0)
    views = {"view": base[2:8].view(2, 3).T, "base": base, "half": torch.ones(3).bfloat16(), "flag": torch.tensor(True)}
    tree: dict[Any, Any] = {
        "state_dict": OrderedDict({**module.state_dict(), **views, "noted": noted, "empty": torch.zeros(0, 3)}),
        "optimiser": optimiser.state_dict(),
        "shape": torch.Size((2, 3)),
        "names": {"a", "b"},
        "dtype": torch.float16,
        "frozen": frozenset({"a"}),
        "best": {np.int64(3): np.float32(0.5), torch.device("cpu"): np.bool_(True), "text": np.str_("a")},
        "numbers": [np.int64(-(2**40)), np.float64(0.1), np.uint8(255), np.dtype(">i2").type(7)],
        "random": np.random.RandomState(0).get_state(),
        (1, "tuple"): [1, 2.5, None, True, 2**62],
    }
    torch.save(tree, tmp_path / "x.pth", _use_new_zipfile_serialization=zip_format, pickle_protocol=protocol)
    expected = {name: value.detach() for name, value in tree["state_dict"].items() if isinstance(value, Tensor)}
    found = read_state(tmp_path / "x.pth")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value), name
    read = read_tree(tmp_path / "x.pth")
    assert read["shape"] == torch.Size((2, 3)) and read["names"] == {"a", "b"} and read["dtype"] is torch.float16
    assert read["frozen"] == {"a"} and read["best"][3] == 0.5 and True in read["best"].values()
    assert read["numbers"] == [-(2**40), 0.1, 255, 7]
    assert plain(read)["(1, 'tuple')"] == [1, 2.5, None, True, 2**62]


@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_weights_are_regular_files(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    if kind == "device":
        file.symlink_to("/dev/zero")
    else:
        os.mkfifo(file)
    for path in (file, tmp_path):
        with pytest.raises(WeightsError, match=r"model\.safetensors is no regular file"):
            read_state(path)


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_weights(name: str, tmp_path: Path) -> None:
    file = safetensors(tmp_path / "x.safetensors", *HEADERS[name])
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        read_state(file)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "../secret.safetensors"}}, "names the file '../secret.safetensors': a shard lies beside"),
        ({"weight_map": {"a": "ABSOLUTE"}}, "a shard lies beside its index"),
        ({"weight_map": {"a": "below/x.safetensors"}}, "a shard lies beside its index"),
        ({"weight_map": {"a": "..\\x.safetensors"}}, "a shard lies beside its index"),
        ({"weight_map": {"a": ".."}}, "a shard lies beside its index"),
        ({"weight_map": {"a": 3}}, "weight_map.a must be a valid string, found 3"),
        ({"weight_map": {}}, "weight_map .*at least 1 item"),
        ({"weight_map": ["a"]}, "weight_map must be"),
        ([], "must be an object"),
        ({}, "lacks the field weight_map"),
        ({"weight_map": {"a": "none.safetensors"}}, "lacks none.safetensors"),
    ],
)
def test_shards_lie_beside_their_index(index: Any, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    save_file({"a": torch.zeros(2)}, tmp_path / "secret.safetensors")
    shutil.copy(tmp_path / "secret.safetensors", folder / "below" / "x.safetensors")
    text = json.dumps(index).replace("ABSOLUTE", str(tmp_path / "secret.safetensors"))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WeightsError, match=message):
        read_state(folder)


@pytest.mark.parametrize("number", ["4096", "9" * 5000])
def test_blocks_that_a_name_counts(number: str, tmp_path: Path) -> None:
    save_file({f"in_blocks.{number}.x": torch.zeros(1), "head.1000.weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="blocks are counted to 2,048 at most"):
        read_state(tmp_path / "x.safetensors")


def array(shape: Any, dtype: Any = "float32", raw: Any = b"") -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, raw)))


FLAX = {
    "impossible shape": {"a": array([0, 2**40, 2**40])},
    "negative": {"a": array([-1])},
    "shape of text": {"a": array("ab")},
    "type of a number": {"a": array([1], 3, b"xxxx")},
    "no type": {"a": array([1], "float4", b"xxxx")},
    "a function's name": {"a": array([1], "load", b"xxxx")},
    "bytes missing": {"a": array([3], "float32", b"xxxx")},
    "no array": {"a": msgpack.ExtType(1, b"\x01")},
    "complex of text": {"a": msgpack.ExtType(2, msgpack.packb(["a", "b"]))},
    "chunks missing": {"a": {"__msgpack_chunked_array__": True, "shape": [2]}},
    "chunks of text": {"a": {"__msgpack_chunked_array__": True, "shape": [2], "chunks": ["a"]}},
    "chunks too short": {"a": {"__msgpack_chunked_array__": True, "shape": [2], "chunks": [array([1], raw=b"xxxx")]}},
    "shape of chunks": {"a": {"__msgpack_chunked_array__": True, "shape": None, "chunks": [array([1], raw=b"xxxx")]}},
}


@pytest.mark.parametrize("name", FLAX)
def test_flax_of_another_shape(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(msgpack.packb(FLAX[name]))
    with pytest.raises(WeightsError, match="weights"):
        read_state(tmp_path / "weights")


def test_flax_nested_deeply(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"\x81\xa1a" * 400 + b"\x01")
    with pytest.raises(WeightsError, match="nested too deeply"):
        read_state(tmp_path / "weights")
    (tmp_path / "weights").write_bytes(b"\x81\xa1a" * 100_000 + b"\x01")
    with pytest.raises(WeightsError, match="is no complete Flax"):
        read_state(tmp_path / "weights")


# --- sizes that are read off tensors ----------------------------------------------------------------------------------

TINY_DIT: dict[str, Any] = {
    "side": 8, "patch": 2, "channels": 4, "outputs": 8, "width": 32, "depth": 2, "heads": 4, "hidden": 64, "classes": 10,
}  # fmt: skip
TINY_HALTON = HaltonConfig(grid=4, width=32, depth=2, heads=4, mlp_width=384, codebook_size=24, num_classes=5)
TINY_LLAMAGEN = LlamaGenVQConfig(24, 4, 32, 32, (1, 2), 1)
TINY_KL = AutoencoderKLConfig(width=32, multipliers=(1, 2), blocks=1)
TINY_GOOGLE = GoogleConfig(vocabulary=22, positions=17, width=32, depth=2, heads=4, mlp_width=64)
TINY_SCALES = MultiScaleVQConfig(64, 8, TINY_VAR.scales, 32, (1, 2), 1)
TINY_REWARD = ImageRewardConfig(32, 8, 64, 2, 1, 64, 2, 1, 32, 50, 40, 16)

NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "dit": (lambda s: DiT(**s), TINY_DIT, lambda state: dit_sizes(state, heads=4)),
    "uvit": (lambda s: UViT(**s), {**TINY_UVIT, "num_classes": 5}, lambda state: uvit_sizes(state, heads=4)),
    "google": (GoogleTransformer, TINY_GOOGLE, GoogleConfig.from_state),
    "halton": (HaltonTransformer, TINY_HALTON, lambda state: HaltonConfig.from_state(state, 4)),
    "mage": (MAGENet, TINY_MAGE, lambda state: MAGEConfig.from_state(state, heads=12, decoder_heads=16)),
    "var": (VAR, TINY_VAR, lambda state: VARConfig.from_state(state, source="x")),
    "vqgan": (VQGAN, TINY_VQGAN, VQGANConfig.from_state),
    "llamagen": (LlamaGenVQ, TINY_LLAMAGEN, LlamaGenVQConfig.from_state),
    "autoencoder": (AutoencoderKL, TINY_KL, AutoencoderKLConfig.from_state),
    "scales": (MultiScaleVQ, TINY_SCALES, lambda state: MultiScaleVQConfig.from_state(state, TINY_VAR.scales, source="x")),
    "imagereward": (ImageRewardNet, TINY_REWARD, lambda state: ImageRewardConfig.of_state(state, "x")),
}
"""Network, sizes, and who reads the sizes off the network's tensors."""


def other_forms(value: Tensor) -> list[Tensor]:
    """The tensor with another number of axes, or with one of no length."""
    empty = [value.narrow(axis, 0, 0) for axis in range(value.ndim)]
    return [value.flatten()[0], value[None], *([value.flatten()] if value.ndim > 1 else []), *empty]


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_read_or_refused(name: str) -> None:
    """Whatever one tensor of a file looks like, sizes are those of before (it is not looked at), or the file is refused."""
    make, sizes, read = NETWORKS[name]
    state = {key: value for key, value in make(sizes).state_dict().items()}
    expected, refused = read(state), 0
    assert not isinstance(sizes, dict) or expected.items() >= sizes.items()
    for key, value in state.items():
        for form in other_forms(value):
            try:
                assert read({**state, key: form}) == expected, key
            except WeightsError as error:
                refused += 1
                assert ". Expected " in str(error) and repr(key) in str(error)
        with suppress(WeightsError):  # where sizes do without a tensor, loading will name it
            read({other: tensor for other, tensor in state.items() if other != key})
    assert refused > 10


@pytest.mark.parametrize("number", ["1_0", " 2000000 ", "-1", "x"])
def test_blocks_are_counted_by_plain_numbers(number: str) -> None:
    state = {**DiT(**TINY_DIT).state_dict(), f"blocks.{number}.attn.proj.bias": torch.zeros(32)}
    with pytest.raises(WeightsError, match=r"'blocks\.' do not go on with the numbers 0 to"):
        dit_sizes(state, heads=4)


def test_sizes_that_no_network_has() -> None:
    """36 channels do not part into 32 groups."""
    state = {key: value.repeat(2, *[1] * (value.ndim - 1))[:36] for key, value in VQGAN(TINY_VQGAN).state_dict().items()}
    config = VQGANConfig.from_state(state)
    with pytest.raises(WeightsError, match=r"(?s)x.ckpt: no such network can be made .*divisible"):
        build(lambda: VQGAN(config), state, source="x.ckpt")


def test_positions_of_a_file_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may claim millions of cells."""
    state = {**DiT(**TINY_DIT).state_dict(), "pos_embed": torch.zeros(1, 1, 32).expand(1, 2**22, 32)}
    monkeypatch.setattr(dit_net, "position_table", lambda *_: pytest.fail("a table was made"))
    sizes = dit_sizes(state, heads=4)
    assert sizes["side"] == 2 * 2**11
    network = build(lambda: DiT(**sizes), state, source="x.pt")
    assert network.pos_embed.untyped_storage().nbytes() == 32 * 4


DAMAGED: dict[str, tuple[str, dict[str, Tensor], str]] = {
    "positions of another width": ("dit", {"pos_embed": torch.zeros(1, 2**14, 1)}, "'pos_embed' has 1 channels"),
    "no square of positions": ("dit", {"pos_embed": torch.zeros(1, 15, 32)}, "no square grid"),
    "fewer predictions than latents": ("dit", {"final_layer.linear.weight": torch.zeros(4, 32)}, "predicts 1 channels"),
    "negative scale": ("var", {"lvl_1L": torch.tensor([[-1, 0, 0, 0, 0]])}, "below 0"),
    "huge scale": ("var", {"lvl_1L": torch.tensor([[0, 1, 1, 1, 2**60]])}, "beyond 4"),
    "scales of fractions": ("var", {"lvl_1L": torch.zeros(1, 5)}, "is of torch.float32"),
    "a scale left out": ("var", {"lvl_1L": torch.tensor([[1, 2, 2, 2, 2]])}, r"counts \[0, 1, 4\] tokens"),
    "no squares": ("var", {"lvl_1L": torch.tensor([[0, 1, 1]])}, r"counts \[1, 2\] tokens"),
    "a single scale": ("var", {"lvl_1L": torch.zeros(1, 4, dtype=torch.int64)}, "a single scale of 2x2 tokens"),
    "heads": ("var", {"blocks.0.attn.scale_mul_1H11": torch.zeros(1, 5, 1, 1)}, "32 is no multiple of 5"),
    "no class": ("halton", {"cls_emb.weight": torch.zeros(1, 32)}, "the first at least 2"),
    "no class token": ("mage", {"token_emb.word_embeddings.weight": torch.zeros(1101, 48)}, "the first at least 1102"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_sizes_that_do_not_go_together(name: str) -> None:
    family, changed, message = DAMAGED[name]
    make, sizes, read = NETWORKS[family]
    with pytest.raises(WeightsError, match=message):
        read({**make(sizes).state_dict(), **changed})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": [1]}, None),
        ({"args": argparse.Namespace(gen_steps=np.int64(0))}, "in 0 steps; 1 to 1,024"),
        ({"args": {"gen_steps": float("nan")}, "global_step": float("inf")}, None),
        ({"args": {"gen_steps": 10**12}}, "in 1000000000000 steps; 1 to 1,024"),
        ({"model": {"policy.actor.dw_conv.weight": torch.zeros(())}}, "is not a published AdaNAT policy"),
        ({"model": {"policy.actor.x_embedder.weight": torch.zeros(8)}}, r"'x_embedder.weight' has the shape \[8\]"),
        ({"model": {3: torch.zeros(1)}}, None),
        ([1], "is not a published AdaNAT policy|no named tensors"),
    ],
)
def test_published_policies(change: Any, message: str | None, tmp_path: Path) -> None:
    names = {
        "dw_conv.weight": (8, 1, 3, 3),
        "linear1.weight": (4, 8),
        "linear3.weight": (4, 4),
        "pw_conv.weight": (2, 8, 1, 1),
    }
    state = {f"policy.actor.{name}": torch.zeros(shape) for name, shape in names.items()}
    tree = change
    if isinstance(change, dict):
        tree = {"model": {**state, **change.get("model", {})}, **{k: v for k, v in change.items() if k != "model"}}
    torch.save(tree, tmp_path / "policy.pth")
    if message is None:
        assert load_published_policy(tmp_path / "policy.pth")[1].steps is None
    else:
        with pytest.raises(WeightsError, match=message):
            load_published_policy(tmp_path / "policy.pth")
