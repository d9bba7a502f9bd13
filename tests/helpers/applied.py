"""Policies whose networks look at the features, so that no two samples get the same knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, export_policy


def featured_policy(generator: Any, folder: Path, schedule: str, steps: int, **space: Any) -> Path:
    """A policy folder of random weights, as training on ``generator`` writes it; ``space``: more for its ``bind``."""
    bound = generator.bind(schedule, steps, **space)
    options = {"size": "small"}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = AdaptivePolicy(
            AdaptiveOptions(**options), space=bound, grid=generator.grid, feature_dim=generator.feature_dim
        )
        for value in network.parameters():
            torch.nn.init.normal_(value, std=0.05)
    facts = {"trajectories": 8, "reward": "dark", "seed": 0, "engine": "adanat"}
    policy = SamplingPolicy(network, bound)
    export_policy(folder, policy, network.state_dict(), options=options, generator=generator, facts=facts)
    return folder
