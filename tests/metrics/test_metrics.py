"""Metrics: closed forms, parity with torch-fidelity and torchmetrics, brute force, conventions, and what must be refused."""

from __future__ import annotations

import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kernel_mmd, kid_features_to_metric
from torch_fidelity.metric_prc import calculate_precision_recall_full

from adanat_toolkit.errors import DataError
from adanat_toolkit.interfaces import FeatureExtractor
from adanat_toolkit.metrics import (
    Evaluation,
    Features,
    FeatureStatistics,
    Reference,
    bootstrap_interval,
    clip_scores,
    evaluate_features,
    evaluation,
    extract_features,
    frechet,
    frechet_distance,
    inception_score,
    kernel_distance,
    kid,
    mean_interval,
    neighbourhoods,
    prdc,
    reference_of,
    require_comparable,
    scores,
    statistics_of,
    within_class_diversity,
)


def rand(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def like_features(seed: int, count: int, dim: int, shift: float = 0.0) -> Tensor:
    """Correlated, non-negative, far from the origin: what pooled activations look like."""
    mix = rand(99, dim, dim) / dim**0.5
    return (rand(seed, count, dim) @ mix + 3 + shift).relu()


# --- Frechet distance


def gaussian(mean: Tensor, covariance: Tensor) -> FeatureStatistics:
    return FeatureStatistics(None, mean.double(), covariance.double())


def test_frechet_of_known_gaussians() -> None:
    a, b = torch.tensor([1.0, 4.0, 9.0]), torch.tensor([4.0, 1.0, 0.25])
    rotation = torch.linalg.qr(rand(0, 3, 3, dtype=torch.float64)).Q
    one = gaussian(torch.tensor([1.0, 2.0, 3.0]), rotation @ torch.diag(a.double()) @ rotation.T)
    two = gaussian(torch.tensor([1.0, 0.0, 0.0]), rotation @ torch.diag(b.double()) @ rotation.T)
    # Commuting covariances: sum of (sqrt(a) - sqrt(b))^2.
    expected = 13 + (1 - 2) ** 2 + (2 - 1) ** 2 + (3 - 0.5) ** 2
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(two, one) == pytest.approx(expected, rel=1e-12)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)


def test_frechet_without_full_rank() -> None:
    # Rank one against rank one: tr (A B)^1/2 = |u . v|.
    u, v = rand(1, 8, dtype=torch.float64), rand(2, 8, dtype=torch.float64)
    zero = torch.zeros(8)
    distance = frechet_distance(gaussian(zero, torch.outer(u, u)), gaussian(zero, torch.outer(v, v)))
    assert distance == pytest.approx(float(u @ u + v @ v - 2 * abs(u @ v)), rel=1e-6)


@pytest.mark.parametrize("count", [40, 700])
def test_frechet_parity_with_torch_fidelity(count: int) -> None:
    fake, real = like_features(1, count, 64), like_features(2, 900, 64, 0.1)
    ours = frechet_distance(FeatureStatistics.of(fake), FeatureStatistics.of(real))
    stats = [fid_features_to_statistics(x.double()) for x in (fake, real)]
    assert ours == pytest.approx(fid_statistics_to_metric(*stats, False)["frechet_inception_distance"], rel=1e-4)


