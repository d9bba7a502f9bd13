"""Judging policies against real images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from ..core import Generator, PolicySpec
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..evaluation import (
    Comparison,
    Judged,
    choose_features,
    evaluate_policies,
    own_contexts,
    real_side,
)
from ..metrics import FIGURES, direction
from ..registry import create_features
from .arguments import require_count, require_generator, wrong
from .pages import table
from .policies import NEEDS_POLICY, Spec, as_policy, load_policy
from .training import Run


class Scores:
    """Figures of policies and of the hand-made schedule on the same seeds; a notebook shows them as a table.

    Attributes:
        rows: one a policy, the hand-made schedules first: ``policy``, ``steps``, every figure by its name
            (docs/evaluation.md), and ``ratio``, the Frechet distance relative to the hand-made schedule's.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison
        judged = [(one, 1.0) for one in comparison.baselines]
        judged += [(row.judged, row.ratio) for row in comparison.rows if row.judged is not row.baseline]
        self.rows: list[dict[str, Any]] = [_row(one, ratio) for one, ratio in judged]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what ``adanat evaluate --json`` prints, with the intervals and everything the figures depend on."""
        return self.comparison.to_json()

    def __str__(self) -> str:
        head, rows = self._cells()
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in [head, *rows]]
        return "\n".join([self._title(), *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        marked = [f"{name} ({direction(name)})" if name in FIGURES else name for name in head]
        return table(marked, rows, self._title())

    def _title(self) -> str:
        facts = self.comparison.facts
        first, last = facts["seeds"]
        return f"{facts['generator']}: {facts['images']:,} images each, seeds {first} to {last}, {facts['protocol']}"

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = [name for name in FIGURES if all(name in row for row in self.rows)]
        head = ["policy", "T", *names, "ratio"]
        rows = [
            [row["policy"], str(row["steps"]), *(f"{row[name]:.4f}" for name in names), f"{row['ratio']:.3f}"]
            for row in self.rows
        ]
        return head, rows


def _row(judged: Judged, ratio: float) -> dict[str, Any]:
    return {"policy": judged.policy, "steps": judged.steps, **judged.evaluation.figures, "ratio": ratio}


def evaluate(
    generator: Generator,
    policies: Sequence[SamplingPolicy | Run | Spec | None] | SamplingPolicy | Run | Spec | None = None,
    *,
    num: int = 2000,
    seed: int = 0,
    steps: int | None = None,
    features: str | None = None,
    data: str | os.PathLike[str] | None = None,
    baseline: str | None = None,
    batch: int | None = None,
    offline: bool = False,
) -> Scores:
    """Judge policies against the real images, beside the hand-made schedule on the same seeds and contexts.

    Args:
        policies: one or a list of what :func:`load_policy` returns or takes, or runs; None: the policy that ships.
        num: images of each policy, at least 16. seed: the first one; the others follow.
        steps: T of hand-made schedules; a learned policy has its own.
        features: the feature protocol; None: the generator's own (see :func:`list_features`).
        data: real images, or their statistics; None: those that ship with the generator.
        baseline: the hand-made schedule to stand beside; None: the best known one. batch: images in flight at once.

    Raises:
        ConfigError: an argument is of the wrong type, too few images, or a policy that does not fit.
        CheckpointError, DataError, PluginError, WeightsError: what is named cannot be read, found or loaded.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> generator = adanat.load_generator("maskgit", device="cpu")
        >>> scores = adanat.evaluate(generator, ["fixed"], num=16)
        >>> scores.rows[0]["steps"], scores.rows[0]["ratio"]
        (4, 1.0)
    """
    generator = require_generator(generator)
    require_count("num", num)
    require_count("seed", seed, least=0)
    if batch is not None:
        require_count("batch", batch)
    if data is not None and not isinstance(data, str | os.PathLike):
        raise wrong("data", data, "the path of a folder, a zip file or statistics")
    listed: Any = [policies] if _is_one(policies) else policies
    if not isinstance(listed, Sequence):
        raise wrong("policies", policies, f"a list of policies, each {NEEDS_POLICY}, or a Run")
    if not listed:
        raise ConfigError("policies is empty; name at least one, or leave it out for the policy that ships.")
    ready: dict[str, SamplingPolicy] = {}
    for one in listed:
        policy, name = _named(one, generator, steps)
        again = 2
        while (label := name if name not in ready else f"{name} ({again})") in ready:
            again += 1
        ready[label] = policy
    extractor = create_features(choose_features(generator, features), device=generator.device, offline=offline)
    path = None if data is None else os.fspath(data)
    real = real_side(generator, path, extractor)
    comparison = evaluate_policies(
        generator,
        list(ready),
        extractor,
        real,
        contexts_from=own_contexts(generator, path, real),
        count=num,
        seed=seed,
        baseline=baseline,
        batch=batch,
        offline=offline,
        ready=ready,
    )
    return Scores(comparison)


def _is_one(policies: Any) -> bool:
    return policies is None or isinstance(policies, str | os.PathLike | SamplingPolicy)


def _named(one: SamplingPolicy | Run | Spec | None, generator: Generator, steps: int | None) -> tuple[SamplingPolicy, str]:
    """A policy, and what it is called in the table: as the user wrote it, or its kind."""
    if isinstance(one, str | os.PathLike):
        name = os.fspath(one)
        parsed = PolicySpec.parse(name)
        fixed = parsed.fixed and not parsed.blend
        policy = load_policy(one, generator, steps=steps if fixed else None)
        return policy, f"fixed:{policy.card['schedule']}" if fixed else name
    policy = as_policy(one, generator, steps=steps)
    kind = str(policy.card["kind"])
    return policy, f"fixed:{policy.card['schedule']}" if kind == "fixed" else kind
