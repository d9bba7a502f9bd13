"""``adanat weights`` for rewards: their files beside the generators', and found where the rewards look for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from adanat_plugins.catalogue import list_assets
from adanat_plugins.rewards.imagereward import SCORER, VOCABULARY
from adanat_toolkit.errors import WeightsError
from adanat_toolkit.registry import create_features

from ..helpers.cli import adanat, refused


def test_the_files_of_rewards_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    rows = json.loads(adanat("weights", "imagereward", "--json").stdout)
    assert [(row["file"], row["present"]) for row in rows] == [(SCORER.file, False), (VOCABULARY.file, False)]
    for row in rows:
        assert row["source"] and row["licence"] and row["obtain"] and row["hub"]
    VOCABULARY.path.parent.mkdir()
    VOCABULARY.path.write_text("[PAD]\n")
    printed = adanat("weights", "imagereward").stdout
    assert f"{VOCABULARY.file}  present" in printed and f"{SCORER.file}  absent" in printed
    (backbone,) = json.loads(adanat("weights", "adversarial", "--json").stdout)
    assert backbone["hub"] == "timm/vit_small_patch16_224.dino"
    files = [asset.file for asset in list_assets()]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("protocol", ["inception-fidelity", "inception-adanat", "dinov2", "clip"])
def test_the_file_of_a_feature_protocol_is_listed_where_it_looks_for_it(
    protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    (row,) = json.loads(adanat("weights", protocol, "--json").stdout)
    with pytest.raises(WeightsError) as missing:
        create_features(protocol, {}, device=torch.device("cpu"), offline=True)
    assert row["path"].startswith(str(tmp_path)) and row["path"] in str(missing.value)


def test_every_file_is_listed_with_its_licence() -> None:
    printed, rows = adanat("weights").stdout, json.loads(adanat("weights", "--json").stdout)
    assert printed.count("\n  licence: ") == len(rows) and all(row["licence"] for row in rows)
    assert "  licence: Apache-2.0 (trained on the embedded images alone" in adanat("weights", "var:emoji64").stdout


def test_the_network_that_fid_reads_is_listed() -> None:
    (row,) = json.loads(adanat("weights", "fid", "--json").stdout)
    assert "inception-fidelity" in row["variants"]


def test_an_unknown_reward_gets_the_nearest_name() -> None:
    refused(adanat("weights", "imagereword"), "did you mean 'imagereward'")
