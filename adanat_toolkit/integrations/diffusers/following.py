"""What every pipeline that follows a policy needs: its actions step by step, the samples' seeds, a scheduler that obeys."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import wraps
from inspect import signature
from typing import Any, Protocol

import torch
from torch import Tensor

from ...core import INITIAL, Noise, as_seeds
from ...decoding import SamplingPolicy
from ...errors import ConfigError
from ...limits import MOST_SEED
from ...runtime import float32_by_default
from ...sampling.whole_step import mean_action

log = logging.getLogger("adanat_toolkit")


class Actions:
    """A policy's physical values, one decision after the other, for one batch at a time.

    Args:
        policy: its network is moved to where the features are.
    """

    def __init__(self, policy: SamplingPolicy) -> None:
        self.policy = policy
        self.restart()

    def restart(self) -> None:
        """The next decision is the first one."""
        self.decision = 0
        self._smoothed: Tensor | None = None

    @torch.no_grad()
    @float32_by_default()
    def next(self, features: Tensor) -> Tensor:
        """(B, K) float32, one value a knob, for features (B, N, D) of any floating type.

        Raises:
            ConfigError: the pipeline takes more steps than the policy.
        """
        space, network = self.policy.space, self.policy.network
        if self.decision >= space.decisions:
            raise ConfigError(
                f"the pipeline takes more than the {self.policy.steps} steps of the policy; call it with "
                f"num_inference_steps={self.policy.steps}."
            )
        step = torch.full((len(features),), self.decision, dtype=torch.int64, device=features.device)
        network.to(features.device)
        seen = features.to(network.feature_dtype).float() if network.needs_features else None  # as in training
        action = mean_action(network, seen, step)
        self._smoothed = space.smoothed(action, step, self._smoothed)
        self.decision += 1
        return space.transformed(self._smoothed, step)


class Pilot(Protocol):
    """What steers one pipeline."""

    def begin(self, scheduler: Any, arguments: dict[str, Any]) -> None:
        """Called when the pipeline has set the scheduler's times, with what it gave ``set_timesteps`` by name."""
        ...

    def scaled(self, scheduler: Any, sample: Tensor) -> Tensor | None:
        """Called instead of the scheduler's ``scale_model_input``; None leaves that to the scheduler."""
        ...

    def step(self, scheduler: Any, model_output: Any, timestep: Any, sample: Tensor, **more: Any) -> Any:
        """Called instead of the scheduler's own ``step``."""
        ...


def following(original: Any, pilot: Pilot) -> Any:
    """A scheduler of the original's class and configuration whose steps are the pilot's.

    It bears the class's own name: a pipeline that is saved while it follows a policy is the plain pipeline, and loads
    where this toolkit is not installed. The original is left as it is.
    """
    kind = type(original)

    class Following(kind):  # type: ignore[misc, valid-type]
        @wraps(kind.set_timesteps)
        def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
            super().set_timesteps(*args, **kwargs)
            given = signature(kind.set_timesteps).bind(self, *args, **kwargs).arguments
            pilot.begin(self, {name: value for name, value in given.items() if name != "self"})

        @wraps(kind.step)
        def step(self, model_output: Any, timestep: Any, sample: Any, **kwargs: Any) -> Any:
            return pilot.step(self, model_output, timestep, sample, **kwargs)

    if hasattr(kind, "scale_model_input"):

        @wraps(kind.scale_model_input)
        def scale_model_input(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scaled = pilot.scaled(self, sample)
            unchanged: Tensor = super(Following, self).scale_model_input(sample, *args, **kwargs)
            return unchanged if scaled is None else scaled

        Following.scale_model_input = scale_model_input
    for name in ("__name__", "__qualname__", "__module__"):
        setattr(Following, name, getattr(kind, name))
    return Following.from_config(original.config)


def require_steps(given: int, policy: SamplingPolicy) -> None:
    """
    Args:
        given: what the pipeline was asked for, or the network calls that the scheduler makes of it, which may be more.

    Raises:
        ConfigError: the pipeline was called with another number of steps than the policy has.
    """
    if given not in (policy.steps, policy.space.decisions):
        raise ConfigError(
            f"the pipeline was called with {given} steps and the policy makes an image in {policy.steps}; call it with "
            f"num_inference_steps={policy.steps}, or train a policy with {given} steps."
        )


def noise_of(seeds: Tensor | None, generator: Any, size: int, device: torch.device) -> Noise:
    """The samples' noise: of ``seeds`` where they were given, else of the pipeline's ``generator``.

    A list of ``torch.Generator`` gives each sample the seed that its own was made with, so that a sample's image does not
    depend on the batch. From a single one, or from torch's global one where there is none, the seeds are drawn: as in
    diffusers, calling again gives other images.

    Raises:
        ConfigError: another number of seeds or generators than of samples.
    """
    if seeds is not None:
        found, what = seeds, "seeds"
    elif isinstance(generator, Sequence):
        found, what = torch.tensor([one.initial_seed() & MOST_SEED for one in generator]), "generators"
    else:
        where = "cpu" if generator is None else generator.device
        return Noise(torch.randint(MOST_SEED, (size,), generator=generator, device=where).to(device))
    if len(found) != size:
        raise ConfigError(f"the pipeline makes {size} images and has {len(found)} {what}; give one an image.")
    return Noise(found.to(device))


def checked_seeds(seeds: Any) -> Tensor | None:
    """(B,) int64 of ``seeds``, or None where none were given.

    Raises:
        ConfigError: no whole numbers, or one that is no seed.
    """
    return None if seeds is None else as_seeds(seeds)


def seeded_latents(seeds: Sequence[int] | Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The noise that the toolkit starts the images of these seeds from, for a pipeline's argument ``latents``.

    Args:
        seeds: one an image. shape: (C, h, w) of one image's latents.

    Returns:
        (B, C, h, w) float32, standard normal.

    Raises:
        ConfigError: no whole numbers, or one that is no seed.
    """
    return Noise(as_seeds(seeds)).normal(INITIAL, 0, shape)
