"""A policy for the networks of a pipeline: loaded, or refused with both named."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from typing import Any

import torch

from ...core import Generator, Policy, PolicySpec
from ...decoding import SamplingPolicy
from ...errors import ConfigError
from ...policies import load_policy, policy_card
from ...registry import load
from ...storage import shortened

log = logging.getLogger("adanat_toolkit")

PolicyOrSpec = SamplingPolicy | str | os.PathLike[str]


def policy_for(pipe: Any, view: Generator, policy: PolicyOrSpec, *, exact: Collection[torch.dtype]) -> SamplingPolicy:
    """The policy, ready for a pipeline.

    Args:
        view: what the policy has to fit: names, knobs, feature width, grid and fingerprint of the pipeline's network.
        policy: an object, or what ``load_policy`` takes.
        exact: dtypes in which the network's fingerprint is that of its float32 weights.

    Raises:
        ConfigError: it was made for something else. CheckpointError: damaged files.
    """
    if isinstance(policy, SamplingPolicy):
        card = policy.card
    elif isinstance(policy, str | os.PathLike):
        card = policy_card(policy) or {}
    else:
        raise ConfigError(
            f"policy must be a run or policy folder, a hub id, 'fixed[:SCHEDULE]', or what load_policy returns; it is "
            f"{type(policy).__name__} {shortened(policy)}."
        )
    if "generator" in card:
        _require_fit(pipe, view, card["generator"], exact)
    for kind in _kinds(policy):
        require_readable(load("policy", kind))
    ready = policy if isinstance(policy, SamplingPolicy) else load_policy(policy, view)
    require_readable(ready.network)
    if ready.space.names != view.action_space.names:
        raise ConfigError(
            f"the policy sets {', '.join(ready.space.names)}, and {_named(pipe)} obeys "
            f"{', '.join(view.action_space.names)}; give a policy that was trained for it."
        )
    return ready


def require_readable(policy: Policy | type[Policy]) -> None:
    """
    Raises:
        ConfigError: the policy reads what cannot be taken from a pipeline while it runs.
    """
    if policy.needs_features and policy.reads != "features":
        raise ConfigError(
            f"policy {policy.kind!r} reads the {policy.reads}, which a pipeline does not show while it runs; give one that "
            "reads features (adaptive, residual) or the step alone (shared), or make the images with adanat sample."
        )


def _kinds(policy: PolicyOrSpec) -> list[str]:
    """Kinds of the stored policies that a spec names."""
    if isinstance(policy, SamplingPolicy):
        return []
    terms = [term for term in PolicySpec.parse(os.fspath(policy)).terms if not term.fixed]
    return [str(card["kind"]) for term in terms if (card := policy_card(term.text)) is not None]


def _require_fit(pipe: Any, view: Generator, made_for: dict[str, Any], exact: Collection[torch.dtype]) -> None:
    """
    Raises:
        ConfigError: the pipeline's network is not the one that the policy was trained for.
    """
    name, here = shortened(made_for["name"])[1:-1], _named(pipe)
    family = view.name.partition(":")[0]
    if made_for["name"].partition(":")[0] != family:
        raise ConfigError(
            f"the policy was trained for {name}, and {here} is the generator {family!r} of this toolkit; train a policy "
            f"with --generator {family}, or give the pipeline that the policy belongs to."
        )
    if made_for["feature_dim"] != view.feature_dim:
        raise ConfigError(
            f"the policy reads {made_for['feature_dim']} features a cell ({name}), and {here} has {view.feature_dim}; "
            "give the pipeline that the policy was trained for."
        )
    if list(made_for["grid"]) != list(view.grid):
        there, own = ("x".join(map(str, grid)) for grid in (made_for["grid"], view.grid))
        raise ConfigError(
            f"the policy reads a grid of {there} cells ({name}), and {here} has {own}; give the pipeline that the policy "
            "was trained for."
        )
    if made_for["fingerprint"] != view.fingerprint:
        if view.dtype in exact:
            raise ConfigError(
                f"the policy was trained for {name} with the weights {shortened(made_for['fingerprint'])[1:-1]}, and "
                f"{here} has the weights {view.fingerprint}; give the pipeline that the policy was trained for."
            )
        log.warning(
            "%s is in %s, so it cannot be told whether its weights are those that the policy was trained for (%s, %s)",
            here, str(view.dtype).removeprefix("torch."), name, made_for["fingerprint"],
        )  # fmt: skip
        view.fingerprint = made_for["fingerprint"]


def _named(pipe: Any) -> str:
    where = getattr(getattr(pipe, "config", None), "_name_or_path", "")
    return f"the {type(pipe).__name__}" + (f" of {where}" if where else "")
