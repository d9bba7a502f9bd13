"""The contract of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Context, ImageSource, RewardModel
from ..errors import CheckpointError
from .common import require, require_close


@dataclass(frozen=True)
class RewardCase:
    """How to make a reward, and what it is tried with.

    Attributes:
        make: the reward of a seed. images: (B, 3, H, W) in [0, 1], B >= 8, not all alike. context: theirs.
        real: real images; only rewards that learn from them (``needs``) read them.
    """

    make: Callable[[int], RewardModel]
    images: Tensor
    context: Context
    real: ImageSource | None = None


def reward_scores(case: RewardCase) -> None:
    """Scores are (B,) float32, finite, not all alike, and the same through ``embed`` in micro-batches. The images stay."""
    reward, images, context, size = case.make(0), case.images.clone(), case.context, len(case.images)
    scores = reward.score(images, context)
    found = (tuple(scores.shape), scores.dtype)
    require(found == ((size,), torch.float32), f"scores are {found}, must be ({size},) float32.")
    require(bool(torch.isfinite(scores).all()), f"scores are not finite: {scores.tolist()}.")
    require(
        float(scores.std()) > 0, f"every image gets the score {float(scores[0]):g}; nothing can be learned from that."
    )
    rows = [slice(0, 5), slice(5, 6), slice(6, size)]  # micro-batches of unlike sizes
    embedded = torch.cat([reward.embed(images[r], context.select(r)) for r in rows])
    kept = torch.equal(images, case.images)
    require(kept, "score or embed changes the images, which others read too; work on a copy (images.clone()).")
    require(len(embedded) == size, f"embed gives {len(embedded)} rows for {size} images.")
    require_close(reward.score_embedded(embedded, context), scores, 1e-3, "score_embedded(embed(...)) in micro-batches")
    for name, values in reward.terms().items():
        ok = values.shape == (size,) and bool(torch.isfinite(values).all())
        require(ok, f"terms()[{name!r}] has shape {tuple(values.shape)}, must be ({size},) and finite.")
    for part, count in reward.parameters_count().items():
        require(count > 0, f"parameters_count()[{part!r}] is {count}; leave out what has none.")


def reward_of_one_image(case: RewardCase) -> None:
    """A batch of one image can be scored."""
    one = case.make(0).score(case.images[:1], case.context.select(slice(0, 1)))
    ok = one.shape == (1,) and bool(torch.isfinite(one).all())
    require(ok, f"one image gets scores of shape {tuple(one.shape)} {one.tolist()}, must be (1,) and finite.")


def reward_is_deterministic(case: RewardCase) -> None:
    """Scoring twice, and two rewards of one seed, give the same scores."""
    first, second = case.make(3), case.make(3)
    torch.manual_seed(11)
    scores = first.score(case.images, case.context)
    torch.manual_seed(12)
    require(torch.equal(scores, first.score(case.images, case.context)), "scoring twice gives other scores.")
    require(torch.equal(scores, second.score(case.images, case.context)), "the seed does not determine the reward.")


def reward_gives_no_gradient(case: RewardCase) -> None:
    """No gradient flows into the images: the generator is never trained."""
    reward, images = case.make(0), case.images.clone().requires_grad_(True)
    with torch.enable_grad():
        scores, embedded = reward.score(images, case.context), reward.embed(images, case.context)
    if type(reward).embed is RewardModel.embed:
        embedded = embedded.detach()  # the images themselves
    attached = scores.requires_grad or embedded.requires_grad
    require(not attached, "scores carry gradients into the images; score and embed under torch.no_grad().")


def reward_ignores_neighbours(case: RewardCase) -> None:
    """A sample's score does not depend on the batch it is scored in, unless the reward is ``set_level``."""
    reward = case.make(0)
    if reward.set_level:
        return
    scores, device = reward.score(case.images, case.context), case.images.device
    for rows in ([4, 0, 7], [4]):
        index = torch.tensor(rows, device=device)
        some = reward.score(case.images[index], case.context.select(index))
        require_close(
            some, scores[index], 1e-4, "a sample's score in another batch (set set_level = True if that is meant)"
        )


def reward_in_threads(case: RewardCase) -> None:
    """One that says that it is thread-safe embeds the same in several threads at once."""
    reward = case.make(0)
    if not reward.thread_safe:
        return
    rows = [slice(i, i + 2) for i in range(0, len(case.images) - 1, 2)]

    @torch.no_grad()
    def embed(part: slice) -> Tensor:
        return reward.embed(case.images[part], case.context.select(part))

    alone = [embed(part) for part in rows]
    with ThreadPoolExecutor(len(rows)) as pool:
        together = list(pool.map(embed, rows))
    for one, other in zip(alone, together, strict=True):
        require_close(other, one, 1e-4, "embed in several threads at once (leave thread_safe False)")


def reward_state(case: RewardCase) -> None:
    """A frozen reward has no state; a learned one learns, and goes on the same from its state in another process."""
    reward = case.make(1)
    if not reward.learns:
        require(
            reward.state() == {}, "state() is not empty, but the reward does not say that it learns, so nothing can change."
        )
        reward.load_state({})
        return
    before = reward.score(case.images, case.context)
    figures = _learn(case, reward, 1)
    ok = bool(figures) and all(math.isfinite(v) for v in figures.values())
    require(ok, f"update gives the figures {figures}; they must be finite numbers for the log.")
    learned = reward.score(case.images, case.context)
    require(not torch.equal(learned, before), "an update changes nothing.")
    saved = {key: value.clone() for key, value in reward.state().items()}
    resumed = case.make(99)
    resumed.load_state({key: value.clone() for key, value in saved.items()})
    require(torch.equal(resumed.score(case.images, case.context), learned), "load_state(state()) gives other scores.")
    for one in (reward, resumed):
        _learn(case, one, 2)
    same = torch.equal(resumed.score(case.images, case.context), reward.score(case.images, case.context))
    require(same, "the state misses something that the next update needs.")
    key = max(saved, key=lambda k: saved[k].numel())
    try:
        resumed.load_state({**saved, key: saved[key].flatten()[1:]})
    except CheckpointError:
        return
    raise AssertionError(f"load_state accepts a misshapen {key!r}; it must raise CheckpointError.")


REWARD_CHECKS: tuple[Callable[[RewardCase], None], ...] = (
    reward_scores,
    reward_of_one_image,
    reward_is_deterministic,
    reward_gives_no_gradient,
    reward_ignores_neighbours,
    reward_in_threads,
    reward_state,
)


def check_reward(case: RewardCase) -> None:
    """Run all of ``REWARD_CHECKS``.

    Raises:
        AssertionError: naming what the contract wants.
    """
    for check in REWARD_CHECKS:
        check(case)


def _learn(case: RewardCase, reward: RewardModel, seed: int) -> dict[str, float]:
    fakes = case.context.select(slice(0, 7))
    embedded = reward.embed(case.images[:7] * 0.8, fakes)
    if "real_images" not in reward.needs:  # it is given none, as in training
        return reward.update(embedded[:0], fakes.select(slice(0, 0)), embedded, fakes, seed=seed)
    require(case.real is not None, "a reward that learns from real images is checked with some; give RewardCase(real=...).")
    assert case.real is not None
    index = (torch.arange(reward.real_per_update) * 3 + seed) % len(case.real)
    device = case.images.device
    context = case.real.contexts(index).to(device)
    real = reward.embed_real(case.real.images(index).to(device), context)
    return reward.update(real, context, embedded, fakes, seed=seed)
