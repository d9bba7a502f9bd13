"""Classic diffusion pipelines under a policy: guidance, times and fresh noise a sample and step.

The pipeline's own ``__call__`` runs unchanged. Hooks on its denoiser tell every row its own time and keep what it answered,
before the pipeline mixes the halves with its ``guidance_scale``; the scheduler ignores the mixture, asks the policy, and
steps every sample to its own place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adanat_plugins.diffusion.features import FeatureHook
from adanat_plugins.diffusion.samplers import NOTHING, Place, Schedule, Step, next_position

from ...core import INITIAL, STEP, Noise
from ...decoding import SamplingPolicy
from ...errors import ConfigError
from .calls import Arguments, calls_of
from .following import Actions, noise_of, require_steps
from .networks import PipelineNetwork


class DenoiserPilot:
    """Steers a classic diffusion pipeline.

    Args:
        network: the pipeline's. policy: of the same.
        seeds: one a sample, or None: the latents are then the pipeline's own, see ``noise_of`` for the rest.
    """

    def __init__(self, network: PipelineNetwork, policy: SamplingPolicy, seeds: Tensor | None) -> None:
        # The network itself is not kept: it knows the pipeline, which would then never be freed.
        self.policy, self.seeds = policy, seeds
        self.family, self.sampler = network.family, network.sampler
        self.latent_shape, self.image_size = network.latent_shape, network.image_size
        self.patch = network.family.patch(network.pipe)
        self.calls = calls_of(network.denoiser)
        self._actions = Actions(policy)
        self._hook: FeatureHook | None = None
        self._schedule: Schedule | None = None
        self._answer: Tensor | None = None
        self._place: Place | None = None
        self._start: Tensor | None = None
        self._noise: Noise | None = None
        self._memory: Any = None

    def attach(self, pipe: Any) -> list[Any]:
        """Hooks on the pipeline's denoiser; what removes them."""
        denoiser = getattr(pipe, self.family.denoiser)
        return [
            denoiser.register_forward_pre_hook(self._before, with_kwargs=True),
            denoiser.register_forward_hook(self._after),
            _Remover(self),
        ]

    def begin(self, scheduler: Any, arguments: dict[str, Any]) -> None:
        """
        Raises:
            ConfigError: other steps than the policy's.
        """
        asked = arguments.pop("num_inference_steps", None)
        more = {name: value for name, value in arguments.items() if name != "device" and value is not None}
        steps = asked if asked is not None else len(next(iter(more.values())))
        require_steps(int(steps), self.policy)
        self._schedule = self.sampler.schedule(int(steps), **more)
        self._memory = self.sampler.begin(int(steps), **more)
        self._actions.restart()
        self._place = self._start = self._noise = self._answer = None
        self.forget()

    def forget(self) -> None:
        """Take the feature hook off the denoiser; the next call puts one of its own size on."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def scaled(self, scheduler: Any, sample: Tensor) -> Tensor | None:
        """The latents (R, C, h, w) as the network wants them at each sample's own place."""
        place = self._place_of_rows(len(sample), sample.device)
        return self.sampler.network_input(sample.float(), place, self._memory).to(sample.dtype)

    @torch.no_grad()
    def step(
        self,
        scheduler: Any,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        generator: Any = None,
        return_dict: bool = True,
        **_: Any,
    ) -> Any:
        """Every sample to its own next place.

        Args:
            model_output: the pipeline's mixture, which is not read. sample: (B, C, h, w).

        Returns:
            An object with ``prev_sample``, or a tuple of it.

        Raises:
            ConfigError: a policy that guides, and a pipeline without guidance.
        """
        from diffusers.schedulers.scheduling_utils import SchedulerOutput

        assert self._answer is not None and self._hook is not None
        latents = (sample if self._start is None else self._start).float()
        self._start = None
        conditional = self.calls.halves(self._hook.take(), len(sample))[0]
        index = self._actions.decision
        values = dict(zip(self.policy.space.names, self._actions.next(conditional).unbind(1), strict=True))
        output = self._guided(values["guidance"], len(sample))
        if "eta" in values and self._noise is None:
            self._noise = noise_of(self.seeds, generator, len(sample), sample.device)
        latents = self._moved(latents, output, index, values.get("time_shift"), values.get("eta")).to(sample.dtype)
        return SchedulerOutput(prev_sample=latents) if return_dict else (latents,)

    def _moved(self, latents: Tensor, output: Tensor, index: int, shift: Tensor | None, eta: Tensor | None) -> Tensor:
        """The latents (B, C, h, w) float32 after step ``index``."""
        assert self._schedule is not None
        place, steps = self._place_of_rows(len(latents), latents.device), self._schedule.steps
        if shift is None:
            position = torch.full_like(place.position, index + 1)
        else:
            position = next_position(place.position, shift, index, steps)
        target = self.sampler.place(self._schedule, position)
        now = Step(latents, output, place, target, index, steps)
        if eta is not None:
            assert self._noise is not None
            fresh = self._noise.normal(STEP, index, tuple(latents.shape[1:]))
            now = replace(now, eta=torch.where(eta < NOTHING, 0.0, eta), noise=fresh)
        self._place = target
        latents, self._memory = self.sampler.step(now, self._memory)
        return latents

    def _guided(self, guidance: Tensor, size: int) -> Tensor:
        assert self._answer is not None
        answer, self._answer = self._answer.float(), None
        conditional, unconditional = self.calls.halves(answer, size)
        guidance = torch.where(guidance < NOTHING, 0.0, guidance)
        if unconditional is None:
            if bool((guidance != 0).any()):
                raise ConfigError(
                    "the policy guides, and the pipeline was called with a guidance_scale at which it does not run the empty "
                    "prompt; call it with guidance_scale=2 (the value does not matter: the policy sets the scale itself)."
                )
            return conditional
        return conditional + guidance[:, None, None, None] * (conditional - unconditional)

    def _place_of_rows(self, rows: int, device: torch.device) -> Place:
        """Where the samples are, once a row: a batch of both halves has each sample twice."""
        assert self._schedule is not None
        if self._place is None:
            return self.sampler.place(self._schedule, torch.zeros(rows, dtype=torch.float64, device=device))
        place = self._place
        twice = rows // len(place.position)
        columns = (place.position, place.arrived, place.level, place.timestep)
        return Place(*(column.repeat(twice) for column in columns))

    def _before(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments | None:
        if self._schedule is None:
            return None
        if kwargs.get("skip_layers") is not None:
            raise ConfigError("the policy knows no skip-layer guidance; leave skip_guidance_layers out.")
        given: Arguments = (args, kwargs)
        latents = self.calls.latents_of(given)
        cells = (latents.shape[2] // self.patch, latents.shape[3] // self.patch)
        if self._hook is None:
            self._require_size(latents)
            self._hook = FeatureHook(self.family, denoiser, cells)
        if self._place is None and self.seeds is not None:
            latents = self._own_start(latents)
            given = self.calls.with_latents(given, latents)
        place = self._place_of_rows(len(latents), latents.device)
        return self.calls.with_times(given, place.timestep)

    def _require_size(self, latents: Tensor) -> None:
        """
        Raises:
            ConfigError: images of another size than the policy's.
        """
        trained = self.latent_shape
        if tuple(latents.shape[1:]) != trained:
            here, there = ("x".join(map(str, shape)) for shape in (latents.shape[1:], trained))
            height, width = self.image_size
            raise ConfigError(
                f"the pipeline makes latents of {here} and the policy is for {there}; call it with height={height}, "
                f"width={width}, or give apply the size that the policy was trained with."
            )

    def _own_start(self, latents: Tensor) -> Tensor:
        """The first latents as the network wants them, of the seeds' own noise; the step will go on from it."""
        assert self._schedule is not None and self.seeds is not None
        rows, size = len(latents), len(self.seeds)
        if rows not in (size, 2 * size):
            halves = "" if rows % 2 else f" or {rows // 2}"
            raise ConfigError(f"the pipeline makes {rows}{halves} images and has {size} seeds; give one an image.")
        noise = Noise(self.seeds.to(latents.device))
        self._start = noise.normal(INITIAL, 0, tuple(latents.shape[1:])) * self._schedule.start_scale
        start = self._start.repeat(rows // size, 1, 1, 1)
        return self.sampler.network_input(start, self._place_of_rows(rows, latents.device), self._memory)

    def _after(self, denoiser: nn.Module, args: Any, output: Any) -> None:
        if self._schedule is not None:
            self._answer = self.calls.answer(output)


class _Remover:
    """The pilot's feature hook, as a handle among the others."""

    def __init__(self, pilot: DenoiserPilot) -> None:
        self._pilot = pilot

    def remove(self) -> None:
        self._pilot.forget()
