"""Per-sample steps against the schedulers of diffusers that they compute."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from adanat_plugins.diffusion.samplers import LEAST_MOVE, Sampler, SharedTimes, Step, next_position, sampler_of
from adanat_toolkit.errors import ConfigError

SHAPE = (3, 4, 6, 5)
STABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CASES = {
    "ddim": ("DDIMScheduler", {**STABLE, "clip_sample": False, "set_alpha_to_one": False}),
    "ddim, trailing, v": (
        "DDIMScheduler",
        {
            **STABLE,
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
    ),
    "ddim, clipped": ("DDIMScheduler", {"clip_sample": True}),
    "ddim, sample": ("DDIMScheduler", {**STABLE, "clip_sample": False, "prediction_type": "sample"}),
    "euler": ("EulerDiscreteScheduler", {**STABLE, "timestep_spacing": "leading"}),
    "euler, karras": ("EulerDiscreteScheduler", {**STABLE, "use_karras_sigmas": True}),
    "euler, v": ("EulerDiscreteScheduler", {**STABLE, "prediction_type": "v_prediction"}),
    "dpm++": ("DPMSolverMultistepScheduler", STABLE),
    "dpm++, heun, karras": (
        "DPMSolverMultistepScheduler",
        {**STABLE, "solver_type": "heun", "use_karras_sigmas": True},
    ),
    "dpm++, to the least level": ("DPMSolverMultistepScheduler", {**STABLE, "final_sigmas_type": "sigma_min"}),
    "dpm++, first order, v": (
        "DPMSolverMultistepScheduler",
        {**STABLE, "solver_order": 1, "prediction_type": "v_prediction"},
    ),
    "flow": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow, terminal": ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.02}),
    "pndm": ("PNDMScheduler", {**STABLE, "skip_prk_steps": True}),
    "unipc": ("UniPCMultistepScheduler", STABLE),
    "dpm++, third order": ("DPMSolverMultistepScheduler", {**STABLE, "solver_order": 3}),
    "heun": ("HeunDiscreteScheduler", STABLE),
    "deis": ("DEISMultistepScheduler", STABLE),
    "lms": ("LMSDiscreteScheduler", STABLE),
    "kdpm2": ("KDPM2DiscreteScheduler", STABLE),
    "dpm++, single-step": ("DPMSolverSinglestepScheduler", {"beta_schedule": "scaled_linear"}),
}
SHARED = ("pndm", "unipc", "dpm++, third order", "heun", "deis", "lms", "kdpm2", "dpm++, single-step")


def made(name: str, config: dict[str, Any]) -> Any:
    return getattr(diffusers, name)(**config)


def network(latents: Tensor, timestep: Tensor) -> Tensor:
    """Something smooth that depends on the time."""
    return torch.tanh(latents * 0.7 + torch.cos(timestep.float() / 300).view(-1, 1, 1, 1))


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def follow(sampler: Sampler, steps: int, shifts: Tensor | None = None, eta: float = 0.0) -> tuple[Tensor, list[Tensor]]:
    """The image and the positions on the way, under shifts (T, B)."""
    schedule, memory = sampler.schedule(steps), sampler.begin(steps)
    latents = noise(0) * schedule.start_scale
    place = sampler.place(schedule, torch.zeros(len(latents), dtype=torch.float64))
    visited = []
    for index in range(schedule.steps):
        shift = torch.full((len(latents),), 0.5) if shifts is None else shifts[index]
        target = sampler.place(schedule, next_position(place.position, shift, index, schedule.steps))
        output = network(sampler.network_input(latents, place, memory), place.timestep)
        extra = (torch.full((len(latents),), eta), noise(100 + index)) if eta else (None, None)
        latents, memory = sampler.step(Step(latents, output, place, target, index, schedule.steps, *extra), memory)
        place = target
        visited.append(place.position)
    return latents, visited


@pytest.mark.parametrize(
    ("case", "steps"), [(c, n) for c in CASES for n in (1, 2, 7, 20) if (c, n) != ("flow, terminal", 1)]
)
def test_the_own_schedule_is_the_schedulers(case: str, steps: int) -> None:
    scheduler = made(*CASES[case])
    sampler = sampler_of(scheduler)[0]
    found, _ = follow(sampler, steps)
    scheduler.set_timesteps(steps)
    latents = noise(0) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep) if hasattr(scheduler, "scale_model_input") else latents
        output = network(scaled, timestep.expand(len(latents)))
        latents = scheduler.step(output, timestep, latents, return_dict=False)[0]
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


def test_eta_is_the_schedulers() -> None:
    scheduler = made(*CASES["ddim"])
    found, _ = follow(sampler_of(scheduler)[0], 6, eta=0.7)
    scheduler.set_timesteps(6)
    latents = noise(0)
    for index, timestep in enumerate(scheduler.timesteps):
        output = network(latents, timestep.expand(len(latents)))
        fresh = noise(100 + index)
        latents = scheduler.step(output, timestep, latents, eta=0.7, variance_noise=fresh, return_dict=False)[0]
    torch.testing.assert_close(found, latents, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", [c for c in CASES if c not in SHARED])
def test_samples_go_their_own_ways(case: str) -> None:
    """The second sample is shifted alone: the others are not touched, and it moves as it would in a batch of its own."""
    sampler = sampler_of(made(*CASES[case]))[0]
    shifts = torch.full((6, 3), 0.5)
    shifts[:, 1] = torch.tensor([0.1, 0.9, 0.99, 0.3, 0.45, 0.8])
    plain, _ = follow(sampler, 6)
    turned, visited = follow(sampler, 6, shifts)
    torch.testing.assert_close(turned[[0, 2]], plain[[0, 2]], rtol=0, atol=0)
    assert bool(turned.isfinite().all()) and not torch.equal(turned[1], plain[1])
    every, _ = follow(sampler, 6, shifts[:, 1:2].expand(-1, 3))
    torch.testing.assert_close(turned[1], every[1], rtol=1e-6, atol=1e-6)
    way = torch.stack([torch.zeros(3, dtype=torch.float64), *visited])
    assert float(way.diff(dim=0).min()) >= LEAST_MOVE - 1e-9 and bool((way[-1] == 6).all())


def test_where_a_step_goes() -> None:
    def go(position: float, shift: float, index: int, steps: int = 6) -> float:
        at, knob = torch.tensor([position], dtype=torch.float64), torch.tensor([shift])
        return float(next_position(at, knob, index, steps))

    assert [go(i, 0.5, i) for i in range(6)] == [1, 2, 3, 4, 5, 6]
    assert [go(i, 0.5, i, 49) for i in range(49)] == list(range(1, 50))
    assert go(2, 0.5, 3) == pytest.approx(2 + 4 / 3)  # one behind: the rest is shared by three steps
    assert go(0, 1 / 3, 0) == pytest.approx(6 - 6 * (5 / 6) ** 2)
    assert go(0, 0.8, 0) == pytest.approx(6 - 6 * (5 / 6) ** 0.25)
    assert go(1, 0.0, 1) == pytest.approx(6 - 4 * LEAST_MOVE)
    assert go(1, 1.0, 1) == pytest.approx(1 + LEAST_MOVE)


@pytest.mark.parametrize("case", ["ddim", "euler", "dpm++", "flow"])
def test_a_step_to_a_time_of_another_schedule_is_that_schedules_step(case: str) -> None:
    """Two of its own steps at once are what a scheduler told those times does: DDIM and Euler do not depend on the rest."""
    scheduler = made(*CASES[case])
    sampler = sampler_of(scheduler)[0]
    schedule = sampler.schedule(10)
    start = torch.full((3,), 4.0, dtype=torch.float64)
    place, target = sampler.place(schedule, start), sampler.place(schedule, start + 2)
    output = network(sampler.network_input(noise(0), place, None), place.timestep)
    found = sampler.step(Step(noise(0), output, place, target, 4, 10), None)[0]
    if case == "flow":
        wanted = noise(0) + (schedule.levels[6] - schedule.levels[4]).float() * output
    else:
        a, b = (1 / (1 + schedule.levels[i] ** 2) for i in (4, 6))
        if case == "euler":
            wanted = noise(0) + (schedule.levels[6] - schedule.levels[4]).float() * output
        else:
            data = (noise(0) - (1 - a).sqrt().float() * output) / a.sqrt().float()
            wanted = b.sqrt().float() * data + (1 - b).sqrt().float() * output
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_schedulers_without_a_formula_share_their_times() -> None:
    sampler, why = sampler_of(made(*CASES["pndm"]))
    assert isinstance(sampler, SharedTimes) and sampler.knobs == () and why is not None and "PNDMScheduler" in why
    assert sampler.schedule(4).steps == 5  # it calls the network twice at the second time
    sampler, why = sampler_of(made(*CASES["dpm++, third order"]))
    assert isinstance(sampler, SharedTimes) and why is not None and "solver_order=3" in why


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("EulerAncestralDiscreteScheduler", STABLE, "EulerAncestralDiscreteScheduler"),
        ("DDPMScheduler", {}, "DDPMScheduler"),
        ("DPMSolverMultistepScheduler", {**STABLE, "algorithm_type": "sde-dpmsolver++"}, "draws noise"),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, "FlowMatchEulerDiscreteScheduler"),
    ],
)
def test_schedulers_that_draw_noise_are_refused(name: str, config: dict[str, Any], text: str) -> None:
    if not set(config) <= set(inspect.signature(getattr(diffusers, name).__init__).parameters):
        pytest.skip(f"diffusers {diffusers.__version__} has no such setting")
    with pytest.raises(ConfigError, match=text):
        sampler_of(made(name, config))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_schedules_that_a_scheduler_cannot_make_are_refused() -> None:
    with pytest.raises(ConfigError, match="2000 steps"):
        sampler_of(made(*CASES["ddim"]))[0].schedule(2000)
    with pytest.raises(ConfigError, match="not finite"):
        sampler_of(made(*CASES["flow, terminal"]))[0].schedule(1)
