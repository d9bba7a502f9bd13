"""``adanat evaluate``: policies against the real images, always beside a hand-made schedule on the same seeds and contexts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core import ActionSpace, FeatureExtractor, Generator, ImageSource, PolicySpec
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..images import GRID_LIMIT, OwnContexts, grid, side_by_side, write_png
from ..limits import MOST_STEPS, check_seeds
from ..metrics import (
    Evaluation,
    Reference,
    require_comparable,
    resampled_frechets,
    resampled_interval,
    resamples_of,
)
from ..policies import load_policy, local_spec
from ..registry import toolkit_version
from ..runtime import Aside, distributed, dtype_name, float32_by_default
from ..sampling import Refinement, seed_range
from ..storage import prepare_folder, sealed, write_json
from .choices import choose_scorer
from .yardstick import Images, Yardstick

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images of it are done, and how many there are."""
MINIMUM = 16
"""Fewer images than this give no figure worth printing."""
NOTHING = 1e-12
"""A Frechet distance that is rounding alone: nothing is a multiple of 0."""
COMPARISON = "comparison.png"
RESULT = "evaluation.json"


@dataclass(frozen=True)
class Judged:
    """One policy's images under the protocol.

    Attributes:
        policy: as the user wrote it. steps: T. card: of the policy. evaluation: figures and intervals.
        frechets: (R,) float64 distances of resampled images, drawn alike for all policies; None where each takes seconds.
        shown: the first images, (n, 3, H, W) uint8.
    """

    policy: str
    steps: int
    card: dict[str, Any]
    evaluation: Evaluation
    frechets: Tensor | None = field(repr=False)
    shown: Tensor = field(repr=False)


@dataclass(frozen=True)
class Compared:
    """A policy beside the hand-made schedule of as many steps.

    Attributes:
        ratio: Frechet distance over the hand-made one's; below 1 is better.
        ratio_interval: 95 % bootstrap interval over seeds, pairs of images drawn together; None where it is not cheap.
    """

    judged: Judged
    baseline: Judged
    ratio: float
    ratio_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`evaluate_policies`."""

    rows: list[Compared]
    baselines: list[Judged]
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON-able: the facts, one object a hand-made schedule and one a policy, and the ``digest`` of all of them."""
        policies = [
            {
                **_json(row.judged),
                "baseline": row.baseline.policy,
                "ratio": {"frechet": row.ratio},
                "ratio_interval": None if row.ratio_interval is None else {"frechet": list(row.ratio_interval)},
            }
            for row in self.rows
        ]
        return sealed({**self.facts, "baselines": [_json(b) for b in self.baselines], "policies": policies})


def _json(judged: Judged) -> dict[str, Any]:
    return {
        "policy": judged.policy,
        "steps": judged.steps,
        "card": judged.card,
        "figures": judged.evaluation.figures,
        "intervals": {name: list(pair) for name, pair in judged.evaluation.intervals.items()},
    }


