"""What a policy does to single images: the same seeds, its knobs, which samples it finds simple, and what each step makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import ActionSpace, Context, Generator, Noise, see
from ..decoding import SamplingPolicy, TokenGenerator, TokenState
from ..images import OwnContexts, draw_contexts, to_bytes
from ..metrics import deciles
from ..sampling import begin, mean_action, sample

ALIKE = 1e-4
"""Spread over the samples, of the share kept early or of a knob, below which a policy treats all of them alike."""


@dataclass(frozen=True)
class Probe:
    """Images of one policy.

    Attributes:
        seeds: (n,) int64. labels: their contexts in words. images: (n, 3, H, W) uint8. knobs: (n, T, K) physical.
        names: of the K knobs.
    """

    seeds: list[int]
    labels: list[str]
    images: Tensor
    knobs: Tensor
    names: tuple[str, ...]

    def spread(self) -> list[KnobSpread]:
        """Mean, 10 and 90 % of every knob at every step over the samples."""
        low, high = deciles(self.knobs)
        mean = self.knobs.double().mean(0)
        return [
            KnobSpread(name, mean[:, k].tolist(), low[:, k].tolist(), high[:, k].tolist())
            for k, name in enumerate(self.names)
        ]


@dataclass(frozen=True)
class KnobSpread:
    """One knob over the T steps."""

    name: str
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Ranking:
    """Samples by how simple the policy finds them, the simplest first.

    Attributes:
        measure: ``kept early`` or ``distance``; None: the policy treats all samples alike, and ``order`` is empty.
        values: of all samples. order: positions of the samples.
    """

    measure: str | None
    values: list[float]
    order: list[int]


@dataclass(frozen=True)
class Step:
    """A sample after one step.

    Attributes:
        image: (3, H, W) uint8, what was drawn. kept: the same with the cells that are masked again covered; mask: (h, w)
            bool; both None for a generator without tokens. knobs: (K,) physical values of this step.
    """

    image: Tensor
    kept: Tensor | None
    mask: Tensor | None
    knobs: list[float]


def probe(
    generator: Generator,
    policy: SamplingPolicy,
    seeds: Tensor,
    *,
    contexts_from: OwnContexts | None = None,
    batch: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Probe:
    """One image a seed, with its context drawn by the seed.

    Args:
        seeds: (n,) int64. contexts_from: see ``images.draw_contexts``. progress: called with the number of images done.
    """
    images, knobs, labels = [], [], []

    def contexts(noise: Noise) -> Context:
        return draw_contexts(generator, noise, contexts_from)

    for part in sample(generator, policy, seeds, contexts, batch=batch, on_batch=progress):
        images.append(to_bytes(part.images))
        knobs.append(part.knobs.float().cpu())
        labels += [describe(generator, part.context, i) for i in range(len(part.seeds))]
    return Probe(seeds.tolist(), labels, torch.cat(images), torch.cat(knobs), policy.space.names)


def describe(generator: Generator, context: Context, index: int) -> str:
    """A sample's context in words: class name or id, or prompt; empty without a context."""
    facts = context.describe(index)
    if "prompt" in facts:
        return str(facts["prompt"])
    if "class" in facts:
        names = generator.class_names
        return names[facts["class"]] if names else f"class {facts['class']}"
    return ""


def rank(knobs: Tensor, space: ActionSpace) -> Ranking:
    """How simple each sample is, by the policy's own behaviour.

    Where the policy sets the masking ratio, a sample is simple when much of it is kept early: the share of positions that
    are known, averaged over all steps but the last (which leaves nothing masked). Where the policy does not, or the ratio
    is the same for all, a sample is simple when the policy hardly departs from what it does on average: the
    root-mean-square distance of its knobs from their mean over the samples at the same step, each knob in units of its
    spread over samples and steps.

    Args:
        knobs: (n, T, K) physical values of n samples under ``space``.
    """
    if "mask_ratio" in space.acted and knobs.shape[1] > 1:
        ratio = knobs[:, :-1, space.names.index("mask_ratio")].double()
        values = 1 - ratio.mean(1)
        if float(values.std()) > ALIKE:
            return Ranking("kept early", values.tolist(), values.argsort(descending=True, stable=True).tolist())
    columns = [space.names.index(name) for name in space.acted]
    away = (knobs.double() - knobs.double().mean(0))[:, :, columns]
    spread = away.square().mean((0, 1)).sqrt()
    if bool((spread > ALIKE).any()):
        distance = (away / spread)[:, :, spread > ALIKE].square().mean((1, 2)).sqrt()
        return Ranking("distance", distance.tolist(), distance.argsort(stable=True).tolist())
    return Ranking(None, [], [])


@torch.no_grad()
def trace(
    generator: Generator,
    policy: SamplingPolicy,
    seeds: Sequence[int],
    contexts_from: OwnContexts | None = None,
) -> list[list[Step]]:
    """Every step of a few samples, as ``sample`` takes them: for each seed a list of T steps."""
    noise = Noise(torch.tensor(list(seeds), dtype=torch.int64, device=generator.device))
    context = draw_contexts(generator, noise, contexts_from)
    state = begin(generator, policy, context, noise)
    out: list[list[Step]] = [[] for _ in seeds]
    network, space = policy.network, policy.space
    smoothed: Tensor | None = None
    for t in range(space.decisions):
        step = torch.full((len(out),), t, dtype=torch.int64, device=generator.device)
        seen = see(generator, network, state, context)
        smoothed = space.smoothed(mean_action(network, seen, step), step, smoothed)
        physical = space.transformed(smoothed, step)
        state = generator.step(state, physical, noise)
        images = to_bytes(generator.decode(state))
        masks: Tensor | None = None
        if isinstance(state, TokenState) and isinstance(generator, TokenGenerator):
            # Nothing follows the last step, so what it would mask again is part of the image.
            masked = (state.tokens == generator.mask_id) & (t < space.decisions - 1)
            masks = masked.view(len(out), *generator.grid).cpu()
        for i, steps in enumerate(out):
            mask = None if masks is None else masks[i]
            kept = None if mask is None else cover(images[i], mask)
            steps.append(Step(images[i], kept, mask, physical[i].tolist()))
    return out


OPACITY, GREY = 0.85, 150
"""Of what covers masked cells."""


def cover(image: Tensor, mask: Tensor) -> Tensor:
    """An image whose masked cells are covered with grey.

    Args:
        image: (3, H, W) uint8. mask: (h, w) bool, its cells spread evenly over the image.
    """
    height, width = image.shape[1:]
    rows = torch.arange(height) * mask.shape[0] // height
    columns = torch.arange(width) * mask.shape[1] // width
    hidden = mask[rows][:, columns]
    covered = (image.float() * (1 - OPACITY) + GREY * OPACITY).round().to(torch.uint8)
    return torch.where(hidden, covered, image)
