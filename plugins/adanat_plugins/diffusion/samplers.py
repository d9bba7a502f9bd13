"""Steps of diffusers' samplers with a time of its own for every sample.

A scheduler of diffusers moves a whole batch from one time to the next. The classes here compute the same formula with the
coefficients of each sample, so that a policy can place the steps of every image; :class:`SharedTimes` is for schedulers
whose formula is not here, and leaves the times alone.

Where a step goes is a *position* in the schedule that the pipeline's own scheduler makes for T network calls: 0 is the
first of them, i the i-th after it, T the finished image. Positions in between are interpolated. At whole positions all
numbers are the scheduler's, hence its own schedule is reproduced whatever it was configured with.

Levels are the share of noise: sigma / alpha where alpha^2 + sigma^2 = 1 (and for Euler, whose latents are x0 + level e),
and sigma itself on the straight path of flow models.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from adanat_toolkit.actions import Knob
from adanat_toolkit.errors import ConfigError

TIME_SHIFT = Knob(
    "time_shift",
    "sigmoid",
    "how much of the pipeline's remaining schedule the step leaves: 0.5 is its own share, 0 is nothing (the image), 1 all",
    0.5,
)
ETA = Knob("eta", "sigmoid", "share of fresh noise in a DDIM step: 0 is none, 1 is DDPM", 0.0)

LEAST_MOVE = 0.05
"""A step moves on by at least so much of one of the schedule's own steps."""
NOTHING = 1e-4
"""Guidance and eta below this count as none: knobs reach zero only in the limit."""


@dataclass(frozen=True)
class Schedule:
    """A scheduler's own schedule of T network calls, float64.

    Attributes:
        timesteps: (T,) what the network is told. start_scale: standard deviation of the noise that images start from.
        levels: (T,) noise level at each call. after: (T,) level that the step of each call goes to. Both are NaN where the
            sampler does not need them.
    """

    timesteps: Tensor
    start_scale: float
    levels: Tensor
    after: Tensor

    @property
    def steps(self) -> int:
        """T, which some schedulers make larger than the steps they were asked for."""
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> Schedule:
        moved = (table.to(device) for table in (self.levels, self.after))
        return Schedule(self.timesteps.to(device), self.start_scale, *moved)


@dataclass(frozen=True)
class Place:
    """Where B samples are.

    Attributes:
        position: (B,) float64, see the module. arrived: (B,) float64, level that their latents were brought to.
        level: (B,) float64, level that the network is called at (some schedulers tell the two apart by rounding).
        timestep: (B,) float32, what the network is told.
    """

    position: Tensor
    arrived: Tensor
    level: Tensor
    timestep: Tensor


@dataclass(frozen=True)
class Step:
    """One step of B samples.

    Attributes:
        latents, output: (B, C, h, w) float32, the network's being the guided one. place, target: from where to where.
        index: which step it is, of so many ``steps``.
        eta: (B,), share of fresh noise, and noise (B, C, h, w) standard normal; None without.
    """

    latents: Tensor
    output: Tensor
    place: Place
    target: Place
    index: int
    steps: int
    eta: Tensor | None = None
    noise: Tensor | None = None


def next_position(position: Tensor, shift: Tensor, index: int, steps: int) -> Tensor:
    """The position (B,) float64 that step ``index`` of ``steps`` goes to from ``position`` under the knob ``time_shift`` (B,).

    With n steps left and r of the schedule remaining, r (1 - 1/n)^s remains, where s = (1 - v) / v for the knob's value v.
    At 0.5 a step goes 1/n of the way, which is the scheduler's own from its own places; and s is e^-x for the raw value x, so
    that exploration is as strong for many steps as for few. A step moves on by :data:`LEAST_MOVE` or more and leaves as
    much for every step that follows; the last step finishes.
    """
    left = steps - index
    if left == 1:
        return torch.full_like(position, steps)
    shift = shift.double()
    proposed = steps - (steps - position) * (1 - 1 / left) ** ((1 - shift) / shift)
    latest = steps - LEAST_MOVE * (left - 1)
    moved = torch.maximum(proposed, position + LEAST_MOVE).clamp_max(latest)
    whole = moved.round()  # the last bits must not miss the scheduler's own places
    return torch.where((moved - whole).abs() < 1e-6, whole, moved)


