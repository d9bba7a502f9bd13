"""The published AdaNAT policies: a training checkpoint's actor as an adaptive policy of the toolkit.

The file is one pickled mapping: ``model`` with ``policy.actor.*`` (and critic, and frozen copies), the discriminator,
both optimisers, counters, and ``args``, an ``argparse.Namespace``, which ``torch.load(weights_only=True)`` refuses. The
actor's tensors and the plain values are taken here, and nothing in the file is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adanat_toolkit.core import ActionSpace, adanat_heuristic
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Generator
from adanat_toolkit.limits import MOST_STEPS
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy

from .weights import load_into, plain, read_tree, select, strip_prefixes, unwrap

DEFAULT_STEPS = 8
"""Of a file that does not say; the published policies make an image in 8 steps."""

_COUNTERS = ("global_step", "num_trajectories", "num_agent_updates", "num_discriminator_updates")


@dataclass(frozen=True)
class PolicyFacts:
    """What a published checkpoint says about its policy.

    Attributes:
        feature_dim: width of the generator's features. outputs: acted knobs, in the published order mask ratio, mask
            temperature, token temperature, guidance.
        cells: cells after the policy's halving convolution: 64 for a 16x16 grid.
        residual: whether actions are added to the ``adanat`` schedule (the option ``heu``): False in the ImageNet
            recipe, True in the CC3M one; None where the file does not say.
        steps: the number of generation steps it was trained for, where the file says.
        counters, arguments: the rest, plain values only.
    """

    feature_dim: int
    outputs: int
    cells: int
    residual: bool | None
    steps: int | None
    counters: dict[str, int]
    arguments: dict[str, Any]


def load_published_policy(path: Path | str) -> tuple[dict[str, Tensor], PolicyFacts]:
    """The actor's tensors, under the names of ``policies.AdaptiveNetwork``, and what the file says about them.

    Raises:
        WeightsError: the file cannot be read, or holds no ``policy.actor.*``.
    """
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} is not a published AdaNAT policy: it holds no named tensors.")
    state = strip_prefixes({k: v.detach() for k, v in unwrap(tree).items() if isinstance(v, Tensor)})
    actor = select(state, "policy.actor.")
    needed = ("dw_conv.weight", "linear1.weight", "linear3.weight", "pw_conv.weight")
    if any(name not in actor for name in needed):
        raise WeightsError(
            f"{path} is not a published AdaNAT policy: it holds no model/policy.actor.* tensors. Give the ckpt_N.pth "
            "of a policy, not a generator's or a tokenizer's file."
        )
    if any(actor[name].ndim < 2 or not actor[name].numel() for name in needed):
        raise WeightsError(f"{path} is not a published AdaNAT policy: the shapes of policy.actor.* are others.")
    hidden = actor["dw_conv.weight"].shape[0]
    embedder = actor.get("x_embedder.weight")  # absent where the features have the policy's own width
    found = plain(tree.get("args", {}))
    arguments = found if isinstance(found, dict) else {}
    heuristic = arguments.get("heu")
    steps = _whole(arguments.get("gen_steps"))
    if steps is not None and not 1 <= steps <= MOST_STEPS:
        raise WeightsError(f"{path} says that it makes an image in {steps} steps; 1 to {MOST_STEPS:,} are possible.")
    facts = PolicyFacts(
        feature_dim=hidden if embedder is None else embedder.shape[1],
        outputs=actor["linear3.weight"].shape[0],
        cells=actor["linear1.weight"].shape[1] // actor["pw_conv.weight"].shape[0],
        residual=None if heuristic is None else bool(heuristic),
        steps=steps,
        counters={name: count for name in _COUNTERS if (count := _whole(tree.get(name))) is not None},
        arguments=arguments,
    )
    return actor, facts


def _whole(value: Any) -> int | None:
    """A whole number, where there is one."""
    return int(value) if isinstance(value, int | float) and abs(value) < 2**63 else None


def published_policy(
    path: Path | str, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int
) -> tuple[AdaptivePolicy, PolicyFacts]:
    """A published checkpoint as an adaptive policy of a generator; features are read in float32, as published.

    Args:
        space: bound; its acted knobs are the policy's outputs, in order.

    Raises:
        WeightsError: the file is no policy, or was made for another generator (features, grid or number of knobs).
    """
    actor, facts = load_published_policy(path)
    cells = ((grid[0] + 1) // 2) * ((grid[1] + 1) // 2)
    own = (feature_dim, space.size, cells)
    if own != (facts.feature_dim, facts.outputs, facts.cells):
        raise WeightsError(
            f"{path} was made for features of width {facts.feature_dim}, {facts.outputs} knobs and {facts.cells} cells "
            f"after halving; this generator has {own[0]}, {own[1]} and {own[2]}. Use it with the generator it was "
            "trained on."
        )
    options = AdaptiveOptions(size="paper", feature_dtype="float32")
    policy = AdaptivePolicy(options, space=space, grid=grid, feature_dim=feature_dim)
    load_into(policy.actor.network, actor, source=str(path))
    return policy, facts


def read_policy(path: Path, generator: Generator, steps: int | None) -> SamplingPolicy:
    """A published checkpoint, ready to sample with.

    Actions are added to the ``adanat`` schedule where the file says so (``heu``); where it says nothing, for
    text-conditional generators alone, which is how the published ones were trained.

    Args:
        steps: T; None takes the file's own, or 8.

    Raises:
        WeightsError: the file is no policy, or one of another generator. ConfigError: other steps than the file's.
    """
    _, facts = load_published_policy(path)
    if steps is not None and facts.steps is not None and steps != facts.steps:
        raise ConfigError(f"the policy {path} makes an image in {facts.steps} steps, not {steps}; leave --steps out.")
    chosen = facts.steps or (DEFAULT_STEPS if steps is None else steps)
    residual = generator.context_kind == "text" if facts.residual is None else facts.residual
    unbound = generator.action_space
    schedule = adanat_heuristic(unbound.knobs, chosen)
    space = unbound.bind(schedule, acted=unbound.names[: facts.outputs], residual=residual)
    network, _ = published_policy(path, space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    card = {"kind": "published", "file": path.name, "residual": residual, "training": facts.counters}
    return SamplingPolicy(network, space, card=card)
