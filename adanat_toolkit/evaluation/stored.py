"""What ``adanat evaluate --out`` leaves behind, read back: a file that may come from anybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..errors import AdaNATError
from ..limits import LARGEST_FIGURE
from ..storage import read_sealed, shortened

StoredFigure = Annotated[float, Field(ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)]
StoredInterval = tuple[StoredFigure, StoredFigure]
Count = Annotated[int, Field(ge=1)]


def require_inside(figures: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> None:
    """
    Raises:
        ValueError: a figure lies outside of its own interval, in which every one of ours is.
    """
    for name, (low, high) in intervals.items():
        value = figures.get(name)
        rounding = 1e-6 * (1 + abs(low) + abs(high))
        if value is not None and not low - rounding <= value <= high + rounding:
            raise ValueError(f"the figure {shortened(name)} is {value:g}, outside of its interval {low:g} to {high:g}")


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Judged(_Stored):
    policy: str
    steps: Count
    card: dict[str, Any]
    figures: dict[str, StoredFigure]
    intervals: dict[str, StoredInterval]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        require_inside(self.figures, self.intervals)
        return self


class _Ratio(_Stored):
    frechet: StoredFigure


class _RatioInterval(_Stored):
    frechet: StoredInterval


class _Compared(_Judged):
    baseline: str
    ratio: _Ratio
    ratio_interval: _RatioInterval | None


class _Evaluation(_Stored):
    """``evaluation.Comparison.to_json``."""

    toolkit: str
    generator: str
    generator_fingerprint: str
    device: str
    dtype: str
    protocol: str
    protocol_card: dict[str, Any]
    images: Count
    seeds: tuple[int, int]
    real_images: Count | None
    data: str
    estimators: dict[str, Any]
    baselines: list[_Judged]
    policies: list[_Compared]

    @model_validator(mode="after")
    def _one_a_seed(self) -> Self:
        first, last = self.seeds
        if last - first + 1 != self.images:
            raise ValueError(f"images is {self.images}, and seeds {first} to {last} are {last - first + 1}")
        return self


def read_evaluation(file: Path, *, error: type[AdaNATError], remedy: str) -> dict[str, Any]:
    """The facts of an ``evaluation.json``, as ``evaluation.Comparison.to_json`` gives them.

    Args:
        error, remedy: see ``documents.read_document``.

    Raises:
        error: it cannot be read, is no such result, or was changed since it was written.
    """
    found: _Evaluation = read_sealed(file, _Evaluation, error=error, remedy=remedy)
    return found.model_dump()
