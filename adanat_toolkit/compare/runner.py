"""``adanat compare``: a grid of {policy} x {reward} x {steps} x {seed} on one generator, trained, scored and put in a table.

Every cell leaves a file in ``cells/`` once it is scored and is then skipped; a learned one has its run folder in ``runs/``
and goes on from there. Cells of other comparisons, made on other machines or at other times, are taken over where every
setting that they depend on is the same.

The image seeds of run seed s are the block from ``first_seed + s * images`` on, for every row, so that the rows of a table
are paired seed by seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core import REWARD, RewardModel, derive
from ..decoding import PUBLISHED_SAMPLERS
from ..errors import ConfigError, DataError, NotFiniteError, PluginError, WeightsError
from ..evaluation import (
    Images,
    Yardstick,
    choose_features,
    choose_scorer,
    own_contexts,
    require_enough,
    require_real_images,
)
from ..images import grid
from ..metrics import TABLE, deciles, flattered
from ..policies import load_policy
from ..registry import create_features, create_generator, create_reward, toolkit_version
from ..runtime import MemoryShortage, dtype_name, float32_by_default, resolve_device, resolve_dtype
from ..sampling import seed_range
from ..storage import RunFolder, prepare_folder, refuse_links, sealed, write_file, write_json
from ..training import alarms, create_trainer, load_judge
from .cells import CellFiles
from .controls import WITHIN, control_actions
from .grid import PUBLISHED, CompareConfig, cell_key
from .render import markdown, to_csv
from .result import HAND_MADE, Cell, Result
from .search import check_kind, search_schedule
from .table import Table, build_table

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (images, or trajectories of a training)."""
Interrupted = (ConfigError, PluginError, DataError, WeightsError, NotFiniteError, MemoryShortage)
"""Errors that a cell fails with while the others go on; damaged files and full disks stop everything."""
SHOWN = 16
"""Images of each cell in the picture of the same seeds."""


