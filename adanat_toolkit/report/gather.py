"""Everything of a report that takes a generator: yardstick tables, pictures, knobs. One generator is loaded at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

from ..core import Generator
from ..errors import AdaNATError, ConfigError, DataError, PluginError, WeightsError
from ..evaluation import MINIMUM, choose_features, evaluate_policies, is_statistics, own_contexts, real_side
from ..images import OwnContexts, images_for
from ..limits import check_seeds
from ..policies import load_policy, open_generator
from ..registry import create_features
from ..sampling import seed_range
from .probing import Probe, Ranking, Step, probe, rank, trace
from .reading import Run
from .yardstick import Block, blocks

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many images of it are done, and how many there are."""
IMAGES = 500
"""Images of each policy under the yardstick, unless the user says: seconds on a laptop, enough to see a clear difference."""
PROBED = 128
"""Images that the knobs' spread and the ranking are taken of."""
SHOWN = 20
"""Images in the comparison of the same seeds."""


@dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        images: for the yardstick; 0: only what is stored. None: what is stored where every run of a generator has it, else
            :data:`IMAGES`.
        seed: first seed of pictures and yardstick. pictures: False leaves out all that takes a generator.
        data, features: of the yardstick; None: the generator's own real images and protocol. A path in a run's
            config.json is not followed.
        weights, options: of the generator, see ``open_generator``.
    """

    images: int | None = None
    seed: int = 0
    pictures: bool = True
    data: str | None = None
    features: str | None = None
    weights: str | None = None
    options: Sequence[str] = ()
    offline: bool = False
    device: str = "auto"
    dtype: str = "auto"
    batch: int | None = None

    def check(self) -> None:
        """Raises ConfigError where a number makes no sense."""
        if self.images is not None and self.images != 0 and self.images < MINIMUM:
            raise ConfigError(
                f"--num {self.images} is too few for any figure; give at least {MINIMUM}, or 0 for no new ones."
            )
        check_seeds(self.seed, max(self.images or 0, PROBED))
        if self.images and not self.pictures:
            raise ConfigError(
                f"--num {self.images} takes a generator, and --curves-only leaves it out; give one of them."
            )


@dataclass(frozen=True)
class Traced:
    """A sample step by step under both; ``why`` says how it was chosen, ``value`` is its measure (see ``rank``)."""

    why: str
    seed: int
    label: str
    value: float | None
    learned: list[Step]
    hand_made: list[Step]


@dataclass
class Look:
    """Pictures and knobs of one run."""

    run: Run
    probe: Probe
    ranking: Ranking
    traced: list[Traced]
    acted: tuple[str, ...]


@dataclass
class Group:
    """The runs of one generator that have the same number of steps and draw the same contexts.

    Attributes:
        schedule: text of the hand-made schedule. hand_made: its images of the first seeds. looks: of each run.
    """

    generator: str
    steps: int
    schedule: str
    hand_made: Probe
    looks: list[Look] = field(default_factory=list)


@dataclass
class Gathered:
    """What a generator had to be loaded for. ``notes``: what was left out, and why."""

    blocks: list[Block] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def gather(
    runs: Sequence[Run],
    settings: Settings,
    progress: Progress,
    on_tables: Callable[[Sequence[Run], list[Block]], None] = lambda runs, tables: None,
    ready: Generator | None = None,
) -> Gathered:
    """Tables and pictures of all runs.

    Args:
        on_tables: called with the runs of a generator and the tables so far, before any pictures of them are made.
        ready: the generator of all runs, where it is loaded already.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: the generator cannot be loaded, or the yardstick that the user
        asked for cannot be read. CheckpointError: damaged files.
    """
    out = Gathered()
    out.notes += [_stale(run) for run in runs if run.stale]
    results: list[tuple[dict[str, Any], dict[str, Run], bool]] = []
    for run in runs:
        if run.card is None:
            out.notes.append(
                f"{run.name}: no policy is stored before the first checkpoint (checkpoint_every = "
                f"{run.config.checkpoint_every}), so there are no pictures and no table of it yet."
            )
    for members in _by_generator(run for run in runs if run.card is not None):
        generator = (ready or _open(members[0], settings)) if settings.pictures else None
        wanted = settings.images
        stored = wanted == 0 or not settings.pictures or (wanted is None and all(run.evaluation for run in members))
        if stored:
            results += [_stored(run) for run in members if run.evaluation is not None]
        elif generator is not None:
            results += _judge(generator, members, settings, out.notes, progress)
        on_tables(members, blocks(results))
        if generator is not None:
            out.groups += _look(generator, members, settings, out.notes, progress)
    out.blocks = blocks(results)
    return out


def _by_generator(runs: Iterable[Run]) -> list[list[Run]]:
    groups: dict[str, list[Run]] = {}
    for run in runs:
        chosen = run.config.generator
        groups.setdefault(json.dumps([chosen.name, chosen.options], sort_keys=True), []).append(run)
    return list(groups.values())


def _open(run: Run, settings: Settings) -> Generator:
    try:
        return open_generator(
            None,
            [str(run.path)],
            weights=settings.weights,
            options=settings.options,
            device=settings.device,
            dtype=settings.dtype,
            offline=settings.offline,
        )
    except (WeightsError, PluginError) as error:
        raise type(error)(f"{error} Or leave out what takes the generator with --curves-only.") from None


def _stored(run: Run) -> tuple[dict[str, Any], dict[str, Run], bool]:
    assert run.evaluation is not None
    return run.evaluation, {row["policy"]: run for row in run.evaluation["policies"]}, True


def _stale(run: Run) -> str:
    return (
        f"{run.name}: the evaluation stored in its folder is of another policy (the run went on since), so it is left out; "
        "adanat evaluate makes a new one."
    )


def _judge(
    generator: Generator, runs: Sequence[Run], settings: Settings, notes: list[str], progress: Progress
) -> list[tuple[dict[str, Any], dict[str, Run], bool]]:
    """One evaluation for each set of real images that the runs name."""
    by_data: dict[str | None, list[Run]] = {}
    for run in runs:
        by_data.setdefault(settings.data or run.config.data.path, []).append(run)
    out: list[tuple[dict[str, Any], dict[str, Run], bool]] = []
    for data, members in by_data.items():
        try:
            if data != settings.data:
                raise DataError(f"{members[0].path / 'config.json'} names its real images {data!r}. {_GIVE_DATA}")
            name = choose_features(generator, settings.features)
            # A report that nobody asked for figures fetches no feature network for them.
            offline = settings.offline or settings.images is None
            extractor = create_features(name, device=generator.device, offline=offline)
            real = real_side(generator, data, extractor)
            comparison = evaluate_policies(
                generator,
                [str(run.path) for run in members],
                extractor,
                real,
                contexts_from=own_contexts(generator, data, real),
                count=settings.images or IMAGES,
                seed=settings.seed,
                batch=settings.batch,
                offline=offline,
                progress=progress,
            )
        except (ConfigError, PluginError, WeightsError, DataError) as error:
            if settings.images is not None:  # asked for
                raise _with_hint(error) from None
            names = ", ".join(run.name for run in members)
            notes.append(f"{names}: no yardstick table. {error}")
            continue
        out.append((comparison.to_json(), {str(run.path): run for run in members}, False))
    return out


_GIVE_DATA = "What a folder names is not opened: give it again if you trust it (--data ...)."


def _contexts_in(generator: Generator, path: str | None) -> tuple[OwnContexts | None, str | None]:
    """What a run drew its contexts from (see ``evaluation.own_contexts``), or why that cannot be read any more."""
    if path is None or generator.context_kind == "none":
        return None, None
    try:
        return own_contexts(generator, path, images_for(generator, path, memory_limit=0)), None
    except DataError as error:
        if generator.context_kind == "text":
            raise
        return None, str(error)


def _with_hint(error: AdaNATError) -> AdaNATError:
    return type(error)(f"{error} Or give --num 0: no table, only what is stored.")


def _look(
    generator: Generator, runs: Sequence[Run], settings: Settings, notes: list[str], progress: Progress
) -> list[Group]:
    groups: dict[tuple[int, bool], Group] = {}
    seeds = seed_range(settings.seed, PROBED)
    contexts_in = cache(partial(_contexts_in, generator))
    for run in runs:
        policy = load_policy(str(run.path), generator)
        steps = policy.steps
        by_hand = load_policy("fixed", generator, steps)
        contexts_from = None
        if run.config.data.path is not None and generator.context_kind != "none":
            if settings.data is not None and not is_statistics(settings.data):
                contexts_from, missing = contexts_in(settings.data)
            else:
                missing = f"It was trained with {run.config.data.path!r}. {_GIVE_DATA}"
            if missing is not None:
                notes.append(f"{run.name}: its pictures show contexts of the generator's own distribution. {missing}")
        key = steps, contexts_from is None  # pictures of one group show the same contexts
        if key not in groups:
            images = probe(generator, by_hand, seeds[:SHOWN], contexts_from=contexts_from, batch=settings.batch)
            groups[key] = Group(generator.name, steps, generator.default_schedule, images)

        def done(count: int, name: str = run.name) -> None:
            progress(f"{name}: pictures", count, PROBED)

        found = probe(generator, policy, seeds, contexts_from=contexts_from, batch=settings.batch, progress=done)
        ranking = rank(found.knobs, policy.space)
        chosen = _chosen(ranking)
        picked = [found.seeds[i] for i in chosen.values()]
        ours = trace(generator, policy, picked, contexts_from)
        theirs = trace(generator, by_hand, picked, contexts_from)
        traced = [
            Traced(why, found.seeds[i], found.labels[i], ranking.values[i] if ranking.values else None, *both)
            for (why, i), both in zip(chosen.items(), zip(ours, theirs, strict=True), strict=True)
        ]
        groups[key].looks.append(Look(run, found, ranking, traced, policy.space.acted))
    return list(groups.values())


def _chosen(ranking: Ranking) -> dict[str, int]:
    """Positions of the samples that are shown step by step, by why."""
    if not ranking.order:
        return {"the first seed": 0, "the second seed": 1}
    order = ranking.order
    return {"the most simple": order[0], "in the middle": order[len(order) // 2], "the least simple": order[-1]}
