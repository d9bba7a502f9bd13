"""Run and policy folders of other people: what they name is not followed, what they damage is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import ConfigDict, Field
from safetensors.torch import save_file

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.features.third_party import WeightsOptions
from adanat_plugins.generators.maskgit import MaskGITOptions
from adanat_toolkit.core import parse_schedule
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.interfaces import PluginOptions, Source
from adanat_toolkit.policies import SamplingPolicy, export_policy, load_policy
from adanat_toolkit.policies.folder import PolicyCard
from adanat_toolkit.policies.networks import SharedOptions, SharedPolicy
from adanat_toolkit.storage import facts_of, load_checkpoint, read_card, read_header, save_tensors
from adanat_toolkit.storage.files import card_digest, load_tensors
from adanat_toolkit.storage.tensors import DTYPES
from adanat_toolkit.training import RunConfig

from ..helpers.cli import adanat, refused
from ..helpers.report_runs import rows_of
from ..helpers.tiny import TinyGenerator


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any request to the hub fails the test."""
    import huggingface_hub

    def asked(*arguments: Any, **more: Any) -> None:
        pytest.fail(f"the hub was asked for {arguments}")

    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, asked)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A run folder as one gets it: the policy that ships, a configuration and a row of metrics."""
    folder = tmp_path / "foreign"
    shutil.copytree(FOLDER / "policies" / "maskgit", folder / "policy")
    (folder / "config.json").write_text(RunConfig().model_dump_json())
    (row,) = rows_of(1)
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def change(folder: Path, **sections: dict[str, Any]) -> None:
    file = folder / "config.json"
    stored = json.loads(file.read_text())
    for name, values in sections.items():
        stored[name].update(values)
    file.write_text(json.dumps(stored))


COMMANDS = {
    "sample": ["sample", "--policy", "FOLDER", "--num", "1", "--out", "OUT"],
    "evaluate": ["evaluate", "--policy", "FOLDER", "--num", "16"],
    "report": ["report", "FOLDER", "--num", "0", "--out", "OUT"],
    "publish": ["publish", "FOLDER", "./OUT"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("maskgit:halton-256", {"weights": "owner/repo"}, "weights = 'owner/repo'. .*--weights ..."),
        (
            "maskgit:halton-256",
            {"tokenizer": "/etc/passwd"},
            "tokenizer = '/etc/passwd'. .*--generator-option tokenizer=",
        ),
        ("muse", {"text_encoder": "owner/repo", "compile": False}, "from: text_encoder = 'owner/repo'. "),
        ("maskgit", {"weights": ["a"], "unknown\x1b": "text"}, r"weights = a list of 1, unknown\\x1b = 'text'. "),
    ],
)
def test_sources_that_a_folder_names_are_shown_and_refused(
    command: str, name: str, options: dict[str, Any], shown: str, foreign: Path, no_hub: None
) -> None:
    change(foreign, generator={"name": name, "options": options})
    places = {"FOLDER": str(foreign), "OUT": str(foreign.parent / "out"), "./OUT": str(foreign.parent / "out")}
    result = adanat(*(places.get(part, part) for part in COMMANDS[command]))
    message = refused(result, str(foreign / "config.json"), "What a folder names is not followed")
    assert re.search(shown, message), message


def test_sources_given_again_are_taken(foreign: Path, tmp_path: Path) -> None:
    change(foreign, generator={"options": {"weights": "owner/repo", "heads": None, "compile": False}})
    some = ("sample", "--policy", foreign, "--num", "1", "--quiet", "--out")
    assert adanat(*some, tmp_path / "a", "--weights", FOLDER / "maskgit.safetensors").exit_code == 0
    refused(adanat(*some, tmp_path / "b", "--weights", tmp_path / "none.pth"), "none.pth does not exist")
    assert adanat(*some, tmp_path / "c", "--generator", "maskgit").exit_code == 0


def test_real_images_that_a_folder_names_are_not_opened(
    foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(generator: Any, path: str | None, **more: Any) -> None:
        assert path is None, f"{path} was opened"

    monkeypatch.setattr("adanat_toolkit.evaluation.choices.images_for", opened)
    change(foreign, data={"path": "/home/me/pictures"})
    message = refused(
        adanat("report", foreign, "--num", "64", "--out", tmp_path / "r.html"),
        "names its real images '/home/me/pictures'",
    )
    assert "--data" in message


@pytest.mark.parametrize("key", ["table", "file"])
def test_a_source_that_a_policys_card_names_is_not_opened(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Named(SharedOptions):
        model_config = ConfigDict(populate_by_name=True)

        table: Source = Field(None, alias="file")

    class Table(SharedPolicy):
        Options = Named

        def __init__(self, options: Any, **shapes: Any) -> None:
            assert options.table is None, f"{options.table} would be opened"
            super().__init__(options, **shapes)

    folder = small_policy(tmp_path / "policy")
    monkeypatch.setattr("adanat_toolkit.policies.folder.load", lambda *_: Table)
    assert load_policy(folder, TinyGenerator()).network.Options is Named  # a source that is not named is no fault
    card = json.loads((folder / "policy.json").read_text())
    card["options"][key] = "/etc/passwd"
    (folder / "policy.json").write_text(json.dumps(card | {"digest": card_digest(card)}))
    with pytest.raises(ConfigError, match=r"policy\.json says where .*: table = '/etc/passwd'\. .* is not followed"):
        load_policy(folder, TinyGenerator())


def test_options_say_which_of_them_name_sources() -> None:
    class Options(PluginOptions):
        weights: Source = None
        size: int = 3
        kind: Literal["a", "b"] | None = None
        prompt: str = ""
        extra: dict[str, Any] = Field(default_factory=dict)
        scaled: Annotated[float, "share"] = 1.0

    assert Options.sources() == ("weights",)
    assert MaskGITOptions.sources() == ("weights", "tokenizer") and WeightsOptions.sources() == ("weights",)
    harmless = {"weights": "x", "size": 4, "kind": "a", "prompt": "x", "extra": {}, "scaled": 1.0, "unknown": "x"}
    assert [name for name, value in harmless.items() if Options.harmless(name, value)] == ["size", "kind", "scaled"]


# --- what a result depends on is covered by the checksum --------------------------------------------------------------


def small_policy(folder: Path, kind: str = "shared", **more: Any) -> Path:
    """A policy folder as training writes it."""
    generator = TinyGenerator()
    space = generator.action_space.bind(parse_schedule("cosine", generator.action_space, 3))
    options = {"hidden": 8, **more}
    network = SharedPolicy(
        SharedOptions(**options), space=space, grid=generator.grid, feature_dim=generator.feature_dim
    )
    facts = {"trajectories": 8, "reward": "dark", "seed": 0, "engine": "adanat"}
    policy = SamplingPolicy(network, space)
    export_policy(folder, policy, network.state_dict(), options=options, generator=generator, facts=facts)
    return folder


def edit(file: Path, where: str, value: Any, *, old: bool = False) -> None:
    """Sets ``a.b.0`` of a JSON file; ``old`` makes it one of the format without a digest."""
    card = json.loads(file.read_text())
    part: Any = card
    *path, last = [int(key) if key.isdecimal() else key for key in where.split(".")]
    for key in path:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    if old:
        card = {**{key: item for key, item in card.items() if key != "digest"}, "format": 1}
    file.write_text(json.dumps(card))


CHANGES = [
    ("action_space.schedule.1.0", 0.5),
    ("action_space.residual", False),
    ("generator.feature_dim", 9),
    ("training.seed", 1),
    ("options", {}),
    ("sha256", "0" * 64),
    ("digest", "0" * 64),
    ("digest", ...),
    ("format", 1),
    ("added", 1),
]


@pytest.mark.parametrize(("where", "value"), CHANGES)
def test_no_value_of_a_policy_changes_unseen(where: str, value: Any, tmp_path: Path) -> None:
    folder = small_policy(tmp_path / "policy")
    policy = load_policy(str(folder), TinyGenerator())
    assert policy.network.kind == "shared" and policy.steps == 3 and policy.card["format"] == 2
    edit(folder / "policy.json", where, value)
    with pytest.raises(CheckpointError, match=r"policy.json was changed or damaged since it was written"):
        load_policy(str(folder), TinyGenerator())


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("action_space.residual", None, "action_space.residual must be a valid boolean, found None"),
        ("action_space.residual", 1, "action_space.residual must be a valid boolean, found 1"),
        ("action_space.schedule", [[0.5, 0.0, 1.0, 0.0]] * 2000, "action_space.schedule .* at most 1025 items"),
        ("action_space.schedule", [], "at least 1 item"),
        ("action_space.schedule", [[0.5, 1.0], [0.5]], "rows of .1, 2. values; one a knob is needed"),
        ("action_space.schedule.1.1", 1e39, "mask_temperature' has the value 1e.39"),
        ("action_space.schedule.1.0", "0.5", "action_space.schedule.1..0. must be a valid number, found '0.5'"),
        ("action_space.knobs.0.transform", "softplus", "was made for a knob 'mask_ratio' under softplus"),
        ("action_space.acted", "mask_ratio", "action_space.acted must be a valid list"),
        ("action_space", [], "action_space must be a valid dictionary.*found an empty list"),
        ("generator", ..., "lacks the field generator"),
        ("training.trajectories", -1, "training.trajectories must be greater than or equal to 0, found -1"),
        ("options", {"hidden": 10_000_000}, "hidden = 10000000: Input should be less than or equal to 4096"),
        ("options", {"hidden": 4096}, r"actor.embedding.mlp.0.bias. is float32 .8., expected float32 .4096."),
        ("kind", "fixed", "a 'fixed' policy sets mask_ratio, .*; it sets nothing"),
        ("kind", {}, "kind must be a valid string, found an empty object"),
    ],
)
def test_values_of_the_format_before_are_checked(where: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = small_policy(tmp_path / "policy")
    edit(folder / "policy.json", "training.seed", 0, old=True)
    assert load_policy(str(folder), TinyGenerator()).steps == 3
    edit(folder / "policy.json", where, value, old=True)
    if value == "fixed":
        edit(folder / "policy.json", "options", {})
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_policy(str(folder), TinyGenerator())


@pytest.mark.parametrize("rows", [3, 1])
def test_a_policy_with_more_or_fewer_actions_than_its_steps_take(rows: int, tmp_path: Path) -> None:
    folder = small_policy(tmp_path / "policy")
    card = json.loads((folder / "policy.json").read_text())
    card["action_space"]["schedule"] = [card["action_space"]["schedule"][0]] * rows
    card["action_space"]["steps"] = 2
    card["digest"] = card_digest(card)
    (folder / "policy.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=f"has {rows} actions for 2 steps"):
        load_policy(folder, TinyGenerator())


def test_a_policy_with_numbers_that_are_not_finite(tmp_path: Path) -> None:
    folder = small_policy(tmp_path / "policy")
    tensors, card = load_tensors(folder, "policy")
    tensors["actor.head.bias"][0] = float("nan")
    save_tensors(folder, "policy", tensors, {k: v for k, v in card.items() if k not in ("format", "sha256", "digest")})
    with pytest.raises(CheckpointError, match=r"not finite .in actor.head.bias."):
        load_policy(str(folder), TinyGenerator())


FACTS = {"iteration": 8, "seed": 0, "generator": "tiny", "real_images": None}


@pytest.mark.parametrize("iteration", [0, -4, 9, True, "8", None, 8.0])
@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_is_of_the_iteration_that_its_folder_names(iteration: Any, old: bool, tmp_path: Path) -> None:
    folder = tmp_path / "000008"
    save_tensors(folder, "state", {"a": torch.zeros(2)}, FACTS)
    edit(folder / "state.json", "seed", 0, old=old)
    assert load_checkpoint(folder)[1]["iteration"] == 8
    edit(folder / "state.json", "iteration", iteration, old=old)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        load_checkpoint(folder)


def test_some_policies_that_ship_are_of_the_format_before() -> None:
    found = {p.parent.name: read_card(p.parent, "policy", PolicyCard)["format"] for p in FOLDER.glob("policies/*/policy.json")}
    assert found == {"maskgit": 1, "muse": 1, "mage": 2, "sit-T4": 2}


# --- small files must not take the machine ----------------------------------------------------------------------------


def safetensors(file: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


HEADERS: dict[str, tuple[Any, bytes]] = {
    "F4": ({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"x"),
    "F6": ({"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}, b"xyz"),
    "E8M0": ({"a": {"dtype": "F8_E8M0", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "empty with huge sides": ({"a": {"dtype": "F32", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}}, b""),
    "huge": ({"a": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 4]}}, b"xxxx"),
    "beyond the end": ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"xxxx"),
    "gap": ({"a": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}, b"xxxx"),
    "negative": ({"a": {"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}}, b"xx"),
    "no object": (b"[]", b""),
    "no entry": ({"a": 3}, b""),
    "dtype of another type": ({"a": {"dtype": 3, "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "offsets of another type": ({"a": {"dtype": "U8", "shape": [1], "data_offsets": "01"}}, b"x"),
    "nested": (b'{"a":' * 100_000, b""),
    "long integer": (b'{"a": {"shape": [' + b"9" * 5000 + b"]}}", b""),
    "many": ({str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(2**15 + 1)}, b""),
    "not UTF-8": (b'{"\xff": 1}', b""),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_safetensors(name: str, tmp_path: Path) -> None:
    file = safetensors(tmp_path / "x.safetensors", *HEADERS[name])
    with pytest.raises(CheckpointError, match=r"x\.safetensors.* Look\."):
        read_header(file, error=CheckpointError, remedy="Look.")
    folder = small_policy(tmp_path / "policy")
    shutil.copy(file, folder / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"policy\.safetensors"):
        load_policy(str(folder), TinyGenerator())


def test_headers_are_what_safetensors_writes(tmp_path: Path) -> None:
    tensors = {str(d): torch.zeros(2, 3).to(d) for d in DTYPES.values()} | {"empty": torch.zeros(0, 2**40)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"a": "b"})
    found, size = read_header(tmp_path / "x.safetensors", error=CheckpointError)
    assert found == facts_of(tensors) and size == (tmp_path / "x.safetensors").stat().st_size


def test_a_checkpoint_with_room_for_more_than_there_is(tmp_path: Path) -> None:
    """A file of holes takes nothing on the disk, and its header is right."""
    size = 2**44
    save_tensors(tmp_path / "000001", "state", {"a": torch.zeros(2)}, FACTS)
    file = safetensors(
        tmp_path / "000001" / "state.safetensors", {"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    )
    try:
        os.truncate(file, file.stat().st_size + size)
    except OSError:
        pytest.skip("no such files here")
    with pytest.raises(CheckpointError, match=r"state\.safetensors does not fit into this machine's memory"):
        load_checkpoint(tmp_path / "000001")


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_policies_are_regular_files(name: str, kind: str, tmp_path: Path) -> None:
    folder = small_policy(tmp_path / "policy")
    (folder / name).unlink()
    if kind == "device":
        (folder / name).symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(folder / name)
    else:
        (folder / name).mkdir()
    with pytest.raises(CheckpointError, match=rf"{name} is (no regular file|a folder)"):
        load_policy(str(folder), TinyGenerator())


def test_a_policy_that_is_neither_file_nor_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for spec in (str(tmp_path / "pipe"), "/dev/zero"):
        with pytest.raises(ConfigError, match="is no file and no folder"):
            load_policy(spec, TinyGenerator())


@pytest.mark.parametrize("spec", ["fixed", "fixed:maskgit", "fixed:cosine,guidance=0:3"])
def test_steps_are_bounded(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"1000000000000.* 1024"):
        load_policy(spec, TinyGenerator(), 10**12)
