"""A file inside of a policy or run folder is refused with the folder to give."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from adanat_plugins.generators.maskgit import MaskGIT
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import Generator
from adanat_toolkit.policies import load_policy, policy_card

RUN = Path(__file__).parents[1] / "fixtures" / "run_0_1_0" / "finished"
PARTS = [str(path.relative_to(RUN)) for path in sorted(RUN.rglob("*")) if path.name != "policy"]


@pytest.fixture(scope="module")
def generator() -> Generator:
    return MaskGIT.create("emoji64", {}, device=torch.device("cpu"), dtype=torch.float32, offline=True)


@pytest.mark.parametrize("part", PARTS)
def test_every_part_of_a_run_names_the_folder(part: str, generator: Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RUN.parent)
    place = "finished/policy" if part.startswith("policy/") else "finished"
    message = rf"finished/{part} is a (file|folder) inside of the policy or run {place}; give that folder\."
    for read in (policy_card, lambda spec: load_policy(spec, generator)):
        with pytest.raises(ConfigError, match=message):
            read(f"finished/{part}")
    with pytest.raises(ConfigError, match=f"inside of the policy or run {RUN}"):
        policy_card(RUN / part)


def test_parts_of_a_run_without_a_policy_and_single_files(tmp_path: Path, generator: Generator) -> None:
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    alone = Path(shutil.move(run / "policy" / "policy.json", tmp_path / "policy.json"))
    shutil.rmtree(run / "policy")
    with pytest.raises(ConfigError, match=r"inside of the run .*run, which has stored no policy yet; let it go on"):
        load_policy(run / "checkpoints" / "000004" / "state.safetensors", generator)
    shutil.move(alone, tmp_path / "elsewhere")
    single = Path(shutil.copy(RUN / "policy" / "policy.safetensors", tmp_path / "policy.safetensors"))
    with pytest.raises(ConfigError, match=r"policy.json is not beside it; give a folder that holds both"):
        load_policy(single, generator)


def test_what_others_published_may_lie_anywhere(tmp_path: Path) -> None:
    run = Path(shutil.copytree(RUN, tmp_path / "run"))
    (run / "theirs.pth").write_bytes(b"x")
    assert policy_card(run / "theirs.pth") is None and policy_card(run) is not None
