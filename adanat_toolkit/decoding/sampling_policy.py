"""What makes images with a frozen generator: a policy, its action space, and the decoding rule whose steps are taken."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from ..core import ActionSpace, Policy
from .token_generator import DecodingRule


@dataclass(frozen=True, eq=False)
class SamplingPolicy:
    """A policy ready to sample with.

    Attributes:
        network: chooses the raw actions, (B, A) float32.
        space: turns them into the generator's knobs; bound to a schedule of T steps.
        rule: the published sampler whose steps a token generator takes; None for the toolkit's own step, and for generators
            without tokens.
        card: JSON-able facts: of a learned policy what its ``policy.json`` holds; empty for one that was built in memory.
    """

    network: Policy
    space: ActionSpace
    rule: DecodingRule | None = None
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """T, the number of steps of an image."""
        return self.space.steps

    def __repr__(self) -> str:
        made = self.card.get("schedule") or self.card.get("generator", {}).get("name", "")
        return f"SamplingPolicy({self.card.get('kind', self.network.kind)}, {self.steps} steps, {made})"


@runtime_checkable
class ReadsPolicies(Protocol):
    """A generator for which policies were published in a file of their authors' own."""

    def read_policy(self, path: Path, steps: int | None, changes: str = "") -> SamplingPolicy:
        """What :func:`load_policy` returns, from such a file; ``changes`` of its recipe as ``NAME=VALUE,...``."""
        ...
