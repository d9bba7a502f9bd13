"""``adanat weights`` for rewards: their files beside the generators', and found where the rewards look for them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adanat_plugins.catalogue import list_assets
from adanat_plugins.rewards.imagereward import SCORER, VOCABULARY

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


def test_an_unknown_reward_gets_the_nearest_name() -> None:
    refused(adanat("weights", "imagereword"), "did you mean 'imagereward'")
