"""``adanat compare``: a grid of {policy} x {reward} x {steps} x {seed} on one generator, trained, scored and put in a table.

Every cell leaves a file in ``cells/`` once it is scored and is then skipped; a learned one has its run folder in ``runs/``
and goes on from there. Cells of other comparisons, made on other machines or at other times, are taken over where every
setting that they depend on is the same.

The image seeds of run seed s are the block from ``first_seed + s * images`` on, for every row, so that the rows of a table
are paired seed by seed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from . import alarms
from .compute import resolve_device, resolve_dtype
from .config import RunConfig, merge, validate
from .errors import ConfigError, DataError, InUseError, PluginError, WeightsError, nearest
from .judging import Images, Yardstick
from .pictures import grid, write_png
from .policy_files import load_policy
from .published_samplers import PUBLISHED_SAMPLERS
from .registry import create_features, create_generator, explain, load, toolkit_version
from .run_state import IGNORED_ON_RESUME
from .runs import RunFolder, held, prepare_folder, write_file, write_json
from .sampling import seed_range
from .schedule_search import search_schedule
from .selection import choose_features, choose_scorer, require_real_images
from .tables import HAND_MADE, Cell, Result, Table, build_table, markdown, to_csv
from .training import create_trainer

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is (images, or trajectories of a training)."""
Interrupted = (ConfigError, PluginError, DataError, WeightsError)
"""Errors that a cell fails with while the others go on; damaged files and full disks stop everything."""
PUBLISHED, SEARCH = "published", "search"
SAMPLER_OF = {"muse": "amused"}
"""Published sampler of a family that is not called as it: Muse's authors published no code, aMUSEd is its reproduction."""
SHOWN = 16
"""Images of each cell in the picture of the same seeds."""
LARGEST_SEED = 10**6
POLL_SECONDS = 2.0


