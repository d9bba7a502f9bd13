"""A rollout in figures, for the log."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..core import ActionSpace, Generator, Noise, statistic_units
from ..metrics import batch_shares
from ..runtime import distributed
from ..sampling import Rollout, explored_by
from .diversity import context_diversity, context_numbers


def describe_statistics(seen: Tensor, generator: Generator) -> dict[str, float]:
    """What a policy saw that reads statistics: mean and spread of each over samples, by step. All processes call it together.

    Args:
        seen: (B, T, 1, K) of ``core.see``.
    """
    centre, spread = statistic_units(generator)
    means, stds = distributed.mean_and_std(seen[:, :, 0].float() * spread + centre, over_samples=True)
    row: dict[str, float] = {}
    for t, (mean, std) in enumerate(zip(means.tolist(), stds.tolist(), strict=True)):
        for name, one, other in zip(generator.statistic_names, mean, std, strict=True):
            row |= {f"statistic/{name}/{t}": one, f"statistic_spread/{name}/{t}": other}
    return row


def describe_shares(rollout: Rollout, scores: Tensor, explore: Noise, *, start: int, group: int) -> dict[str, float]:
    """What the batch says of the headroom (docs/headroom.md): shares of the reward's variance. All processes call it together.

    They are estimated from the samples of all processes, so that their number makes no difference.

    Args:
        scores: (B,) of this process's samples, the run's ``start``, ``start`` + 1, ... in this iteration (0-based).
        explore: of the rollout. group: trajectories that share their noise or their exploration, of which one counts.
    """
    _, steps, size = rollout.actions.shape
    explored = explored_by(explore, steps, size)
    alone = slice(None, None, group)
    contexts = context_numbers(rollout.context.select(alone), start, scores.device)
    parts = (scores[alone], explored[alone], contexts)
    found = batch_shares(*(distributed.gather(part.contiguous()) for part in parts))
    return {f"share/{name}": value for name, value in found.items()}


def describe(
    rollout: Rollout, scores: Tensor, terms: Mapping[str, Tensor], space: ActionSpace, *, group: int
) -> dict[str, float]:
    """Reward and its terms, diversity, each knob's mean by step and spread over samples. All processes call it together.

    Args:
        scores, terms: (B,) of this process's samples. group: trajectories that share their noise.
    """
    mean, std = distributed.mean_and_std(scores)
    row = {"reward/mean": float(mean), "reward/std": float(std)}
    assert rollout.embedded is not None
    # Trajectories of a group share their noise, so only one of each is an independent image.
    alone = slice(None, None, group)
    diversity = context_diversity(rollout.embedded[alone], rollout.context.select(alone))
    if diversity is not None:
        row["diversity"] = diversity
    for name, values in terms.items():
        mean, std = distributed.mean_and_std(values.float())
        row |= {f"reward/{name}/mean": float(mean), f"reward/{name}/std": float(std)}
    means, stds = (figures.tolist() for figures in distributed.mean_and_std(rollout.physical, over_samples=True))
    for k, name in enumerate(space.names):
        for t in range(space.decisions):
            row |= {f"knob/{name}/{t}": means[t][k], f"knob_spread/{name}/{t}": stds[t][k]}
    return row
