"""What a notebook shows of results, in a real browser: pictures load, tables and curves have their size, nothing goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import adanat_toolkit as adanat
from adanat_toolkit.testing import Control, control_reward

from ..helpers.browser import PICTURES, chromium, resize, show
from ..helpers.report_runs import plugins

__all__ = ["chromium", "plugins"]  # fixtures


@pytest.fixture
def page(chromium: Any, plugins: None, tmp_path: Path) -> Iterator[Path]:
    """All results below each other, as a notebook puts them into its page."""
    tiny, control = adanat.load_generator("tiny", device="cpu"), Control(by_context=0, by_state=0)
    samples = adanat.sample(tiny, "fixed", seeds=range(20))
    run = adanat.train(
        generator=control, reward=control_reward, policy="shared", steps=2, trajectories=24, batch=8, device="cpu",
        out=tmp_path / "<b>run",
    )  # fmt: skip
    scores = adanat.evaluate(tiny, ["fixed", "fixed:linear"], num=16, features="pixels")
    found = adanat.headroom(control, control_reward, batch=1024)
    shown = [samples, run, scores, found]
    cells = "".join(f"<section>{result._repr_html_()}</section>" for result in shown)
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><title>results</title><body>{cells}", encoding="utf-8")
    yield file


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (700, "dark")])
def test_a_browser_shows_every_result(width: int, scheme: str, chromium: Any, page: Path) -> None:
    resize(chromium, width, scheme)
    show(chromium, page)
    pictures = chromium.execute_async_script(PICTURES)
    assert len(pictures) >= 16 and all(alt.startswith("seed ") for alt, _, _ in pictures)
    assert [alt for alt, natural, shown in pictures if natural == 0 or shown < 90] == []
    sections = chromium.find_elements("tag name", "section")
    texts = [section.text for section in sections]
    assert "<b>run: 3 iterations" in texts[1], "names are shown as they are written"
    assert "fixed:linear" in texts[2] and "lower is better" in texts[2] and "%" in texts[3]
    drawn, across = chromium.execute_script(
        "const s = document.querySelector('.adanat-curve svg').getBoundingClientRect();"
        "return [[s.width, s.height], document.documentElement.scrollWidth]"
    )
    assert drawn[0] > 200 and drawn[1] > 100
    assert across <= width, "nothing sticks out of the page"
    assert [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []
