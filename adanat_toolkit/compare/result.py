"""What a cell of a comparison holds."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from ..metrics import Evaluation
from ..storage import folder_name
from .search import SEARCHES

HAND_MADE = "hand-made"
"""The generator's best known schedule: what every ratio is relative to."""
_AMBIGUOUS = re.compile(r"[^\w.:,=-]|\d_\d")
"""What would be taken for another text once it is a folder's name: ``0/3`` and ``0:3`` both become ``0_3``."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        policy: kind of a learned policy; ``published``, ``hand-made`` or a value of ``search.SEARCHES``; or a policy spec
            given as a baseline.
        reward: None for what is not learned. steps: T. seed: of the training or search, and of the block of images.
        control: of a learned policy's actions, a key of ``controls.TITLES``; None: the policy itself.
    """

    policy: str
    reward: str | None
    steps: int
    seed: int
    control: str | None = None

    @property
    def learned(self) -> bool:
        return self.reward is not None

    @property
    def search(self) -> str | None:
        """Kind of the search, where it is one."""
        return next((kind for kind, policy in SEARCHES.items() if policy == self.policy), None)

    @property
    def name(self) -> str:
        """Safe as a folder's name."""
        texts = [self.policy, *([self.reward] if self.reward else [])]
        parts = [*map(_distinct, texts), f"T{self.steps}", f"s{self.seed}"]
        parts += [self.control] if self.control else []
        return folder_name("-".join(parts))

    @property
    def row(self) -> tuple[str, str | None, int, str | None]:
        """What the cells of a row of the table have in common."""
        return self.policy, self.reward, self.steps, self.control


def _distinct(text: str) -> str:
    """The text, with a hash of it where it is ambiguous as a folder's name. Others keep the names of older grids."""
    return f"{text}-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if _AMBIGUOUS.search(text) else text


@dataclass(frozen=True)
class Result:
    """A finished cell, or one that failed.

    Attributes:
        schedule: text of a hand-made or found schedule, None for a learned policy.
        images: generated for learning or searching (the budget that was used).
        alarms: raised at some time of the training: name, since, message.
        knobs: ``names``, and per step and knob ``mean``, ``low`` and ``high`` (10 and 90 %) over the images.
        training: per iteration ``trajectories``, ``reward`` and, where read, ``frechet`` of the held-out yardstick.
        partial: whether it was optimised on the very features that judge it: a search, or a reward that reads them.
        told: further figures whose network the reward reads.
        scores: mean and standard deviation of the images' scores under the reward that it was trained on, as it was in the
            end; of what is not learned, under each reward of the grid that stands still.
        unscored: rewards that were asked too, and gave scores that are not all finite.
        error: why it failed; there is no evaluation then.
        device: what computed it.
    """

    cell: Cell
    evaluation: Evaluation | None
    schedule: str | None = None
    images: int = 0
    alarms: list[dict[str, Any]] = field(default_factory=list)
    knobs: dict[str, Any] = field(default_factory=dict)
    training: list[dict[str, Any]] = field(default_factory=list)
    search: dict[str, Any] | None = None
    partial: bool = False
    told: list[str] = field(default_factory=list)
    scores: dict[str, tuple[float, float]] = field(default_factory=dict)
    unscored: list[str] = field(default_factory=list)
    error: str | None = None
    device: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def score_figure(reward: str) -> str:
    """Name of the figure that is the mean score under a reward."""
    return f"reward {reward}"