class AsFeatures(torch.nn.Module):
    """What torchmetrics takes for a network: the "images" are the features, (N, D, 1, 1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def feed(metric: Any, fake: Tensor, real: Tensor) -> Any:
    for rows, is_real in ((real, True), (fake, False)):
        metric.update(rows[:, :, None, None], real=is_real)
    return metric.compute()


def test_frechet_parity_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    fake, real = like_features(1, 700, 64), like_features(2, 900, 64, 0.1)
    metric = FrechetInceptionDistance(feature=AsFeatures(64), input_img_size=(64, 1, 1)).set_dtype(torch.float64)
    theirs = float(feed(metric, fake.double(), real.double()))
    assert frechet_distance(FeatureStatistics.of(fake), FeatureStatistics.of(real)) == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("chunk", [100, 16_384])
def test_statistics_stream_merge_save_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(frechet, "CHUNK", chunk)
    features = like_features(3, 503, 16) + 1000
    whole = FeatureStatistics.of(features, "p", "d")
    stream = FeatureStatistics.empty(16, "p", "d", {"network": "x"})
    for batch in features.split(64):
        stream = stream.update(batch)
    merged = FeatureStatistics.of(features[:100], "p").merge(FeatureStatistics.of(features[100:], "p"))
    expected = torch.from_numpy(np.cov(features.double().numpy(), rowvar=False))
    for statistics in (whole, stream, merged):
        assert statistics.count == 503
        assert torch.allclose(statistics.mean, features.double().mean(0), rtol=1e-12)
        assert torch.allclose(statistics.covariance, expected, rtol=1e-9, atol=1e-12)
    stream.save(tmp_path / "s.safetensors")
    loaded = FeatureStatistics.load(tmp_path / "s.safetensors")
    assert torch.equal(loaded.covariance, stream.covariance)
    assert (loaded.count, loaded.protocol, loaded.data, loaded.card) == (503, "p", "d", {"network": "x"})


@pytest.mark.parametrize("packed", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_an_npz_that_promises_more_than_it_should_takes_no_memory(packed: int, tmp_path: Path) -> None:
    length = 2**20
    with zipfile.ZipFile(tmp_path / "s.npz", "w", packed) as archive:
        archive.writestr("mu.npy", b"\x93NUMPY\x02\x00" + length.to_bytes(4, "little") + b" " * length)
        archive.writestr("sigma.npy", b"")
    expected = "packed as numpy does not" if packed == zipfile.ZIP_LZMA else "a header of 1,048,576 bytes, at most 10,000"
    with pytest.raises(DataError, match=rf"s\.npz holds 'mu' .*{expected}"):
        FeatureStatistics.load(tmp_path / "s.npz")


def test_statistics_that_were_changed_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    FeatureStatistics.of(like_features(3, 50, 4), "p", "d").save(file)
    with safe_open(str(file), "pt") as opened:
        about = json.loads(opened.metadata()["adanat_statistics"])
    numbers = load_file(file)
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"scatter": numbers["scatter"] * 1.5}, {}),
        ({"mean": numbers["mean"] + 0.5}, {}),
        ({}, {"count": 5_000_000}),
        ({}, {"card": {"classes": "{}"}}),
    ]
    for tensors, facts in changes:
        save_file({**numbers, **tensors}, file, metadata={"adanat_statistics": json.dumps({**about, **facts})})
        with pytest.raises(DataError, match=r"was changed or damaged since it was written.*Make it again with"):
            FeatureStatistics.load(file)
    del about["digest"]  # of a version without
    save_file(numbers, file, metadata={"adanat_statistics": json.dumps(about)})
    assert FeatureStatistics.load(file).count == 50


def test_published_npz(tmp_path: Path) -> None:
    features = like_features(4, 100, 8)
    np.savez(tmp_path / "s.npz", mu=features.double().mean(0).numpy(), sigma=np.cov(features.numpy(), rowvar=False))
    published = FeatureStatistics.load(tmp_path / "s.npz", "inception")
    assert published.count is None and published.protocol == "inception"
    assert frechet_distance(FeatureStatistics.of(features), published) == pytest.approx(0, abs=1e-6)
    with pytest.raises(DataError, match="unknown number"):
        published.update(features)


def test_statistics_refuse(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no.safetensors does not exist; make statistics of your images with `adanat stats"):
        FeatureStatistics.load(tmp_path / "no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"bad.safetensors is damaged or truncated .* no safetensors file"):
        FeatureStatistics.load(tmp_path / "bad.safetensors")
    (tmp_path / "bad.npz").write_bytes(b"junk")
    with pytest.raises(DataError, match="mu"):
        FeatureStatistics.load(tmp_path / "bad.npz")
    np.savez(tmp_path / "odd.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(DataError, match=r"\(3,\)"):
        FeatureStatistics.load(tmp_path / "odd.npz")
    np.savez(tmp_path / "below.npz", mu=np.zeros(3), sigma=-np.eye(3))
    with pytest.raises(DataError, match=r"below\.npz holds variances below 0 in 'sigma'"):
        FeatureStatistics.load(tmp_path / "below.npz")
    np.savez(tmp_path / "indefinite.npz", mu=np.zeros(2), sigma=np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(DataError, match=r"this is no covariance \(a variance of -1 along one direction, the largest is 3\)"):
        _ = FeatureStatistics.load(tmp_path / "indefinite.npz").root
    with pytest.raises(DataError, match="at least 2"):
        _ = FeatureStatistics.of(torch.zeros(1, 3)).covariance
    with pytest.raises(DataError, match="not finite, in 2 of 2 images; look at these images, and at the plug-in"):
        FeatureStatistics.of(torch.full((2, 3), torch.nan))
    one, two = FeatureStatistics.of(rand(0, 9, 3), "p"), FeatureStatistics.of(rand(0, 9, 3), "q")
    with pytest.raises(DataError, match="one protocol"):
        frechet_distance(one, two)
    with pytest.raises(DataError, match="one protocol"):
        one.merge(two)


# --- kernel distance


@pytest.mark.parametrize("subsets", [1, 3, 60])
def test_kernel_distances_of_subsets_are_those_of_torch_fidelity(subsets: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether each subset has its own pairs, or subsets overlap so much that all pairs are computed once."""
    monkeypatch.setattr(kid, "ROWS", 32)
    monkeypatch.setattr(kid, "COLUMNS", 48)
    fake, real = like_features(1, 90, 32), like_features(2, 140, 32, 0.1)
    draw = torch.Generator().manual_seed(5)
    expected = []
    for _ in range(subsets):
        x, y = (z[torch.randperm(len(z), generator=draw)[:60]].double().numpy() for z in (fake, real))
        expected.append(float(kernel_mmd(x, y)))
    ours = kernel_distance(fake, real, subsets=subsets, subset_size=60, seed=5)
    assert ours == pytest.approx((np.mean(expected), np.std(expected)), rel=1e-6, abs=1e-12)


