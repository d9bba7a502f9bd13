"""A positive control: a generator and a reward whose best actions, and what they gain, are known in closed form.

What is trained or estimated on it can be held against the truth. With raw actions u (T x K coordinates, the schedule's are 0),
the class c and a state s_t that each sample draws anew at every step, the reward is

    r = main(c) + sum over t and k of a (2 u u* - u^2) + noise,    u* = shared_tk + context_tk(c) + state_tk . s_t

so that u* is the best action of every context and state, a the curvature, and a u*^2 what it gains. Under exploration
u ~ N(0, sigma^2) the reward's variance is 1 and splits into the shares that were asked for (:meth:`Control.shares`). The
states do not depend on the actions, unlike those of a real generator.

Shapes: B samples, T steps, K knobs, C classes, S numbers of a state.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from ..core import CONTEXT, INITIAL, STEP, TOKEN, ActionSpace, Context, Generator, Knob, Noise, PluginOptions
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..sampling import collect

STATE = 4
"""S."""
NUISANCE = 12
"""Channels of the features that tell nothing, drawn anew for every cell and step."""
SPAN = 20.0
"""Rewards from -SPAN / 2 to SPAN / 2 fit into the red of an image."""


class ControlOptions(PluginOptions):
    """The shares of the reward's variance under exploration, and what else the control is made of."""

    context: float = Field(0.16, ge=0, lt=1)
    """Of the class alone."""
    shared: float = Field(0.02, ge=0, lt=1)
    """Of the slope in the actions that is common to all samples; the curvature's share comes on top."""
    by_context: float = Field(0.02, ge=0, lt=1)
    """Of the slopes that differ between classes."""
    by_state: float = Field(0.02, ge=0, lt=1)
    """Of the slopes that the state decides."""
    sigma: float = Field(0.6, gt=0)
    """Exploration under which the shares hold, in raw coordinates."""
    reach: float = Field(1.0, gt=0)
    """Root mean square of the best actions' coordinates: how far they are from the schedule."""
    classes: int = Field(16, ge=2, le=1024)
    knobs: int = Field(2, ge=1, le=16)
    seed: int = 0
    """Decides the tables of best actions."""


@dataclass(frozen=True)
class Law:
    """What the reward of T steps is made of.

    Attributes:
        curvature: a. noise: standard deviation of the noise. main: (C,) of the class alone.
        shared: (T, K), context: (C, T, K), state: (T, K, S): the three parts of the best actions.
    """

    curvature: float
    noise: float
    main: Tensor
    shared: Tensor
    context: Tensor
    state: Tensor


@dataclass
class ControlState:
    """``total``: (B,) of what was gained so far. ``drawn``: (B, S), the state. ``cells``: (B, N, NUISANCE)."""

    context: Context
    steps: int
    step: int
    total: Tensor
    drawn: Tensor
    cells: Tensor


