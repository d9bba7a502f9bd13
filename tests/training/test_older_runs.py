"""Run folders made by version 0.1.0 before its modules were moved into packages still resume, sample and report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.report import Settings, make_report
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import RunConfig, Trainer, merge, validate
from adanat_toolkit.training.checkpoint import BEFORE

RUNS = Path(__file__).parents[1] / "fixtures" / "run_0_1_0"


@pytest.fixture(params=["finished", "interrupted"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of one of the folders, each of 4 iterations; ``interrupted`` was stopped after 2."""
    return Path(shutil.copytree(RUNS / request.param, tmp_path / "run"))


def test_it_goes_on_to_the_end(old: Path) -> None:
    before = (old / "metrics.jsonl").read_bytes()
    stored = json.loads((old / "config.json").read_text())
    row = Trainer(validate(stored)).run(old)
    assert row["iteration"] == 4 and row["trajectories"] == 16
    assert [row["iteration"] for row in RunFolder(old).metrics()] == [1, 2, 3, 4]
    assert (old / "metrics.jsonl").read_bytes().startswith(before)
    assert RunFolder(old).checkpoints() == [2, 4]


def test_every_setting_that_came_later_has_a_value_for_older_runs() -> None:
    stored = json.loads((RUNS / "finished" / "config.json").read_text())

    def named(values: dict[str, Any], prefix: str = "") -> set[str]:
        settings = [(prefix + k, v) for k, v in values.items() if k != "options"]  # those are the plug-ins'
        return set().union(*(named(v, f"{k}.") if isinstance(v, dict) else {k} for k, v in settings))

    missing = named(RunConfig().model_dump(mode="json")) - named(merge(BEFORE, stored))
    assert not missing, f"checkpoint.BEFORE lacks {sorted(missing)}: runs of before cannot be resumed"


def test_its_policy_samples(old: Path) -> None:
    generator = create_generator("maskgit", device=torch.device("cpu"), dtype=torch.float32)
    policy = load_policy(str(old), generator)
    assert policy.card["kind"] == "shared" and policy.steps == 2
    images = torch.cat([made.images for made in sample(generator, policy, seed_range(0, 2))])
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all() and images.std() > 0.01


def test_it_reports(old: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    make_report([old], page, Settings(images=0, pictures=False))
    assert "clip-score" in page.read_text()
