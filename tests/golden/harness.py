"""What every golden check shares: read a fixture folder, fill the weights, compare, report.

A check is a function ``check(fixture, report)``; ``checks_*.py`` modules export ``CHECKS``, a mapping from a fixture-name
prefix to such a function. The longest matching prefix wins, so that fixtures of other sizes and seeds (``mage_b``) are
found by the same check. A check reads every size from ``fixture.config``, never from the name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .fill import fill

READ_AS = {torch.int32: torch.int64, torch.float16: torch.float32}


@dataclass
class Fixture:
    """One fixture folder. Of ``io``, integer ids come as int64 and float16 numbers, which are exact, as float32; other
    arrays keep their stored dtype.
    """

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.path / "manifest.json").read_text())

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest.get("config", {})

    @cached_property
    def io(self) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        for file in sorted(self.path.glob("*.safetensors")):
            for key, value in load_file(str(file)).items():
                out[key] = value.to(READ_AS.get(value.dtype, value.dtype))
        return out

    @property
    def specs(self) -> dict[str, tuple[list[int], str]]:
        """Key -> (shape, dtype name) of every tensor in the manifest."""
        return {key: (list(entry[0]), entry[1]) for key, entry in self.manifest.get("tensors", {}).items()}

    def state(self, keys: list[str] | None = None) -> dict[str, torch.Tensor]:
        """The filled weights (all, or only ``keys``)."""
        return {key: torch.from_numpy(value.copy()) for key, value in fill(self.manifest, keys).items()}


@dataclass
class Comparison:
    what: str
    error: float
    tolerance: str
    ok: bool


@dataclass
class Report:
    """Collects comparisons; the runner prints the worst one and fails if any is off."""

    comparisons: list[Comparison] = field(default_factory=list)

    def close(self, what: str, own: torch.Tensor, expected: torch.Tensor, atol: float, rtol: float = 0.0) -> None:
        """|own - expected| <= atol + rtol * |expected|, everywhere."""
        own, expected = own.detach().double(), expected.detach().double()
        if own.shape != expected.shape:
            text = f"shape {tuple(expected.shape)}, got {tuple(own.shape)}"
            self.comparisons.append(Comparison(what, float("inf"), text, False))
            return
        difference = (own - expected).abs()
        ok = bool((difference <= atol + rtol * expected.abs()).all())  # NaN compares false, hence off
        worst = float(difference.max()) if difference.numel() else 0.0
        self.comparisons.append(Comparison(what, worst, f"atol {atol:g} rtol {rtol:g}", ok))

    def equal(self, what: str, own: torch.Tensor, expected: torch.Tensor, where: torch.Tensor | None = None) -> None:
        """Exact equality of integers, optionally only ``where`` (bool, same shape)."""
        if own.shape != expected.shape:
            text = f"shape {tuple(expected.shape)}, got {tuple(own.shape)}"
            self.comparisons.append(Comparison(what, float("inf"), text, False))
            return
        wrong = own.long() != expected.long()
        if where is not None:
            wrong = wrong & where
        self.comparisons.append(
            Comparison(what, float(wrong.sum()), "exact (number of wrong entries)", not wrong.any())
        )

    def holds(self, what: str, ok: bool, error: float = 0.0, tolerance: str = "must hold") -> None:
        self.comparisons.append(Comparison(what, error, tolerance, bool(ok)))

    def names_and_shapes(self, own: Mapping[str, torch.Tensor], fixture: Fixture) -> None:
        """The module's state dict must have exactly the manifest's keys, shapes and dtypes."""
        expected = fixture.specs
        actual = {key: (list(value.shape), str(value.dtype).removeprefix("torch.")) for key, value in own.items()}
        wrong = sorted(key for key in expected.keys() | actual.keys() if expected.get(key) != actual.get(key))
        detail = "".join(f"; {key}: {actual.get(key)} for {expected.get(key)}" for key in wrong[:3])
        self.holds(f"names and shapes of {len(expected)} tensors{detail}", not wrong, float(len(wrong)), "exact")

    def summary(self) -> str:
        off = [c for c in self.comparisons if not c.ok]
        worst = max(off or self.comparisons, key=lambda c: c.error)
        return (
            f"{len(self.comparisons) - len(off)}/{len(self.comparisons)} within tolerance; largest error {worst.error:.3g} "
            f"({worst.what}; {worst.tolerance})"
        )


    def assert_within(self) -> None:
        assert self.comparisons, "the check compared nothing"
        off = [f"{c.what}: error {c.error:.4g}, {c.tolerance}" for c in self.comparisons if not c.ok]
        assert not off, "\n".join(off)


Check = Callable[[Fixture, Report], None]


def check_of(fixture: Fixture) -> Check | None:
    """By the folder's name, or else by what the manifest calls it; None when its kind is not supported."""
    return find_check(fixture.name) or find_check(fixture.manifest.get("fixture", ""))


def find_check(name: str) -> Check | None:
    """The registered check with the longest prefix of ``name``; None when the fixture's kind is not supported."""
    checks: dict[str, Check] = {}
    for module in sorted(Path(__file__).parent.glob("checks_*.py")):
        checks.update(importlib.import_module(f"{__package__}.{module.stem}").CHECKS)
    matching = [prefix for prefix in checks if name.startswith(prefix)]
    return checks[max(matching, key=len)] if matching else None
