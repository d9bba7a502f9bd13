"""For the tests of the report: runs and evaluations that no training has made, and a reader of pages."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adanat_toolkit.report.reading import Run
from adanat_toolkit.training import RunConfig, Trainer, validate

from .cli import adanat
from .tiny_plugins import ENTRY_POINTS


def made_run(rows: list[dict[str, Any]], name: str = "run", **config: Any) -> Run:
    settings = validate(config) if config else RunConfig()
    return Run(name, Path(name), settings.model_dump(mode="json"), settings, rows, [], frozenset(), None, None, False)


def rows_of(count: int, **more: Any) -> list[dict[str, Any]]:
    base = {
        "reward/mean": 0.5,
        "reward/std": 0.1,
        "ppo/approx_kl": 0.01,
        "knob/guidance/0": 1.0,
        "seconds": 1.0,
        "sigma": 0.6,
    }
    return [
        {"iteration": i, "trajectories": 8 * i, **base, **{k: v(i) if callable(v) else v for k, v in more.items()}}
        for i in range(1, count + 1)
    ]


def evaluation(spec: str = "run", frechet: float = 9.0, **facts: Any) -> dict[str, Any]:
    """What ``evaluation.Comparison.to_json`` gives for one policy."""
    figures = {"precision": 0.5, "recall": 0.4}
    baseline = {"policy": "fixed:cosine", "steps": 4, "figures": {"frechet": 10.0, **figures}, "intervals": {}}
    row = {"policy": spec, "steps": 4, "baseline": "fixed:cosine", "figures": {"frechet": frechet, **figures}}
    row |= {"intervals": {"frechet": [8.0, 10.0]}, "ratio": {"frechet": frechet / 10}, "ratio_interval": None}
    about = {"generator": "tiny", "generator_fingerprint": "f", "protocol": "p", "protocol_card": {}, "images": 500}
    about |= {"real_images": 300, "data": "d", "estimators": {"k": 3}, "seeds": [0, 499], "device": "cpu"}
    return {**about, "dtype": "float32", "toolkit": "1", **facts, "baselines": [baseline], "policies": [row]}


class Page(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def pixels(source: str | None) -> np.ndarray:
    """(H, W, 3) of a data URI."""
    assert source is not None
    head, _, data = source.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"))


# --- fixtures: import them by name ---


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    info = tmp_path_factory.mktemp("site") / "tiny_plugins-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugins\nVersion: 1.0\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(info.parent))
        yield


@pytest.fixture(scope="module")
def trained(plugins: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two short trainings: ``adaptive`` and ``shared``."""
    folder = tmp_path_factory.mktemp("trained")
    for name in ("adaptive", "shared"):
        settings = {
            "generator": {"name": "tiny"},
            "reward": {"name": "brightness"},
            "policy": {"name": name},
            "steps": 3,
        }
        settings |= {"batch": 16, "trajectories": 64, "device": "cpu", "evaluate_every": 2, "evaluate_images": 32}
        Trainer(validate({**settings, "ppo": {"epochs": 2, "learning_rate": 0.002}})).run(folder / name)
    return folder


@pytest.fixture(scope="module")
def both(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """The report that compares the two: its text, what the command printed, and its file."""
    file = tmp_path_factory.mktemp("report") / "both.html"
    paths = [trained / "adaptive", trained / "shared"]
    result = adanat("report", *paths, "--out", file, "--num", "48", "--device", "cpu", "--quiet", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    return file.read_text(encoding="utf-8"), json.loads(result.stdout), file