class Comparison:
    """A comparison in a folder.

    Args:
        reuse: reports of other comparisons (folders with a ``compare.json``, or such files). Their cells with the same
            settings are taken over; where they were made on another kind of device, the table says so.

    Raises:
        ConfigError, PluginError: of ``CompareConfig.check``. WeightsError, DataError: generator, yardstick, real images or
            reports.
    """

    @float32_by_default()
    def __init__(
        self, config: CompareConfig, out: Path, *, reuse: Sequence[Path] = (), progress: Progress | None = None
    ) -> None:
        config.check()
        self.config, self.out = config, out
        self._sources = config.sources()
        self._still_rewards = config.still_rewards(self._sources)
        self.files = CellFiles(out / "cells", self._key, reuse=reuse, lacks=self._lacks_scores)
        self.progress = progress or (lambda what, done, total: None)
        base = config.base
        self.device = resolve_device(base.device)
        dtype = resolve_dtype(base.dtype, self.device)
        self.generator = create_generator(
            base.generator.name, base.generator.options, device=self.device, dtype=dtype, offline=base.offline
        )
        name = choose_features(self.generator, config.features)
        self.real = require_real_images(self.generator, base.data.path)
        require_enough(self.real)
        self.extractor = create_features(name, device=self.device, offline=base.offline)
        known = self._published() is not None
        classes = self.generator.context_kind == "class"
        self.cells = [
            cell
            for cell in config.cells()
            if (known or cell.policy != PUBLISHED) and (classes or cell.control != WITHIN)
        ]
        """The grid, without ``published`` where the generator's family has no published sampler, and without shuffling
        within contexts where hardly two samples share one."""
        for cell in self.cells:
            if cell.search:
                check_kind(cell.search, self.generator)
            elif not cell.learned:
                load_policy(f"fixed:{self._schedule(cell.policy)}", self.generator, cell.steps)
        self._yardstick: Yardstick | None = None
        # Of each policy whose training was seen to its end: whether its reward reads the features of the yardstick, and
        # further figures whose network it reads.
        self._trained: dict[Cell, tuple[bool, list[str]]] = {}
        # The policy whose controls were made last: its images, and the reward that it was trained on.
        self._replayed: tuple[Cell, Images, Mapping[str, RewardModel]] | None = None
        self._still: dict[str, RewardModel] | None = None
        self._without_scores: dict[str, str] = {}

    @property
    def yardstick(self) -> Yardstick:
        """The real images' features are computed at the first use."""
        if self._yardstick is None:
            self._yardstick = Yardstick(
                self.generator,
                self.extractor,
                self.real,
                scorer=choose_scorer(self.generator, self.extractor, offline=self.config.base.offline),
                contexts_from=own_contexts(self.generator, self.config.base.data.path, self.real),
                progress=lambda i, n: self.progress("real images", i, n),
            )
        return self._yardstick

    def plan(self) -> dict[str, Any]:
        """What the comparison will still need, for ``--dry-run``; images are those of the cells that are not finished."""
        missing = [cell for cell in self.cells if self.files.load(cell) is None]
        learned = [cell for cell in missing if cell.learned and cell.control is None]
        searches = [cell for cell in missing if cell.search]
        base = self.config.base
        readings = 0
        if base.evaluate_every:
            every, last = base.evaluate_every, base.iterations
            # Every so many iterations, and after the first and the last one where they are not among these.
            readings = last // every + (every > 1) + (last > 1 and last % every > 0)
        return {
            "cells": len(self.cells),
            "finished": len(self.cells) - len(missing),
            "learned": len(learned),
            "searches": len(searches),
            "images_for_learning": (len(learned) + len(searches)) * base.iterations * base.batch,
            "images_for_held_out_readings": len(learned) * readings * base.evaluate_images,
            "images_for_the_table": len(missing) * self.config.images,
        }

    @float32_by_default()
    def run(self) -> list[Result]:
        """Every cell's result, in the order of the grid; those that are not finished are.

        A cell that cannot be run (a reward that does not fit the generator) says why, and is tried again the next time.
        Several processes with the same folder share the grid: each leaves alone the cells that another one is at, and waits
        for them in the end.

        Raises:
            OutputError: the folder cannot be written. CheckpointError: a run folder is damaged or of other settings.
        """
        prepare_folder(self.out)
        refuse_links(self.out / "cells", self.out / "runs")
        return self.files.complete(
            self.cells, self._finish, on_wait=lambda done, total: self.progress("cells of other processes", done, total)
        )

    def table(self, results: Sequence[Result]) -> Table:
        """The table of these results.

        Raises:
            DataError: nothing could be evaluated.
        """
        return build_table(results, self._facts(results))

    # --- one cell -----------------------------------------------------------------------------------------------------

    def _finish(self, cell: Cell) -> tuple[Result, Tensor | None]:
        try:
            return self._run(cell)
        except Interrupted as error:
            return Result(cell, None, error=str(error)), None

    def _run_control(self, cell: Cell) -> tuple[Result, Tensor]:
        """The images of a learned policy's seeds once more, with its actions given to them otherwise."""
        of = replace(cell, control=None)
        run = self.out / "runs" / of.name
        if of not in self._trained:
            # Its result may be of another report, and the run that is here cut off, or of other settings. A finished one is
            # only looked at.
            self._train(of, run)
        partial, told = self._trained[of]
        if self._replayed is None or self._replayed[0] != of:
            judges = self._judges(of, run)
            self._replayed = of, self._images(of, str(run), judges), judges
        _, own, judges = self._replayed
        assert cell.control is not None and own.actions is not None
        groups = torch.zeros(len(own), dtype=torch.int64) if own.labels is None else own.labels
        actions = control_actions(cell.control, own.actions, groups, cell.seed)
        images = self._images(cell, str(run), judges, actions)
        result = Result(
            cell,
            self.yardstick.judge(images),
            images=self.config.run_of(of).iterations * self.config.base.batch,
            partial=partial,
            told=told,
            **_summary(images.scores),
            knobs={"names": list(self.generator.action_space.names), **_spread(images.knobs)},
            device=self.device.type,
        )
        return result, grid(images.shown)

    def _run(self, cell: Cell) -> tuple[Result, Tensor]:
        if cell.control is not None:
            return self._run_control(cell)
        config, schedule, spec = self.config, None, ""
        result = Result(cell, None)
        if cell.learned:
            run = self.out / "runs" / cell.name
            rows = self._train(cell, run)
            partial, told = self._trained[cell]
            result = replace(
                result,
                images=config.run_of(cell).iterations * config.base.batch,
                alarms=[alarm.to_json() for alarm in alarms.Watch(rows).ever],
                training=[_training_row(row) for row in rows],
                partial=partial,
                told=told,
            )
            spec = str(run)
        elif cell.search:
            found = search_schedule(
                self.yardstick,
                cell.steps,
                budget=config.base.iterations * config.base.batch,
                candidates=config.candidates,
                kind=cell.search,
                seed=cell.seed,
                progress=lambda done, total: self.progress(cell.name, done, total),
            )
            schedule = found.schedule
            result = replace(result, images=found.images, search=found.to_json(), partial=True)
        else:
            schedule = self._schedule(cell.policy)
        judges = self._judges(cell, self.out / "runs" / cell.name) if cell.learned else self._still_judges()
        source, failed = spec or f"fixed:{schedule}", list[str]()
        try:
            images = self._images(cell, source, judges)
        except PluginError as error:
            if cell.learned or not judges:
                raise
            # A reward that fails takes its own figure with it, not what every ratio is relative to.
            failed = list(judges)
            self._without_scores |= dict.fromkeys(failed, str(error))
            images = self._images(cell, source, {})
        scores = _summary(images.scores)
        scores["unscored"] += failed
        names = self.generator.action_space.names
        result = replace(
            result,
            evaluation=self.yardstick.judge(images),
            schedule=schedule,
            **scores,
            knobs={"names": list(names), **_spread(images.knobs)},
            device=self.device.type,
        )
        return result, grid(images.shown)

    def _train(self, cell: Cell, run: Path) -> list[dict[str, Any]]:
        """Rows of the finished training."""
        refuse_links(run)
        config = self.config.run_of(cell)
        trainer = create_trainer(config)
        total = config.iterations * config.batch
        trainer.run(run, on_iteration=lambda row: self.progress(f"{cell.name}: training", row["trajectories"], total))
        scorer = self.yardstick.scorer
        found = flattered(trainer.reward.reads, self.extractor.protocol, None if scorer is None else scorer.protocol)
        told = [name for name in found if TABLE[name].reads == "prompts"]
        self._trained[cell] = len(found) > len(told), told
        return RunFolder(run).metrics()

    def _lacks_scores(self, cell: Cell, result: Result) -> bool:
        """Whether a hand-made row of an earlier grid was not asked for a reward of this one that can be made here."""
        if cell.learned or cell.search:
            return False
        missing = self._still_rewards.keys() - result.scores.keys() - set(result.unscored)
        return bool(missing and missing & self._still_judges().keys())

    def _still_judges(self) -> dict[str, RewardModel]:
        """The rewards of the grid that stand still. One that cannot be made is left out, and the table says why."""
        if self._still is None:
            still = {}
            for title, spec in self._still_rewards.items():
                try:
                    made = create_reward(
                        spec,
                        self.config.reward_options(spec),
                        generator=self.generator,
                        real=self.real,
                        device=self.device,
                        seed=derive(0, REWARD),
                        offline=self.config.base.offline,
                    )
                except Interrupted as error:
                    self._without_scores[title] = str(error)
                    continue
                if not made.learns and not made.set_level:  # an object may say so where its class does not
                    still[title] = made
            self._still = still
        return self._still

    def _judges(self, cell: Cell, run: Path) -> Mapping[str, RewardModel]:
        """The reward that a learned policy was trained on, as it was in the end; none where it judges a set."""
        assert cell.reward is not None
        for title, spec in self._still_rewards.items():
            if spec == cell.reward and title in self._still_judges():
                return {title: self._still_judges()[title]}
        own = self.config.run_of(cell).reward
        try:
            judge, _ = load_judge(run, self.generator, own=own, real=self.real, offline=self.config.base.offline)
        except ConfigError:
            return {}  # its checkpoints are gone
        return {} if judge.set_level else {cell.reward: judge}

    def _images(
        self, cell: Cell, spec: str, judges: Mapping[str, RewardModel], actions: Tensor | None = None
    ) -> Images:
        policy = load_policy(spec, self.generator, cell.steps)
        first = self.config.first_seed + cell.seed * self.config.images
        return self.yardstick.make(
            policy,
            seed_range(first, self.config.images),
            keep=SHOWN,
            actions=actions,
            rewards=judges,
            progress=lambda done, total: self.progress(f"{cell.name}: images", done, total),
        )

    def _schedule(self, policy: str) -> str:
        """Schedule or sampler of a hand-made row, without ``fixed:``."""
        if policy == HAND_MADE:
            return self.generator.default_schedule
        if policy != PUBLISHED:
            return policy.partition(":")[2] or self.generator.default_schedule
        sampler = self._published()
        assert sampler is not None
        return sampler

    def _published(self) -> str | None:
        """Name of the sampler that the generator's authors published."""
        sampler = self.generator.released_sampler
        return sampler if sampler in PUBLISHED_SAMPLERS else None

    def _key(self, cell: Cell) -> str:
        schedule = None if cell.learned or cell.search else self._schedule(cell.policy)
        return cell_key(
            self.config,
            cell,
            generator=self.generator.fingerprint,
            protocol=self.extractor.protocol,
            data=self.real.fingerprint,
            dtype=dtype_name(self.generator.dtype),
            base_schedule=self.generator.default_schedule,
            schedule=schedule,
            sources=self._sources,
        )

    def _facts(self, results: Sequence[Result]) -> dict[str, Any]:
        base = self.config.base
        return {
            "toolkit": toolkit_version(),
            "generator": self.generator.name,
            "generator_fingerprint": self.generator.fingerprint,
            "device": self.device.type,
            "dtype": dtype_name(self.generator.dtype),
            "default_schedule": self.generator.default_schedule,
            "seeds": list(dict.fromkeys(self.config.seeds)),
            "first_seed": self.config.first_seed,
            "budget": base.iterations * base.batch,
            "candidates": self.config.candidates,
            "protocol_card": dict(self.extractor.card),
            "alarms": [{"cell": r.cell.name, **alarm} for r in results for alarm in r.alarms],
            "config": self.config.model_dump(mode="json"),
            "sources": self._sources,
            "without_scores": self._without_scores,
        }


