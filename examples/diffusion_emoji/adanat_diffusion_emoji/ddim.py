"""The DDIM step with everything per sample: remaining time, guidance, eta and step size (Song et al. 2021, equation 12).

Time is what remains of the diffusion: u = 1 is noise, u = 0 the image. With the 1,000 levels of a diffusers scheduler,
u = (t + 1) / 1000 for its integer timestep t, so that T even steps in u are its ``trailing`` spacing.
"""

from __future__ import annotations

import torch
from torch import Tensor


class NoiseLevels:
    """alpha-bar, the share of signal, at any remaining time.

    Args:
        alphas_cumprod: (levels,) float32 of a diffusers scheduler, falling, all in (0, 1).
    """

    def __init__(self, alphas_cumprod: Tensor) -> None:
        self.log_snr = torch.logit(alphas_cumprod.double())

    def timestep(self, remaining: Tensor) -> Tensor:
        """(B,) remaining time -> (B,) float32 timestep of the network, not rounded, 0 or larger."""
        return (remaining * len(self.log_snr) - 1).clamp_min(0)

    def alpha(self, remaining: Tensor) -> Tensor:
        """(B,) remaining time in [0, 1] -> (B,) float64 alpha-bar: the scheduler's at its timesteps, between them linear in
        the logarithm of the signal-to-noise ratio, and 1 (the image itself) at 0."""
        position = self.timestep(remaining.double())
        table = self.log_snr.to(remaining.device)
        below = position.floor().long().clamp_max(len(table) - 1)
        above = (below + 1).clamp_max(len(table) - 1)
        between = torch.lerp(table[below], table[above], position - below)
        return torch.where(remaining > 0, torch.sigmoid(between), 1.0)


def next_remaining(remaining: Tensor, step_size: Tensor, steps_left: int) -> Tensor:
    """Where a step goes: u' = u (1 - 1/n)^s with n steps left, this one included.

    s = 1 goes as far as even spacing of the time that remains would, s = 2 as far as two such steps, 0.5 half as far (both
    in log u). The last step (n = 1) ends at 0 whatever s is, so that no trajectory leaves noise behind.

    Args:
        remaining: (B,) u in (0, 1]. step_size: (B,) s >= 0.
    """
    if steps_left == 1:
        return torch.zeros_like(remaining)
    return remaining * (1 - 1 / steps_left) ** step_size


def ddim_step(
    sample: Tensor, velocity: Tensor, alpha: Tensor, next_alpha: Tensor, eta: Tensor, noise: Tensor
) -> Tensor:
    """x at the next noise level (equations 12 and 16 of the DDIM paper) from a network that predicts v.

    Args:
        sample, velocity, noise: (B, C, H, W); v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans and Ho 2022).
        alpha, next_alpha: (B,) float64 alpha-bar now and after the step. eta: (B,) in [0, 1]; 0 is deterministic, 1 is DDPM.
    """
    # At eta 1 and much noise 1 - b - sigma^2 is a difference of nearly equal numbers, hence float64 for the coefficients.
    a, b, e = (value.double()[:, None, None, None] for value in (alpha, next_alpha, eta))
    sigma = e * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).clamp_min(0).sqrt()
    rest = (1 - b - sigma**2).clamp_min(0).sqrt()
    signal, noisy, next_signal, rest, sigma = (
        x.to(sample.dtype) for x in (a.sqrt(), (1 - a).sqrt(), b.sqrt(), rest, sigma)
    )
    clean = signal * sample - noisy * velocity
    direction = signal * velocity + noisy * sample
    return next_signal * clean + rest * direction + sigma * noise
