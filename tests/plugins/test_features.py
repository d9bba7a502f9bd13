"""Feature protocols: the embedded yardstick, and the protocols of published networks.

The published weights are not in the repository. Those protocols are checked with randomly initialised networks of the
same architecture: the recipe around the network, parity with the reference implementation on the same weights, and what
happens when the weights are absent. ``needs_weights`` tests use the published files where they are on disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from adanat_plugins.emoji64.data import emoji_images
from adanat_plugins.features.clip import ClipFeatures
from adanat_plugins.features.dinov2 import DINOv2Features
from adanat_plugins.features.inception import InceptionAdaNAT, InceptionFidelity, InceptionV3, inception_asset
from adanat_plugins.features.yardstick import EmojiYardstick, about, prepare
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import FeatureExtractor
from adanat_toolkit.metrics import (
    FeatureStatistics,
    evaluate_features,
    extract_features,
    frechet_distance,
    reference_of,
)
from adanat_toolkit.registry import parse_options

from ..helpers.subsets import in_memory

CPU = torch.device("cpu")
EMBEDDED = [(EmojiYardstick, {}), (ClipFeatures, {"model": "emoji64"})]
REMOTE = [InceptionFidelity, InceptionAdaNAT, DINOv2Features, ClipFeatures]


def some_images(count: int = 4, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def no_weights_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def made(kind: type[FeatureExtractor], options: dict) -> Any:
    """As the registry makes it."""
    return kind.create(parse_options("features", kind.Options, options), device=CPU, offline=True)


@pytest.fixture(scope="module")
def yardstick() -> EmojiYardstick:
    return made(EmojiYardstick, {})


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torch-fidelity publishes it, with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = InceptionV3()
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(network.state_dict(), path)
    return path


def check_contract(extractor: FeatureExtractor) -> None:
    images = some_images()
    before = images.clone()
    features = extractor(images)
    assert features.shape == (4, extractor.feature_dim) and features.dtype == torch.float32
    assert torch.isfinite(features).all() and not features.requires_grad
    assert torch.equal(images, before) and torch.equal(extractor(images), features)
    assert torch.allclose(extractor(images[2:3]), features[2:3], rtol=1e-4, atol=1e-4), "neighbours do not matter"
    assert features.std(0).mean() > 0, "unlike images have unlike features"
    chances = extractor.probabilities(images)
    if chances is not None:
        assert torch.allclose(chances.sum(1), torch.ones(4), atol=1e-5) and chances.min() >= 0
    assert {"network", "weights", "resize", "rounding", "range", "licence", "source"} <= extractor.card.keys()
    assert extractor.protocol and all(isinstance(v, str) and v for v in extractor.card.values())


@pytest.mark.parametrize(("kind", "options"), EMBEDDED)
def test_embedded_protocols_keep_the_contract(kind: type[FeatureExtractor], options: dict) -> None:
    check_contract(made(kind, options))


@pytest.mark.parametrize(("kind", "options"), EMBEDDED)
def test_features_of_a_saved_image_are_those_of_the_image(kind: type[FeatureExtractor], options: dict) -> None:
    extractor = made(kind, options)
    images = some_images(2)
    saved = (images * 255).round() / 255
    assert torch.equal(extractor(images), extractor(saved))


@pytest.mark.parametrize("kind", [EmojiYardstick, *REMOTE])
def test_unknown_options_are_named(kind: type[FeatureExtractor]) -> None:
    with pytest.raises(ConfigError, match="weihgts"):
        made(kind, {"weihgts": "x"})


@pytest.mark.parametrize("kind", REMOTE)
def test_missing_weights_say_what_to_do(
    kind: type[FeatureExtractor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"(?s)published: https://.*licence: .*obtain: "):
        made(kind, {})


@pytest.mark.parametrize("kind", [InceptionFidelity, InceptionAdaNAT, DINOv2Features])
def test_weights_of_another_network_are_refused(kind: type[FeatureExtractor], tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(3)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(WeightsError, match="does not fit"):
        made(kind, {"weights": str(tmp_path / "other.safetensors")})


# --- the yardstick


def test_yardstick_card_and_size(yardstick: EmojiYardstick) -> None:
    details = about()
    assert details["parameters"] == sum(
        p.numel() for m in (yardstick.backbone, yardstick.classifier) for p in m.parameters()
    )
    assert details["parameters"] <= 2_000_000
    assert yardstick.protocol == f"emoji64-v1-{details['weights_sha256'][:8]}"
    assert "noise floor" in yardstick.card and "held-out accuracy" in yardstick.card


def test_yardstick_shipped_features_are_those_of_the_images(yardstick: EmojiYardstick) -> None:
    source = emoji_images()
    shipped = yardstick.precomputed(source)
    assert shipped is not None and shipped.shape == (len(source), yardstick.feature_dim)
    index = torch.arange(0, len(source), 100)
    assert torch.allclose(yardstick(source.images(index)), shipped[index], rtol=2e-3, atol=2e-2)
    assert yardstick.precomputed(in_memory(source, torch.arange(10))) is None, "another set is not mistaken for it"


def test_yardstick_knows_the_images(yardstick: EmojiYardstick) -> None:
    source = emoji_images()
    index = torch.arange(0, len(source), 25)
    guesses = yardstick.probabilities(source.images(index)).argmax(1)
    pairs = [tuple(about()["classes"][i]) for i in guesses.tolist()]
    labels = [pair[0] for pair in pairs]
    assert np.mean(np.array(labels) == source.labels[index].numpy()) > 0.8


def test_yardstick_orders_damage_and_reports_its_floor(yardstick: EmojiYardstick) -> None:
    """More blur or noise is further away, and two random halves of the data are as near as the card says."""
    source = emoji_images()
    reference = reference_of(yardstick, source)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(100))
    images = source.images(order[:250])
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    small = torch.nn.functional.avg_pool2d(images, 2)
    damaged = [
        images,
        (images + 0.03 * noise).clamp(0, 1),
        (images + 0.1 * noise).clamp(0, 1),
        torch.nn.functional.interpolate(small, (64, 64), mode="bilinear"),
    ]
    own, little, much, blurred = (
        frechet_distance(FeatureStatistics.of(yardstick(x), yardstick.protocol), reference.statistics) for x in damaged
    )
    assert own < little < much and own < blurred
    assert reference.features is not None
    halves = [FeatureStatistics.of(reference.features[part]) for part in order.chunk(2)]
    assert frechet_distance(*halves) == pytest.approx(about()["noise_floor"], rel=0.15)


def test_yardstick_of_other_sizes_and_values_out_of_range(yardstick: EmojiYardstick) -> None:
    assert prepare(some_images(1, 32, 48)).shape == (1, 3, 64, 64)
    assert prepare(torch.tensor([-1.0, 2.0]).view(2, 1, 1, 1).expand(2, 3, 64, 64)).unique().tolist() == [-1, 1]


def test_evaluation_of_real_against_real(yardstick: EmojiYardstick) -> None:
    """The whole path on real images: a random sample of the data scores close to the data."""
    source = emoji_images()
    reference = reference_of(yardstick, source)
    index = torch.randperm(len(source), generator=torch.Generator().manual_seed(3))[:600]
    fake = extract_features(yardstick, in_memory(source, index).pixels)
    assert source.labels is not None
    figures = evaluate_features(fake, reference, labels=source.labels[index], bootstrap=0).figures
    assert figures["precision"] > 0.75 and figures["recall"] > 0.75 and abs(figures["kid"]) < 0.01
    assert figures["diversity"] == pytest.approx(1, abs=0.1) and figures["inception_score"] > 15


# --- InceptionV3


@pytest.mark.parametrize("size", [(64, 64), (300, 280)])
def test_inception_fidelity_is_torch_fidelitys(inception_file: Path, size: tuple[int, int]) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    layers = ["2048", "logits_unbiased"]
    theirs = FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=str(inception_file))
    ours = made(InceptionFidelity, {"weights": str(inception_file)})
    images = some_images(2, *size)
    expected, logits = theirs((images * 255).round().to(torch.uint8))
    features, chances = ours.joint(images)
    assert torch.allclose(features, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert torch.allclose(chances, logits.softmax(1), rtol=1e-3, atol=1e-7)
    assert ours.protocol.startswith("inception-fidelity-")


def test_inception_adanat_differs_by_its_recipe_alone(inception_file: Path) -> None:
    ours = made(InceptionAdaNAT, {"weights": str(inception_file)})
    other = made(InceptionFidelity, {"weights": str(inception_file)})
    images = some_images(2)
    x = torch.nn.functional.interpolate(images, (299, 299), mode="bilinear", align_corners=False) * 2 - 1
    assert torch.equal(ours.prepare(images), x), "no rounding, torch's bilinear, 2x - 1"
    assert torch.equal(ours(images), ours.network(x))
    assert ours.protocol != other.protocol
    assert not torch.equal(ours.prepare(images), other.prepare(images))


def test_inception_found_in_torch_hubs_cache(inception_file: Path, tmp_path: Path) -> None:
    from adanat_plugins.features.inception import FILE

    cache = tmp_path / "hub" / "checkpoints" / FILE
    cache.parent.mkdir(parents=True)
    cache.write_bytes(inception_file.read_bytes())
    assert made(InceptionFidelity, {}).protocol.startswith("inception-fidelity-")


@pytest.mark.needs_weights
def test_inception_published_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    if not inception_asset("inception-fidelity").present():
        pytest.skip("the published InceptionV3 weights are not on this machine")
    extractor = made(InceptionFidelity, {})
    assert extractor.protocol == "inception-fidelity-6726825d"
    check_contract(extractor)


# --- DINOv2 and CLIP


def test_dinov2_recipe_with_random_weights(tmp_path: Path) -> None:
    """timm's small DINOv2: the recipe is the large one's; its 518-pixel positions are resampled to 224."""
    import timm

    name = "vit_small_patch14_dinov2.lvd142m"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        published = timm.create_model(name, pretrained=False, num_classes=0)
    save_file(dict(published.state_dict()), str(tmp_path / "model.safetensors"))
    options = {"model": name, "weights": str(tmp_path / "model.safetensors")}
    extractor = made(DINOv2Features, options)
    check_contract(extractor)
    pixels = (some_images(1)[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    resized = Image.fromarray(pixels).resize((224, 224), Image.Resampling.BICUBIC)
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=published))
    normalise = transform.transforms[-1]
    x = normalise(torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 255)[None]
    overlay = {"file": str(tmp_path / "model.safetensors")}
    sized = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=224)
    expected = sized.eval().forward_features(x)[:, 0]
    ours = extractor(some_images(1))
    assert torch.nn.functional.cosine_similarity(ours, expected) > 0.999, "PIL rounds after its resize, torch does not"


def test_dinov2_unknown_model() -> None:
    with pytest.raises(ConfigError, match="dinov3_huge"):
        made(DINOv2Features, {"model": "dinov3_huge"})


def test_embedded_clip_scores_prefer_the_right_caption() -> None:
    source = emoji_images()
    extractor = made(ClipFeatures, {"model": "emoji64"})
    index = torch.arange(5, len(source), 400)
    assert source.captions is not None
    prompts = [source.captions[i] for i in index.tolist()]
    right = extractor.scores(source.images(index), prompts)
    wrong = extractor.scores(source.images(index), prompts[1:] + prompts[:1])
    assert right.dtype == torch.float64 and right.min() >= 0 and right.max() <= 100
    assert (right > wrong).double().mean() > 0.9
