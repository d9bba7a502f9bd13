"""Knobs and the action space: raw numbers that the Gaussian draws <-> physical values that a generator obeys.

AdaNAT section 4.1 (action space) and its appendix on the parametrisation: the re-masking ratio is a sigmoid of the raw
value, temperatures and guidance are softplus of it; optionally the raw value is a residual on a fixed schedule.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError, nearest
from ..limits import MOST_STEPS

Transform = Literal["sigmoid", "softplus"]


@dataclass(frozen=True)
class Knob:
    """One number that steers one step of a generator.

    Attributes:
        name: the field's term, unique within a generator.
        transform: ``sigmoid`` (physical in (0, scale)) or ``softplus`` (physical > 0; the identity above 20).
        meaning: one line with the unit, shown by ``adanat plugins`` and in reports.
        neutral: the physical value that a schedule which does not mention the knob uses; None: every schedule must.
        scale: what the sigmoid is multiplied by: the largest value of a bounded knob.
    """

    name: str
    transform: Transform
    meaning: str
    neutral: float | None
    scale: float = 1.0

    @property
    def high(self) -> float:
        """The largest physical value."""
        return self.scale if self.transform == "sigmoid" else float("inf")

    def to_physical(self, raw: Tensor) -> Tensor:
        return self.scale * torch.sigmoid(raw) if self.transform == "sigmoid" else F.softplus(raw)

    def to_raw(self, physical: Tensor) -> Tensor:
        """Inverse of :meth:`to_physical`; values at the end of the range are moved inside it by 1e-6 of it."""
        if self.transform == "sigmoid":
            p = (physical.double() / self.scale).clamp(1e-6, 1 - 1e-6)
            return torch.log(p) - torch.log1p(-p)
        p = physical.double().clamp_min(1e-6)
        return p + torch.log(-torch.expm1(-p))

    def check(self, values: Tensor) -> None:
        """Raises ConfigError where a physical value is outside the knob's range."""
        # as float32, which is what a generator is given: 1e39 is none
        bad = values[~((values >= 0) & (values <= self.high) & torch.isfinite(values.float()))]
        if bad.numel():
            limit = f"[0, {self.high:g}]" if self.transform == "sigmoid" else "[0, infinity)"
            raise ConfigError(f"knob {self.name!r} has the value {float(bad[0]):g}; it must lie in {limit}.")


MASK_RATIO = Knob("mask_ratio", "sigmoid", "share of all positions masked again after the step", 0.5)
MASK_TEMPERATURE = Knob(
    "mask_temperature", "softplus", "scale of the Gumbel noise added to log-confidence before re-masking", 0.0
)
TOKEN_TEMPERATURE = Knob("token_temperature", "softplus", "divides the logits that tokens are drawn from", 1.0)
GUIDANCE = Knob("guidance", "softplus", "g in cond + g (cond - uncond); 0 is no guidance", 0.0)
TIME = Knob("time", "sigmoid", "noise level that the step goes to, on the generator's own scale from 0 to 1", None)
"""Of diffusion and flow generators. They move it by at least 0.01 a step, in their own direction."""
TOP_P = Knob("top_p", "sigmoid", "share of the probability that tokens are drawn from, the likeliest first; 1 is all", 1.0)
TOKEN_KNOBS = (MASK_RATIO, MASK_TEMPERATURE, TOKEN_TEMPERATURE, GUIDANCE)
"""The four knobs of a masked-token generator, in the published order."""


def top_k_knob(vocabulary: int) -> Knob:
    """How many of so many tokens may be drawn: ``vocabulary`` times the sigmoid of the raw value."""
    meaning = "how many tokens may be drawn, the likeliest first (its integer part); below 1 is all"
    return Knob("top_k", "sigmoid", meaning, float(vocabulary), float(vocabulary))


def next_scale_knobs(vocabulary: int) -> tuple[Knob, ...]:
    """The four knobs of a next-scale generator, in the published order."""
    return GUIDANCE, top_k_knob(vocabulary), TOP_P, TOKEN_TEMPERATURE


