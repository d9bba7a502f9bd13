"""Run and policy folders of other people: what they name is not followed, what they damage is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.features.third_party import WeightsOptions
from adanat_plugins.generators.maskgit import MaskGITOptions
from adanat_toolkit.interfaces import PluginOptions, Source
from adanat_toolkit.training import RunConfig

from ..helpers.cli import adanat, refused
from ..helpers.report_runs import rows_of


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

    monkeypatch.setattr("adanat_toolkit.commands.inputs.images_for", opened)
    change(foreign, data={"path": "/home/me/pictures"})
    message = refused(
        adanat("report", foreign, "--num", "64", "--out", tmp_path / "r.html"),
        "names its real images '/home/me/pictures'",
    )
    assert "--data" in message


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
