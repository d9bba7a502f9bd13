"""Blends: raw actions averaged, the ends are the policies themselves, and what cannot be blended is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adanat_toolkit.core import Generator, seen_shape
from adanat_toolkit.decoding import SamplingPolicy
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.policies import (
    AdaptivePolicy,
    ContextPolicy,
    LeanPolicy,
    SharedPolicy,
    export_policy,
    load_policy,
    open_generator,
)
from adanat_toolkit.sampling import sample, seed_range

from ..helpers.tiny import TinyGenerator

STEPS = 3
KINDS = {kind.kind: kind for kind in (SharedPolicy, AdaptivePolicy, LeanPolicy, ContextPolicy)}


def policy_folder(folder: Path, generator: Generator, kind: str, seed: int, **bound: object) -> str:
    """A policy of random weights, as a training exports it."""
    space = generator.bind(bound.pop("schedule", None), int(bound.pop("steps", STEPS)), **bound)  # type: ignore[arg-type]
    grid, width = seen_shape(generator, KINDS[kind])
    torch.manual_seed(seed)
    network = KINDS[kind](KINDS[kind].Options(), space=space, grid=grid, feature_dim=width)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    facts = {"trajectories": 0, "reward": "dark", "seed": seed, "engine": "adanat"}
    weights = network.state_dict()
    export_policy(folder, SamplingPolicy(network, space), weights, options={}, generator=generator, facts=facts)
    return str(folder)


def raw(generator: Generator, spec: str, steps: int | None = None) -> torch.Tensor:
    """(5, T, A) what the knobs' transforms are applied to at the first step, whatever the base is."""
    policy = load_policy(spec, generator, steps)
    samples = next(sample(generator, policy, seed_range(0, 5)))
    assert samples.actions is not None
    return samples.actions[:, 0] + policy.space.base()[0]


@pytest.mark.parametrize("kind", ["shared", "adaptive", "lean", "context"])
def test_raw_actions_are_averaged(kind: str, tmp_path: Path) -> None:
    generator = TinyGenerator()
    first = policy_folder(tmp_path / "a", generator, kind, 1)
    second = policy_folder(tmp_path / "b", generator, "shared", 2)
    one, two = raw(generator, first), raw(generator, second)
    for weight in (0.25, 0.7):
        mixed = raw(generator, f"{first}*{weight}+{second}*{1 - weight:g}")
        assert torch.allclose(mixed, weight * one + (1 - weight) * two, atol=1e-5)
    blend = load_policy(f"{first}*1+{second}*0", generator)
    whole = [next(sample(generator, each, seed_range(0, 5))) for each in (blend, load_policy(first, generator))]
    assert torch.allclose(whole[0].knobs, whole[1].knobs, atol=1e-5)
    assert torch.equal(whole[0].images, whole[1].images)
    assert blend.card["kind"] == "blend" and blend.card["weights"] == [1, 0]


def test_hand_made_schedules_are_blended_in_raw_values_too(tmp_path: Path) -> None:
    generator = TinyGenerator()
    learned = policy_folder(tmp_path / "a", generator, "shared", 1, schedule="linear,token_temperature=0.8")
    by_hand = "fixed:cosine,mask_temperature=2:1,guidance=1"
    space = generator.bind(by_hand.partition(":")[2], STEPS)
    expected = 0.5 * raw(generator, learned) + 0.5 * space.base()[0]
    assert torch.allclose(raw(generator, f"{learned}*0.5+{by_hand}*0.5"), expected, atol=1e-5)
    assert torch.allclose(raw(generator, f"{by_hand}*0.5+{learned}*0.5"), expected, atol=1e-5)
    whole = load_policy(f"{by_hand}*1+{learned}*0", generator)
    knobs = next(sample(generator, whole, seed_range(0, 2))).knobs
    assert torch.allclose(knobs[1].double(), space.schedule, atol=1e-4)  # type: ignore[arg-type]
    both = load_policy("fixed:linear*0.5+fixed:cosine*0.5", generator, 4)
    knobs = next(sample(generator, both, seed_range(0, 2))).knobs[0, :, 0]
    ends = [load_policy(f"fixed:{name}", generator, 4).space.schedule[:, 0] for name in ("linear", "cosine")]  # type: ignore[index]
    assert ((knobs >= torch.minimum(*ends) - 1e-5) & (knobs <= torch.maximum(*ends) + 1e-5)).all()


def test_what_cannot_be_blended_is_refused(tmp_path: Path) -> None:
    generator = TinyGenerator()
    plain = policy_folder(tmp_path / "plain", generator, "adaptive", 1)
    for name, kind, bound, message in (
        ("lean", "lean", {}, "see different things .adaptive, lean."),
        ("long", "shared", {"steps": 4}, "takes 4 steps, and another one 3"),
        ("few", "shared", {"acted": ("mask_ratio",)}, "sets mask_ratio with smoothing 0, and another one mask_ratio, "),
        ("smooth", "shared", {"smoothing": 0.5}, "with smoothing 0.5"),
    ):
        other = policy_folder(tmp_path / name, generator, kind, 2, **bound)
        with pytest.raises(ConfigError, match=message):
            load_policy(f"{plain}*0.5+{other}*0.5", generator)
    with pytest.raises(ConfigError, match="published sampler with steps of its own"):
        load_policy(f"{plain}*0.5+fixed:maskgit*0.5", generator)
    few = policy_folder(tmp_path / "guided", generator, "shared", 3, acted=("mask_ratio",), schedule="cosine,guidance=1")
    with pytest.raises(ConfigError, match="another schedule of mask_temperature, token_temperature, guidance"):
        load_policy(f"{few}*0.5+fixed:cosine,guidance=2*0.5", generator)
    with pytest.raises(ConfigError, match="no policy at"):
        load_policy(f"{plain}*0.5+{tmp_path / 'none'}*0.5", generator)


def test_a_blend_says_which_generator_it_belongs_to(tmp_path: Path) -> None:
    embedded = open_generator("maskgit", device="cpu", dtype="float32")
    made = policy_folder(tmp_path / "a", embedded, "shared", 1)
    found = open_generator(None, [f"fixed*0.5+{made}*0.5"], device="cpu", dtype="float32")
    assert found.name == "maskgit:emoji64"
