"""What a policy sees of a sample: the generator's features, statistics of its prediction, or the context."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from .context import Context
from .generator import Generator
from .policy import Policy


def seen_shape(generator: Generator, policy: Policy | type[Policy]) -> tuple[tuple[int, int], int]:
    """``grid`` and ``feature_dim`` that a policy is built with.

    Raises:
        ConfigError: the generator has not what the policy reads.
    """
    if policy.reads == "features":
        return generator.grid, generator.feature_dim
    if policy.reads == "statistics":
        if not generator.statistic_names:
            raise ConfigError(
                f"policy {policy.kind!r} reads statistics of the prediction, and {generator.name} gives none; use "
                "policy adaptive, context or shared."
            )
        return (1, 1), len(generator.statistic_names)
    if generator.context_dim == 0:
        text = generator.context_kind == "text"
        lacks = "gives no embedding of its prompts (pooled or states of encode_prompts)" if text else "has none"
        raise ConfigError(f"policy {policy.kind!r} reads the context, and {generator.name} {lacks}; use policy shared.")
    return (1, 1), generator.context_dim


@torch.no_grad()
def see(
    generator: Generator, policy: Policy | type[Policy], state: Any, context: Context, *, guided: bool = True
) -> Tensor | None:
    """What the policy's network is called with before a step: (B, N, D) float32 in the shape of :func:`seen_shape`.

    It is rounded to the policy's ``feature_dtype``, so that an update, which reads what was kept in that type, sees the same.
    None for a policy that sees the step alone. ``guided``: see ``Generator.observe``.
    """
    if not policy.needs_features:
        return None
    if policy.reads == "features":
        seen = generator.observe(state, guided=guided)
    elif policy.reads == "context":
        seen = generator.context_vectors(context)[:, None]
    else:
        seen = see_statistics(generator, state)
    return seen if policy.rounds_features else seen.to(policy.feature_dtype).float()


def see_statistics(generator: Generator, state: Any) -> Tensor:
    """(B, 1, K) float32: statistics of a state's prediction, in units of their usual spread around their usual value
    (``Generator.statistic_ranges``), so that small networks find them at one scale."""
    centre, spread = statistic_units(generator)
    return ((generator.statistics(state) - centre) / spread)[:, None]


def statistic_units(generator: Generator) -> tuple[Tensor, Tensor]:
    """(K,) usual values and (K,) usual spreads of a generator's statistics, on its device."""
    return _on_device(tuple((usual, spread) for usual, spread in generator.statistic_ranges), generator.device)


@lru_cache(maxsize=32)
def _on_device(ranges: tuple[tuple[float, float], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Kept, and made on the device, so that no step waits for a transfer."""
    with torch.inference_mode(False):  # they outlive the mode that their maker may have set
        usual, spread = (
            torch.stack([torch.full((), pair[side], dtype=torch.float32, device=device) for pair in ranges])
            for side in (0, 1)
        )
    return usual, spread
