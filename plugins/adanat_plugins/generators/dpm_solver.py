"""The second-order single-step DPM-Solver with a time of its own for every sample (Lu et al. 2022, algorithm 1).

A latent at time t is alpha x0 + sigma e; lambda = log alpha - log sigma. What diffusion (variance-preserving) and flow
(linear path) differ in is a :class:`Path`. One update from s over s1 to t needs the data prediction at s and at s1.
Coefficients are computed in float64: they are differences of nearly equal numbers where steps are small.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

TIME_STEP = 0.01
"""Time moves by at least so much an action, as AdaGen's released code has it, and stays so far from the image."""


class Path(ABC):
    """How the share of noise depends on time, and what a network says of the noise.

    Attributes:
        start, end: times that an even schedule goes from and to, at most noise and at least.
    """

    start: float
    end: float

    @abstractmethod
    def log_alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """log alpha and log sigma, (B,) float64 of (B,) float64 times."""

    @abstractmethod
    def network_time(self, time: Tensor) -> Tensor:
        """(B,) what the network is told."""

    def network_input(self, latents: Tensor, time: Tensor) -> Tensor:
        """(B, C, H, W) float32 what the network is given of latents at times (B,)."""
        return latents

    @abstractmethod
    def data(self, latents: Tensor, output: Tensor, time: Tensor) -> Tensor:
        """x0 as the network predicts it: latents and output (B, C, H, W) float32 at times (B,)."""

    @abstractmethod
    def move(self, proposed: Tensor, current: Tensor | None) -> Tensor:
        """The time that is gone to: (B,), towards the image by :data:`TIME_STEP` or more, within the path.

        ``current`` is None for the starting time.
        """


class Diffusion(Path):
    """Variance-preserving with a linear beta from 0.1 to 20, as DiT was trained; the network predicts the noise."""

    start, end = 0.9, 0.01

    def log_alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        log_alpha = -0.25 * time**2 * (20 - 0.1) - 0.5 * time * 0.1
        return log_alpha, 0.5 * torch.log(-torch.expm1(2 * log_alpha))

    def network_time(self, time: Tensor) -> Tensor:
        return 1000 * time

    def data(self, latents: Tensor, output: Tensor, time: Tensor) -> Tensor:
        log_alpha, log_sigma = self.log_alpha_sigma(time.double())
        return (latents - _as(latents, log_sigma.exp()) * output) / _as(latents, log_alpha.exp())

    def move(self, proposed: Tensor, current: Tensor | None) -> Tensor:
        if current is not None:
            proposed = torch.minimum(proposed, current - TIME_STEP)
        return proposed.clamp_min(TIME_STEP)


class Flow(Path):
    """The straight line from noise at 0 to the image at 1, as SiT was trained; the network predicts the velocity."""

    start, end = 0.01, 0.99
    _EARLIEST = 1e-30  # at 0 itself alpha has no logarithm; the released code divides by it

    def log_alpha_sigma(self, time: Tensor) -> tuple[Tensor, Tensor]:
        return torch.log(time), torch.log1p(-time)

    def network_time(self, time: Tensor) -> Tensor:
        return time

    def data(self, latents: Tensor, output: Tensor, time: Tensor) -> Tensor:
        return latents + _as(latents, 1 - time.double()) * output

    def move(self, proposed: Tensor, current: Tensor | None) -> Tensor:
        if current is not None:
            proposed = torch.maximum(proposed, current + TIME_STEP)
        return proposed.clamp(self._EARLIEST, 1 - TIME_STEP)


class VelocityOnDiffusion(Diffusion):
    """The path of :class:`Diffusion` with a network of :class:`Flow`, which knows the same mixtures at another scale.

    A latent alpha x0 + sigma e, divided by alpha + sigma, is the straight line's at time alpha / (alpha + sigma).
    """

    def network_time(self, time: Tensor) -> Tensor:
        alpha, sigma = (x.exp() for x in self.log_alpha_sigma(time.double()))
        return (alpha / (alpha + sigma)).to(time.dtype)

    def network_input(self, latents: Tensor, time: Tensor) -> Tensor:
        alpha, sigma = (x.exp() for x in self.log_alpha_sigma(time.double()))
        return latents / _as(latents, alpha + sigma)

    def data(self, latents: Tensor, output: Tensor, time: Tensor) -> Tensor:
        return Flow().data(self.network_input(latents, time), output, self.network_time(time.double()))


def first_order(path: Path, latents: Tensor, data: Tensor, time: Tensor, target: Tensor) -> Tensor:
    """The latent at ``target`` from one at ``time`` and its data prediction (equation 3.7, which is DDIM).

    Args:
        latents, data: (B, C, H, W) float32. time, target: (B,).
    """
    shrink, gain, _ = _coefficients(path, time, target)
    return _as(latents, shrink) * latents - _as(latents, gain) * data


def second_order(
    path: Path, latents: Tensor, data: Tensor, between_data: Tensor, time: Tensor, between: Tensor, target: Tensor
) -> Tensor:
    """The latent at ``target`` from one at ``time``, with the data predictions there and at ``between``.

    Args:
        latents, data, between_data: (B, C, H, W) float32. time, between, target: (B,).
    """
    shrink, gain, whole = _coefficients(path, time, target)
    part = _coefficients(path, time, between)[2]
    slope = 0.5 * whole / part.clamp_min(0.01)  # the limit, of the released code, matters only where time stands still
    return (
        _as(latents, shrink) * latents
        - _as(latents, gain) * data
        - _as(latents, slope * gain) * (between_data - data)
    )


def _coefficients(path: Path, time: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sigma_t / sigma_s, alpha_t (exp(-h) - 1), and h = lambda_t - lambda_s: (B,) float64."""
    (log_alpha, log_sigma), (alpha_then, sigma_then) = (path.log_alpha_sigma(t.double()) for t in (time, target))
    h = (alpha_then - sigma_then) - (log_alpha - log_sigma)
    return (sigma_then - log_sigma).exp(), alpha_then.exp() * torch.expm1(-h), h


def _as(latents: Tensor, coefficient: Tensor) -> Tensor:
    return coefficient.to(latents.dtype)[:, None, None, None]
