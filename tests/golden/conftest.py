from __future__ import annotations

from pathlib import Path

import pytest

DEFAULT = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", default=str(DEFAULT), help="folder of golden fixtures (default: the committed ones)"
    )


def fixtures_in(root: Path) -> list[Path]:
    """The fixtures of a folder; a folder without any is an error, since pytest would skip it without a word."""
    paths = sorted(p.parent for p in root.glob("*/manifest.json"))
    if not paths:
        raise pytest.UsageError(f"--golden-dir {root} holds no FIXTURE/manifest.json; give a folder of fixtures.")
    return paths


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture_path" in metafunc.fixturenames:
        root = Path(metafunc.config.getoption("--golden-dir", default=str(DEFAULT)))
        paths = fixtures_in(root)
        metafunc.parametrize("fixture_path", paths, ids=[p.name for p in paths])
