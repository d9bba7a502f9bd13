"""Runs for the tests of the report that no training has made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adanat_toolkit.config import RunConfig, validate
from adanat_toolkit.report.reading import Run


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
