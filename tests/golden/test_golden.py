"""Parity with the published implementations.

``pytest tests/golden --golden-dir DIR`` checks any folder of fixtures: one line a fixture with the largest error and its
tolerance; a fixture of an unsupported kind is skipped with the reason; a supported one that is off fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .checks_adagen import check_shipped
from .conftest import DEFAULT
from .harness import Fixture, Report, check_of


def test_fixture(fixture_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixture = Fixture(fixture_path)
    check = check_of(fixture)
    if check is None:
        pytest.skip(f"{fixture.name}: no check for this kind of fixture yet")
    report = Report()
    with torch.inference_mode(False):
        check(fixture, report)
    with capsys.disabled():
        print(f"\n{fixture.name}: {report.summary()}", end=" ")
    report.assert_within()


def test_shipped_recipes_are_the_released_configurations() -> None:
    report = Report()
    check_shipped(Fixture(DEFAULT / "adagen_actions"), report)
    report.assert_within()