def write_report(
    results: Sequence[Result], table: Table, folder: Path, *, sheets: Path, command: str | None = None
) -> list[Path]:
    """``compare.json``, ``compare.csv`` and ``compare.md``; then the pictures, and ``compare.md`` again with them.

    Args:
        sheets: folder ``cells`` of the comparison. command: what the page says it was made with.

    Returns:
        The files written.

    Raises:
        OutputError: the folder cannot be written.
    """
    from .plots import draw_all

    prepare_folder(folder)
    cells = [result.to_json() for result in results]
    for cell in cells:
        del cell["training"]  # it stands in the run's metrics.jsonl
    write_json(folder / "compare.json", sealed({**table.to_json(), "cells": cells}))
    write_file(folder / "compare.csv", to_csv(table))
    write_file(folder / "compare.md", markdown(table, command=command))
    pictures = draw_all(results, table, folder, sheets=sheets)
    write_file(folder / "compare.md", markdown(table, pictures=[p.name for p in pictures], command=command))
    return [folder / "compare.md", folder / "compare.json", folder / "compare.csv", *pictures]


def _training_row(row: dict[str, Any]) -> dict[str, Any]:
    kept = {"trajectories": row["trajectories"], "reward": row["reward/mean"]}
    if "yardstick/frechet" in row:
        kept["frechet"] = row["yardstick/frechet"]
    return {key: value if math.isfinite(value) else None for key, value in kept.items()}


def _summary(scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Mean and standard deviation of the scores under each reward as ``scores``, where all are finite; names of the others as
    ``unscored``."""
    wide = {name: values.double() for name, values in scores.items() if bool(values.isfinite().all())}
    return {
        "scores": {name: (float(values.mean()), float(values.std())) for name, values in wide.items()},
        "unscored": [name for name in scores if name not in wide],
    }


def _spread(knobs: Tensor) -> dict[str, Any]:
    """(N, T, K) -> per step and knob the mean, and the 10 and 90 % quantiles over the images."""
    low, high = deciles(knobs)
    return {"mean": knobs.double().mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}