def test_kid_parity_with_torch_fidelity() -> None:
    fake, real = like_features(1, 300, 32), like_features(2, 320, 32, 0.3)
    ours, spread = kernel_distance(fake, real, subsets=200, subset_size=100)
    theirs = kid_features_to_metric(fake, real, kid_subsets=200, kid_subset_size=100, verbose=False)
    # Other random subsets: the means agree within the error of a mean of 200.
    error = spread / 200**0.5
    assert abs(ours - theirs["kernel_inception_distance_mean"]) < 5 * error
    assert spread == pytest.approx(theirs["kernel_inception_distance_std"], rel=0.25)


def test_kid_parity_with_torchmetrics() -> None:
    from torchmetrics.image.kid import KernelInceptionDistance

    # One subset of everything: no random choice is left.
    fake, real = like_features(1, 120, 32), like_features(2, 120, 32, 0.3)
    metric = KernelInceptionDistance(feature=AsFeatures(32), subsets=1, subset_size=120)
    theirs = float(feed(metric, fake, real)[0])
    assert kernel_distance(fake, real, subsets=1, subset_size=120)[0] == pytest.approx(theirs, rel=1e-4)


def test_inception_score_parity_with_torchmetrics() -> None:
    from torchmetrics.image.inception import InceptionScore

    logits = rand(4, 300, 20) * 2
    metric = InceptionScore(feature=AsFeatures(20), splits=1)  # its splits are shuffled: one has no order
    metric.update(logits[:, :, None, None])
    ours = inception_score(logits.double().softmax(1), splits=1)[0]
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_kid_is_unbiased_and_seeded() -> None:
    values = [kernel_distance(rand(i, 40, 8), rand(1000 + i, 40, 8), subsets=1)[0] for i in range(200)]
    mean, error = float(np.mean(values)), float(np.std(values)) / 200**0.5
    assert abs(mean) < 4 * error and min(values) < 0 < max(values)
    x, y = rand(0, 50, 8), rand(1, 50, 8)
    assert kernel_distance(x, y, subset_size=20, seed=3) == kernel_distance(x, y, subset_size=20, seed=3)
    assert kernel_distance(x, y, subset_size=20, seed=3) != kernel_distance(x, y, subset_size=20, seed=4)
    with pytest.raises(DataError, match="at least 2"):
        kernel_distance(x[:1], y)


