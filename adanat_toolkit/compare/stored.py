"""Results of a comparison's cells, read back: from files in ``cells/`` and from the reports of others."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from ..evaluation import Count, StoredFigure, StoredInterval, require_inside
from ..metrics import Evaluation
from .grid import MOST_CELLS, CompareConfig
from .result import Cell, Result

Text = Annotated[str, Field(max_length=10_000)]
Name = Annotated[str, Field(max_length=100, pattern=r"^[\w.:+-]*$")]
"""What stands in a table as it is: no Markdown, no line breaks."""


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError("a name of a reward has control characters")
    return text


Title = Annotated[Text, AfterValidator(_shown)]
"""A reward as a table calls it, with its options: one line."""
Amount = Annotated[int, Field(ge=0)]
Curve = list[list[StoredFigure]]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Cell(_Stored):
    policy: Text
    reward: Text | None
    steps: Count
    seed: Amount
    control: Literal["mean", "within", "overall"] | None = None


class _Evaluation(_Stored):
    protocol: str
    n_fake: Count
    n_real: Count | None
    data: str
    figures: dict[str, StoredFigure]
    intervals: dict[str, StoredInterval] = {}
    settings: dict[str, Any] = {}

    @field_validator("figures")
    @classmethod
    def _judged(cls, figures: dict[str, float]) -> dict[str, float]:
        if figures.get("frechet", -1) < 0:
            raise ValueError("there is no figure 'frechet' of 0 or more")
        return figures

    @model_validator(mode="after")
    def _inside(self) -> _Evaluation:
        require_inside(self.figures, self.intervals)
        return self


class _Alarm(_Stored):
    name: Name
    since: Amount
    message: Text


class _Knobs(_Stored):
    """``names`` of K knobs, and (T, K) numbers each."""

    names: list[Text] = []
    mean: Curve = []
    low: Curve = []
    high: Curve = []

    @model_validator(mode="after")
    def _even(self) -> _Knobs:
        widths = {len(step) for curve in (self.mean, self.low, self.high) for step in curve}
        if not len(self.mean) == len(self.low) == len(self.high) or not widths <= {len(self.names)}:
            raise ValueError("mean, low and high need as many steps each, and one number a knob")
        return self


class _Training(_Stored):
    trajectories: Amount
    reward: StoredFigure | None
    frechet: StoredFigure | None = None


class StoredResult(_Stored):
    """``tables.Result.to_json``."""

    cell: _Cell
    evaluation: _Evaluation | None
    schedule: Text | None = None
    images: Amount = 0
    alarms: list[_Alarm] = []
    knobs: _Knobs = _Knobs()
    training: list[_Training] = []
    search: dict[str, Any] | None = None
    partial: bool = False
    told: list[Name] = []
    scores: dict[Title, tuple[StoredFigure, StoredFigure]] = {}
    unscored: list[Title] = []
    error: str | None = None
    device: Name = ""

    @model_validator(mode="after")
    def _whole(self) -> StoredResult:
        if self.evaluation is not None and not (self.knobs.names and self.knobs.mean):
            raise ValueError("an evaluated cell has knobs")
        return self

    def result(self) -> Result:
        found = self.model_dump(exclude_unset=True)
        evaluation = None if found["evaluation"] is None else Evaluation(**found["evaluation"])
        return Result(**{**found, "cell": Cell(**found["cell"]), "evaluation": evaluation})


class StoredCell(_Stored):
    """A file in ``cells/``."""

    key: str
    result: StoredResult
    digest: str | None = None
    """None: made by a version without one."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="allow")
    config: CompareConfig
    device: Name
    generator_fingerprint: str
    protocol: str
    data: str
    dtype: str
    default_schedule: str | None = None
    sources: dict[str, str] = {}


class StoredReport(BaseModel):
    """What is read of a ``compare.json``."""

    model_config = ConfigDict(extra="allow")
    facts: _Facts
    cells: list[StoredResult] = Field(max_length=MOST_CELLS)
