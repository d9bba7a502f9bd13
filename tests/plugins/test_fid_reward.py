"""The Frechet rewards: groups, the influence of a sample, and the history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adanat_plugins.rewards.fid import FidReward, frechet_distance_of_few
from adanat_plugins.rewards.frechet_influence import FrechetInfluence, Moments
from adanat_toolkit.errors import CheckpointError, ConfigError, DataError
from adanat_toolkit.images import FileImages, MemoryImages
from adanat_toolkit.interfaces import Context, Generator
from adanat_toolkit.metrics import FeatureStatistics, frechet_distance
from adanat_toolkit.registry import create_generator, create_reward
from adanat_toolkit.training import Trainer, validate

from ..helpers.tiny_plugins import Pixels, TinyImages, TinyWithData, tiny_plugins

__all__ = ["tiny_plugins"]

CPU = torch.device("cpu")
D = 12


def gaussian(count: int, seed: int, dim: int = D, shift: float = 0.0) -> Tensor:
    """(count, dim) float64 of a correlated Gaussian that depends on the seed."""
    draw = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, dtype=torch.float64, generator=draw) / dim**0.5
    return torch.randn(count, dim, dtype=torch.float64, generator=draw) @ mixing + shift


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@pytest.fixture(scope="module")
def reference() -> Moments:
    return Moments.of(gaussian(5000, seed=1, shift=0.3))


@pytest.fixture(scope="module")
def influence(reference: Moments) -> FrechetInfluence:
    return FrechetInfluence(reference.mean, reference.covariance, shrinkage=1e-3)


# --- the influence ----------------------------------------------------------------------------------------------------


def test_distance_is_the_frechet_distance() -> None:
    generated, real = gaussian(400, 2), gaussian(500, 3, shift=0.5)
    a, b = Moments.of(generated), Moments.of(real)
    own = FrechetInfluence(b.mean, b.covariance, shrinkage=1e-9).distance(a)
    # metrics.frechet divides scatter by N - 1; scale its covariances back.
    stats = [FeatureStatistics(None, m.mean, m.covariance) for m in (a, b)]
    assert own == pytest.approx(frechet_distance(*stats), rel=1e-6)
    assert FrechetInfluence(b.mean, b.covariance, 1e-3).distance(b) == pytest.approx(0, abs=1e-10)


def test_influence_is_the_derivative_by_a_samples_mass(influence: FrechetInfluence) -> None:
    """Against a central difference in the weight of a single sample, for every kind of sample."""
    samples = gaussian(60, 4)
    moments = Moments.of(samples)
    points = torch.cat([samples[:5], 10 * samples[:2], gaussian(2, 9, shift=5.0)])
    own, distance = influence(points, moments)
    assert distance == influence.distance(moments)
    step = 1e-6
    for point, value in zip(points, own.tolist(), strict=True):
        mass = Moments(step, point, torch.zeros(D, D, dtype=torch.float64))

        def mixed(sign: int, mass: Moments = mass) -> float:
            # (1 - e) P + e delta_x; with a negative e mass is taken away.
            return influence.distance(
                Moments(1 - sign * step, moments.mean, moments.covariance).blend(
                    Moments(sign * step, mass.mean, mass.covariance)
                )
            )

        assert (mixed(1) - mixed(-1)) / (2 * step) == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_influences_of_a_set_average_to_zero(influence: FrechetInfluence) -> None:
    samples = gaussian(50, 5)
    own, _ = influence(samples, Moments.of(samples))
    assert abs(own.mean()) < 1e-10 * own.abs().max()


@pytest.mark.parametrize(("count", "largest_error"), [(300, 0.1), (3000, 0.01)])
def test_influence_predicts_leave_one_out(influence: FrechetInfluence, count: int, largest_error: float) -> None:
    """(N - 1) (F without the sample - F) is the score to first order; the error falls as 1 / N."""
    samples = gaussian(count, 6, shift=0.1)
    moments = Moments.of(samples)
    own, distance = influence(samples, moments)
    chosen = torch.arange(0, count, count // 100)
    left_out = []
    for i in chosen.tolist():
        without = influence.distance(Moments.of(torch.cat([samples[:i], samples[i + 1 :]])))
        left_out.append((count - 1) * (without - distance))
    recomputed = torch.tensor(left_out, dtype=torch.float64)
    scores = -own[chosen]
    assert correlation(scores, recomputed) > 0.99
    assert float((scores - recomputed).norm() / recomputed.norm()) < largest_error


def test_following_the_influence_lowers_the_distance(influence: FrechetInfluence) -> None:
    samples = gaussian(600, 7)
    own, before = influence(samples, Moments.of(samples))
    best = samples[own.argsort()[: int(0.95 * len(samples))]]
    worst = samples[own.argsort(descending=True)[: int(0.95 * len(samples))]]
    assert influence.distance(Moments.of(best)) < before < influence.distance(Moments.of(worst))


def test_few_samples_in_many_dimensions_stay_finite() -> None:
    real = Moments.of(gaussian(4000, 8, dim=64))
    influence = FrechetInfluence(real.mean, real.covariance, 1e-3)
    for count in (1, 2, 10):
        samples = gaussian(count, 10, dim=64)
        own, distance = influence(samples, Moments.of(samples))
        assert torch.isfinite(own).all() and distance > 0
        assert own.mean().abs() <= 1e-8 * (1 + own.abs().max())
    # A reference without full rank, too.
    flat = real.covariance.clone()
    flat[32:], flat[:, 32:] = 0, 0
    own, _ = FrechetInfluence(real.mean, flat, 1e-3)(samples, Moments.of(samples))
    assert torch.isfinite(own).all()


def test_blend_is_the_pooled_set() -> None:
    a, b = gaussian(30, 11), gaussian(50, 12, shift=2.0)
    pooled, blended = Moments.of(torch.cat([a, b])), Moments.of(a).blend(Moments.of(b))
    assert blended.weight == 80
    torch.testing.assert_close(blended.mean, pooled.mean)
    torch.testing.assert_close(blended.covariance, pooled.covariance)


# --- the rewards ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generator() -> Generator:
    return create_generator("maskgit:emoji64", device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def emoji(generator: Generator) -> FileImages:
    source = generator.real_images()
    assert isinstance(source, FileImages)
    return source


def make(spec: str, generator: Generator, real: MemoryImages | FileImages | None, **options: Any) -> Any:
    return create_reward(spec, options, generator=generator, real=real, device=CPU, seed=0)


def nothing(count: int) -> Context:
    return Context(count)


def test_distance_of_few_samples_is_the_frechet_distance() -> None:
    real = FeatureStatistics.of(gaussian(3000, 13, dim=40))
    for count in (2, 10, 40, 90):
        features = gaussian(count, 14, dim=40)
        own = float(frechet_distance_of_few(features, real.mean, real.covariance))
        assert own == pytest.approx(frechet_distance(FeatureStatistics.of(features), real), rel=1e-6)


def test_shared_groups_are_dealt_like_cards(generator: Generator, emoji: FileImages) -> None:
    reward = make("fid", generator, emoji, group=4)
    assert isinstance(reward, FidReward) and not reward.learns and reward.set_level
    images = emoji.images(torch.arange(0, 990, 99))
    features = reward.embed(images, nothing(10))
    assert features.shape == (10, 192) and features.dtype == torch.float32
    scores = reward.score_embedded(features, nothing(10))
    real = FeatureStatistics(None, reward.mean, reward.covariance)
    for first in range(3):  # ceil(10 / 4) groups: samples 0, 3, 6, 9; 1, 4, 7; 2, 5, 8
        distance = frechet_distance(FeatureStatistics.of(features[first::3]), real)
        torch.testing.assert_close(scores[first::3], torch.full_like(scores[first::3], -distance), rtol=1e-5, atol=1e-4)
    assert len(scores.unique()) == 3
    torch.testing.assert_close(reward.terms()["frechet"], -scores)


def test_groups_default_to_a_quarter_of_the_batch(generator: Generator, emoji: FileImages) -> None:
    """One group would give all samples the same score, which teaches nothing."""
    reward = make("fid", generator, emoji)
    features = reward.extractor.precomputed(emoji)
    for count, groups in ((2, 1), (16, 4), (64, 4), (256, 4), (640, 10)):
        scores = reward.score_embedded(features[:count], nothing(count))
        assert len(scores.unique()) == groups


def test_influence_learns_without_real_images(
    tmp_path: Path, tiny_plugins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published statistics are enough: the history is one of generated images."""
    data = TinyImages()
    FeatureStatistics.of(Pixels()(data.images(torch.arange(300))), Pixels().protocol).save(
        tmp_path / "real.safetensors"
    )
    monkeypatch.setattr(TinyWithData, "real_images", lambda self: None)
    options = {"features": "pixels", "reference": str(tmp_path / "real.safetensors")}
    for reward in (
        {"name": "fid:influence", "options": options},
        {"name": "fid:influence:1,brightness:0.5", "options": {"options": {"fid:influence": options}}},
    ):
        settings = {
            "generator": {"name": "tiny"},
            "policy": {"name": "shared"},
            "steps": 2,
            "batch": 16,
            "trajectories": 32,
        }
        trainer = Trainer(validate({**settings, "reward": reward, "device": "cpu"}))
        assert trainer.real is None
        rows = [trainer.step(), trainer.step()]
        assert any(key.endswith("history") for key in rows[-1] if key.startswith("reward_model/"))


