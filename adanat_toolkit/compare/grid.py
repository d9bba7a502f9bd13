"""The grid of a comparison: its settings, its cells, and what the result of a cell depends on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core import PolicySpec, RewardModel, RewardSpec
from ..errors import ConfigError, nearest
from ..limits import MOST_IMAGES, MOST_STEPS
from ..policies import policy_class
from ..registry import explain, load, parse_options, reward_class
from ..storage import content_hash
from ..training import IGNORED_ON_RESUME, RunConfig, is_source, merge, validate
from .controls import TITLES
from .result import HAND_MADE, Cell
from .search import SEARCHES, check_kind, check_search

PUBLISHED = "published"
LARGEST_SEED = 10**6
NEWER = {"ppo": {"critic_statistics": False}}
"""Settings that came after the first cells, and what cells without them were made with."""
MOST_CELLS, MOST_CANDIDATES = 10**5, 10**5


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
    candidates: int = Field(32, ge=0, le=MOST_CANDIDATES)
    """Hand-made schedules that each search tries; 0: no search."""
    searches: tuple[str, ...] = ("schedule",)
    """Kinds of search, a row each (``search.SEARCHES``)."""
    controls: bool = False
    """Whether learned policies that see their samples have their controls as further rows."""
    images: int = Field(2000, ge=16, le=MOST_IMAGES)
    """Images of each cell in the table, N."""
    first_seed: int = Field(0, ge=0, le=2**62)
    features: str | None = None
    """Feature protocol; None: the generator's own."""

    def cells(self) -> list[Cell]:
        """The grid: baselines, then the search, then what is learned; within each by T, then seed."""
        steps, seeds = sorted(set(self.steps)), list(dict.fromkeys(self.seeds))
        by_hand = sorted({*steps, *self.hand_made_steps})
        policies, rewards = dict.fromkeys(self.policies), dict.fromkeys(self.rewards)
        fixed = [policy for policy in policies if PolicySpec.parse(policy).fixed]
        learned = [policy for policy in policies if policy not in fixed]
        searched = sorted(set(self.search_steps if self.search_steps is not None else steps)) if self.candidates else []
        out = [Cell(PUBLISHED, None, t, s) for t in steps for s in seeds]
        out += [Cell(policy, None, t, s) for policy in (HAND_MADE, *fixed) for t in by_hand for s in seeds]
        out += [Cell(SEARCHES[k], None, t, s) for k in dict.fromkeys(self.searches) for t in searched for s in seeds]
        for r, p, t in itertools.product(rewards, learned, steps):
            out += [Cell(p, r, t, s) for s in seeds]
            if self.controls and load("policy", p).needs_features:
                out += [Cell(p, r, t, s, control) for s in seeds for control in TITLES]
        return out

    def still_rewards(self, sources: Mapping[str, str]) -> dict[str, str]:
        """Rewards of the grid whose scores mean the same in every row: no term learns, or judges a set. By what they are
        called beside their scores: options are part of it, and what the files hold that they name (``sources``), because
        scores depend on them."""
        out, held = {}, {setting: found[:8] for setting, found in sources.items()}
        for spec in dict.fromkeys(self.rewards):
            terms = [load("reward", term.name) for term in RewardSpec.parse(spec).terms]
            if not any(term.learns or term.set_level or "real_images" in term.needs for term in terms):
                options = by_content(self.reward_options(spec), held, "reward.options.")
                out[f"{spec} {json.dumps(options, sort_keys=True)}" if options else spec] = spec
        return out

    def reward_options(self, spec: str) -> dict[str, Any]:
        """Those of the grid's options of rewards that this reward has."""
        known = _reward_class(spec).Options.model_fields
        return {key: value for key, value in self.base.reward.options.items() if key in known}

    def run_of(self, cell: Cell) -> RunConfig:
        """Configuration of a learned cell. Options of a policy or reward go to those of the grid that have them."""
        values = self.base.model_dump(mode="json")
        policy = load("policy", cell.policy).Options.model_fields
        chosen = {
            "steps": cell.steps,
            "seed": cell.seed,
            "policy": {"name": cell.policy},
            "reward": {"name": cell.reward},
        }
        values["policy"]["options"] = {k: v for k, v in self.base.policy.options.items() if k in policy}
        values["reward"]["options"] = self.reward_options(cell.reward or "")
        return validate(merge(values, chosen))

    def check(self) -> None:
        """Everything that can be refused before any work.

        Raises:
            ConfigError: a T or seed out of range, a policy that cannot be trained, an option that nothing in the grid has or
                whose value does not fit, a reward that is named and neither teaches nor scores anything, too small a budget
                for the search, kinds or T of a search where nothing is searched, controls where nothing has any.
            PluginError: an unknown policy or reward.
        """
        wrong = [s for s in self.seeds if not 0 <= s < LARGEST_SEED]
        if wrong:
            raise ConfigError(f"seed {wrong[0]} of a comparison must lie in 0..{LARGEST_SEED - 1}; use small numbers.")
        lengths = (*self.steps, *self.hand_made_steps, *(self.search_steps or ()))
        odd = [t for t in lengths if not 1 <= t <= MOST_STEPS]
        if odd:
            raise ConfigError(f"steps = {odd[0]}: an image takes at least 1 step and at most {MOST_STEPS}.")
        most = len(lengths) * len(self.seeds) * (2 + len(self.policies) * max(1, len(self.rewards)))
        if most > MOST_CELLS:
            raise ConfigError(
                f"this grid has about {most} cells; at most {MOST_CELLS} are taken. Give fewer steps, seeds, policies or "
                "rewards."
            )
        for kind in self.searches:
            check_kind(kind)
        classes: dict[str, list[Any]] = {"policy": [], "reward": [_reward_class(name) for name in self.rewards]}
        for name in self.policies:
            if PolicySpec.parse(name).fixed:
                continue
            found = policy_class(
                name,
                "compare trains each kind itself. A trained policy is judged by adanat evaluate --policy {0}, beside the "
                "hand-made schedule and others that are given",
            )
            if not found.trainable:
                raise ConfigError(
                    f"policy {name!r} has nothing to learn; give adaptive, residual, lean, context, shared or fixed:SCHEDULE."
                )
            classes["policy"].append(found)
        if classes["policy"] and not self.rewards:
            raise ConfigError("learned policies need a reward; give at least one, or only fixed:SCHEDULE policies.")
        if self.rewards and not classes["policy"] and "rewards" in self.model_fields_set:
            asked = set(self.still_rewards({}).values())
            for name in self.rewards:
                if name not in asked:
                    raise ConfigError(
                        f"reward {name!r} does nothing where no policy is learned: it learns, or judges images as a set, so it "
                        "has no score for hand-made schedules. Leave it out, or give a policy that learns, such as shared."
                    )
        cells = self.cells()
        if any(cell.search for cell in cells):
            check_search(self.base.iterations * self.base.batch, self.candidates)
        elif self.search_steps or set(self.searches) - {"schedule"}:
            kinds = ", ".join(self.searches) or "none"
            at = ", ".join(map(str, self.steps if self.search_steps is None else self.search_steps)) or "none"
            raise ConfigError(
                f"a search of kind {kinds} at T = {at} with {self.candidates} candidates searches nothing; give 2 candidates "
                "or more and a T, or leave kind and T of the search out."
            )
        if self.controls and not any(cell.control for cell in cells):
            raise ConfigError(
                "controls are of learned policies that see their samples, and of "
                f"{', '.join(self.policies) or 'no policy'} none does; add adaptive, residual, lean or context, or leave "
                "controls out."
            )
        for kind, options in (("policy", self.base.policy.options), ("reward", self.base.reward.options)):
            known = {name for each in classes[kind] for name in each.Options.model_fields}
            for key in options:
                if key not in known:
                    raise ConfigError(
                        f"{kind}.options.{key} is an option of no {kind} in the grid{nearest(key, known)} Known: "
                        f"{', '.join(sorted(known)) or 'none'}."
                    )
        for cell in {(c.policy, c.reward, c.steps): c for c in cells if c.learned}.values():  # seeds were looked at
            self.resolved_run(cell)

    def resolved_run(self, cell: Cell) -> dict[str, Any]:
        """What the training of a learned cell depends on, with the defaults of the plug-ins' options written out.

        Left out is what the fingerprints of generator and data and the compute type stand for.

        Raises:
            ConfigError: an option does not fit.
        """
        run = self.run_of(cell)
        # The readings do not change the policy, but the result shows them.
        ignored = (set(IGNORED_ON_RESUME) - {"evaluate_every"}) | {"dtype"}
        out = {key: value for key, value in run.model_dump(mode="json").items() if key not in ignored}
        del out["data"]["path"], out["generator"]
        classes = {"policy": load("policy", cell.policy), "reward": _reward_class(cell.reward or "")}
        for kind, found in classes.items():
            if all(not field.is_required() for field in found.Options.model_fields.values()):
                parsed = parse_options(f"{kind} {out[kind]['name']!r}", found.Options, out[kind]["options"])
                out[kind]["options"] = parsed.model_dump(mode="json")
        for part, before in NEWER.items():  # so that cells from before them are found
            out[part] = {key: value for key, value in out[part].items() if key not in before or value != before[key]}
        return out

    def sources(self) -> dict[str, str]:
        """Hashes of the files and folders that settings name, by the setting (``decoder``, ``reward.options.weights``): a
        result depends on what they hold, not on what they are called. What fingerprints stand for is left out."""
        runs = {(c.policy, c.reward): self.run_of(c) for c in self.cells() if c.learned}
        found: dict[str, str] = {}
        for run in [self.base, *runs.values()]:
            for setting, value in texts_of(run.model_dump(mode="json")):
                named = setting not in ("data.path", "generator.options.weights", *found) and is_source(setting, run)
                if named and os.path.exists(os.path.expanduser(value)):
                    found[setting] = content_hash(value)
        return found


