"""The contracts of policies, feature protocols and trackers."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core import TOKEN_KNOBS, ActionSpace, Engine, FeatureExtractor, PluginOptions, Policy, Tracker, parse_schedule
from ..policies import build_policy
from .common import require, require_close


@dataclass(frozen=True)
class PolicyCase:
    """A policy class with its options, and the sizes it is tried with."""

    policy: type[Policy]
    options: PluginOptions
    grid: tuple[int, int] = (3, 5)
    feature_dim: int = 24
    steps: int = 3
    """Decisions that make an image."""
    generation_steps: int | None = None
    """T where it is another number."""

    def space(self) -> ActionSpace:
        space, acted = ActionSpace(TOKEN_KNOBS), None if self.policy.trainable else ()
        table = parse_schedule("cosine,guidance=0:3", space, self.steps)
        return space.bind(table, acted=acted, steps=self.generation_steps)

    def seen(self) -> tuple[int, int]:
        """The grid that it is built with: a single cell for one that reads no features."""
        return self.grid if self.policy.reads == "features" else (1, 1)

    def make(self, seed: int = 0) -> tuple[Policy, torch.nn.Module | None]:
        return build_policy(
            self.policy, self.options, space=self.space(), grid=self.seen(), feature_dim=self.feature_dim, seed=seed
        )

    def inputs(self) -> tuple[Tensor | None, Tensor]:
        draw = torch.Generator().manual_seed(4)
        cells = self.seen()[0] * self.seen()[1]
        features = torch.randn(self.steps, cells, self.feature_dim, generator=draw)
        return (features if self.policy.needs_features else None), torch.arange(self.steps)


def policy_forward(case: PolicyCase) -> None:
    """The mean is (B, A) float32 and finite, of each sample alone, for empty batches too, and determined by the seed."""
    policy, (features, step) = case.make()[0], case.inputs()
    kind, size = policy.kind, case.space().size
    mean = policy(features, step)
    found = (tuple(mean.shape), mean.dtype)
    require(
        found == ((case.steps, size), torch.float32),
        f"policy {kind!r}: the mean is {found}, must be ({case.steps}, {size}) float32 (B, A).",
    )
    require(bool(mean.isfinite().all()), f"policy {kind!r}: the mean is not finite.")
    require(
        torch.equal(policy(features, step), mean),
        f"policy {kind!r}: two calls differ; the network must be deterministic.",
    )
    require(torch.equal(case.make()[0](features, step), mean), f"policy {kind!r}: one seed gives two networks.")
    for rows in (slice(1, 2), slice(0, 0)):
        some = policy(None if features is None else features[rows], step[rows])
        require(
            some.shape == mean[rows].shape and torch.allclose(some, mean[rows], atol=1e-4),
            f"policy {kind!r}: samples {rows.start}..{rows.stop} alone get another mean; samples must not mix.",
        )


def policy_decides(case: PolicyCase) -> None:
    """Policy and critic answer at each decision, also where an image takes fewer steps."""
    fewer, (features, step) = replace(case, generation_steps=case.steps - 1), case.inputs()
    for network in fewer.make():
        try:
            if network is not None:
                network(features, step)
        except Exception as error:  # the plug-in's own code
            raise AssertionError(
                f"policy {case.policy.kind!r} fails where {case.steps} decisions make an image in {case.steps - 1} steps, as "
                f"with some generators ({type(error).__name__}: {error}); use space.decisions, not space.steps."
            ) from error


def policy_learns(case: PolicyCase) -> None:
    """A trainable policy has a critic of the same kind, and gradients reach both."""
    policy, critic = case.make()
    if not policy.trainable:
        return
    features, step = case.inputs()
    require(critic is not None, f"policy {policy.kind!r} is trainable, so make_critic() must give a network.")
    assert critic is not None
    value = critic(features, step)
    require(value.shape == (case.steps, 1), f"the critic gives {tuple(value.shape)}, must be ({case.steps}, 1).")
    for name, network, out in (("policy", policy, policy(features, step)), ("critic", critic, value)):
        (out - 1).square().sum().backward()
        reached = any(p.grad is not None and bool(p.grad.any()) for p in network.parameters())
        require(reached, f"{name} of kind {policy.kind!r}: no gradient reaches its parameters.")


def policy_state(case: PolicyCase) -> None:
    """Another network of the kind continues from the state dict."""
    (policy, _), (other, _), (features, step) = case.make(0), case.make(1), case.inputs()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    other.load_state_dict(policy.state_dict())
    same = torch.equal(other(features, step), policy(features, step))
    require(same, f"policy {policy.kind!r}: its state dict does not hold all that the mean depends on.")


POLICY_CHECKS: tuple[Callable[[PolicyCase], None], ...] = (
    policy_forward,
    policy_decides,
    policy_learns,
    policy_state,
)


POLICY_GRIDS = ((3, 5), (8, 8))


def check_policy(policy: type[Policy], options: PluginOptions | None = None) -> None:
    """Run all of ``POLICY_CHECKS`` on each of ``POLICY_GRIDS``.

    Raises:
        AssertionError: naming what the contract wants.
    """
    for grid in POLICY_GRIDS:
        for check in POLICY_CHECKS:
            check(PolicyCase(policy, policy.Options() if options is None else options, grid))


def check_features(extractor: FeatureExtractor, images: Tensor) -> None:
    """A feature protocol names itself and maps each image, alone or in a batch, to the same features.

    Args:
        images: (B, 3, H, W) in [0, 1], B >= 3, not all alike.

    Raises:
        AssertionError: naming what the contract wants.
    """
    require(bool(extractor.protocol), "protocol is empty; it must identify network, weights' hash, resize and range.")
    require(bool(extractor.card), "card is empty; it must describe the recipe in words.")
    features, shape = extractor(images), (len(images), extractor.feature_dim)
    found = (tuple(features.shape), features.dtype)
    require(found == (shape, torch.float32), f"features are {found}, must be {shape} float32.")
    require(bool(features.isfinite().all()), "features are not finite.")
    require(not features.requires_grad, "features carry gradients; compute them under torch.no_grad().")
    require(float(features.std(0).max()) > 0, "every image gets the same features.")
    require(torch.equal(extractor(images), features), "two calls give other features.")
    require_close(extractor(images[1:2]), features[1:2], 1e-3, "an image's features alone")
    probabilities = extractor.probabilities(images)
    if probabilities is not None:
        ok = torch.allclose(probabilities.sum(1).cpu(), torch.ones(len(images)), atol=1e-3)
        require(
            ok and float(probabilities.min()) >= 0, "probabilities must be (B, classes), 0 or larger, and sum to 1."
        )


def check_engine(engine: type[Engine]) -> None:
    """An engine has all methods of the contract, and they take its arguments.

    Raises:
        AssertionError: naming those that it lacks, or that take others.
    """
    name = engine.__name__
    lacking = sorted(engine.__abstractmethods__)
    require(not lacking, f"{name} lacks {', '.join(lacking)}.")
    made = inspect.signature(engine.__init__)
    require(_takes(made, None, "config"), f"{name} must be made of a configuration alone: {name}(config).")
    objects = "generator", "reward", "data"
    require(
        _takes(made, None, "config", *objects),
        f"{name} must take objects in place of what the configuration names: {name}(config, {', '.join(objects)}), each "
        "None by default.",
    )
    run = inspect.signature(engine.run)
    require(
        _takes(run, None, Path(), callbacks=(), on_iteration=None),
        f"{name}.run must take (out, *, callbacks=(), on_iteration=None), as commands and adanat.train call it.",
    )
    require(_takes(run, None, Path()), f"{name}.run must go with a folder alone: run(out).")


def _takes(signature: inspect.Signature, *values: object, **named: object) -> bool:
    try:
        signature.bind(*values, **named)
    except TypeError:
        return False
    return True


def check_tracker(tracker: type[Tracker]) -> None:
    """A tracker opens in an empty run folder, takes rows with new names in any of them, closes, and opens again.

    Raises:
        AssertionError: naming what the contract wants.
    """
    with tempfile.TemporaryDirectory() as folder:
        for first in (1, 2):
            opened = tracker.create(Path(folder), {"seed": 0, "offline": True, "ppo": {"epochs": 2}})
            require(
                isinstance(opened, tracker), f"create gives a {type(opened).__name__}, must be a {tracker.__name__}."
            )
            opened.log({"reward/mean": 0.5 * first}, 128 * first)
            opened.log({"reward/mean": 0.5, "ppo/kl": 0.01}, 128 * first + 64)
            opened.close()