def test_influence_without_history(generator: Generator, emoji: FileImages) -> None:
    reward = make("fid:influence", generator, emoji, history=0)
    assert type(reward) is FidReward
    features = reward.extractor.precomputed(emoji)[::20]
    scores = reward.score_embedded(features, nothing(len(features)))
    expected, distance = reward.influence(features, Moments.of(features))
    torch.testing.assert_close(scores, -expected.float())
    assert float(reward.terms()["frechet"][0]) == pytest.approx(distance)
    assert abs(float(scores.mean())) < 1e-3 * float(scores.std())


def test_noise_scores_below_real_images(generator: Generator, emoji: FileImages) -> None:
    """Among mostly real images the damaged ones are those that push the set away."""
    reward = make("fid:influence", generator, emoji)
    images = emoji.images(torch.arange(5, 10_000, 160))
    images[:6] = (images[:6] + 0.3 * torch.randn(images[:6].shape, generator=torch.Generator().manual_seed(0))).clamp(
        0, 1
    )
    good = reward.extractor.precomputed(emoji)[3::15]
    context = nothing(len(images))
    reward.update(good[:1], nothing(1), good, nothing(len(good)), seed=0)
    scores = reward.score(images, context)
    assert scores[:6].max() < scores[6:].median()


def test_history_is_an_exponential_average(generator: Generator, emoji: FileImages) -> None:
    reward = make("fid:influence", generator, emoji, history=100)
    assert reward.learns and reward.needs == frozenset()
    every = reward.extractor.precomputed(emoji)
    batches = [every[k:3200:80][:40] for k in range(5)]
    weights = torch.zeros(0, dtype=torch.float64)
    for batch in batches:
        figures = reward.update(batch[:1], nothing(1), batch, nothing(40), seed=0)
        weights = torch.cat([weights * (1 - 40 / 100), torch.ones(40, dtype=torch.float64)])
        weights = weights * min(1.0, 100 / float(weights.sum()))
        assert figures["history"] == pytest.approx(float(weights.sum()))
    samples = torch.cat(batches).double()
    mean = (weights[:, None] * samples).sum(0) / weights.sum()
    centred = samples - mean
    covariance = (weights[:, None] * centred).T @ centred / weights.sum()
    torch.testing.assert_close(reward.past.mean, mean)
    torch.testing.assert_close(reward.past.covariance, covariance)
    # Scores are influences on the mixture of history and batch, and leave the history alone.
    before = {key: value.clone() for key, value in reward.state().items()}
    fresh = every[4000:4030]
    scores = reward.score_embedded(fresh, nothing(30))
    blended = Moments(float(weights.sum()), mean, covariance).blend(Moments.of(fresh))
    torch.testing.assert_close(scores, -reward.influence(fresh, blended)[0].float(), rtol=1e-4, atol=1e-3)
    assert all(torch.equal(value, before[key]) for key, value in reward.state().items())