class CompareConfig(BaseModel):
    """What is compared. ``base`` holds everything that the cells of the grid have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: RunConfig
    policies: tuple[str, ...] = ("shared", "adaptive")
    """Learned kinds, and hand-made baselines beside the built-in ones as ``fixed:SCHEDULE`` or ``fixed:SAMPLER``."""
    rewards: tuple[str, ...] = ("adversarial",)
    steps: tuple[int, ...] = Field((4,), min_length=1)
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1)
    """Of training and search, one run each; small numbers, because they also number the blocks of image seeds."""
    hand_made_steps: tuple[int, ...] = ()
    """Further T at which ``hand-made`` and the baselines of ``policies`` are scored: the curve that learned policies are
    held against."""
    search_steps: tuple[int, ...] | None = None
    """T at which schedules are searched; None: ``steps``."""
    candidates: int = Field(32, ge=0)
    """Hand-made schedules that the search tries; 0: no search."""
    images: int = Field(2000, ge=16)
    """Images of each cell in the table, N."""
    first_seed: int = Field(0, ge=0)
    features: str | None = None
    """Feature protocol; None: the generator's own."""

    def cells(self) -> list[Cell]:
        """The grid: baselines, then the search, then what is learned; within each by T, then seed."""
        steps, seeds = sorted(set(self.steps)), list(dict.fromkeys(self.seeds))
        by_hand = sorted({*steps, *self.hand_made_steps})
        fixed = [policy for policy in self.policies if policy.partition(":")[0] == "fixed"]
        learned = [policy for policy in self.policies if policy not in fixed]
        searched = sorted(set(self.search_steps if self.search_steps is not None else steps)) if self.candidates else []
        out = [Cell(PUBLISHED, None, t, s) for t in steps for s in seeds]
        out += [Cell(policy, None, t, s) for policy in (HAND_MADE, *fixed) for t in by_hand for s in seeds]
        out += [Cell(SEARCH, None, t, s) for t in searched for s in seeds]
        return out + [Cell(p, r, t, s) for r in self.rewards for p in learned for t in steps for s in seeds]

    def run_of(self, cell: Cell) -> RunConfig:
        """Configuration of a learned cell. Options of a policy or reward go to those of the grid that have them."""
        values = self.base.model_dump(mode="json")
        policy = load("policy", cell.policy).Options.model_fields
        reward = _reward_class(cell.reward or "").Options.model_fields
        chosen = {
            "steps": cell.steps,
            "seed": cell.seed,
            "policy": {"name": cell.policy},
            "reward": {"name": cell.reward},
        }
        values["policy"]["options"] = {k: v for k, v in self.base.policy.options.items() if k in policy}
        values["reward"]["options"] = {k: v for k, v in self.base.reward.options.items() if k in reward}
        return validate(merge(values, chosen))

    def check(self) -> None:
        """Everything that can be refused before any work.

        Raises:
            ConfigError: a T or seed out of range, a policy that cannot be trained, an option that nothing in the grid has.
            PluginError: an unknown policy or reward.
        """
        wrong = [s for s in self.seeds if not 0 <= s < LARGEST_SEED]
        if wrong:
            raise ConfigError(f"seed {wrong[0]} of a comparison must lie in 0..{LARGEST_SEED - 1}; use small numbers.")
        short = [t for t in (*self.steps, *self.hand_made_steps, *(self.search_steps or ())) if t < 1]
        if short:
            raise ConfigError(f"steps = {short[0]}: an image takes at least 1 step.")
        classes: dict[str, list[Any]] = {"policy": [], "reward": [_reward_class(name) for name in self.rewards]}
        for name in self.policies:
            if name.partition(":")[0] == "fixed":
                continue
            found = load("policy", name)
            if not found.trainable:
                raise ConfigError(f"policy {name!r} has nothing to learn; give adaptive, shared or fixed:SCHEDULE.")
            classes["policy"].append(found)
        if classes["policy"] and not self.rewards:
            raise ConfigError("learned policies need a reward; give at least one, or only fixed:SCHEDULE policies.")
        for kind, options in (("policy", self.base.policy.options), ("reward", self.base.reward.options)):
            known = {name for each in classes[kind] for name in each.Options.model_fields}
            for key in options:
                if key not in known:
                    raise ConfigError(
                        f"{kind}.options.{key} is an option of no {kind} in the grid{nearest(key, known)} Known: "
                        f"{', '.join(sorted(known)) or 'none'}."
                    )


def configure(**values: Any) -> CompareConfig:
    """A :class:`CompareConfig`.

    Raises:
        ConfigError: naming the setting, the value and what is expected.
    """
    try:
        return CompareConfig(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, CompareConfig, "comparison")) from None


def _reward_class(spec: str) -> Any:
    """The class that ``registry.create_reward`` makes for a spec."""
    name, _, rest = spec.partition(":")
    if "," in spec or rest.replace(".", "", 1).isdigit():
        name = "mix"
    return load("reward", name)


