"""Policies: the one that ships, a trained one, a released one, a hand-made schedule."""

from __future__ import annotations

import os
from typing import TypeAlias

from adanat_plugins.pretrained import pretrained_policy

from .. import policies
from ..core import Generator
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from .arguments import require_generator, wrong

Spec: TypeAlias = str | os.PathLike[str]
NEEDS_POLICY = 'a run or policy folder, a hub id, a released file, "fixed[:SCHEDULE]", or what load_policy returns'


def load_policy(
    spec: Spec | None, generator: Generator, *, steps: int | None = None, offline: bool = False
) -> SamplingPolicy:
    """A policy ready to sample with.

    Args:
        spec: a run folder, a policy folder, a hub id ``owner/name[@revision]``, the file of a released policy,
            ``fixed`` (the generator's best known schedule), ``fixed:SCHEDULE`` or ``fixed:SAMPLER``; or a blend of such,
            ``A*0.7+B*0.3``. None: the policy that ships for the generator, else ``fixed``.
        steps: T of a hand-made schedule; a learned policy has its own, which this must equal if given.
        offline: do not fetch a hub id that is not in the cache.

    Raises:
        ConfigError: unknown schedule, sampler or path, or a policy of another generator. CheckpointError: damaged files.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> generator = adanat.load_generator("maskgit", device="cpu")
        >>> adanat.load_policy("fixed:cosine", generator, steps=6)
        SamplingPolicy(fixed, 6 steps, cosine)
    """
    generator = require_generator(generator)
    if spec is None:
        spec = pretrained_policy(generator, steps) or "fixed"
    if not isinstance(spec, str | os.PathLike):
        raise wrong("spec", spec, f"{NEEDS_POLICY}, or None for the policy that ships")
    return policies.load_policy(policies.local_spec(spec, offline=offline), generator, steps)


def as_policy(
    policy: SamplingPolicy | Spec | None, generator: Generator, *, steps: int | None = None, offline: bool = False
) -> SamplingPolicy:
    """A policy that was given as an object or by what :func:`load_policy` takes.

    Raises:
        ConfigError: it is something else, was made for another generator, or takes other than ``steps``.
        CheckpointError: damaged files.
    """
    if policy is None or isinstance(policy, str | os.PathLike):
        return load_policy(policy, generator, steps=steps, offline=offline)
    if not isinstance(policy, SamplingPolicy):
        raise wrong("policy", policy, f"{NEEDS_POLICY}, or None for the policy that ships")
    made_for = policy.card.get("generator", {})
    if policy.space.names != generator.action_space.names or (
        made_for.get("fingerprint", generator.fingerprint) != generator.fingerprint
    ):
        name = made_for.get("name", f"a generator with the knobs {', '.join(policy.space.names)}")
        raise ConfigError(f"policy was made for {name}, and generator is {generator.name}; load one for {generator.name}.")
    if steps not in (None, policy.steps):
        raise ConfigError(f"steps = {steps}, and policy takes {policy.steps}; leave steps out, or load another policy.")
    return policy