def test_history_makes_a_small_batch_meaningful(generator: Generator, emoji: FileImages) -> None:
    """48 samples in 192 dimensions, with the influence on a large set as the truth."""
    every = make("fid", generator, emoji).extractor.precomputed(emoji).double()
    images = every[emoji.labels < 40]  # type: ignore[operator]  # a set that differs from the whole
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    alone, helped = (make("fid:influence", generator, emoji, history=h) for h in (0, 800))
    truth = -helped.influence(images, Moments.of(images))[0]
    batch, past = order[:48], order[48:848]
    helped.update(images[:1], nothing(1), images[past].float(), nothing(800), seed=0)
    agreement = [
        correlation(reward.score_embedded(images[batch].float(), nothing(48)).double(), truth[batch])
        for reward in (alone, helped)
    ]
    assert agreement[1] > 0.9 and agreement[0] < 0.85


def test_reference_statistics_from_a_file(generator: Generator, emoji: FileImages, tmp_path: Path) -> None:
    computed = make("fid", generator, emoji)
    np.savez(tmp_path / "real.npz", mu=computed.mean.numpy(), sigma=computed.covariance.numpy())
    read = make("fid", generator, None, reference=str(tmp_path / "real.npz"))
    assert torch.equal(read.covariance, computed.covariance)
    np.savez(tmp_path / "other.npz", mu=np.zeros(5), sigma=np.eye(5))
    with pytest.raises(DataError, match="holds 5 features"):
        make("fid", generator, None, reference=str(tmp_path / "other.npz"))
    FeatureStatistics.of(torch.randn(9, 192), protocol="another").save(tmp_path / "another.safetensors")
    with pytest.raises(DataError, match="protocol another"):
        make("fid", generator, None, reference=str(tmp_path / "another.safetensors"))
    with pytest.raises(DataError, match=r"--data FOLDER .*reference=FILE"):
        make("fid", generator, None)


def test_wrong_options_and_states(generator: Generator, emoji: FileImages) -> None:
    with pytest.raises(ConfigError, match="fid:influence"):
        make("fid", generator, emoji, history=100)
    with pytest.raises(ConfigError, match="belong to variant 'shared'"):
        make("fid:influence", generator, emoji, group=8)
    with pytest.raises(ConfigError, match="shrinkage"):
        make("fid:influence", generator, emoji, shrinkage=0)
    reward = make("fid:influence", generator, emoji)
    with pytest.raises(CheckpointError, match="expected"):
        reward.load_state({"weight": torch.tensor(1.0), "mean": torch.zeros(3), "covariance": torch.zeros(3, 3)})