class Sampler(ABC):
    """One of diffusers' schedulers, step by step.

    Args:
        scheduler: of the pipeline; it is copied and not changed.
    """

    schedulers: ClassVar[tuple[str, ...]]
    """The names of the classes of diffusers that it computes."""
    knobs: tuple[Knob, ...]

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        self.config = scheduler.config

    @classmethod
    @abstractmethod
    def lacks(cls, config: Any) -> str | None:
        """What such a configuration asks for that the sampler has not, in words; None where it has all."""

    def schedule(self, steps: int, **arguments: Any) -> Schedule:
        """The scheduler's own for ``steps`` steps, on the CPU; ``arguments`` are what the pipeline gives its
        ``set_timesteps``.

        Raises:
            ConfigError: the scheduler makes none of so many steps.
        """
        why = ""
        try:
            self.scheduler.set_timesteps(None if "sigmas" in arguments else steps, device="cpu", **arguments)
            timesteps = torch.as_tensor(self.scheduler.timesteps).double()
            if not bool(timesteps.isfinite().all()):  # a stretched schedule of one step
                why = "its times are not finite."
        except (ValueError, IndexError, ZeroDivisionError) as error:
            why = str(error)
        if why:
            raise ConfigError(
                f"{type(self.scheduler).__name__} makes no schedule of {steps} steps: {why} Use another number of steps."
            )
        # Flow schedulers name no scale: their images start from standard normal noise.
        return Schedule(timesteps, float(getattr(self.scheduler, "init_noise_sigma", 1.0)), *self._levels())

    def begin(self, steps: int, **arguments: Any) -> Any:
        """The memory before the first step: what :meth:`step` keeps of one step for the next; opaque, never changed."""
        return None

    @abstractmethod
    def place(self, schedule: Schedule, position: Tensor) -> Place:
        """Where positions (B,) float64 are; both on one device."""

    def network_input(self, latents: Tensor, place: Place, memory: Any) -> Tensor:
        """The latents (B, C, h, w) as the network wants them."""
        return latents

    @abstractmethod
    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        """The latents (B, C, h, w) float32 at the target, and the memory for the next step."""

    @abstractmethod
    def _levels(self) -> tuple[Tensor, Tensor]:
        """Level at each call and after each step, (T,) float64 each, of the schedule just set."""


class SharedTimes(Sampler):
    """Any scheduler that draws no noise: its own steps, the same for the whole batch. The memory is the scheduler."""

    schedulers = (
        "DDIMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler",
        "PNDMScheduler", "UniPCMultistepScheduler",
    )  # fmt: skip
    knobs = ()

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        algorithm = config.get("algorithm_type") or ""
        return f"algorithm_type={algorithm!r}, which draws noise" if algorithm.startswith("sde") else None

    def begin(self, steps: int, **arguments: Any) -> Any:
        self.schedule(steps, **arguments)
        return copy.deepcopy(self.scheduler)

    def place(self, schedule: Schedule, position: Tensor) -> Place:
        whole = position.long().clamp_max(schedule.steps - 1)
        unknown = torch.full_like(position, torch.nan)
        return Place(position, unknown, unknown, schedule.timesteps[whole].float())

    def network_input(self, latents: Tensor, place: Place, memory: Any) -> Tensor:
        scheduler = copy.copy(memory)  # it counts what it is asked
        scaled: Tensor = scheduler.scale_model_input(latents, scheduler.timesteps[int(place.position[0])])
        return scaled

    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        scheduler = copy.deepcopy(memory)
        timestep = scheduler.timesteps[now.index]
        scheduler.scale_model_input(now.latents, timestep)
        latents: Tensor = scheduler.step(now.output, timestep, now.latents, return_dict=False)[0]
        return latents, scheduler

    def _levels(self) -> tuple[Tensor, Tensor]:
        unknown = torch.full((len(self.scheduler.timesteps),), torch.nan, dtype=torch.float64)
        return unknown, unknown


class OwnTimes(Sampler):
    """A sampler whose formula stands here, so that every sample has its own place."""

    knobs: tuple[Knob, ...] = (TIME_SHIFT,)

    def place(self, schedule: Schedule, position: Tensor) -> Place:
        levels, after = schedule.levels, schedule.after
        end = self._before_the_end(levels)[None]
        whole = position.floor().clamp_max(schedule.steps - 1).long()
        part = position - whole
        arrived = self._between(torch.cat([levels[:1], after[:-1], end]), whole, part)
        arrived = torch.where(position >= schedule.steps, after[-1], arrived)
        level = self._between(torch.cat([levels, end]), whole, part)
        timestep = torch.where(part == 0, schedule.timesteps[whole], self._timestep(level))
        return Place(position, arrived, level, timestep.float())

    @abstractmethod
    def _timestep(self, level: Tensor) -> Tensor:
        """What the network is told at levels between those of the schedule: (B,) float64."""

    @abstractmethod
    def _between(self, table: Tensor, whole: Tensor, part: Tensor) -> Tensor:
        """Levels (B,) a ``part`` of the way from entry ``whole`` of the table to the next."""

    @abstractmethod
    def _before_the_end(self, levels: Tensor) -> Tensor:
        """The level that positions behind the last call lead to."""


