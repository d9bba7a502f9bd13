from __future__ import annotations

from pathlib import Path

import pytest

DEFAULT = Path(__file__).parent / "fixtures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-dir", default=str(DEFAULT), help="folder of golden fixtures (default: the committed ones)"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fixture_path" in metafunc.fixturenames:
        root = Path(metafunc.config.getoption("--golden-dir", default=str(DEFAULT)))
        paths = sorted(p.parent for p in root.glob("*/manifest.json"))
        metafunc.parametrize("fixture_path", paths, ids=[p.name for p in paths])