# --- precision, recall, density, coverage


def brute_prdc(fake: Tensor, real: Tensor, k: int, k_density: int) -> dict[str, float]:
    def radii(x: Tensor, k: int) -> Tensor:
        return torch.cdist(x, x).kthvalue(k + 1, dim=1).values

    fake, real = fake.double(), real.double()
    cross = torch.cdist(fake, real)
    within = cross <= radii(real, k_density)
    return {
        "precision": float((cross <= radii(real, k)).any(1).double().mean()),
        "recall": float((cross <= radii(fake, k)[:, None]).any(0).double().mean()),
        "density": float(within.sum(1).double().mean()) / k_density,
        "coverage": float(within.any(0).double().mean()),
    }


@pytest.mark.parametrize("chunks", [(1024, 8192), (7, 11)])
def test_prdc_against_brute_force(monkeypatch: pytest.MonkeyPatch, chunks: tuple[int, int]) -> None:
    monkeypatch.setattr(prdc, "ROWS", chunks[0])
    monkeypatch.setattr(prdc, "COLUMNS", chunks[1])
    fake, real = like_features(1, 90, 12), like_features(2, 120, 12, 0.2)
    assert neighbourhoods(fake, real).figures() == pytest.approx(brute_prdc(fake, real, 3, 5), abs=1e-12)
    theirs = calculate_precision_recall_full(fake.double(), real.double(), 3)
    ours = neighbourhoods(fake, real).figures()
    assert (ours["precision"], ours["recall"]) == pytest.approx(theirs, rel=1e-4)


def test_mode_collapse_keeps_precision_and_loses_recall() -> None:
    """Pins the convention: precision is about the fakes, recall about the reals."""
    modes = torch.arange(4.0)[:, None] * 100
    real = (modes + rand(0, 4, 100)).reshape(-1, 1).expand(-1, 6) + rand(1, 400, 6)
    collapsed = rand(2, 100, 1).expand(-1, 6) + rand(3, 100, 6)
    figures = neighbourhoods(collapsed, real).figures()
    assert figures["precision"] > 0.8 and figures["recall"] < 0.3 and figures["coverage"] < 0.3
    swapped = neighbourhoods(real, collapsed).figures()
    assert swapped["precision"] < 0.3 and swapped["recall"] > 0.8


def test_prdc_far_from_the_origin_and_too_few() -> None:
    fake, real = rand(0, 50, 4, dtype=torch.float64), rand(1, 50, 4, dtype=torch.float64)
    near, far = (neighbourhoods(fake + c, real + c).figures() for c in (0, 1e6))
    assert near == far
    with pytest.raises(DataError, match="5 nearest neighbours"):
        neighbourhoods(fake[:5], real)


# --- scores of one set


