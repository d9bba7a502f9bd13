"""A reward that learns, trained on the images of a rollout and on real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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


def prepared_update(
    reward: RewardModel,
    real: ImageSource | None,
    rollout: Rollout,
    *,
    data: DataConfig,
    seed: int,
    device: torch.device,
    micro_batch: MicroBatch | int | None = None,
) -> Callable[[], dict[str, float]]:
    """Draw and embed the real images that an update of the reward reads, as many as it asks for.

    Args:
        real: None for a reward that reads none (``needs``): it is given no real images then.
        seed: decides which real images are drawn and how they are augmented. micro_batch: real images embedded at once.

    Returns:
        The update itself, on these and on the images of the rollout (``rollout.embedded``); it gives the reward's figures.
    """
    made, about_made = rollout.embedded, rollout.context
    assert made is not None
    if "real_images" not in reward.needs:
        none = slice(0, 0)
        nothing, about = made[none], about_made.select(none)
        return partial(reward.update, nothing, about, made, about_made, seed=seed)
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
        parts = MicroBatch.of(micro_batch).map(embed, len(index), threads=threads)
        embedded = torch.cat(parts) if parts else embed(slice(0, 0))  # none, or less than one a process

    def update() -> dict[str, float]:
        with whole("the reward's update", "lower reward.options.batch or the batch, or use a reward that does not learn"):
            return reward.update(embedded, context, made, about_made, seed=seed)

    return update
