"""Apply a policy: images that depend on their seed, context and policy only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import Context, Generator, Noise, as_seeds
from ..decoding import SamplingPolicy
from ..errors import NotFiniteError
from ..limits import check_seeds
from ..runtime import CPU_CHUNK, MicroBatch, measured_size
from .rollout import Start, collect


@dataclass(frozen=True)
class Samples:
    """A batch of finished images.

    Attributes:
        seeds: (B,) int64. context: their contexts. images: (B, 3, H, W) float32 in [0, 1].
        knobs: (B, T, K) float32 physical values, in the order of ``policy.space.names``.
        actions: (B, T, A) float32, the raw actions that they came from; None where nobody kept them.
        kept: of refined images which ``candidate`` each is, its ``seed`` and ``score``; None of others.
    """

    seeds: Tensor
    context: Context
    images: Tensor
    knobs: Tensor
    actions: Tensor | None = None
    kept: list[dict[str, Any]] | None = None


def default_batch(device: torch.device) -> int:
    """Samples in flight at once when the user does not say."""
    return CPU_CHUNK if device.type == "cpu" else 256


def sample(
    generator: Generator,
    policy: SamplingPolicy,
    seeds: Tensor | Sequence[int],
    context: Context | Callable[[Noise], Context] | None = None,
    *,
    batch: int | None = None,
    sigma: float = 0.0,
    on_batch: Callable[[int], None] | None = None,
    start_from: Start | None = None,
    actions: Tensor | None = None,
) -> Iterator[Samples]:
    """Images in batches, in the order of ``seeds``.

    Args:
        seeds: (n,) int64 or a list, one an image. context: n contexts; or a function that draws them by their seeds, a batch at
            a time; None: the generator's ``sample_contexts``.
        batch: samples at once; it does not change the images, and is halved where memory runs out.
        sigma: exploration noise in raw coordinates (0: the policy's mean).
        on_batch: called with the number of images done.
        start_from: n starts, for masked editing (see ``editing.edit``).
        actions: (n, T, A) raw actions to take in place of the policy's.

    Raises:
        NotFiniteError: an image has NaN or infinity, which a picture would show as black or white.
    """
    seeds = as_seeds(seeds)
    noise = Noise(seeds.to(generator.device))
    draw = generator.sample_contexts if context is None else context

    def contexts(rows: slice) -> Context:
        return draw.select(rows) if isinstance(draw, Context) else draw(noise.select(rows))

    size = batch or _fitting_batch(generator, policy, contexts, noise, start_from)
    at_once = MicroBatch(size, what="images", remedy="use --dtype bfloat16, or a device with more memory")
    for start in range(0, len(seeds), size):
        rows = slice(start, start + size)
        part = collect(
            generator,
            policy,
            contexts(rows),
            noise.select(rows),
            sigma=sigma,
            keep_features=False,
            keep_images=size,
            micro_batch=at_once,
            start_from=None if start_from is None else start_from.select(rows),
            actions=None if actions is None else actions[rows],
        )
        assert part.images is not None
        _require_finite(part.images, seeds[rows], generator)
        yield Samples(seeds[rows].cpu(), part.context, part.images, part.physical, part.actions)
        if on_batch is not None:
            on_batch(min(start + size, len(seeds)))


def _require_finite(images: Tensor, seeds: Tensor, generator: Generator) -> None:
    if bool(images.isfinite().all()):  # one transfer a batch
        return
    wrong = (~images.isfinite()).flatten(1).any(1).cpu()
    raise NotFiniteError(
        f"{int(wrong.sum())} of {len(images)} images of generator {generator.name!r} are not finite (NaN or infinite), first "
        f"that of seed {int(seeds[wrong.to(seeds.device)][0])}. Use --dtype float32 where another type is used or another "
        "policy, or mend the generator."
    )


def _fitting_batch(
    generator: Generator,
    policy: SamplingPolicy,
    contexts: Callable[[slice], Context],
    noise: Noise,
    start_from: Start | None,
) -> int:
    """:func:`default_batch`, or less where the memory that a few images need says so."""

    def probe(count: int) -> None:
        rows = slice(0, count)
        start = None if start_from is None else start_from.select(rows)
        collect(
            generator,
            policy,
            contexts(rows),
            noise.select(rows),
            keep_features=False,
            keep_images=count,
            micro_batch=count,
            start_from=start,
        )

    most = default_batch(generator.device)
    return measured_size(probe, generator.device, most=min(most, len(noise))) or most


def seed_range(first: int, count: int) -> Tensor:
    """Seeds ``first .. first + count - 1``: (count,) int64.

    Raises:
        ConfigError: a seed below 0 or of more than 63 bits, no images, or too many of them.
    """
    check_seeds(first, count)
    return torch.arange(count, dtype=torch.int64) + first
