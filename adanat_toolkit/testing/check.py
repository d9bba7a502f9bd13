"""``adanat plugins check NAME``: the contract tests on an installed plug-in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import testing
from ..core import INITIAL, Context, FeatureExtractor, Generator, Noise, RewardModel
from ..errors import AdaNATError, ConfigError, PluginError, nearest
from ..policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, load_policy
from ..registry import GROUPS, create_features, create_generator, create_reward, discover, load, parse_options
from ..sampling import collect

IMAGES = 12
JUDGE = "maskgit"
SETUP = "It can be made."
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Outcome:
    """One check of one plug-in. ``error`` is None where it passed."""

    kind: str
    name: str
    check: str
    error: str | None


def check_plugin(
    spec: str, *, kind: str | None = None, options: Mapping[str, Any] | None = None, judge: str | None = None
) -> list[Outcome]:
    """Run the contract tests of :mod:`adanat_toolkit.testing` on one plug-in, on the CPU.

    Args:
        spec: ``NAME`` or, for a generator, ``NAME:VARIANT``. kind: a key of ``registry.GROUPS``; None: every kind that has
            the name. options: the plug-in's. judge: the generator whose images
            rewards and features are tried on; None: an embedded one.

    Returns:
        One outcome a check, passed or not.

    Raises:
        PluginError: no plug-in has that name. ConfigError: the kind is unknown.
    """
    if kind is not None and kind not in GROUPS:
        raise ConfigError(f"unknown kind {kind!r}{nearest(kind, GROUPS)} Kinds: {', '.join(GROUPS)}.")
    name = spec.partition(":")[0]
    kinds = [k for k in ([kind] if kind else GROUPS) if any(p.name == name for p in discover(k))]
    if not kinds:
        known = sorted({p.name for k in ([kind] if kind else GROUPS) for p in discover(k)})
        raise PluginError(f"no {kind or 'plug-in'} {name!r} is installed{nearest(name, known)} See adanat plugins.")
    return [outcome for k in kinds for outcome in _check_one(k, name, spec, dict(options or {}), judge)]


def _check_one(kind: str, name: str, spec: str, options: dict[str, Any], judge: str | None) -> list[Outcome]:
    outcomes = []

    def attempt(title: str, call: Callable[[], Any]) -> Any:
        """What the call returns; its failure becomes an outcome."""
        result, error = None, None
        try:
            result = call()
        except (AssertionError, AdaNATError) as failure:
            error = str(failure)
        except Exception as failure:  # the plug-in's own code
            error = f"{type(failure).__name__}: {failure}"
        outcomes.append(Outcome(kind, name, title, error))
        return result

    loaded = attempt("It loads.", lambda: load(kind, name))
    if loaded is None:
        return outcomes
    checks: list[tuple[str, Callable[[], None]]] = []
    if kind == "generator":
        attempt("Unknown options are refused.", lambda: _refuses_unknown_options(spec))
        case = attempt(SETUP, lambda: testing.GeneratorCase(_generator(spec, options)))
        if case is not None:
            checks = [(_title(check), partial(check, case)) for check in testing.GENERATOR_CHECKS]
            checks.append(("Training and sampling take it.", partial(_rolls_out, case)))
    elif kind == "reward":
        reward_case = attempt(SETUP, lambda: _reward_case(loaded, spec, options, judge))
        if reward_case is not None:
            checks = [(_title(check), partial(check, reward_case)) for check in testing.REWARD_CHECKS]
    elif kind == "policy":
        made = attempt(SETUP, lambda: parse_options(f"policy {name!r}", loaded.Options, options))
        if made is not None:
            for grid in testing.POLICY_GRIDS:
                tried = testing.PolicyCase(loaded, made, grid)
                where = f" ({grid[0]}x{grid[1]} grid)"
                checks += [(_title(check) + where, partial(check, tried)) for check in testing.POLICY_CHECKS]
            checks.append(("It is named as it is registered.", partial(_same_name, loaded.kind, name)))
    elif kind == "features":
        extractor = attempt(SETUP, lambda: create_features(name, options, device=CPU, offline=True))
        if extractor is not None:
            checks.append((_title(testing.check_features), partial(_features, extractor, judge)))
    elif kind == "engine":
        checks.append((_title(testing.check_engine), partial(testing.check_engine, loaded)))
    else:
        checks.append((_title(testing.check_tracker), partial(testing.check_tracker, loaded)))
    for title, check in checks:
        attempt(title, check)
    return outcomes


def _title(check: Callable[..., None]) -> str:
    """The first line of a check's docstring."""
    return (check.__doc__ or check.__name__).strip().splitlines()[0]


def _generator(spec: str, options: dict[str, Any]) -> Generator:
    return create_generator(spec, options, device=CPU, dtype=torch.float32, offline=True)


def _refuses_unknown_options(spec: str) -> None:
    try:
        _generator(spec, {"an_option_that_is_none": 1})
    except ConfigError:
        return
    raise AssertionError(f"{spec} takes an unknown option; create must parse them with registry.parse_options.")


def _rolls_out(case: testing.GeneratorCase) -> None:
    generator = case.generator
    policy = load_policy("fixed", generator, case.steps)
    collect(generator, policy, case.context, case.noise, micro_batch=2, keep_images=2)
    bound = generator.bind(None, case.steps)
    network = AdaptivePolicy(AdaptiveOptions(), space=bound, grid=generator.grid, feature_dim=generator.feature_dim)
    rollout = collect(generator, SamplingPolicy(network, bound), case.context, case.noise, sigma=0.5, keep_images=3)
    assert rollout.images is not None
    if not bool(rollout.images.isfinite().all()):
        raise AssertionError(f"{generator.name}: images of an exploring policy are not finite.")


def _images(judge: str) -> tuple[Generator, Tensor, Context]:
    """A few images of a generator under its own schedule, with noise: what every network can tell apart."""
    generator = _generator(judge, {})
    noise = Noise(torch.arange(IMAGES))
    policy = load_policy("fixed", generator, 2)
    rollout = collect(generator, policy, generator.sample_contexts(noise), noise, keep_images=IMAGES)
    assert rollout.images is not None
    grain = 0.1 * noise.normal(INITIAL, 0, tuple(rollout.images.shape[1:]))
    return generator, (rollout.images + grain).clamp(0, 1), rollout.context


def _reward_case(
    loaded: type[RewardModel], spec: str, options: dict[str, Any], judge: str | None
) -> testing.RewardCase:
    # A generator that gives the context what the reward reads.
    generator, images, context = _images(judge or ("muse" if "prompts" in loaded.needs else JUDGE))
    real = generator.real_images()

    def make(seed: int) -> RewardModel:
        return create_reward(spec, options, generator=generator, real=real, device=CPU, seed=seed, offline=True)

    made = make(0)
    return testing.RewardCase(make, images, context, real if made.learns or "real_images" in made.needs else None)


def _features(extractor: FeatureExtractor, judge: str | None) -> None:
    testing.check_features(extractor, _images(judge or JUDGE)[1])


def _same_name(kind: str, name: str) -> None:
    if kind != name:
        raise AssertionError(
            f"kind is {kind!r}, the entry point {name!r}; policy files store kind and load by it, so they must agree."
        )