@dataclass(frozen=True)
class ActionSpace:
    """The knobs of a generator, and, once bound, the schedule that raw actions are added to.

    Attributes:
        knobs: all knobs the generator obeys; physical actions have one column each, in this order.
        acted: names of the knobs the policy sets, in the order of its raw outputs. The others follow ``schedule``.
        schedule: (T, len(knobs)) float64 physical values, or None while unbound.
        residual: whether a raw action is added to the schedule's raw value (a zero action then is the schedule, to the bit).
        smoothing: s in [0, 1) of AdaGen's action smoothing: what the transforms see is s times what they saw at the
            sample's step before plus 1 - s times the raw value, the residual included; 0 is off. The residual undoes
            it, so that zero actions reproduce the schedule all the same.
        generation_steps: T where it is another number than the schedule's (see ``Generator.decisions``), else None.
    """

    knobs: tuple[Knob, ...]
    acted: tuple[str, ...] = ()
    schedule: Tensor | None = None
    residual: bool = False
    smoothing: float = 0.0
    generation_steps: int | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(k.name for k in self.knobs)

    @property
    def size(self) -> int:
        """Number of raw coordinates, A."""
        return len(self.acted)

    @property
    def decisions(self) -> int:
        """The number of actions that make an image, which is that of the schedule's rows."""
        if self.schedule is None:
            raise ConfigError("this action space is not bound to a schedule; call bind(schedule) first.")
        return self.schedule.shape[0]

    @property
    def steps(self) -> int:
        """T, the generation steps of an image."""
        return self.decisions if self.generation_steps is None else self.generation_steps

    def bind(
        self,
        schedule: Tensor,
        *,
        acted: Sequence[str] | None = None,
        residual: bool = True,
        smoothing: float = 0.0,
        steps: int | None = None,
    ) -> ActionSpace:
        """Fix the number of decisions, the schedule of the knobs that are not acted, the residual and the smoothing.

        Args:
            schedule: (decisions, len(knobs)) physical values.
            acted: knobs the policy sets; default all.
            residual: add raw actions to the schedule's raw values.
            smoothing: s in [0, 1), see the class. steps: T; None: as many as decisions.

        Raises:
            ConfigError: a name is unknown or twice, a value is out of range, or the shape does not fit.
        """
        if not 0 <= smoothing < 1:
            raise ConfigError(f"smoothing is {smoothing:g}; it must lie in [0, 1), where 0 is off.")
        if schedule.ndim != 2 or schedule.shape[1] != len(self.knobs) or schedule.shape[0] < 1:
            raise ConfigError(
                f"schedule has shape {tuple(schedule.shape)}; it must be (steps >= 1, {len(self.knobs)})."
            )
        if schedule.shape[0] > MOST_STEPS:
            raise ConfigError(f"schedule has {schedule.shape[0]:,} steps; at most {MOST_STEPS:,} are possible.")
        chosen = self.names if acted is None else tuple(acted)
        for name in chosen:
            if name not in self.names:
                raise ConfigError(
                    f"this generator has no knob {name!r}{nearest(name, self.names)} Its knobs: {', '.join(self.names)}."
                )
        if len(set(chosen)) != len(chosen):
            raise ConfigError(f"acted knobs {list(chosen)} name one twice.")
        for column, knob in enumerate(self.knobs):
            knob.check(schedule[:, column])
        return ActionSpace(
            self.knobs,
            chosen,
            schedule.detach().double().cpu(),
            residual,
            smoothing,
            None if steps == schedule.shape[0] else steps,
        )

    def base(self) -> Tensor:
        """(decisions, A) float32: what is added to a raw action at each step (zeros without residual).

        It is the schedule's raw value, after the inverse of the smoothing.
        """
        if self.schedule is None or not self.residual or not self.acted:
            return torch.zeros(0 if self.schedule is None else self.decisions, self.size)
        raw = self._raw_schedule
        before = torch.cat([raw[:1], raw[:-1]])
        return ((raw - self.smoothing * before) / (1 - self.smoothing)).float()

    def smoothed(self, raw: Tensor, step: int | Tensor, before: Tensor | None = None) -> Tensor:
        """What the knobs' transforms are applied to: (B, A) float32.

        Args:
            raw: (B, A) float32, as drawn.
            step: decision 0, 1, ..., one for the batch or (B,) int64.
            before: what this method gave at the samples' decision before, or None at the first one.
        """
        index = torch.as_tensor(step, device=raw.device, dtype=torch.int64).expand(raw.shape[0])
        shifted = raw + self._table("base", raw)[index] if self.residual else raw
        if before is None or self.smoothing == 0:
            return shifted
        return self.smoothing * before + (1 - self.smoothing) * shifted

    def transformed(self, smoothed: Tensor, step: int | Tensor) -> Tensor:
        """Physical values of every knob: (B, len(knobs)) float32 of :meth:`smoothed`'s (B, A).

        Columns of knobs that are not acted hold the schedule's values.
        """
        index = torch.as_tensor(step, device=smoothed.device, dtype=torch.int64).expand(smoothed.shape[0])
        acted, fixed = self._acted_columns(), self._table("schedule", smoothed)[index]
        if not acted:
            return fixed
        values = torch.stack([self.knobs[i].to_physical(smoothed[:, j]) for j, i in enumerate(acted)], dim=1)
        all_acted = acted == list(range(len(self.knobs)))
        if self.residual:
            # There and back, a ratio of 1/2 may come out just below it, and the count of cells is then one less.
            raw, slack = self._table("raw", smoothed)[index].unbind(1)
            exact = fixed if all_acted else fixed[:, acted]
            if values.requires_grad:
                exact = exact + (values - values.detach())  # plus 0, which lets gradients through
            values = torch.where((smoothed - raw).abs_() <= slack, exact, values)
        if all_acted:
            return values
        columns = dict(zip(acted, values.unbind(1), strict=True))
        return torch.stack([columns.get(i, fixed[:, i]) for i in range(len(self.knobs))], dim=1)

    def to_physical(self, raw: Tensor, step: int | Tensor, before: Tensor | None = None) -> Tensor:
        """Raw actions to physical values of every knob: :meth:`smoothed`, then :meth:`transformed`."""
        return self.transformed(self.smoothed(raw, step, before), step)

    def to_raw(self, physical: Tensor, step: int | Tensor, before: Tensor | None = None) -> Tensor:
        """Inverse of :meth:`to_physical` for the acted knobs: (B, len(knobs)) -> (B, A)."""
        index = torch.as_tensor(step, device=physical.device, dtype=torch.int64).expand(physical.shape[0])
        columns = [self.knobs[i].to_raw(physical[:, i]) for i in self._acted_columns()]
        raw = torch.stack(columns, dim=1).to(physical.dtype) if columns else physical[:, :0]
        if before is not None:
            raw = (raw - self.smoothing * before) / (1 - self.smoothing)
        return raw - self._table("base", physical)[index] if self.residual else raw

    def spec(self) -> dict[str, Any]:
        """JSON-able description, enough for :meth:`from_spec`."""
        assert self.schedule is not None
        return {
            "knobs": [{"name": k.name, "transform": k.transform, "meaning": k.meaning} for k in self.knobs],
            "acted": list(self.acted),
            "residual": self.residual,
            "smoothing": self.smoothing,
            "steps": self.steps,
            "schedule": self.schedule.tolist(),
        }

    def rebind(self, spec: Mapping[str, Any]) -> ActionSpace:
        """This generator's knobs bound as in ``spec`` (from :meth:`spec`).

        Raises:
            ConfigError: the spec names other knobs than the generator has.
        """
        names = tuple(k["name"] for k in spec["knobs"])
        if names != self.names:
            shown = textwrap.shorten(ascii(list(names)), 300, placeholder="...]")
            raise ConfigError(f"the policy was made for knobs {shown}, this generator has {list(self.names)}.")
        for own, knob in zip(self.knobs, spec["knobs"], strict=True):
            if own.transform != knob["transform"]:
                raise ConfigError(
                    f"the policy was made for a knob {own.name!r} under {knob['transform']}, here it is under {own.transform}."
                )
        lengths = {len(row) for row in spec["schedule"]}
        if lengths != {len(names)}:
            raise ConfigError(
                f"the policy's schedule has rows of {sorted(lengths)} values; one a knob is needed, {len(names)}."
            )
        schedule = torch.tensor(spec["schedule"], dtype=torch.float64)
        return self.bind(
            schedule,
            acted=spec["acted"],
            residual=spec["residual"],
            smoothing=spec.get("smoothing", 0.0),  # cards of version 0.1 have neither
            steps=spec.get("steps"),
        )

    @cached_property
    def _raw_schedule(self) -> Tensor:
        """(decisions, A) float64: the schedule before the transforms of the acted knobs."""
        assert self.schedule is not None
        return torch.stack([self.knobs[i].to_raw(self.schedule[:, i]) for i in self._acted_columns()], dim=1)

    @property
    def _rounding(self) -> float:
        """How far float32 may take the raw value of a zero action from the schedule's, as a share of 1 + its size."""
        return 2**-22 / (1 - self.smoothing)  # smoothing carries the errors of the steps before along

    def _acted_columns(self) -> list[int]:
        return [self.names.index(name) for name in self.acted]

    @cached_property
    def _tables(self) -> dict[tuple[str, torch.device, torch.dtype], Tensor]:
        return {}  # copies of the tables by device, so that no step waits for a transfer

    def _table(self, which: str, like: Tensor) -> Tensor:
        key = which, like.device, like.dtype
        if key not in self._tables:
            assert self.schedule is not None, "unbound action space"
            table = self.schedule
            if which == "base":
                table = self.base()
            elif which == "raw":  # with how far rounding may take a zero action from it
                table = torch.stack([self._raw_schedule, self._rounding * (1 + self._raw_schedule.abs())], dim=1)
            self._tables[key] = table.to(device=like.device, dtype=like.dtype)
        return self._tables[key]
