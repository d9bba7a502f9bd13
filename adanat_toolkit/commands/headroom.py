"""``adanat headroom``: what a policy can gain on a generator and a reward, before anyone trains one (docs/headroom.md).

Images are made under random actions around a starting policy, crossed in blocks: every context meets every action of its block,
twice, with noise of its own. ``metrics.variance_shares`` splits the reward's variance; this module makes the images, and says
in words what the shares mean.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..core import (
    ACTION,
    CONTEXT,
    Context,
    Generator,
    ImageSource,
    Noise,
    RewardModel,
    RewardSpec,
    derive,
    sample_seeds,
    see,
)
from ..decoding import SamplingPolicy
from ..errors import ConfigError, DataError
from ..images import OwnContexts, draw_contexts, figure_png
from ..limits import MOST_IMAGES
from ..metrics import Share, Slopes, VarianceShares, least_samples, trajectories_to_move, variance_shares
from ..registry import create_reward, not_followed, reward_class, shown_options, toolkit_version
from ..runtime import CPU_CHUNK, MicroBatch, float32_by_default, may_go_side_by_side
from ..sampling import begin, embed, explored_by, mean_action
from ..storage import RunFolder, load_checkpoint, prepare_folder, write_file, write_json
from ..training import PPOConfig
from ..training.checkpoint import require_made_with, stored_config
from ..training.judge import reward_state
from ..training.objects import name_of
from ..training.reward_update import load_into
from ..training.scoring import score

Progress = Callable[[str, int, int], None]

BUDGET = 3584
"""Trajectories where nobody says another number."""
CONTEXTS, DRAWS = 8, 2
"""Of a block, and of each context and action."""
FEWEST_ACTIONS = 8
"""Of a block."""
BLOCKS = ((32768, 16), (0, 8))
"""From how many trajectories on there are how many blocks; more trajectories make larger blocks."""
FEWEST = BLOCKS[-1][1] * CONTEXTS * FEWEST_ACTIONS * DRAWS
"""Trajectories without which no interval is worth printing."""
SIGMA = PPOConfig().sigma
WORTH = 0.1
"""Standard deviations of the reward that an adaptive policy must be able to add for anyone to train one."""
CLEAR = 3.0
"""Standard errors from which on a single slope is marked: of dozens, some pass 2 by chance."""
DEFAULT_REWARD = "clip-score"
RESULT, PICTURE = "headroom.json", "headroom.png"


@dataclass(frozen=True)
class Verdict:
    """``kind``: ``adaptive`` (it pays), ``shared`` (is enough), ``nothing`` (to gain) or ``undecided``. ``text``: why."""

    kind: str
    text: str


@dataclass(frozen=True)
class Headroom:
    """The result; a notebook shows it as tables.

    Attributes:
        shares: of the reward's variance. knobs: names of those acted on. steps: decisions of an image.
        contexts: how many contexts a policy would have to tell apart (the classes, or the prompts that were drawn).
        trajectories: how many were made.
        facts: JSON-able: what was measured, and with what.
    """

    shares: VarianceShares
    knobs: tuple[str, ...]
    steps: int
    contexts: int
    trajectories: int
    facts: dict[str, Any]

    @property
    def gains(self) -> dict[str, float | tuple[float, float]]:
        """What policies gain when their actions move by one sigma along the slopes, in standard deviations of the reward:
        ``shared`` the square root of the slopes' share, ``added`` what the slopes of contexts and states add to it, and
        ``added_interval``, its 95 % interval."""
        shares = self.shares
        low, high = shares.adaptive.interval
        return {
            "shared": math.sqrt(max(shares.slope.share.value, 0.0)),
            "added": self._added(shares.adaptive.value),
            "added_interval": (self._added(low), self._added(high)),
        }

    def _added(self, share: float) -> float:
        common = max(self.shares.slope.share.value, 0.0)
        return math.sqrt(common + max(share, 0.0)) - math.sqrt(common)

    @property
    def needed(self) -> dict[str, dict[str, float | None]]:
        """Trajectories until the policy gradient points the right way (see ``trajectories_to_move``), for a ``shared`` policy,
        one that sees the ``context``, and one that sees the ``state``: ``estimate``, None where no slope is seen, and
        ``at_least``, by the upper end of the slopes' interval."""
        shares, out = self.shares, {}
        kinds: list[tuple[str, Slopes | None, int]] = [
            ("shared", shares.slope, 1),
            ("context", shares.context_slope if self.contexts > 1 else None, self.contexts - 1),
            ("state", shares.state_slope, 1),
        ]
        for kind, slopes, times in kinds:
            if slopes is None:
                continue
            count = slopes.count * times
            value, (low, high) = slopes.share.value, slopes.share.interval
            found, least = (trajectories_to_move(share, count, shares.context.value) for share in (value, high))
            out[kind] = {"estimate": found if low > 0 else None, "at_least": least if math.isfinite(least) else None}
        return out

    @property
    def verdict(self) -> Verdict:
        """In plain words, what to train."""
        common, adaptive, gains = self.shares.slope.share, self.shares.adaptive, self.gains
        added, (low, high) = gains["added"], gains["added_interval"]  # type: ignore[misc]
        of = "standard deviations of the reward"
        known = "" if self.shares.state_slope else (
            " This is of contexts alone: the generator gives no statistics, so what the state decides is unknown."
        )
        if adaptive.interval[0] > 0 and high > WORTH / 2:
            return Verdict(
                "adaptive",
                f"adaptive pays: moved by one sigma, actions of each image's own add {added:.2f} ({low:.2f} to {high:.2f}) "
                f"{of} to the {gains['shared']:.2f} of a shared schedule.{known}",
            )
        if high <= WORTH:
            most = f"actions of each image's own, moved by one sigma, can add at most {high:.2f} {of}"
            if common.interval[0] > 0:
                return Verdict(
                    "shared",
                    f"shared is enough: {most} to the {gains['shared']:.2f} of a shared schedule.{known}",
                )
            return Verdict(
                "nothing", f"nothing to gain here: no slope common to all images is seen, and {most}.{known}"
            )
        return Verdict(
            "undecided",
            f"undecided: actions of each image's own may add up to {high:.2f} {of}, and {self.trajectories:,} trajectories "
            f"cannot tell that from nothing; a shared schedule gains {gains['shared']:.2f}. "
            f"About {self._to_decide():,} trajectories could.{known}",
        )

    def _to_decide(self) -> int:
        """Trajectories at which half the interval of the adaptive share is two thirds of what would add :data:`WORTH`, so that
        it mostly ends below that or begins above 0.

        The interval's width goes about with one over the trajectories, because pairs of them are compared.
        """
        common, share = max(self.shares.slope.share.value, 0.0), self.shares.adaptive
        wanted = ((math.sqrt(common) + WORTH) ** 2 - common) * 2 / 3
        factor = max((share.interval[1] - share.value) / wanted, 1.5)
        return -(-int(self.trajectories * factor) // 1024) * 1024

    @property
    def rows(self) -> list[tuple[str, Share | None]]:
        """The table: what a part of the variance is of, and the share (None where it is unknown)."""
        shares = self.shares
        return [
            ("context", shares.context),
            ("action, the same for all", shares.action),
            ("  of it slopes", shares.slope.share),
            ("action x context", shares.action_context),
            ("  of it slopes", shares.context_slope.share),
            ("action x state (slopes)", shares.action_state),
            ("noise", shares.noise),
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: what ``adanat headroom --json`` prints. Shares are of the variance, 1 is all of it."""
        shares = self.shares

        def share(value: Share | None) -> dict[str, Any] | None:
            return None if value is None else {"share": value.value, "interval": list(value.interval)}

        def slopes(value: Slopes | None) -> dict[str, Any] | None:
            if value is None:
                return None
            table = {"knobs": list(self.knobs), "by_step": value.by_knob.tolist(), "z_by_step": value.z.tolist()}
            return {**(share(value.share) or {}), **table}

        verdict = self.verdict
        return {
            **self.facts,
            "trajectories": self.trajectories,
            "reward_mean": shares.mean,
            "reward_std": math.sqrt(shares.variance),
            "shares": {
                "context": share(shares.context),
                "action": share(shares.action),
                "action_context": share(shares.action_context),
                "action_state": share(shares.action_state),
                "noise": share(shares.noise),
            },
            "slopes": {
                "shared": slopes(shares.slope),
                "context": slopes(shares.context_slope),
                "state": slopes(shares.state_slope),
            },
            "gains": {key: list(v) if isinstance(v, tuple) else v for key, v in self.gains.items()},
            "trajectories_to_move": self.needed,
            "verdict": verdict.kind,
            "verdict_text": verdict.text,
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """``headroom.json`` and ``headroom.png`` in a folder.

        Raises:
            OutputError: it cannot be written.
        """
        place = prepare_folder(Path(folder))
        write_json(place / RESULT, self.to_dict())
        _draw(self, place / PICTURE)

    def slope_rows(self) -> list[tuple[str, str, list[tuple[float, bool]]]]:
        """The table of knobs: its name, whose slopes, and for each step the share and whether it is clear of 0."""
        kinds = (
            ("shared", self.shares.slope),
            ("by context", self.shares.context_slope),
            ("by state", self.shares.state_slope),
        )
        return [
            (
                knob,
                whose,
                [(float(s), abs(float(z)) >= CLEAR) for s, z in zip(of.by_knob[:, k], of.z[:, k], strict=True)],
            )
            for k, knob in enumerate(self.knobs)
            for whose, of in kinds
            if of is not None
        ]

    def needed_text(self) -> str:
        """How many trajectories each kind of policy needs, in a sentence."""
        parts = []
        for kind, numbers in self.needed.items():
            estimate, least = numbers["estimate"], numbers["at_least"]
            if estimate is not None:
                parts.append(f"{kind} {_round(estimate):,}")
            else:
                parts.append(f"{kind} more than {_round(least):,}" if least else f"{kind} cannot be said")
        return "trajectories until the policy gradient points the right way: " + ", ".join(parts)

    def __str__(self) -> str:
        lines = [self.title()]
        for name, share in self.rows:
            lines.append(f"{name:26}{percent(share):>10}  {span(share)}")
        return "\n".join([*lines, self.needed_text(), self.verdict.text])

    def __repr__(self) -> str:
        return str(self)

    def title(self) -> str:
        """What was measured."""
        facts = self.facts
        return f"{facts['generator']}, {facts['reward']}, T = {facts['steps']}: {self.trajectories:,} images, sigma {SIGMA:g}"


def percent(share: Share | None) -> str:
    """``2.4 %``."""
    return "unknown" if share is None else f"{100 * share.value:.1f} %"


def span(share: Share | None) -> str:
    """``1.8 to 3.0 %``."""
    return "" if share is None else f"{100 * share.interval[0]:.1f} to {100 * share.interval[1]:.1f} %"


def _round(number: float) -> int:
    """Two digits; more would be a promise."""
    digits = max(int(math.log10(max(number, 1))) - 1, 0)
    return max(int(round(number, -digits)), 1)


@float32_by_default()
def find_headroom(
    generator: Generator,
    policy: SamplingPolicy,
    reward: RewardModel,
    *,
    trajectories: int = BUDGET,
    seed: int = 0,
    contexts_from: OwnContexts | None = None,
    batch: int | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Headroom:
    """Make images under random actions around a policy, score them, and split the variance of the scores.

    Args:
        policy: where to start; of a hand-made schedule every knob is moved, of a learned policy those that it sets.
        reward: as it is; a reward that learns is not trained here.
        trajectories: images to make (rounded down to whole blocks). batch: in flight at once.
        facts: what else ``to_dict`` tells.

    Raises:
        ConfigError: too few trajectories for an interval or for the slopes, or a published sampler. DataError: the reward is
            constant.
        PluginError: the reward returned something else than scores.
    """
    shape = block_shape(trajectories)
    blocks, contexts, actions, draws = shape
    policy = explored(generator, policy)
    space, count, device = policy.space, math.prod(shape), generator.device
    _require_enough(trajectories, space.decisions, space.size, len(generator.statistic_names))
    drawn = Noise(sample_seeds(derive(seed, CONTEXT), 0, 0, blocks * contexts, device))
    context = draw_contexts(generator, drawn, contexts_from)
    exploring = Noise(sample_seeds(derive(seed, ACTION), 0, 0, blocks * actions, device))
    action = explored_by(exploring, space.decisions, space.size)
    noise = Noise(sample_seeds(seed, 0, 0, count, device))
    index = torch.arange(count, device=device)
    block, own_context, own_action = index // (count // blocks), index // (actions * draws), index // draws % actions
    own_action = block * actions + own_action
    at_once = MicroBatch(batch or (CPU_CHUNK if device.type == "cpu" else 256))
    name, done, counting = name_of(reward), 0, Lock()

    def part(rows: slice) -> tuple[Tensor, Tensor | None]:
        nonlocal done
        these = context.select(own_context[rows])
        end, statistics = _trajectories(generator, policy, these, noise.select(rows), SIGMA * action[own_action[rows]])
        embedded = embed(reward, generator, end, these, None)
        if not reward.set_level:
            embedded = score(reward, name, embedded, these, MicroBatch())[0]
        with counting:
            done += len(these)
            if progress is not None:
                progress("headroom", done, count)
        return embedded, statistics

    with torch.no_grad():
        parts = at_once.map(part, count, threads=may_go_side_by_side(device, generator, reward))
        scores = torch.cat([p[0] for p in parts])
        if reward.set_level:
            scores = score(reward, name, scores, context.select(own_context), MicroBatch())[0]
    statistics = None
    if generator.statistic_names:
        statistics = torch.cat([p[1] for p in parts if p[1] is not None]).cpu()
        statistics = statistics.view(*shape, space.decisions, -1)
    try:
        shares = variance_shares(scores.cpu().view(shape), action.cpu().unflatten(0, (blocks, actions)), statistics)
    except DataError as error:
        raise DataError(f"reward {name!r}: {error}") from None
    distinct = generator.num_classes or len(context.distinct()[0])
    told = {
        "toolkit": toolkit_version(),
        "generator": generator.name,
        "reward": name,
        "policy": policy.card.get("schedule") or policy.card.get("kind", policy.network.kind),
        "steps": policy.steps,
        "sigma": SIGMA,
        "seed": seed,
        "blocks": {"number": blocks, "contexts": contexts, "actions": actions, "draws": draws},
        "statistics": list(generator.statistic_names),
        **(facts or {}),
    }
    return Headroom(shares, space.acted, space.decisions, distinct, count, told)


def block_shape(trajectories: int) -> tuple[int, int, int, int]:
    """(blocks, contexts, actions, draws) of so many trajectories.

    Raises:
        ConfigError: too few for an interval, or too many to hold.
    """
    if not FEWEST <= trajectories <= MOST_IMAGES:
        blocks = BLOCKS[-1][1]
        raise ConfigError(
            f"{trajectories:,} trajectories are too {'few for an interval' if trajectories < FEWEST else 'many'}: give at "
            f"least {FEWEST:,} ({blocks} blocks of {CONTEXTS} contexts x {FEWEST_ACTIONS} actions x {DRAWS} draws) and at most "
            f"{MOST_IMAGES:,}."
        )
    blocks = next(number for least, number in BLOCKS if trajectories >= least)
    return blocks, CONTEXTS, trajectories // (blocks * CONTEXTS * DRAWS), DRAWS


def _require_enough(trajectories: int, steps: int, knobs: int, statistics: int) -> None:
    """See, before any image is made, that the images can carry a slope for each step and knob, and statistic of a state.

    Raises:
        ConfigError: they are too few; names how many would do.
    """
    slopes = steps * knobs

    def carried(count: int) -> bool:
        blocks, contexts, actions, draws = block_shape(count)
        taken = blocks * (contexts + actions - 1)
        states = blocks * contexts * actions * draws >= least_samples(slopes * statistics, lost=taken)
        return states and blocks * actions >= least_samples(slopes, lost=blocks)

    if carried(trajectories):
        return
    whole = BLOCKS[-1][1] * CONTEXTS * DRAWS
    counts = range(trajectories - trajectories % whole, MOST_IMAGES, whole)
    enough = next((count for count in counts if carried(count)), None)
    remedy = f"give at least {enough:,} trajectories, " if enough else ""
    raise ConfigError(
        f"{trajectories:,} trajectories are too few for the {slopes:,} slopes of {steps} steps x {knobs} knobs: {remedy}take "
        "fewer steps, or a policy that sets fewer knobs."
    )


def explored(generator: Generator, policy: SamplingPolicy) -> SamplingPolicy:
    """A policy whose actions can be moved: a hand-made schedule becomes one that acts on every knob.

    Raises:
        ConfigError: a published sampler, which has steps of its own.
    """
    if policy.rule is not None:
        raise ConfigError("a published sampler takes steps of its own, which no knob moves; give a schedule or a policy.")
    if policy.space.acted:
        return policy
    assert policy.space.schedule is not None
    return replace(policy, space=generator.action_space.bind(policy.space.schedule, steps=policy.steps))


def _trajectories(
    generator: Generator, policy: SamplingPolicy, context: Context, noise: Noise, moved: Tensor
) -> tuple[Any, Tensor | None]:
    """The last state, and the statistics (B, T, S) before every step; ``moved``: (B, T, A) is added to the raw actions."""
    space, network = policy.space, policy.network
    state, smoothed, seen = begin(generator, policy, context, noise), None, []
    for t in range(space.decisions):
        step = torch.full((len(context),), t, dtype=torch.int64, device=generator.device)
        if generator.statistic_names:
            seen.append(generator.statistics(state))
        mean = mean_action(network, see(generator, network, state, context), step)
        raw = moved[:, t] + (mean if mean.shape[1] else 0)  # a hand-made schedule acts on nothing
        smoothed = space.smoothed(raw, step, smoothed)
        state = generator.step(state, space.transformed(smoothed, step), noise)
    return state, torch.stack(seen, 1) if seen else None


def reward_for(
    name: str | None,
    policy: str | os.PathLike[str] | None,
    *,
    generator: Generator,
    real: ImageSource | None,
    seed: int = 0,
    offline: bool = False,
) -> tuple[RewardModel, str]:
    """The reward that was named, else that of the run the policy is of, else :data:`DEFAULT_REWARD`; and where it is from.

    A reward that learns takes its state from the run's newest checkpoint.

    Raises:
        ConfigError: a reward that learns and no run that trained it; a run whose reward has options that name sources.
        CheckpointError: the run is damaged. PluginError, WeightsError, DataError: see ``create_reward``.
    """
    folder = None if policy is None else RunFolder(Path(policy))
    stored = None if folder is None else stored_config(folder)
    run_name = None if stored is None else stored.reward.name
    chosen, options = name or run_name or DEFAULT_REWARD, {}
    from_run = stored is not None and chosen == run_name
    kind = reward_class(RewardSpec.parse(chosen))[0]
    if from_run:
        assert stored is not None
        options = stored.reward.options
        named = not_followed(kind.Options, options)
        if named:
            raise ConfigError(
                f"{policy} says where its reward comes from: {shown_options(named)}. What a folder names is not followed; use "
                "another reward."
            )
    reward = create_reward(
        chosen,
        options,
        generator=generator,
        real=real,
        device=generator.device,
        seed=seed,
        offline=offline,
    )
    if not reward.learns:
        return reward, chosen
    saved = folder.checkpoints() if folder is not None and from_run else []
    if folder is None or not saved:
        raise ConfigError(
            f"reward {chosen!r} learns, and without a run there is nothing that it has learned: give --policy RUN, a run "
            f"folder that was trained with it, or a reward that does not learn, such as {DEFAULT_REWARD}."
        )
    tensors, card = load_checkpoint(folder.checkpoint(saved[-1]))
    assert stored is not None
    require_made_with(folder, saved[-1], card, stored)
    load_into(reward, reward_state(tensors, generator.device))
    return reward, f"{chosen} of {Path(policy or '').name}, iteration {saved[-1]}"


def _draw(result: Headroom, file: Path) -> None:
    """The shares with their intervals, and where slopes are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(name.strip(), share) for name, share in result.rows if share is not None]
    figure = Figure(figsize=(11, 3.6), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    places = range(len(rows), 0, -1)
    values = [100 * share.value for _, share in rows]
    sides = [[100 * (s.value - s.interval[0]) for _, s in rows], [100 * (s.interval[1] - s.value) for _, s in rows]]
    left.errorbar(values, list(places), xerr=sides, fmt="o", color="#2a78d6", capsize=3)
    left.axvline(0, color="#8888", linewidth=1)
    left.set_xscale("symlog", linthresh=1)
    left.xaxis.set_major_formatter("{x:g}")
    left.set_yticks(list(places), [name for name, _ in rows])
    left.set_xlabel("% of the reward's variance, 95 % intervals")
    left.set_title(result.title(), fontsize=9)
    cells = result.slope_rows()
    table = torch.tensor([[max(100 * s, 0.0) for s, _ in steps] for _, _, steps in cells])
    shown = right.imshow(table, aspect="auto", cmap="Blues", vmin=0)
    for y, (_, _, steps) in enumerate(cells):
        for x, (_, clear) in enumerate(steps):
            if clear:
                right.text(x, y, "*", ha="center", va="center")
    right.set_yticks(range(len(cells)), [f"{knob}, {whose}" for knob, whose, _ in cells], fontsize=7)
    right.set_xticks(range(result.steps), [str(t + 1) for t in range(result.steps)])
    right.set_xlabel("step")
    right.set_title("slopes, % of the variance (* clear of 0)", fontsize=9)
    figure.colorbar(shown, ax=right)
    write_file(file, figure_png(figure))
