"""A reward that learns, trained on the images of a rollout and on real ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import (
    DATA,
    ImageSource,
    Noise,
    RewardModel,
    sample_seeds,
)
from ..images import augment
from ..runtime import (
    MicroBatch,
    distributed,
    may_go_side_by_side,
    whole,
)
from ..sampling import Rollout
from .config import DataConfig


def update_reward(
    reward: RewardModel,
    real: ImageSource | None,
    rollout: Rollout,
    *,
    data: DataConfig,
    seed: int,
    device: torch.device,
    micro_batch: MicroBatch | int | None = None,
) -> dict[str, float]:
    """Train a reward on the images of a rollout (``rollout.embedded``) and on as many real ones as it asks for.

    Args:
        real: None for a reward that reads none (``needs``): it is given no real images then.
        seed: decides which real images are drawn and how they are augmented. micro_batch: real images embedded at once.

    Returns:
        The reward's figures.
    """
    assert rollout.embedded is not None
    if "real_images" not in reward.needs:
        none = slice(0, 0)
        nothing, about = rollout.embedded[none], rollout.context.select(none)
        return reward.update(nothing, about, rollout.embedded, rollout.context, seed=seed)
    assert real is not None  # ``create_reward`` has seen to it
    start, stop = distributed.local_slice(reward.real_per_update)
    seeds = sample_seeds(seed, 0, start, stop - start)
    index = (Noise(seeds).uniform(DATA, 1, (1,))[:, 0].double() * len(real)).long()
    images = augment(real.images(index).to(device), seeds, flip=data.flip, shift=data.shift)
    context = real.contexts(index).to(device)

    def embed(rows: slice) -> Tensor:
        return reward.embed_real(images[rows], context.select(rows))

    threads = may_go_side_by_side(device, reward)
    with torch.no_grad():
        embedded = torch.cat(MicroBatch.of(micro_batch).map(embed, len(index), threads=threads))
    with whole("the reward's update", "lower reward.options.batch or the batch, or use a reward that does not learn"):
        return reward.update(embedded, context, rollout.embedded, rollout.context, seed=seed)
