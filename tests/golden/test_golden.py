"""Parity with the published implementations.

``pytest tests/golden --golden-dir DIR`` checks any folder of fixtures: one line a fixture with the largest error and its
tolerance; a fixture of an unsupported kind is skipped with the reason; a supported one that is off fails.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .harness import Fixture, Report, find_check


def test_fixture(fixture_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fixture = Fixture(fixture_path)
    check = find_check(fixture.name)
    if check is None:
        pytest.skip(f"{fixture.name}: no check for this kind of fixture yet")
    report = Report()
    with torch.inference_mode(False):
        check(fixture, report)
    with capsys.disabled():
        print(f"\n{fixture.name}: {report.summary()}", end=" ")
    assert report.comparisons, "the check compared nothing"
    off = [f"{c.what}: error {c.error:.4g}, {c.tolerance}" for c in report.comparisons if not c.ok]
    assert not off, "\n".join(off)