class _Diffusion(OwnTimes):
    """Schedulers of variance-preserving training: the level's logarithm is interpolated."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        # At the end of a schedule of zero terminal signal the level would be infinite.
        self._trained = _level(scheduler.alphas_cumprod.double().cpu().clamp_min(1e-12))
        self._log_trained = self._trained.log()

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        if config.get("thresholding"):
            return "thresholding=True"
        if config.prediction_type not in ("epsilon", "v_prediction", "sample"):
            return f"prediction_type={config.prediction_type!r}"
        return None

    def _predictions(self, latents: Tensor, output: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Image and noise that the output means, for latents alpha x0 + sigma e."""
        alpha, sigma = (_as(latents, x) for x in _alpha_sigma(level))
        kind = self.config.prediction_type
        if kind == "epsilon":
            return (latents - sigma * output) / alpha, output
        if kind == "sample":
            return output, (latents - alpha * output) / sigma
        return alpha * latents - sigma * output, alpha * output + sigma * latents

    def _timestep(self, level: Tensor) -> Tensor:
        table = self._log_trained = self._log_trained.to(level.device)  # moved once
        wanted = level.log()
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)

    def _between(self, table: Tensor, whole: Tensor, part: Tensor) -> Tensor:
        low, high = table[whole], table[whole + 1]
        return torch.where(part == 0, low, torch.exp(torch.lerp(low.log(), high.log(), part)))

    def _before_the_end(self, levels: Tensor) -> Tensor:
        return (levels[-1] / 2).clamp_max(float(self._trained[0]))  # not 0, which has no logarithm


class DDIM(_Diffusion):
    """Equations 12 and 16 of DDIM (arXiv:2010.02502)."""

    schedulers = ("DDIMScheduler",)
    knobs = (TIME_SHIFT, ETA)

    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        data, noise = self._predictions(now.latents, now.output, now.place.level)
        if self.config.clip_sample:
            data = data.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        (alpha, sigma), (alpha_then, sigma_then) = (_alpha_sigma(x) for x in (now.place.level, now.target.arrived))
        fresh = torch.zeros_like(sigma)
        if now.eta is not None:
            fresh = now.eta.double() * (sigma_then / sigma) * torch.sqrt((1 - (alpha / alpha_then) ** 2).clamp_min(0))
        kept = torch.sqrt((sigma_then**2 - fresh**2).clamp_min(0))
        latents = _as(data, alpha_then) * data + _as(data, kept) * noise
        if now.noise is not None:
            latents = latents + _as(data, fresh) * now.noise
        return latents, None

    def _levels(self) -> tuple[Tensor, Tensor]:
        # Its steps go back by an even stride, which rounded times need not lie apart.
        times = torch.as_tensor(self.scheduler.timesteps).long()
        before = times - self.config.num_train_timesteps // self.scheduler.num_inference_steps
        final = _level(self.scheduler.final_alpha_cumprod.double().clamp_min(1e-12))
        return self._trained[times], torch.where(before >= 0, self._trained[before.clamp_min(0)], final)


class Euler(_Diffusion):
    """Euler's method on latents x0 + level e (arXiv:2206.00364, algorithm 2 without churn)."""

    schedulers = ("EulerDiscreteScheduler",)

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        if config.get("timestep_type", "discrete") != "discrete":
            return f"timestep_type={config.timestep_type!r}"
        return super().lacks(config)

    def network_input(self, latents: Tensor, place: Place, memory: Any) -> Tensor:
        return latents / _as(latents, torch.sqrt(place.level**2 + 1))

    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        level = now.place.level
        noise = self._predictions(self.network_input(now.latents, now.place, memory), now.output, level)[1]
        return now.latents + _as(noise, now.target.arrived - level) * noise, None

    def _levels(self) -> tuple[Tensor, Tensor]:
        return _between_neighbours(self.scheduler.sigmas)


