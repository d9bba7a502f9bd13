"""A reward that learns, trained on the images of a rollout and on real ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ..core import (
    DATA,
    Context,
    ImageSource,
    Noise,
    RewardModel,
    called,
    sample_seeds,
)
from ..images import augment
from ..runtime import (
    MicroBatch,
    checked_figures,
    distributed,
    may_go_side_by_side,
    plugin_call,
    require_tensors,
    whole,
)
from ..sampling import Rollout, checked_embedding
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
        return partial(_update, reward, nothing, about, made, about_made, seed)
    assert real is not None  # ``create_reward`` has seen to it
    start, stop = distributed.local_slice(reward.real_per_update)
    seeds = sample_seeds(seed, 0, start, stop - start)
    index = (Noise(seeds).uniform(DATA, 1, (1,))[:, 0].double() * len(real)).long()
    images = augment(real.images(index).to(device), seeds, flip=data.flip, shift=data.shift)
    context = real.contexts(index).to(device)

    def embed(rows: slice) -> Tensor:
        return checked_embedding(reward, called(reward), images[rows], context.select(rows), "embed_real")

    threads = may_go_side_by_side(device, reward)
    with torch.no_grad():
        parts = MicroBatch.of(micro_batch).map(embed, len(index), threads=threads)
        embedded = torch.cat(parts) if parts else embed(slice(0, 0))  # none, or less than one a process

    def update() -> dict[str, float]:
        with whole("the reward's update", "lower reward.options.batch or the batch, or use a reward that does not learn"):
            return _update(reward, embedded, context, made, about_made, seed)

    return update


def _update(
    reward: RewardModel, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, seed: int
) -> dict[str, float]:
    """
    Raises:
        PluginError: the update failed, or gave something else than figures by their names.
    """
    plugin = f"reward {called(reward)!r}"
    with plugin_call(plugin, "update"):
        found = reward.update(real, real_context, fake, fake_context, seed=seed)
    return checked_figures(plugin, found)


def state_of(reward: RewardModel) -> dict[str, Tensor]:
    """
    Raises:
        PluginError: its ``state`` failed, or gave something else than tensors by their names.
    """
    plugin = f"reward {called(reward)!r}"
    with plugin_call(plugin, "state"):
        state = reward.state()
    require_tensors(f"what state of {plugin} returns", state)
    return state


def load_into(reward: RewardModel, state: dict[str, Tensor]) -> None:
    """
    Raises:
        CheckpointError: the reward says so. PluginError: its ``load_state`` failed.
    """
    with plugin_call(f"reward {called(reward)!r}", "load_state"):
        reward.load_state(state)
