"""Policy files: what ``adanat train`` exports and ``adanat sample`` loads.

``policy.safetensors`` holds the network, ``policy.json`` the kind, its options, the action space with the schedule, and
which generator (grid, feature width, weights' fingerprint) it was made for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..core import RATIO_CURVES, Generator, Policy, PolicySpec, PolicyTerm, seen_shape
from ..decoding import PUBLISHED_SAMPLERS, ReadsPolicies, SamplingPolicy, TokenGenerator, parse_sampler
from ..errors import CheckpointError, ConfigError, PluginError, nearest
from ..limits import MOST_STEPS, check_steps
from ..registry import discover, load, parse_stored_options, toolkit_version
from ..runtime import float32_by_default
from ..storage import (
    POLICY_FILES,
    Card,
    RunFolder,
    TensorFacts,
    again_if_replaced,
    facts_of,
    is_hub_id,
    local_policy,
    read_card,
    read_tensors,
    save_tensors,
    shortened,
)
from .blend import blend_policies
from .networks import FixedPolicy

KINDS = "adaptive, residual, lean, context, linear or shared"

DEEPEST = 3
"""Levels above a file of a run, at most: ``RUN/checkpoints/000010/state.json``."""

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
"""How files of policies that others published end; no file of ours does."""


class _Knob(BaseModel):
    name: str
    transform: str


class _ActionSpace(BaseModel):
    knobs: list[_Knob]
    acted: list[str]
    residual: bool
    schedule: list[list[float]] = Field(min_length=1, max_length=MOST_STEPS + 1)
    smoothing: float = Field(0.0, ge=0, lt=1)
    steps: int | None = Field(None, ge=1, le=MOST_STEPS)


class _Generator(BaseModel):
    name: str
    fingerprint: str
    grid: list[int]
    feature_dim: int


class _Training(BaseModel):
    model_config = ConfigDict(extra="allow")

    trajectories: int = Field(ge=0)
    reward: str
    seed: int = Field(ge=0)
    engine: str
    reads: list[str] = []
    """``RewardModel.reads`` of its reward; cards of older policies do not say it."""


class PolicyCard(Card):
    """``policy.json``."""

    toolkit: str
    kind: str
    options: dict[str, Any]
    action_space: _ActionSpace
    generator: _Generator
    training: _Training


def export_policy(
    folder: Path,
    policy: SamplingPolicy,
    weights: dict[str, Tensor],
    *,
    options: dict[str, Any],
    generator: Generator,
    facts: dict[str, Any],
) -> None:
    """Write a policy folder (see the module's docstring). ``weights``: state dict to store, ``facts``: training facts."""
    card = {
        "toolkit": toolkit_version(),
        "kind": policy.network.kind,
        "options": options,
        "action_space": policy.space.spec(),
        "generator": {
            "name": generator.name,
            "fingerprint": generator.fingerprint,
            "grid": list(generator.grid),
            "feature_dim": generator.feature_dim,
        },
        "training": facts,
    }
    save_tensors(folder, "policy", weights, card)


def policy_folder(spec: str | os.PathLike[str]) -> Path | None:
    """The folder that holds ``policy.json``, of a run folder, a policy folder or a hub id; None for any other spec.

    Raises:
        ConfigError: a file or folder inside of one.
    """
    place = Path(local_policy(spec))
    _refuse_parts(place)
    return _within(place)


def _within(folder: Path) -> Path | None:
    """Where in a run or policy folder the policy lies."""
    for place in (RunFolder(folder).policy, folder):
        if os.path.exists(place / "policy.json"):  # also where the name is too long for the system
            return place
    return None


@again_if_replaced
def policy_card(spec: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What a stored policy's ``policy.json`` holds; None for a spec without one.

    Raises:
        CheckpointError: damaged files.
    """
    folder = policy_folder(spec)
    return None if folder is None else read_card(folder, "policy", PolicyCard)


@again_if_replaced
@float32_by_default()
def load_policy(spec: str | os.PathLike[str], generator: Generator, steps: int | None = None) -> SamplingPolicy:
    """A policy ready to sample with.

    Args:
        spec: ``fixed`` (the generator's best known schedule), ``fixed:SCHEDULE``, ``fixed:SAMPLER`` (a published sampler
            with its own steps, ``fixed:maskgit``, or with options, ``fixed:halton,guidance=1.5``), a run folder, a
            policy folder, a hub id ``owner/name[@revision]``, or the file of a published policy where the generator reads
            one, with changes of its recipe if any (``FILE,smoothing=0.4,guidance=1.5``); or a blend of such,
            ``A*0.7+B*0.3`` (see ``core.PolicySpec`` and :func:`blend_policies`).
        steps: T of a fixed schedule (default: the generator's) or sampler (default: its authors' number); a learned policy
            has its own T, which this must equal if given.

    Returns:
        The policy with its network on the generator's device and in evaluation mode.

    Raises:
        ConfigError: unknown schedule, sampler or path, a sampler for a generator without tokens, other steps than the
            policy's, or a policy of another generator.
        CheckpointError: damaged files.
    """
    parsed = PolicySpec.parse(spec)
    if parsed.blend:
        return _blend(parsed, generator, steps)
    (term,) = parsed.terms
    spec = term.text
    if term.fixed:
        return _fixed(term.schedule or generator.default_schedule, generator, steps)
    file, _, changes = spec.partition(",")
    folder = Path(local_policy(file if os.path.isfile(file) else spec))
    _refuse_parts(Path(file) if os.path.isfile(file) else folder)
    if os.path.isfile(folder):  # os.path: a name that is too long for the system is no file
        if isinstance(generator, ReadsPolicies):
            return _ready(generator.read_policy(folder, steps, changes), generator)
        raise ConfigError(
            f"{spec} is a file, and no published policies are known for {generator.name}; give a run or policy folder."
        )
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise ConfigError(f"{spec} is no file and no folder; give a run or policy folder.")
    found = _within(folder)
    if found is None:
        kinds = {plugin.name for plugin in discover("policy")}
        train = f" To train one of this kind: adanat train --policy {spec}." if spec in kinds else ""
        raise ConfigError(
            f"no policy at {spec!r}: give a run folder, a folder with policy.json, or fixed[:SCHEDULE] for a hand-made one."
            f"{train}"
        )
    folder = found
    card = read_card(folder, "policy", PolicyCard)
    made_for = card["generator"]
    if made_for["fingerprint"] != generator.fingerprint:
        made_name, made_print = shortened(made_for["name"])[1:-1], shortened(made_for["fingerprint"])[1:-1]
        raise ConfigError(
            f"the policy at {spec} was trained for {made_name} (weights {made_print}), this generator is "
            f"{generator.name} (weights {generator.fingerprint}). Use --generator {made_name} with the same weights."
        )
    space = generator.action_space.rebind(card["action_space"])
    if space.decisions != generator.decisions(space.steps):
        raise CheckpointError(
            f"{folder / 'policy.json'} has {space.decisions} actions for {space.steps} steps, and {generator.name} takes "
            f"{generator.decisions(space.steps)}: it was changed, or is of another version."
        )
    if steps is not None and steps != space.steps:
        raise ConfigError(
            f"the policy at {spec} makes an image in {space.steps} steps, not {steps}; leave --steps out or train one with it."
        )
    policy_class = load("policy", card["kind"])
    options = parse_stored_options(
        f"policy {card['kind']!r}", policy_class.Options, card["options"], where=str(folder / "policy.json")
    )
    if not policy_class.trainable and space.acted:
        raise CheckpointError(
            f"{folder / 'policy.json'} says that a {card['kind']!r} policy sets {', '.join(space.acted)}; it sets nothing."
        )

    grid, width = seen_shape(generator, policy_class)

    def build() -> Policy:
        policy: Policy = policy_class(options, space=space, grid=grid, feature_dim=width)
        return policy

    weights = read_tensors(folder, "policy", card, _tensors_of(build))
    broken = [key for key, value in weights.items() if not torch.isfinite(value).all()]
    if broken:
        raise CheckpointError(
            f"{folder / 'policy.safetensors'} holds numbers that are not finite (in {', '.join(broken[:3])}): its training "
            "went wrong. Take an older one, or train again."
        )
    with torch.random.fork_rng(devices=[]):  # its first weights are drawn at random and then replaced
        policy = build()
    policy.load_state_dict(weights)
    return _ready(SamplingPolicy(policy, space, card=card), generator)


def policy_class(name: str, instead: str) -> type[Policy]:
    """The class of a kind of policy that is to be trained.

    Args:
        instead: what to do with a trained policy, for the error; ``{}`` stands for its name.

    Raises:
        ConfigError: ``name`` is a place, a blend, or a schedule. PluginError: there is no such kind.
    """
    try:
        found: type[Policy] = load("policy", name)
    except PluginError:
        spec = PolicySpec.parse(name)
        if spec.fixed:
            raise ConfigError(
                f"policy {name!r} has nothing to learn; give a kind of policy ({KINDS}), and --set policy.schedule="
                f"{spec.terms[0].schedule} to start from that schedule."
            ) from None
        if spec.blend or os.path.exists(name) or is_hub_id(name) or "/" in name or os.sep in name:
            raise ConfigError(
                f"policy {shortened(name, 200)} is a place or a blend, no kind of policy ({KINDS}); {instead.format(name)}."
            ) from None
        raise
    return found


def _refuse_parts(path: Path) -> None:
    """Refuse what is a part of a policy or run folder, and name the folder.

    Raises:
        ConfigError: it is one.
    """
    if not os.path.exists(path) or _within(path) is not None:
        return
    what = "folder" if os.path.isdir(path) else "file"
    above = list(Path(os.path.abspath(path)).parents)[:DEEPEST]
    for folder in [] if path.suffix in PICKLED else above:
        shown = folder if path.is_absolute() else os.path.relpath(folder)
        if _within(folder) is not None:
            raise ConfigError(f"{path} is a {what} inside of the policy or run {shown}; give that folder.")
        if os.path.exists(folder / "config.json") and os.path.isdir(folder / "checkpoints"):
            raise ConfigError(
                f"{path} is a {what} inside of the run {shown}, which has stored no policy yet; let it go on with the "
                "command that began it, and give that folder."
            )
    if path.name in POLICY_FILES:
        other = next(name for name in POLICY_FILES if name != path.name)
        raise ConfigError(
            f"{path} is one of the two files of a policy, and {other} is not beside it; give a folder that holds both."
        )


def local_spec(spec: str | os.PathLike[str], *, offline: bool = False) -> str:
    """A spec that needs no network: see ``storage.local_policy``, for each part of a blend.

    Raises:
        ConfigError: a hub repository is not there, or cannot be fetched.
    """
    parsed = PolicySpec.parse(spec)
    terms = tuple(PolicyTerm(local_policy(term.text, offline=offline)) for term in parsed.terms)
    return str(PolicySpec(terms, parsed.weights))


def _blend(spec: PolicySpec, generator: Generator, steps: int | None) -> SamplingPolicy:
    """Hand-made schedules in a blend take as many steps as the learned policies."""
    learned = {term: load_policy(term.text, generator, steps) for term in spec.terms if not term.fixed}
    own = next((policy.steps for policy in learned.values()), steps)
    policies = [
        load_policy(term.text, generator, own) if term.fixed else learned[term] for term in spec.terms
    ]
    return blend_policies(spec, policies, generator)


def _ready(policy: SamplingPolicy, generator: Generator) -> SamplingPolicy:
    return replace(policy, network=policy.network.to(generator.device).eval())


def _tensors_of(build: Callable[[], Policy]) -> dict[str, TensorFacts]:
    """What a policy's file must hold, found without memory where the policy can be built so."""
    try:
        with torch.device("meta"):
            return facts_of(build().state_dict())
    except (NotImplementedError, RuntimeError):  # it computes with its tensors while it is built
        with torch.random.fork_rng(devices=[]):
            return facts_of(build().state_dict())


def _fixed(text: str, generator: Generator, steps: int | None) -> SamplingPolicy:
    """A hand-made schedule under the toolkit's step, or a published sampler with its own."""
    head = text.split(",")[0].strip()
    if steps is not None:
        check_steps(steps)
    card: dict[str, Any] = {"kind": "fixed", "schedule": text}
    rule = None
    if head in PUBLISHED_SAMPLERS:
        if not isinstance(generator, TokenGenerator):
            raise ConfigError(f"{generator.name} is no token generator, so the sampler {head!r} does not apply to it.")
        rule = parse_sampler(text)
        table = rule.schedule(
            generator.action_space, rule.default_steps if steps is None else steps, generator.cells
        )
        space = generator.action_space.bind(table, acted=(), residual=False)
        card |= {"sampler": head, "source": rule.source}
    else:
        known = [*RATIO_CURVES, "adanat", *PUBLISHED_SAMPLERS]
        if "=" not in head and head not in known:
            raise ConfigError(
                f"unknown schedule or sampler {head!r}{nearest(head, known)} Schedules: {', '.join(RATIO_CURVES)}, adanat; "
                f"published samplers: {', '.join(PUBLISHED_SAMPLERS)}."
            )
        space = generator.bind(text, generator.default_steps if steps is None else steps, acted=(), residual=False)
    network = FixedPolicy(FixedPolicy.Options(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    return SamplingPolicy(network, space, rule, card)
