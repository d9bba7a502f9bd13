"""Blends of policies: the raw actions of several, averaged with weights; with two, one number between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import ActionSpace, Generator, PluginOptions, Policy, PolicySpec, seen_shape
from ..decoding import SamplingPolicy
from ..errors import ConfigError


class BlendPolicy(Policy):
    """The weighted mean of raw actions.

    What a member's actions are added to may differ from the blend's own base (another schedule under its residual): the
    difference is added to its action, so that it is the raw values that are averaged.
    """

    kind = "blend"
    trainable = False
    offsets: Tensor

    def __init__(
        self,
        members: Sequence[Policy],
        weights: Sequence[float],
        offsets: Sequence[Tensor],
        *,
        space: ActionSpace,
        grid: tuple[int, int],
        feature_dim: int,
    ) -> None:
        super().__init__(PluginOptions(), space=space, grid=grid, feature_dim=feature_dim)
        self.members, self.weights = nn.ModuleList(members), tuple(weights)
        watching = [member for member in members if member.needs_features]
        self.needs_features = bool(watching)
        if watching:
            self.reads = watching[0].reads
        self.register_buffer("offsets", torch.stack(list(offsets)))
        self.size = space.size

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        total = torch.zeros(step.shape[0], self.size, device=step.device)
        for member, weight, offset in zip(self.members, self.weights, self.offsets, strict=True):
            action = member(features, step)
            # A hand-made schedule acts on nothing: its offset says it all.
            total = total + weight * (offset[step] + (action if action.shape[1] else 0))
        return total


def blend_policies(spec: PolicySpec, policies: Sequence[SamplingPolicy], generator: Generator) -> SamplingPolicy:
    """The blend of loaded policies, in the action space of the first learned one (or of the first).

    Raises:
        ConfigError: they take unlike numbers of steps, set unlike knobs or differ in a knob that none sets, smooth their
            actions differently, see different things, or one is a published sampler with steps of its own.
    """
    text = str(spec)
    for term, policy in zip(spec.terms, policies, strict=True):
        if policy.rule is not None:
            raise ConfigError(
                f"{term.text} in blend {text!r} is a published sampler with steps of its own, which cannot be blended; "
                "give its schedule as fixed:SCHEDULE."
            )
    learned = [policy for policy in policies if policy.space.acted]
    if learned:
        space = learned[0].space
    else:
        first = policies[0].space
        assert first.schedule is not None
        space = first.bind(first.schedule, residual=True, steps=first.steps)
    watching = [policy for policy in policies if policy.network.needs_features]
    if len({policy.network.reads for policy in watching}) > 1:
        raise ConfigError(
            f"the policies of blend {text!r} see different things ({', '.join(p.network.kind for p in watching)}); blend "
            "such that see the same, or the step alone."
        )
    offsets = [
        _offset(policy.space, space, f"{term.text} in blend {text!r}")
        for term, policy in zip(spec.terms, policies, strict=True)
    ]
    grid, width = seen_shape(generator, watching[0].network) if watching else (generator.grid, generator.feature_dim)
    networks = [policy.network for policy in policies]
    network = BlendPolicy(networks, spec.weights, offsets, space=space, grid=grid, feature_dim=width)
    card: dict[str, Any] = {
        "kind": "blend",
        "policies": [policy.card for policy in policies],
        "weights": list(spec.weights),
        "schedule": text,
    }
    return SamplingPolicy(network.to(generator.device).eval(), space, card=card)


def _offset(own: ActionSpace, space: ActionSpace, what: str) -> Tensor:
    """(decisions, A): what is added to a member's raw action so that it means the same in the blend's space."""
    assert own.schedule is not None and space.schedule is not None
    if own.steps != space.steps or own.decisions != space.decisions:
        raise ConfigError(f"{what} takes {own.steps} steps, and another one {space.steps}; blend policies of as many.")
    if own.acted and (own.acted, own.smoothing) != (space.acted, space.smoothing):
        raise ConfigError(
            f"{what} sets {', '.join(own.acted)} with smoothing {own.smoothing:g}, and another one "
            f"{', '.join(space.acted)} with {space.smoothing:g}; blend policies of one action space."
        )
    rest = [i for i, name in enumerate(space.names) if name not in space.acted]
    if not torch.allclose(own.schedule[:, rest], space.schedule[:, rest]):
        raise ConfigError(
            f"{what} has another schedule of {', '.join(space.names[i] for i in rest)}, which no policy of the blend sets; "
            "blend policies that agree there."
        )
    # A hand-made schedule as the base of a policy that sets nothing else.
    base = own.base() if own.acted else replace(own, acted=space.acted, residual=True, smoothing=space.smoothing).base()
    return base - space.base()