class Comparison:
    """A comparison in a folder.

    Args:
        reuse: reports of other comparisons (folders with a ``compare.json``, or such files). Their cells with the same
            settings are taken over; where they were made on another kind of device, the table says so.

    Raises:
        ConfigError, PluginError: of ``CompareConfig.check``. WeightsError, DataError: generator, yardstick, real images or
            reports.
    """

    def __init__(
        self, config: CompareConfig, out: Path, *, reuse: Sequence[Path] = (), progress: Progress | None = None
    ) -> None:
        config.check()
        self.config, self.out = config, out
        self._reusable = {key: result for path in reuse for key, result in _read_report(path).items()}
        self.progress = progress or (lambda what, done, total: None)
        base = config.base
        self.device = resolve_device(base.device)
        dtype = resolve_dtype(base.dtype, self.device)
        self.generator = create_generator(
            base.generator.name, base.generator.options, device=self.device, dtype=dtype, offline=base.offline
        )
        name = choose_features(self.generator, config.features)
        self.real = require_real_images(self.generator, base.data.path)
        self.extractor = create_features(name, device=self.device, offline=base.offline)
        known = self._published() is not None
        self.cells = [cell for cell in config.cells() if known or cell.policy != PUBLISHED]
        """The grid, without ``published`` where the generator's family has no published sampler."""
        self._yardstick: Yardstick | None = None

    @property
    def yardstick(self) -> Yardstick:
        """The real images' features are computed at the first use."""
        if self._yardstick is None:
            self._yardstick = Yardstick(
                self.generator,
                self.extractor,
                self.real,
                scorer=choose_scorer(self.generator, self.extractor, offline=self.config.base.offline),
                progress=lambda i, n: self.progress("real images", i, n),
            )
        return self._yardstick

    def plan(self) -> dict[str, Any]:
        """What the comparison will need, for ``--dry-run``."""
        cells = self.cells
        learned = [cell for cell in cells if cell.learned]
        searches = [cell for cell in cells if cell.policy == SEARCH]
        base = self.config.base
        readings = 0
        if base.evaluate_every:
            readings = 2 + (base.iterations - 1) // base.evaluate_every
        return {
            "cells": len(cells),
            "learned": len(learned),
            "searches": len(searches),
            "finished": sum(self._stored(cell) is not None for cell in cells),
            "images_for_learning": (len(learned) + len(searches)) * base.trajectories,
            "images_for_held_out_readings": len(learned) * readings * base.evaluate_images,
            "images_for_the_table": len(cells) * self.config.images,
        }

    def run(self) -> list[Result]:
        """Every cell's result, in the order of the grid; those that are not finished are.

        A cell that cannot be run (a reward that does not fit the generator) says why, and is tried again the next time.
        Several processes with the same folder share the grid: each leaves alone the cells that another one is at, and waits
        for them in the end.

        Raises:
            OutputError: the folder cannot be written. CheckpointError: a run folder is damaged or of other settings.
        """
        prepare_folder(self.out)
        found: dict[Cell, Result] = {}
        open_cells = self.cells
        while open_cells:
            for cell in open_cells:
                with contextlib.suppress(InUseError):
                    found[cell] = self._take(cell)
            waiting = [cell for cell in open_cells if cell not in found]
            if len(waiting) == len(open_cells):
                self.progress("cells of other processes", len(self.cells) - len(waiting), len(self.cells))
                time.sleep(POLL_SECONDS)
            open_cells = waiting
        return [found[cell] for cell in self.cells]

    def _take(self, cell: Cell) -> Result:
        """The cell's result, made now where there is none.

        Raises:
            InUseError: another process is making it.
        """
        stored = self._stored(cell)
        if stored is not None and self._file(cell).is_file():
            return stored
        prepare_folder(self._file(cell).parent)
        lock = self._file(cell).with_suffix(".lock")
        with held(lock):
            stored = self._stored(cell)  # another process may have finished it meanwhile
            if stored is None:
                stored = self._finish(cell)
            elif not self._file(cell).is_file():
                self._store(cell, stored)  # from another comparison: this one can then do without it
            lock.unlink(missing_ok=True)
        return stored

    def table(self, results: Sequence[Result]) -> Table:
        """The table of these results.

        Raises:
            DataError: nothing could be evaluated.
        """
        return build_table(results, self._facts(results))

    # --- one cell -----------------------------------------------------------------------------------------------------

    def _finish(self, cell: Cell) -> Result:
        try:
            result = self._run(cell)
        except Interrupted as error:
            return Result(cell, None, error=str(error))
        self._store(cell, result)
        return result

    def _run(self, cell: Cell) -> Result:
        config, schedule, spec = self.config, None, ""
        result = Result(cell, None)
        if cell.learned:
            run = self.out / "runs" / cell.name
            rows, partial = self._train(cell, run)
            result = replace(
                result,
                images=config.run_of(cell).iterations * config.base.batch,
                alarms=[alarm.to_json() for alarm in alarms.raised(rows)],
                training=[_training_row(row) for row in rows],
                partial=partial,
            )
            spec = str(run)
        elif cell.policy == SEARCH:
            found = search_schedule(
                self.yardstick,
                cell.steps,
                budget=config.base.iterations * config.base.batch,
                candidates=config.candidates,
                seed=cell.seed,
                progress=lambda done, total: self.progress(cell.name, done, total),
            )
            schedule = found.schedule
            result = replace(result, images=found.images, search=found.to_json(), partial=True)
        else:
            schedule = self._schedule(cell.policy)
        images = self._images(cell, spec or f"fixed:{schedule}")
        write_png(self._file(cell).with_suffix(".png"), grid(images.shown))
        names = self.generator.action_space.names
        return replace(
            result,
            evaluation=self.yardstick.judge(images),
            schedule=schedule,
            knobs={"names": list(names), **_spread(images.knobs)},
            device=self.device.type,
        )

    def _train(self, cell: Cell, run: Path) -> tuple[list[dict[str, Any]], bool]:
        """Rows of the finished training, and whether its reward reads the features of the yardstick."""
        config = self.config.run_of(cell)
        trainer = create_trainer(config)
        total = config.iterations * config.batch
        trainer.run(run, on_iteration=lambda row: self.progress(f"{cell.name}: training", row["trajectories"], total))
        terms = getattr(trainer.reward, "rewards", {"": trainer.reward})
        protocols = [getattr(getattr(term, "extractor", None), "protocol", None) for term in terms.values()]
        return RunFolder(run).metrics(), self.extractor.protocol in protocols

    def _images(self, cell: Cell, spec: str) -> Images:
        policy, space, _ = load_policy(spec, self.generator, cell.steps)
        first = self.config.first_seed + cell.seed * self.config.images
        return self.yardstick.make(
            policy,
            space,
            seed_range(first, self.config.images),
            keep=SHOWN,
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
        """Name of the published sampler of the generator's family."""
        family = self.generator.name.partition(":")[0]
        sampler = SAMPLER_OF.get(family, family)
        return sampler if sampler in PUBLISHED_SAMPLERS else None

    # --- files --------------------------------------------------------------------------------------------------------

    def _file(self, cell: Cell) -> Path:
        return self.out / "cells" / f"{cell.name}.json"

    def _store(self, cell: Cell, result: Result) -> None:
        write_json(self._file(cell), {"key": self._key(cell), "result": result.to_json()})

    def _key(self, cell: Cell) -> str:
        schedule = None if cell.learned or cell.policy == SEARCH else self._schedule(cell.policy)
        return _key(
            self.config,
            cell,
            generator=self.generator.fingerprint,
            protocol=self.extractor.protocol,
            data=self.real.fingerprint,
            dtype=_name(self.generator.dtype),
            schedule=schedule,
        )

    def _stored(self, cell: Cell) -> Result | None:
        """The result of a cell that was finished with these settings, here or in a report that may be reused. A damaged file
        counts as not finished."""
        key = self._key(cell)
        try:
            stored = json.loads(self._file(cell).read_text())
            if stored["key"] == key:
                return Result.from_json(stored["result"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return self._reusable.get(key)

    def _facts(self, results: Sequence[Result]) -> dict[str, Any]:
        base = self.config.base
        return {
            "toolkit": toolkit_version(),
            "generator": self.generator.name,
            "generator_fingerprint": self.generator.fingerprint,
            "device": self.device.type,
            "dtype": _name(self.generator.dtype),
            "seeds": list(dict.fromkeys(self.config.seeds)),
            "first_seed": self.config.first_seed,
            "budget": base.iterations * base.batch,
            "candidates": self.config.candidates,
            "protocol_card": dict(self.extractor.card),
            "alarms": [{"cell": r.cell.name, **alarm} for r in results for alarm in r.alarms],
            "config": self.config.model_dump(mode="json"),
        }


def _key(
    config: CompareConfig, cell: Cell, *, generator: str, protocol: str, data: str, dtype: str, schedule: str | None
) -> str:
    """Hash of everything that a result depends on but the device.

    Args:
        generator, data: fingerprints. dtype: that was computed in: a generator is a few percent better or worse in another
            (docs/evaluation.md). schedule: of a hand-made row, else None.
    """
    facts: dict[str, Any] = {
        "cell": cell.name,
        "generator": generator,
        "protocol": protocol,
        "data": data,
        "dtype": dtype,
        "images": config.images,
        "first_seed": config.first_seed,
    }
    if cell.learned:
        run = config.run_of(cell).model_dump(mode="json")
        # The readings do not change the policy, but the result shows them.
        ignored = set(IGNORED_ON_RESUME) - {"evaluate_every"}
        facts["run"] = {key: value for key, value in run.items() if key not in ignored}
    elif cell.policy == SEARCH:
        facts["search"] = [config.candidates, config.base.iterations * config.base.batch]
    else:
        facts["schedule"] = schedule
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _read_report(path: Path) -> dict[str, Result]:
    """The finished cells of a ``compare.json`` by their keys.

    Raises:
        DataError: it is not there, or is none.
    """
    file = path / "compare.json" if path.is_dir() else path
    try:
        stored = json.loads(file.read_text())
        facts = stored["facts"]
        config = configure(**facts["config"])
        out = {}
        for value in stored["cells"]:
            result = Result.from_json({"training": [], "device": facts["device"], **value})
            if result.evaluation is None:
                continue
            key = _key(
                config,
                result.cell,
                generator=facts["generator_fingerprint"],
                protocol=facts["protocol"],
                data=facts["data"],
                dtype=facts["dtype"],
                schedule=None if result.cell.policy == SEARCH else result.schedule,
            )
            out[key] = result
        return out
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, ConfigError, PluginError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise DataError(
        f"cannot reuse {file}: {reason}. Give the --report (or --out) folder of an adanat compare that wrote its table."
    ) from None


def write_report(
    results: Sequence[Result], table: Table, folder: Path, *, sheets: Path, command: str | None = None
) -> list[Path]:
    """``compare.md``, ``compare.json``, ``compare.csv`` and the pictures.

    Args:
        sheets: folder ``cells`` of the comparison. command: what the page says it was made with.

    Returns:
        The files written.

    Raises:
        OutputError: the folder cannot be written.
    """
    from .plots import draw_all

    prepare_folder(folder)
    pictures = draw_all(results, table, folder, sheets=sheets)
    cells = [result.to_json() for result in results]
    for cell in cells:
        del cell["training"]  # it stands in the run's metrics.jsonl
    write_json(folder / "compare.json", {**table.to_json(), "cells": cells})
    write_file(folder / "compare.csv", to_csv(table))
    write_file(folder / "compare.md", markdown(table, pictures=[p.name for p in pictures], command=command))
    return [folder / "compare.md", folder / "compare.json", folder / "compare.csv", *pictures]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _training_row(row: dict[str, Any]) -> dict[str, Any]:
    kept = {"trajectories": row["trajectories"], "reward": row["reward/mean"]}
    if "yardstick/frechet" in row:
        kept["frechet"] = row["yardstick/frechet"]
    return {key: value if math.isfinite(value) else None for key, value in kept.items()}


def _spread(knobs: Tensor) -> dict[str, Any]:
    """(N, T, K) -> per step and knob the mean, and the 10 and 90 % quantiles over the images."""
    low, high = torch.quantile(knobs.double(), torch.tensor([0.1, 0.9], dtype=torch.float64), dim=0)
    return {"mean": knobs.double().mean(0).tolist(), "low": low.tolist(), "high": high.tolist()}