class DPMSolver(_Diffusion):
    """DPM-Solver++ of first and second order, multistep (arXiv:2211.01095, algorithm 2)."""

    schedulers = ("DPMSolverMultistepScheduler",)
    _LEAST_RATIO = 0.05
    """Of the step before to this one in log(alpha / sigma): a step of nearly nothing tells no slope."""

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        if config.algorithm_type != "dpmsolver++":
            return f"algorithm_type={config.algorithm_type!r}"
        if config.solver_order > 2:
            return f"solver_order={config.solver_order}"
        return super().lacks(config)

    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        level, target = now.place.level, now.target.arrived
        data = self._predictions(now.latents, now.output, level)[0]
        alpha_then, sigma_then = _alpha_sigma(target)
        h = level.log() - target.log()  # of lambda = log(alpha / sigma); infinite where no noise is left
        gain = alpha_then * torch.expm1(-h)
        latents = _as(data, sigma_then / _alpha_sigma(level)[1]) * now.latents - _as(data, gain) * data
        last = now.index == now.steps - 1
        if memory is None or self.config.solver_order == 1 or (last and self._ends_in_first_order(now.steps)):
            return latents, (data, level)
        data_before, level_before = memory
        ratio = ((level_before.log() - level.log()) / h).clamp_min(self._LEAST_RATIO)
        # A step of nothing, to the level where it already is, has 0 / 0 here.
        weight = -0.5 * gain if self.config.solver_type == "midpoint" else (gain / h + alpha_then).nan_to_num(0)
        return latents + _as(data, weight / ratio) * (data - data_before), (data, level)

    def _ends_in_first_order(self, steps: int) -> bool:
        few = self.config.lower_order_final and steps < 15
        return bool(self.config.euler_at_final or few or self.config.final_sigmas_type == "zero")

    def _levels(self) -> tuple[Tensor, Tensor]:
        return _between_neighbours(self.scheduler.sigmas)


class FlowEuler(OwnTimes):
    """Euler's method on the straight path (1 - sigma) x0 + sigma e, whose velocity e - x0 the network predicts."""

    schedulers = ("FlowMatchEulerDiscreteScheduler",)

    @classmethod
    def lacks(cls, config: Any) -> str | None:
        return next((f"{name}=True" for name in ("stochastic_sampling", "invert_sigmas") if config.get(name)), None)

    def step(self, now: Step, memory: Any) -> tuple[Tensor, Any]:
        return now.latents + _as(now.latents, now.target.arrived - now.place.level) * now.output, None

    def _levels(self) -> tuple[Tensor, Tensor]:
        return _between_neighbours(self.scheduler.sigmas)

    def _timestep(self, level: Tensor) -> Tensor:
        return level * self.config.num_train_timesteps

    def _between(self, table: Tensor, whole: Tensor, part: Tensor) -> Tensor:
        return torch.lerp(table[whole], table[whole + 1], part)

    def _before_the_end(self, levels: Tensor) -> Tensor:
        return levels.new_zeros(())


OWN_TIMES: tuple[type[OwnTimes], ...] = (DDIM, Euler, DPMSolver, FlowEuler)


def sampler_of(scheduler: Any) -> tuple[Sampler, str | None]:
    """The sampler of a pipeline's scheduler; and, where its samples cannot have times of their own, why not.

    Raises:
        ConfigError: a scheduler that draws noise, or an unknown one.
    """
    name = type(scheduler).__name__
    why = f"{name} has no formula here"
    for kind in OWN_TIMES:
        if name in kind.schedulers:
            missing = kind.lacks(scheduler.config)
            if missing is None:
                return kind(scheduler), None
            why = f"{name} with {missing} has no formula here"
    if name in SharedTimes.schedulers:
        missing = SharedTimes.lacks(scheduler.config)
        if missing is None:
            return SharedTimes(scheduler), why
        name = f"{name} with {missing}"
    kinds: tuple[type[Sampler], ...] = (*OWN_TIMES, SharedTimes)
    usable = sorted({known for kind in kinds for known in kind.schedulers})
    raise ConfigError(
        f"the pipeline's scheduler is {name}: its noise would not belong to a sample, or it is unknown. Give the pipeline one "
        f"of {', '.join(usable)} (NAME.from_config(pipe.scheduler.config)) and save it again."
    )


def _level(alphas_cumprod: Tensor) -> Tensor:
    return torch.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _between_neighbours(sigmas: Tensor) -> tuple[Tensor, Tensor]:
    sigmas = torch.as_tensor(sigmas).double().cpu()
    return sigmas[:-1], sigmas[1:]


def _alpha_sigma(level: Tensor) -> tuple[Tensor, Tensor]:
    alpha = torch.rsqrt(1 + level**2)
    return alpha, level * alpha


def _as(latents: Tensor, coefficient: Tensor) -> Tensor:
    return coefficient.to(latents.dtype)[:, None, None, None]
