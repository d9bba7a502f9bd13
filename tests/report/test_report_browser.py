"""A report in a real browser: every picture loads, tables sort, it reads on a phone, and nothing is fetched or goes wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adanat_toolkit.report.gather import Gathered
from adanat_toolkit.report.page import render
from adanat_toolkit.report.yardstick import blocks

from ..helpers.browser import PICTURES, chromium, resize, show
from ..helpers.report_runs import both, evaluation, made_run, plugins, rows_of, trained

__all__ = ["both", "chromium", "plugins", "trained"]  # fixtures

def test_a_browser_shows_everything(chromium: Any, both: tuple[str, dict[str, Any], Path]) -> None:
    from selenium.webdriver import ActionChains

    _, _, file = both
    resize(chromium, 1280)
    show(chromium, file)
    pictures = chromium.execute_async_script(PICTURES)
    assert len(pictures) > 100
    assert [alt for alt, natural, shown in pictures if natural == 0 or shown < 20] == []
    assert chromium.execute_script(
        "return [...document.querySelectorAll('svg.chart')].every((c) => c.clientHeight > 100)"
    )
    chart = chromium.find_element("css selector", "#curves ~ .charts svg.chart")
    chromium.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", chart)
    ActionChains(chromium).move_to_element(chart).perform()
    tip = chromium.find_element("css selector", "#curves ~ .charts .tip")
    assert tip.is_displayed() and re.match(r"trajectories (32|48)\nadaptive [\d.]+\nshared [\d.]+$", tip.text)
    assert chromium.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert file.as_uri() in asked
    assert [url for url in asked if url != file.as_uri() and not url.startswith("data:")] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_reads_on_a_phone(chromium: Any, both: tuple[str, dict[str, Any], Path], scheme: str) -> None:
    resize(chromium, 390, scheme)
    show(chromium, both[2])
    width, inner, background = chromium.execute_script(
        "return [document.documentElement.scrollWidth, innerWidth, getComputedStyle(document.body).backgroundColor]"
    )
    assert width <= inner == 390
    levels = [int(level) for level in re.findall(r"\d+", background)][:3]
    assert (max(levels) < 60) if scheme == "dark" else (min(levels) > 200)
    boxes = chromium.execute_script(
        "return [...document.querySelectorAll('.scroll')]"
        ".map((b) => [b.scrollWidth, b.clientWidth, b.getBoundingClientRect().right])"
    )
    assert any(inside > outside for inside, outside, _ in boxes)  # tables scroll in boxes of their own
    assert all(right <= 390 for _, _, right in boxes)
    # Text large enough to read, also inside the charts.
    smallest = chromium.execute_script(
        "return Math.min(...[...document.querySelectorAll('svg.chart')]"
        ".map((c) => 10.5 * c.clientWidth / c.viewBox.baseVal.width))"
    )
    assert smallest > 8.5
    assert chromium.get_log("browser") == []


def test_a_click_sorts(chromium: Any, tmp_path: Path) -> None:
    runs = [made_run(rows_of(2), name) for name in ("b", "a", "c")]
    found = [
        (evaluation(run.name, value), {run.name: run}, False)
        for run, value in zip(runs, (9.5, 100.0, 12.0), strict=True)
    ]
    del found[2][0]["policies"][0]["figures"]["recall"]
    file = tmp_path / "sorted.html"
    file.write_text(render(runs, Gathered(blocks=blocks(found))), encoding="utf-8")
    resize(chromium, 1280)
    show(chromium, file)

    def names(table: str) -> list[str]:
        rows = chromium.find_elements("css selector", f"{table} tbody th")
        return [row.get_attribute("data-sort") for row in rows]

    def click(table: str, head: str) -> str | None:
        (cell,) = [c for c in chromium.find_elements("css selector", f"{table} thead th") if c.text.startswith(head)]
        cell.find_element("tag name", "button").click()
        return cell.get_attribute("aria-sort")

    assert names(".yardstick") == ["cosine", "b", "a", "c"]
    assert click(".yardstick", "Frechet distance") == "ascending"
    assert names(".yardstick") == ["b", "cosine", "c", "a"]  # 9.5, 10, 12, 100: as text, 9.5 would come last
    assert click(".yardstick", "Frechet distance") == "descending"
    assert names(".yardstick") == ["a", "c", "cosine", "b"]
    assert click(".yardstick", "policy") == "ascending"
    assert names(".yardstick") == ["a", "b", "c", "cosine"]
    assert len(chromium.find_elements("css selector", ".yardstick [aria-sort]")) == 1
    for direction in ("ascending", "descending"):
        assert click(".yardstick", "recall") == direction
        assert names(".yardstick")[-1] == "c"  # what is missing comes last, either way
    assert click("#overview", "Frechet / hand-made") == "ascending"
    assert names("#overview") == ["b", "c", "a"]
    assert chromium.get_log("browser") == []