def test_inception_score_parity_with_torch_fidelity() -> None:
    logits = rand(0, 203, 10) * 3
    theirs = isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits.double().softmax(1), splits=10, seed=None)
    assert ours == pytest.approx((theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-4)
    certain = torch.eye(10).repeat(5, 1)
    assert inception_score(certain, splits=1)[0] == pytest.approx(10)
    assert inception_score(torch.full((50, 10), 0.1))[0] == pytest.approx(1)


def test_clip_scores() -> None:
    image = torch.tensor([[2.0, 0.0], [1.0, 1.0], [-1.0, 0.0]])
    text = torch.tensor([[5.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    assert clip_scores(image, text).tolist() == pytest.approx([100, 100 / math.sqrt(2), 0])
    with pytest.raises(DataError, match="do not pair"):
        clip_scores(image, text[:2])


@pytest.mark.parametrize("columns", [2, 256])
def test_diversity_against_all_pairs(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setattr(scores, "COLUMNS", columns)
    fake, real = rand(0, 30, 5) * 0.5, rand(1, 60, 5)
    fake_labels, real_labels = torch.arange(30) % 3, torch.arange(60) % 4

    def spread(x: Tensor) -> float:
        return float(torch.pdist(x.double()).square().mean())

    above = sum(10 * spread(fake[fake_labels == c]) for c in range(3))
    below = sum(10 * spread(real[real_labels == c]) for c in range(3))
    ours = within_class_diversity(fake, real, fake_labels, real_labels)
    assert ours == pytest.approx((above / below) ** 0.5, rel=1e-9)
    assert within_class_diversity(real, real) == pytest.approx(1)
    collapsed = torch.eye(5)[fake_labels]
    assert within_class_diversity(collapsed, real, fake_labels, real_labels) == 0
    with pytest.raises(DataError, match="two generated"):
        within_class_diversity(fake[:3], real, torch.arange(3), real_labels)


# --- intervals


def test_mean_interval_is_students() -> None:
    # Quantile of t with 2 degrees of freedom at 97.5 %: 4.302653.
    low, high = mean_interval([1.0, 2.0, 3.0])
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5), rel=1e-6)
    with pytest.raises(DataError, match="at least 2"):
        mean_interval([1.0])


def test_bootstrap_of_a_mean_matches_theory() -> None:
    values = rand(0, 400, dtype=torch.float64)
    low, high = bootstrap_interval(lambda i: float(values[i].mean()), 400, resamples=1000)
    error = float(values.std()) / 20
    assert low < float(values.mean()) < high
    assert (high - low) == pytest.approx(2 * 1.96 * error, rel=0.12)


# --- all together


class Pixels(FeatureExtractor):
    """Means of quarters of an image: a real extractor without weights."""

    protocol, card, feature_dim = "quarters", {"network": "none"}, 12

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> Pixels:
        return cls()

    def __call__(self, images: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def test_evaluate_from_images_to_figures() -> None:
    pixels = (torch.rand(300, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 255).to(torch.uint8)
    from adanat_toolkit.images import MemoryImages

    source = MemoryImages(pixels, labels=torch.arange(300) % 3)
    seen: list[tuple[int, int]] = []
    real = reference_of(Pixels(), source, progress=lambda *a: seen.append(a))
    assert seen == [(128, 300), (256, 300), (300, 300)]
    streamed = statistics_of(Pixels(), source)
    assert frechet_distance(streamed, real.statistics) == pytest.approx(0, abs=1e-9)
    assert streamed.card == Pixels.card and streamed.data == source.fingerprint
    fake = extract_features(Pixels(), pixels[:100].float() / 255 * 0.9)
    assert torch.equal(extract_features(Pixels(), pixels).values, real.features)
    result = evaluate_features(fake, real, labels=torch.arange(100) % 3, clip=torch.ones(100), bootstrap=20)
    assert set(result.figures) == {
        "frechet", "kid", "kid_std", "precision", "recall", "density", "coverage", "clip_score", "diversity",
    }  # fmt: skip
    assert (result.protocol, result.n_fake, result.n_real, result.data) == ("quarters", 100, 300, source.fingerprint)
    assert result.settings["neighbours_samples"] == 100 and result.settings["diversity_classes"] == 3
    whole = evaluate_features(fake, real, bootstrap=0)
    assert whole.settings["diversity_classes"] == 1
    assert whole.figures["diversity"] == within_class_diversity(fake.values, real.features)
    for name, (low, high) in result.intervals.items():
        assert low <= result.figures[name] <= high, name
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json()))) == result
    again = evaluate_features(fake, real, labels=torch.arange(100) % 3, clip=torch.ones(100), bootstrap=20)
    assert again == result


def test_diversity_settings_are_those_of_the_real_images_alone() -> None:
    """Sets that happen to have other classes are held against the same images, and go into one table."""
    real, real_labels = rand(0, 60, 5), torch.arange(60) % 4
    reference = Reference(FeatureStatistics.of(real, "p"), real, real_labels)
    fake = Features(rand(1, 40, 5), None, "p")
    found = [
        evaluate_features(fake, reference, labels=labels, bootstrap=0)
        for labels in (torch.arange(40) % 3, torch.arange(40) % 7, torch.full((40,), 9), torch.arange(40))
    ]
    require_comparable(*found)
    assert [("diversity" in each.figures) for each in found] == [True, True, False, False]
    # Classes without real images are left out.
    shared = (torch.arange(40) % 7) < 4
    expected = within_class_diversity(fake.values[shared], real, (torch.arange(40) % 7)[shared], real_labels)
    assert found[1].figures["diversity"] == pytest.approx(expected, rel=1e-12)


def test_evaluate_against_published_statistics() -> None:
    real = Reference(gaussian(torch.zeros(4), torch.eye(4)))
    chances = rand(1, 50, 6).softmax(1)
    result = evaluate_features(Features(rand(0, 50, 4), chances, "p"), real, bootstrap=0)
    assert set(result.figures) == {"frechet", "inception_score"} and result.n_real is None and not result.intervals
    assert result.figures["inception_score"] == pytest.approx(inception_score(chances, seed=0)[0])


def test_unlike_figures_are_refused() -> None:
    base = Evaluation("p", 100, 200, "d", {"frechet": 1.0}, settings={"seed": 0})
    require_comparable(base, base)
    for change, words in {
        "protocol": "feature protocols",
        "n_fake": "numbers of generated images",
        "data": "real data sets",
    }.items():
        other = Evaluation(**{**vars(base), change: "x"})
        with pytest.raises(DataError, match=words):
            require_comparable(base, other)
        require_comparable(base, other, allow=[change])


def test_memory_of_many_samples_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest block of distances that ever exists has the size of a chunk, whatever the number of samples."""
    sizes: list[int] = []
    distances = prdc._squared_distances

    def measured(x: Tensor, y: Tensor, centre: Tensor) -> Tensor:
        sizes.append(len(x) * len(y))
        return distances(x, y, centre)

    monkeypatch.setattr(prdc, "_squared_distances", measured)
    x = rand(0, 10_000, 2)
    neighbourhoods(x[:2000], x)
    assert max(sizes) == prdc.ROWS * prdc.COLUMNS and 8 * max(sizes) <= 64 * 2**20


class Float64(TorchDispatchMode):
    """The size of the largest float64 tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else (out,):
            if isinstance(each, Tensor) and each.dtype == torch.float64:
                self.largest = max(self.largest, each.numel())
        return out


def test_no_figure_needs_all_features_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 50,000 samples of InceptionV3 in float64, with the copies that an expression makes, are beyond 4 GB."""
    count, dim = 4000, 64
    chances = torch.softmax(rand(0, count, 40), 1)
    fake, real = Features(rand(1, count, dim), chances, "p"), rand(2, count, dim)
    labels = torch.arange(count) % 7
    for module, name in [
        (frechet, "CHUNK"), (evaluation, "CHUNK"), (kid, "CHUNK"), (prdc, "ROWS"), (prdc, "COLUMNS")
    ]:  # fmt: skip
        monkeypatch.setattr(module, name, 256)
    monkeypatch.setattr(scores, "COLUMNS", 4)
    with Float64() as seen:
        reference = Reference(FeatureStatistics.of(real, "p"), real, labels)
        found = evaluate_features(fake, reference, labels=labels, subset_size=100, subsets=2, bootstrap=2)
    assert {"frechet", "kid", "precision", "inception_score", "diversity"} <= set(found.figures)
    assert seen.largest <= 256 * 256 < count * 40