@float32_by_default()
def evaluate_policies(
    generator: Generator,
    policies: Sequence[str | os.PathLike[str]],
    extractor: FeatureExtractor,
    real: ImageSource | Reference,
    *,
    count: int = 2000,
    seed: int = 0,
    steps: int | None = None,
    baseline: str | None = None,
    batch: int | None = None,
    contexts_from: OwnContexts | None = None,
    offline: bool = False,
    ready: Mapping[int, SamplingPolicy] | None = None,
    refinement: Refinement | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Figures of every policy and of the hand-made schedule.

    With several processes all call it: each makes a share of the images, the main one judges them, and the others return a
    comparison without rows.

    All of them make the images of the same seeds, and a seed draws the same context under every policy.

    Args:
        real: the images, or their statistics alone, which give the Frechet distance and nothing else.
        policies: specs of ``load_policy``; none: the hand-made schedule alone.
        steps: T of the fixed ones among them, or of the hand-made schedule alone. Without any of these it must be the
            learned policies' own.
        count: images of each. seed: the first one; the others follow.
        baseline: schedule text, default the generator's best known one; it takes as many steps as each policy does.
        contexts_from: see ``images.draw_contexts``.
        offline: forbids to download the network of the CLIP scores, or a policy.
        ready: those among ``policies`` that are loaded already, by their position there; the name that stands there is the
            row's. Of unlike policies of one T it must differ.
        refinement: each policy is judged once more with it, and beside it the hand-made schedule with so many more steps
            that an image takes as many forwards, where the generator takes so many.

    Raises:
        ConfigError: too few images, or a policy that does not fit. CheckpointError, DataError.
    """
    if count < MINIMUM:
        raise ConfigError(
            f"--num {count} is too few for any figure; give at least {MINIMUM} (2000 or more to compare)."
        )
    check_seeds(seed, count)
    specs = [os.fspath(spec) for spec in policies]
    hand_made = f"fixed:{baseline or generator.default_schedule}"
    # Where no hand-made schedule takes ``steps``, they are the learned policies' own, or a slip.
    taken = any(map(_is_fixed, specs))
    given = dict(ready or {})

    def load(spec: str) -> SamplingPolicy:
        length = steps if _is_fixed(spec) or not taken else None
        return load_policy(local_spec(spec, offline=offline), generator, length)

    loaded = [(spec, given[i] if i in given else load(spec)) for i, spec in enumerate(specs)]
    lengths = dict.fromkeys(policy.steps for _, policy in loaded)
    if not lengths:
        lengths = dict.fromkeys([load_policy(hand_made, generator, steps).steps])
    report = progress or (lambda what, done, total: None)
    yardstick = Yardstick(
        generator,
        extractor,
        real,
        scorer=choose_scorer(generator, extractor, offline=offline),
        contexts_from=contexts_from,
        progress=lambda done, total: report("real images", done, total),
    )

    wanted = [
        (hand_made if _is_baseline(spec, baseline, hand_made) else spec, policy.steps) for spec, policy in loaded
    ]
    by_key = {key: policy for key, (_, policy) in zip(wanted, loaded, strict=True)}

    def of(name: str, length: int) -> SamplingPolicy:
        """The policy of a row. The hand-made one has a row at several T."""
        return load_policy(hand_made, generator, length) if name == hand_made else by_key[name, length]

    beside = [(key, key[1]) for key in wanted]  # a row, and T of the hand-made schedule that it stands beside
    refined: dict[tuple[str, int], tuple[str, int]] = {}
    if refinement is not None:
        for key in dict.fromkeys(wanted or [(hand_made, length) for length in lengths]):
            best = f"{key[0]}, best of {refinement.candidates}", key[1]
            refined[best] = key
            beside.append((best, key[1]))
            more = _steps_of_forwards(generator, of(*key).space, refinement.candidates)
            if more is not None:
                beside.append(((hand_made, more), key[1]))
    with Aside(generator.device) as meanwhile:
        begun: dict[tuple[str, int], Future[Judged]] = {}
        for key in dict.fromkeys([*((hand_made, length) for length in lengths), *(key for key, _ in beside)]):
            policy = of(*refined.get(key, key))
            images = yardstick.make(
                policy,
                seed_range(seed, count),
                keep=GRID_LIMIT,
                batch=batch,
                refinement=refinement if key in refined else None,
                progress=partial(report, key[0]),
            )
            if distributed.is_main():  # one by one: few sets of features are held, however many policies there are
                begun[key] = meanwhile.begin(partial(_judge, *key, policy.card, yardstick, images, seed))
        judged = {key: one.result() for key, one in begun.items()}
    if not distributed.is_main():
        return Comparison([], [], {})
    baselines = {length: judged[hand_made, length] for length in lengths}
    rows = []
    for key, length in beside:
        own = baselines[length]
        require_comparable(judged[key].evaluation, own.evaluation)
        rows.append(_compare(judged[key], own))
    first = next(iter(baselines.values())).evaluation
    facts = {
        "toolkit": toolkit_version(),
        "generator": generator.name,
        "generator_fingerprint": generator.fingerprint,
        "device": generator.device.type,
        "dtype": dtype_name(generator.dtype),
        "protocol": extractor.protocol,
        "protocol_card": dict(extractor.card),
        "images": count,
        "seeds": [seed, seed + count - 1],
        "real_images": first.n_real,
        "data": first.data,
        "estimators": first.settings,
    }
    if refinement is not None:
        spaces = {key[1]: of(*key).space for key in refined.values()}
        facts["refine"] = [{"steps": t, **refinement.facts(generator, space)} for t, space in spaces.items()]
    return Comparison(rows, list(baselines.values()), facts)


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """``evaluation.json``, then ``comparison.png``: the first images of every policy beside the hand-made ones, same seeds.

    Raises:
        OutputError: the folder cannot be written.
    """
    prepare_folder(folder)
    write_json(folder / RESULT, comparison.to_json())
    shown = {id(j): j for j in [*comparison.baselines, *(row.judged for row in comparison.rows)]}.values()
    titles = [
        f"{'hand-made' if _is_fixed(j.policy) else j.card.get('kind', 'policy')}, T={j.steps}, "
        f"Frechet {j.evaluation.figures['frechet']:.3f}"
        for j in shown
    ]
    write_png(folder / COMPARISON, side_by_side([grid(j.shown) for j in shown], titles))


def _is_baseline(spec: str, baseline: str | None, hand_made: str) -> bool:
    return spec == hand_made or (spec == "fixed" and baseline is None)


def _is_fixed(spec: str) -> bool:
    return PolicySpec.parse(spec).fixed


def _steps_of_forwards(generator: Generator, space: ActionSpace, times: int) -> int | None:
    """The least T whose images take ``times`` as many forwards as those of ``space``; None where the generator takes no
    such T."""
    free = generator.free_actions
    target = times * (space.decisions - free)
    for steps in range(space.steps, MOST_STEPS + 1):
        try:
            if generator.decisions(steps) - free >= target:
                return steps
        except ConfigError:
            return None
    return None


def _judge(
    policy: str, steps: int, card: dict[str, Any], yardstick: Yardstick, images: Images, seed: int
) -> Judged:
    frechets = None
    if resamples := resamples_of(images.features):
        frechets = resampled_frechets(images.features, yardstick.reference, bootstrap=resamples, seed=seed)
    return Judged(policy, steps, card, yardstick.judge(images, seed=seed, frechets=frechets), frechets, images.shown)


def _compare(judged: Judged, baseline: Judged) -> Compared:
    ratio = judged.evaluation.figures["frechet"] / max(baseline.evaluation.figures["frechet"], NOTHING)
    interval = None
    if judged.frechets is not None and baseline.frechets is not None:
        interval = resampled_interval(ratio, judged.frechets / baseline.frechets.clamp(min=NOTHING))
    return Compared(judged, baseline, ratio, interval)
