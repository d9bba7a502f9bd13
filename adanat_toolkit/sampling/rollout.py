"""Trajectories on the device: contexts -> [observe -> policy -> step] x T -> decode -> embed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ACTION, ActionSpace, Context, Generator, Noise, RewardModel, called
from ..decoding import DistilledDecoder, SamplingPolicy, TokenGenerator
from ..errors import ConfigError
from ..runtime import MicroBatch, ThreadSafe, float32_by_default, may_go_side_by_side, plugin_call
from .scores import checked_embedding
from .whole_step import WholeStep, decide


def gaussian_log_prob(actions: Tensor, mean: Tensor, sigma: float) -> Tensor:
    """Log-density of N(mean, sigma^2 I), summed over the last axis: (..., A) -> (...)."""
    z = (actions - mean) / sigma
    return -0.5 * (z * z).sum(-1) - actions.shape[-1] * (math.log(sigma) + 0.5 * math.log(2 * math.pi))


@dataclass(frozen=True)
class Start:
    """Where masked editing begins (see ``TokenGenerator.reset``): what is known, and what may be filled in.

    Attributes:
        tokens: (B, N) int64, ``mask_id`` where ``editable``. editable: (B, N) bool.
    """

    tokens: Tensor
    editable: Tensor

    def select(self, index: Tensor | slice) -> Start:
        """The start of some of the samples."""
        return Start(self.tokens[index], self.editable[index])


@dataclass
class Rollout:
    """What B trajectories left behind, all on the generator's device. T counts actions here (``Generator.decisions``).

    Attributes:
        context: contexts of the samples.
        features: (B, T, N, D), what the policy saw (``core.see``) in its storage type; None where it sees the step alone.
        actions: (B, T, A) raw. log_prob, values: (B, T). physical: (B, T, K).
        embedded: (B, ...) from ``RewardModel.embed`` (None without a reward). images: (B, 3, H, W), where kept.
        statistics: (B, T, 1, S), where the critic reads them (``core.see_statistics``).
    """

    context: Context
    features: Tensor | None
    actions: Tensor
    log_prob: Tensor
    values: Tensor
    physical: Tensor
    embedded: Tensor | None
    images: Tensor | None
    statistics: Tensor | None = None


def explored_by(explore: Noise, steps: int, size: int) -> Tensor:
    """(B, T, A): the exploration of a rollout (:func:`collect`), in units of sigma."""
    return explore.normals([(ACTION, t) for t in range(steps)], (size,)).transpose(0, 1)


@torch.no_grad()
@float32_by_default()
def collect(
    generator: Generator,
    policy: SamplingPolicy,
    context: Context,
    noise: Noise,
    *,
    critic: nn.Module | None = None,
    sigma: float = 0.0,
    action_noise: Noise | None = None,
    reward: RewardModel | None = None,
    micro_batch: MicroBatch | int | None = None,
    keep_features: bool = True,
    keep_images: int = 0,
    start_from: Start | None = None,
    actions: Tensor | None = None,
    decoder: DistilledDecoder | None = None,
    whole: WholeStep | None = None,
) -> Rollout:
    """Generate one image a context under the policy.

    Args:
        context, noise: B samples; a sample's image depends on its own entries only.
        sigma: standard deviation of exploration in raw coordinates; 0 takes the mean.
        action_noise: seeds of the exploration (default: ``noise``).
        micro_batch: samples in flight at once; None for all. It is halved where memory runs out (see ``memory``).
        keep_images: how many of the first images to keep.
        start_from: for masked editing of a token generator; None starts from nothing.
        actions: (B, T, A) raw actions to take in place of the policy's.
        decoder: makes the images that the reward is shown, in place of the generator's own.
        whole: takes the steps that it fits; None takes all of them piece by piece.

    Raises:
        ConfigError: masked editing, or a published sampler, with a generator that has no tokens. MemoryShortage: even
            one sample is too many.
    """
    explore = noise if action_noise is None else action_noise

    def part(rows: slice) -> Rollout:
        return _collect(
            generator,
            policy,
            context.select(rows),
            noise.select(rows),
            explore.select(rows),
            critic,
            sigma,
            reward,
            keep_features,
            max(0, min(keep_images - rows.start, rows.stop - rows.start)),
            None if start_from is None else start_from.select(rows),
            None if actions is None else actions[rows],
            decoder,
            whole,
        )

    called: list[ThreadSafe] = [generator]
    if reward is not None and (reward.reads_latents or type(reward).embed is not RewardModel.embed):
        called.append(reward)  # the base's embed only hands the images on
    threads = whole is None and may_go_side_by_side(generator.device, *called)
    parts = MicroBatch.of(micro_batch).map(part, len(context), threads=threads)
    return parts[0] if len(parts) == 1 else _join(parts)


def _collect(
    generator: Generator,
    policy: SamplingPolicy,
    context: Context,
    noise: Noise,
    explore: Noise,
    critic: nn.Module | None,
    sigma: float,
    reward: RewardModel | None,
    keep_features: bool,
    keep_images: int,
    start_from: Start | None,
    given: Tensor | None,
    decoder: DistilledDecoder | None,
    whole: WholeStep | None,
) -> Rollout:
    size, device = len(context), generator.device
    network, space = policy.network, policy.space
    state = begin(generator, policy, context, noise, start_from)
    features, actions, log_probs, values, physicals, statistics = [], [], [], [], [], []
    smoothed: Tensor | None = None  # what action smoothing carries from one step of a sample to the next
    guided = _guided_steps(space)
    wander = explored_by(explore, space.decisions, space.size) * sigma if sigma > 0 else None
    for t in range(space.decisions):
        step = torch.full((size,), t, dtype=torch.int64, device=device)
        wandered = None if wander is None else wander[:, t]
        taken = None
        if whole is not None and given is None and whole.fits(generator, policy, critic, state):
            taken = whole(state, step, noise, wander=wandered, smoothed=smoothed, guided=guided[t])
        if taken is None:
            decision = decide(
                generator, policy, critic, state, context, step, wander=wandered, smoothed=smoothed, guided=guided[t],
                given=None if given is None else given[:, t].to(device),
            )  # fmt: skip
            with plugin_call(f"generator {generator.name!r}", "step"):
                taken = decision, generator.step(state, decision.physical, noise)
        decision, state = taken
        smoothed = decision.smoothed
        actions.append(decision.action)
        physicals.append(decision.physical)
        if sigma > 0:
            log_probs.append(gaussian_log_prob(decision.action, decision.mean, sigma))
        if decision.value is not None:
            values.append(decision.value)
        if keep_features and decision.seen is not None:
            features.append(decision.seen.to(network.feature_dtype))
        if decision.statistics is not None:
            statistics.append(decision.statistics)
    nothing = torch.zeros(size, space.decisions, device=device)
    images = _decoded(generator, state) if keep_images else None
    return Rollout(
        context=context,
        features=torch.stack(features, 1) if features else None,
        actions=torch.stack(actions, 1),
        log_prob=torch.stack(log_probs, 1) if log_probs else nothing,
        values=torch.stack(values, 1) if values else nothing,
        physical=torch.stack(physicals, 1),
        embedded=None if reward is None else embed(reward, generator, state, context, images, decoder),
        images=images[:keep_images] if images is not None and keep_images else None,
        statistics=torch.stack(statistics, 1) if statistics else None,
    )


def embed(
    reward: RewardModel,
    generator: Generator,
    state: Any,
    context: Context,
    images: Tensor | None,
    decoder: DistilledDecoder | None = None,
) -> Tensor:
    """What the reward keeps of the finished images, which are decoded where it reads them; ``images`` if they were before.

    Args:
        decoder: shows the reward its own images, whatever ``images`` are.

    Raises:
        PluginError: the generator or the reward failed, or the reward returned something else or changed what it was given.
    """
    if reward.reads_latents:
        shown = _latents(generator, state)
    elif decoder is not None:
        shown = decoder.decode(_latents(generator, state))
    else:
        shown = _decoded(generator, state) if images is None else images
    return checked_embedding(reward, called(reward), shown, context, "embed_latents" if reward.reads_latents else "embed")


def _decoded(generator: Generator, state: Any) -> Tensor:
    with plugin_call(f"generator {generator.name!r}", "decode"):
        return generator.decode(state)


def _latents(generator: Generator, state: Any) -> Tensor:
    with plugin_call(f"generator {generator.name!r}", "latents"):
        return generator.latents(state)


def begin(
    generator: Generator, policy: SamplingPolicy, context: Context, noise: Noise, start_from: Start | None = None
) -> Any:
    """The generator's state before the first step, with the policy's decoding rule and, for editing, what is known.

    Raises:
        ConfigError: a rule or a start for a generator without tokens.
    """
    if policy.rule is None and start_from is None:
        with plugin_call(f"generator {generator.name!r}", "reset"):
            return generator.reset(context, noise, policy.steps)
    if not isinstance(generator, TokenGenerator):
        raise ConfigError(
            f"{generator.name} is no token generator, so masked editing and published samplers do not apply; use "
            "another generator, or another policy without an image to edit."
        )
    tokens, editable = (None, None) if start_from is None else (start_from.tokens, start_from.editable)
    return generator.reset(context, noise, policy.steps, tokens=tokens, editable=editable, sampler=policy.rule)


def _guided_steps(space: ActionSpace) -> list[bool]:
    """At which steps there may be guidance: elsewhere the unconditional forward is not run. A policy that sets it guides
    always, as a softplus is never zero; else the schedule says it."""
    if "guidance" not in space.names or space.schedule is None:
        return [False] * space.decisions
    if "guidance" in space.acted:
        return [True] * space.decisions
    return (space.schedule[:, space.names.index("guidance")] != 0).tolist()


def _join(parts: list[Rollout]) -> Rollout:
    def cat(values: list[Tensor | None]) -> Tensor | None:
        present = [v for v in values if v is not None]
        return torch.cat(present) if present else None

    return Rollout(
        context=Context.cat([p.context for p in parts]),
        features=cat([p.features for p in parts]),
        actions=torch.cat([p.actions for p in parts]),
        log_prob=torch.cat([p.log_prob for p in parts]),
        values=torch.cat([p.values for p in parts]),
        physical=torch.cat([p.physical for p in parts]),
        embedded=cat([p.embedded for p in parts]),
        images=cat([p.images for p in parts]),
        statistics=cat([p.statistics for p in parts]),
    )
