"""What ``adanat evaluate --out`` leaves behind, read back: a file that may come from anybody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from ..errors import AdaNATError
from ..limits import LARGEST_FIGURE
from ..storage import read_document

StoredFigure = Annotated[float, Field(ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)]
StoredInterval = tuple[StoredFigure, StoredFigure]
Count = Annotated[int, Field(ge=1)]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="allow")


class _Judged(_Stored):
    policy: str
    steps: Count
    card: dict[str, Any]
    figures: dict[str, StoredFigure]
    intervals: dict[str, StoredInterval]


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


def read_evaluation(file: Path, *, error: type[AdaNATError], remedy: str) -> dict[str, Any]:
    """The facts of an ``evaluation.json``, as ``evaluation.Comparison.to_json`` gives them.

    Args:
        error, remedy: see ``documents.read_document``.

    Raises:
        error: it cannot be read, or is no such result.
    """
    found: _Evaluation = read_document(file, _Evaluation, error=error, remedy=remedy)
    return found.model_dump()