class Control(Generator):
    """The generator; its images carry the reward in their red, which :func:`control_reward` reads.

    Green is the class, blue the last state. It gives its state as statistics, and class, state and nuisance as features.

    Args:
        options: see :class:`ControlOptions`; keywords are put in place of its fields.

    Raises:
        ConfigError: the shares sum to more than 1.
    """

    Options = ControlOptions
    thread_safe = True

    def __init__(self, options: ControlOptions | None = None, **fields: Any) -> None:
        self.options = ControlOptions(**{**(options or ControlOptions()).model_dump(), **fields})
        text = self.options.model_dump_json()
        self.name, self.fingerprint = "control", hashlib.sha256(text.encode()).hexdigest()
        names = [f"knob_{k}" for k in range(self.options.knobs)]
        self.action_space = ActionSpace(tuple(Knob(name, "sigmoid", "a coordinate of the control", 0.5) for name in names))
        self.default_schedule, self.default_steps = f"{names[0]}=0.5", 4
        self.grid, self.image_size = (2, 2), (4, 4)
        self.context_kind, self.num_classes = "class", self.options.classes
        self.feature_dim = self.options.classes + STATE + NUISANCE
        self.device, self.dtype = torch.device("cpu"), torch.float32
        draw = torch.Generator().manual_seed(self.options.seed)
        square = torch.randn(self.options.classes, self.options.classes, generator=draw)
        self.embedding = torch.linalg.qr(square)[0] * math.sqrt(self.options.classes)
        self.law(self.default_steps)

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> Control:
        from ..registry import parse_options

        return cls(parse_options("generator 'control'", ControlOptions, options))

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("control",)

    # --- the truth ----------------------------------------------------------------------------------------------------

    @lru_cache(maxsize=8)  # noqa: B019 - a control lives as long as its test
    def law(self, steps: int) -> Law:
        """The reward's law for images of ``steps`` steps.

        Raises:
            ConfigError: the shares sum to more than 1.
        """
        o, count = self.options, steps * self.options.knobs
        slopes = o.shared + o.by_context + o.by_state
        curvature = math.sqrt(slopes / (4 * o.sigma**2 * count * o.reach**2))
        rest = 1 - o.context - slopes - 2 * curvature**2 * o.sigma**4 * count
        if rest < 0:
            raise ConfigError(f"the shares of the control leave {rest:.3f} for the noise; they must sum to at most 1.")
        draw = torch.Generator().manual_seed(o.seed + 1)
        # Later coordinates matter more; the mean of the squares over all of them is 1.
        weight = torch.arange(1, count + 1).sqrt().view(steps, o.knobs)
        weight = weight / weight.square().mean().sqrt()

        def part(share: float) -> Tensor:
            return weight * (o.reach * math.sqrt(share / slopes) if slopes else 0.0)

        def standard(*shape: int) -> Tensor:
            values = torch.randn(o.classes, *shape, generator=draw)
            return (values - values.mean(0)) / values.std(0, correction=0)

        direction = torch.randn(steps, o.knobs, STATE, generator=draw)
        signs = torch.randint(0, 2, (steps, o.knobs), generator=draw) * 2 - 1
        return Law(
            curvature,
            math.sqrt(rest),
            math.sqrt(o.context) * standard(),
            signs * part(o.shared),
            standard(steps, o.knobs) * part(o.by_context),
            direction / direction.norm(dim=-1, keepdim=True) * part(o.by_state)[..., None],
        )

    def shares(self, steps: int) -> dict[str, float]:
        """The shares of the reward's variance under exploration, which sum to 1: ``context``, ``action`` (slope and curvature
        that all samples have in common), ``slope`` (of it the slope), ``action_context``, ``action_state``, ``noise``."""
        o, law = self.options, self.law(steps)
        curved = 2 * law.curvature**2 * o.sigma**4 * steps * o.knobs
        return {
            "context": o.context,
            "action": o.shared + curved,
            "slope": o.shared,
            "action_context": o.by_context,
            "action_state": o.by_state,
            "noise": law.noise**2,
        }

    def possible(self, steps: int) -> dict[str, float]:
        """What the best policy of each kind gains over the schedule, in standard deviations of the reward under exploration:
        ``shared``, ``context`` (sees the class), ``adaptive`` (sees class and state)."""
        law = self.law(steps)
        shared = law.curvature * float(law.shared.square().sum())
        context = shared + law.curvature * float(law.context.square().mean(0).sum())
        return {"shared": shared, "context": context, "adaptive": context + law.curvature * float(law.state.square().sum())}

    def best_actions(self, classes: Tensor, states: Tensor) -> Tensor:
        """(B,) classes and (B, T, S) states -> the best raw actions u*, (B, T, K)."""
        law = self.law(states.shape[1])
        return law.shared + law.context[classes] + torch.einsum("tks,bts->btk", law.state, states)

    def states(self, noise: Noise, steps: int) -> Tensor:
        """(B, T, S): the states that samples of this noise go through."""
        return torch.stack([self._draw(noise, t) for t in range(steps)], dim=1)

    def gain(self, policy: SamplingPolicy, count: int = 4096, seed: int = 10**6) -> float:
        """What a policy gains over the schedule without exploration, in the unit of :meth:`possible`: the mean over ``count``
        samples, without the reward's noise."""
        noise = Noise(torch.arange(seed, seed + count))
        context = self.sample_contexts(noise)
        physical = collect(self, policy, context, noise, micro_batch=1024, keep_features=False).physical
        raw = torch.special.logit(physical.double(), eps=1e-6).float()
        assert context.classes is not None
        best = self.best_actions(context.classes, self.states(noise, policy.steps))
        return float((self.law(policy.steps).curvature * (2 * raw * best - raw**2)).sum((1, 2)).mean())

    # --- the generator ------------------------------------------------------------------------------------------------

    def sample_contexts(self, noise: Noise) -> Context:
        drawn = noise.uniform(CONTEXT, 0, (1,))[:, 0]
        return Context(len(noise), classes=(drawn * self.options.classes).long())

    def reset(self, context: Context, noise: Noise, steps: int) -> ControlState:
        law = self.law(steps)
        assert context.classes is not None
        total = law.main[context.classes] + law.noise * noise.normal(TOKEN, 0, ())
        return ControlState(context, steps, 0, total, self._draw(noise, 0), self._nuisance(noise, 0))

    def observe(self, state: ControlState, *, guided: bool = True) -> Tensor:
        assert state.context.classes is not None
        seen = torch.cat([self.embedding[state.context.classes], state.drawn], dim=1)
        return torch.cat([seen[:, None].expand(-1, state.cells.shape[1], -1), state.cells], dim=2)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        return tuple(f"state_{i}" for i in range(STATE))

    def statistics(self, state: ControlState) -> Tensor:
        return state.drawn

    def step(self, state: ControlState, action: Tensor, noise: Noise) -> ControlState:
        law, t = self.law(state.steps), state.step
        assert state.context.classes is not None
        best = law.shared[t] + law.context[state.context.classes, t] + state.drawn @ law.state[t].T
        raw = torch.special.logit(action.double(), eps=1e-6).float()
        total = state.total + (law.curvature * (2 * raw * best - raw**2)).sum(1)
        following = min(t + 1, state.steps - 1)  # nothing is seen of a state after the last step
        drawn, cells = self._draw(noise, following), self._nuisance(noise, following)
        return ControlState(state.context, state.steps, t + 1, total, drawn, cells)

    def decode(self, state: ControlState) -> Tensor:
        assert state.context.classes is not None
        red = 0.5 + state.total / SPAN
        green = state.context.classes.float() / (self.options.classes - 1)
        colours = torch.stack([red, green, torch.sigmoid(state.drawn[:, 0])], dim=1)
        return colours.clamp(0, 1)[:, :, None, None].expand(-1, -1, *self.image_size).contiguous()

    def _draw(self, noise: Noise, step: int) -> Tensor:
        return noise.normal(STEP, step, (STATE,))

    def _nuisance(self, noise: Noise, step: int) -> Tensor:
        return noise.normal(INITIAL, step, (self.grid[0] * self.grid[1], NUISANCE))


def control_reward(images: Tensor, context: Context) -> Tensor:
    """The reward that the images of :class:`Control` carry: (B, 3, H, W) -> (B,)."""
    return (images[:, 0].mean((1, 2)) - 0.5) * SPAN
