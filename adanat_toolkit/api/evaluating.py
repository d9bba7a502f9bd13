"""Judging policies against real images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adanat_plugins.pretrained import pretrained_policy

from ..commands.inputs import choose_refinement, refuse_lone_judge
from ..core import Generator
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..evaluation import (
    Comparison,
    Judged,
    Progress,
    choose_features,
    evaluate_policies,
    own_contexts,
    real_side,
    write_comparison,
)
from ..metrics import FIGURES, direction
from ..registry import create_features
from .arguments import checked, require_generator, wrong
from .pages import table
from .policies import NEEDS_POLICY, Spec, as_policy
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

    @checked
    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``evaluation.json`` and ``comparison.png``, as ``adanat evaluate --out`` does.

        Raises:
            OutputError: the folder cannot be written.
        """
        write_comparison(self.comparison, Path(folder))

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


@checked
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
    refine: int | None = None,
    judge: Spec | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Judge policies against the real images, beside the hand-made schedule on the same seeds and contexts.

    Args:
        policies: one or a list of what :func:`load_policy` returns or takes, or runs; None: the policy that ships, where it
            takes ``steps``.
        num: images of each policy, at least 16. seed: the first one; the others follow.
        steps: T of hand-made schedules; a learned policy has its own, which this must equal where no schedule is named.
        features: the feature protocol; None: the generator's own (see :func:`list_features`).
        data: real images, or their statistics; None: those that ship with the generator.
        baseline: the hand-made schedule to stand beside; None: the best known one. batch: images in flight at once.
        refine: judge every policy once more, as the best of so many candidates an image. judge: the run whose reward
            chooses among them; None: the first policy's.
        progress: called with what is being done, how many images of it are done, and how many there are.

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
    refuse_lone_judge(refine, judge)
    listed: Any = [policies] if _is_one(policies) else policies
    if not isinstance(listed, Sequence):
        raise wrong("policies", policies, f"a list of policies, each {NEEDS_POLICY}, or a Run")
    if not listed:
        raise ConfigError("policies is empty; name at least one, or leave it out for the policy that ships.")
    if policies is None and pretrained_policy(generator, steps) is None:
        listed = ()  # the hand-made schedule alone
    names, ready = _named(listed, generator, steps)
    extractor = create_features(choose_features(generator, features), device=generator.device, offline=offline)
    refinement = choose_refinement(generator, refine, judge or (names or ["fixed"])[0], offline=offline)
    path = None if data is None else os.fspath(data)
    real = real_side(generator, path, extractor)
    comparison = evaluate_policies(
        generator,
        names,
        extractor,
        real,
        contexts_from=own_contexts(generator, path, real),
        count=num,
        seed=seed,
        steps=steps,
        baseline=baseline,
        batch=batch,
        offline=offline,
        ready=ready,
        refinement=refinement,
        progress=progress,
    )
    return Scores(comparison)


def _is_one(policies: Any) -> bool:
    return policies is None or isinstance(policies, str | os.PathLike | SamplingPolicy)


def _named(
    listed: Sequence[Any], generator: Generator, steps: int | None
) -> tuple[list[str], dict[int, SamplingPolicy]]:
    """What the policies are called in the table: as the user wrote them, else their kind, with a number where another one is
    called so; and those that are loaded already, by their position."""
    texts = {os.fspath(one) for one in listed if isinstance(one, str | os.PathLike)}
    names: list[str] = []
    ready: dict[int, SamplingPolicy] = {}
    taken: set[tuple[str, int]] = set()
    for position, one in enumerate(listed):
        if isinstance(one, str | os.PathLike):
            names.append(os.fspath(one))
            continue
        # ``steps`` are those of hand-made schedules.
        policy = as_policy(one, generator, steps=steps if one is None else None)
        kind = str(policy.card.get("kind", policy.network.kind))  # what a trainer exports has no card
        schedule = policy.card.get("schedule") if kind == "fixed" else None
        name = label = kind if schedule is None else f"fixed:{schedule}"
        again = 2
        # A schedule's text and its T say which policy it is; a kind does not, and may be the name of a folder too.
        while (label, policy.steps) in taken or (schedule is None and label in texts):
            label, again = f"{name} ({again})", again + 1
        taken.add((label, policy.steps))
        ready[position] = policy
        names.append(label)
    return names, ready