def configure(**values: Any) -> CompareConfig:
    """A :class:`CompareConfig`.

    Raises:
        ConfigError: naming the setting, the value and what is expected.
    """
    try:
        return CompareConfig(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, CompareConfig, "comparison")) from None


def _reward_class(spec: str) -> type[RewardModel]:
    """The class that ``registry.create_reward`` makes for a spec."""
    return reward_class(RewardSpec.parse(spec))[0]


def cell_key(
    config: CompareConfig,
    cell: Cell,
    *,
    generator: str,
    protocol: str,
    data: str,
    dtype: str,
    base_schedule: str | None,
    schedule: str | None,
    sources: Mapping[str, str],
) -> str:
    """Hash of everything that a result depends on but the device.

    Args:
        sources: hashes of what settings name, see ``CompareConfig.sources``.
        generator, data: fingerprints. dtype: that was computed in: a generator is a few percent better or worse in another
            (docs/evaluation.md). base_schedule: the generator's best known one, which policies and the search start from.
            schedule: of a hand-made row, else None.
    """
    spec = config.base.generator
    options = {key: value for key, value in spec.options.items() if key != "weights"}
    facts: dict[str, Any] = {
        "cell": cell.name,
        "generator": generator,
        # The fingerprint is that of the main network; a tokenizer, a text encoder or a number of heads are options.
        "name": spec.name.partition(":")[0],
        "options": by_content(options, sources, "generator.options."),
        "protocol": protocol,
        "data": data,
        "dtype": dtype,
        "images": config.images,
        "first_seed": config.first_seed,
    }
    if cell.learned:
        facts["run"] = by_content(config.resolved_run(cell), sources)
        facts["base"] = base_schedule
    elif cell.search:
        facts["search"] = [config.candidates, config.base.iterations * config.base.batch]
        facts["base"] = base_schedule
    else:
        facts["schedule"] = schedule
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def texts_of(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every text among nested settings, with the name of its setting (``reward.options.weights``)."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from texts_of(value, f"{prefix}{key}.")
        elif isinstance(value, str):
            yield f"{prefix}{key}", value


def by_content(values: Mapping[str, Any], sources: Mapping[str, str], prefix: str = "") -> dict[str, Any]:
    """Nested settings with hashes in place of the names of files."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        setting = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out[key] = by_content(value, sources, f"{setting}.")
        else:
            out[key] = f"sha256:{sources[setting]}" if isinstance(value, str) and setting in sources else value
    return out
