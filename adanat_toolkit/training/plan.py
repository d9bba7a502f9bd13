"""What a run will need, before it starts: parameters, generator forwards, memory of one iteration."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..core import ActionSpace, Generator, Policy, RewardModel, seen_shape
from ..decoding import TokenGenerator
from ..runtime import distributed
from ..sampling import forwards_of_an_image
from .config import RunConfig


def local_batch(config: RunConfig, group: int) -> int:
    """Trajectories of an iteration in one process, at most: whole groups of ``group``."""
    return -(-(config.batch // group) // distributed.world_size()) * group


def stored_features(config: RunConfig, generator: Generator, space: ActionSpace, policy: Policy, group: int) -> int:
    """Bytes of what the policy saw that one iteration keeps in a process for the policy's update."""
    if not policy.needs_features:
        return 0
    width = 2 if policy.feature_dtype == torch.bfloat16 else 4
    grid, channels = seen_shape(generator, policy)
    return local_batch(config, group) * space.decisions * grid[0] * grid[1] * channels * width


def plan(
    config: RunConfig,
    generator: Generator,
    space: ActionSpace,
    policy: Policy,
    critic: nn.Module,
    reward: RewardModel,
    micro_batch: int | None,
    group: int,
) -> dict[str, Any]:
    """What ``--dry-run`` prints. Memory and micro-batch are those of one process."""
    tokens = isinstance(generator, TokenGenerator)
    learned = [sum(p.numel() for p in module.parameters()) for module in (policy, critic)]
    return {
        "iterations": config.iterations,
        "trajectories": config.iterations * config.batch,
        "generator_forwards": config.iterations * config.batch * forwards_of_an_image(generator, space),
        "generator_forwards_note": "samples times (conditional + unconditional)"
        + (" after the first step; first states are computed once per distinct context" if tokens else ""),
        "parameters": {
            **generator.parameters_count(),
            "policy": learned[0],
            "critic": learned[1],
            **{f"reward {key}": value for key, value in reward.parameters_count().items()},
        },
        "memory_bytes": {
            "stored features of one iteration": stored_features(config, generator, space, policy, group),
            "policy, critic and optimiser": 16 * sum(learned),
            "generator": sum(generator.parameters_count().values()) * (2 if generator.dtype == torch.bfloat16 else 4),
        },
        "micro_batch": micro_batch or local_batch(config, group),
        "processes": distributed.world_size(),
    }
