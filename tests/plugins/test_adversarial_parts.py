"""Parts of the adversarial reward on their own: losses, augmentation, replay, heads, and backbones from files."""

from __future__ import annotations

import json
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.rewards.adversarial import AdversarialReward
from adanat_plugins.rewards.adversarial_losses import discriminator_loss, gradient_penalty
from adanat_plugins.rewards.augment import augment
from adanat_plugins.rewards.backbones import TimmViT, create_backbone, load_timm, random_crop
from adanat_plugins.rewards.clip_tower import ClipTower, open_clip_tower
from adanat_plugins.rewards.discriminator import LocalBatchNorm, SpectralConv1d
from adanat_plugins.rewards.paper_discriminator import PaperDiscriminator, published_state
from adanat_plugins.rewards.replay import HISTORY, ReplayBuffer
from adanat_toolkit.errors import CheckpointError, ConfigError, WeightsError
from adanat_toolkit.integrations.gym_env import GenerationVectorEnv
from adanat_toolkit.interfaces import Context, Generator
from adanat_toolkit.registry import create_generator, create_reward
from adanat_toolkit.training import Trainer, validate

CPU = torch.device("cpu")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- losses -----------------------------------------------------------------------------------------------------------


def test_losses_by_hand() -> None:
    real, fake = torch.tensor([[2.0, 0.0], [-1.0, 3.0]]), torch.tensor([[0.5, -2.5]])
    counts = torch.tensor([2.0, 1.0])

    def log1pexp(x: float) -> float:
        return math.log1p(math.exp(x))

    on_real = [log1pexp(-x) for x in (2, 0, -1, 3)]
    on_fake = (log1pexp(0.5) + log1pexp(-2.5)) / 2
    assert float(discriminator_loss("bce", real, fake, counts)) == pytest.approx(sum(on_real) / 4 + on_fake, rel=1e-6)
    smooth = [0.9 * log1pexp(-x) + 0.1 * log1pexp(x) for x in (2, 0, -1, 3)]
    assert float(discriminator_loss("bce", real, fake, counts, 0.1)) == pytest.approx(
        sum(smooth) / 4 + on_fake, rel=1e-6
    )
    # Real: relu(1 - r) = 0, 1, 2, 0. Generated: relu(1 + f) = 1.5, 0.
    assert float(discriminator_loss("hinge", real, fake, counts)) == pytest.approx(3 / 4 + 1.5 / 2)
    # Mean logits: real 1, 1; generated -1. Both pairs differ by 2.
    assert float(discriminator_loss("relativistic", real, fake, counts)) == pytest.approx(log1pexp(-2.0), rel=1e-6)


def test_gradient_penalty_of_a_linear_function() -> None:
    """The mean of P logits w x has gradient w, whatever x is: the penalty is |w|^2 / 2 an image."""
    weight = torch.tensor([3.0, -4.0], requires_grad=True)
    x = torch.randn(5, 2, generator=seeded()).requires_grad_()
    logits = (x @ weight)[:, None].expand(-1, 7)
    penalty = gradient_penalty(logits, x, torch.tensor(5.0))
    assert float(penalty.detach()) == pytest.approx(12.5, rel=1e-6)
    penalty.backward()
    torch.testing.assert_close(weight.grad, torch.tensor([3.0, -4.0]))


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_translation_shifts_whole_images() -> None:
    image = torch.rand(1, 3, 16, 16, generator=seeded())
    seen = set()
    for seed in range(40):
        moved = augment(image, ("translation",), seeded(seed))[0]
        padded = F.pad(image[0], (2, 2, 2, 2), value=0.5)
        windows = {
            (i, j): padded[:, i : i + 16, j : j + 16] for i in range(5) for j in range(5)
        }  # shifts of up to an eighth of 16
        matching = [shift for shift, window in windows.items() if torch.allclose(window, moved, atol=1e-6)]
        assert len(matching) == 1
        seen.add(matching[0])
    assert len(seen) > 12, "shifts are not spread"


def test_cutout_greys_a_square() -> None:
    image = torch.ones(200, 3, 16, 16)
    cut = augment(image, ("cutout",), seeded(3))
    grey = (cut[:, 0] - 0.5).abs() < 1e-6
    assert torch.equal(cut[:, 0][~grey], image[:, 0][~grey])
    for mask in grey:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        assert mask.sum() == len(rows) * len(columns), "not a rectangle"
        assert 4 <= len(rows) <= 8 and 4 <= len(columns) <= 8, "half a side, or less where it sticks out"
        assert rows[-1] - rows[0] == len(rows) - 1
    assert (grey.flatten(1).sum(1) == 64).any()


def test_color_keeps_shapes() -> None:
    """Brightness, saturation and contrast are affine in the image: grey stays grey, and no pixel moves."""
    grey = torch.rand(6, 1, 8, 8, generator=seeded()).expand(-1, 3, -1, -1)
    out = augment(grey, ("color",), seeded(1))
    torch.testing.assert_close(out[:, 0], out[:, 2])
    x, y = grey[:, 0].flatten(1), out[:, 0].flatten(1)
    slope = ((x - x.mean(1, keepdim=True)) * (y - y.mean(1, keepdim=True))).sum(1) / x.var(1) / (x.shape[1] - 1)
    torch.testing.assert_close(y - y.mean(1, keepdim=True), slope[:, None] * (x - x.mean(1, keepdim=True)))
    assert (slope > 0.5).all() and (slope < 1.5).all() and slope.std() > 0.05


def test_augmentation_is_differentiable_and_seeded() -> None:
    kinds = ("color", "translation", "cutout")
    x = torch.rand(2, 3, 8, 8, generator=seeded(), dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: augment(images, kinds, seeded(5)), (x,))
    assert torch.equal(augment(x, kinds, seeded(5)), augment(x, kinds, seeded(5)))
    assert not torch.equal(augment(x, kinds, seeded(5)), augment(x, kinds, seeded(6)))


# --- replay -----------------------------------------------------------------------------------------------------------


def labelled(start: int, count: int) -> tuple[Tensor, Context]:
    value = torch.arange(start, start + count)
    return value[:, None].float(), Context(count, classes=value)


def test_replay_keeps_pairs_and_history() -> None:
    buffer, draw = ReplayBuffer(32), seeded()
    for iteration in range(20):
        buffer.insert(*labelled(100 * iteration, 50), draw)
        assert len(buffer) == min(32, 4 * (iteration + 1))
    items, context = buffer.draw(500, Context(1, classes=torch.zeros(1, dtype=torch.int64)), draw)
    assert torch.equal(items[:, 0].long(), context.classes), "an image came back with another one's class"
    ages = set((items[:, 0] // 100).long().tolist())
    assert ages == set(range(20 - HISTORY, 20)), "the buffer does not span the last iterations"


def test_replay_smaller_than_its_history_and_without_context() -> None:
    buffer, draw = ReplayBuffer(3), seeded()
    for iteration in range(4):
        buffer.insert(torch.full((2, 5), float(iteration)), Context(2), draw)
    items, context = buffer.draw(30, Context(1), draw)
    assert set(items[:, 0].tolist()) == {1.0, 2.0, 3.0} and context.classes is None and context.pooled is None


def test_replay_state_of_another_capacity_is_refused() -> None:
    buffer = ReplayBuffer(8)
    for iteration in range(9):
        buffer.insert(*labelled(iteration, 4), seeded())
    same, other = ReplayBuffer(8), ReplayBuffer(16)
    same.load_state(buffer.state(), CPU)
    assert torch.equal(same.items, buffer.items) and same.inserted == buffer.inserted
    with pytest.raises(CheckpointError, match="replay = 16"):
        other.load_state(buffer.state(), CPU)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_circular_convolution_wraps_around() -> None:
    layer = SpectralConv1d(2, 3, kernel=9)
    layer.initialise(seeded())
    layer.eval()
    for positions in (4, 16):  # the kernel may be longer than the map
        x = torch.randn(2, 2, positions, generator=seeded(1))
        expected = torch.stack(
            [
                sum(layer.weight()[:, :, k] @ x[1, :, (p + k - 4) % positions] for k in range(9)) + layer.bias
                for p in range(positions)
            ],
            dim=1,
        )
        torch.testing.assert_close(layer(x)[1], expected)
        torch.testing.assert_close(layer(x.roll(3, 2)), layer(x).roll(3, 2))


def test_local_batch_norm_groups() -> None:
    norm = LocalBatchNorm(4)
    x = torch.randn(20, 4, 6, generator=seeded()) * 3 + 1
    own = norm(x)
    for part, whole in zip(own.tensor_split(3), x.tensor_split(3), strict=True):
        expected = F.batch_norm(whole, None, None, training=True, eps=norm.eps)
        torch.testing.assert_close(part, expected)
    changed = x.clone()
    changed[:7] = 0
    torch.testing.assert_close(norm(changed)[7:], own[7:])
    for batch in (1, 13, 30):
        assert norm(x[:1].expand(batch, -1, -1)).isfinite().all()


@pytest.mark.parametrize("kind", ["class", "text", "none"])
def test_paper_heads_take_any_batch_and_context(kind: str) -> None:
    sizes = {"class": {"classes": 5, "text_dim": None}, "text": {"classes": None, "text_dim": 6}}
    heads = PaperDiscriminator(2, 12, **sizes.get(kind, {"classes": None, "text_dim": None}), class_width=16, seed=1)
    for batch in (1, 13, 20):
        pooled = 7 * torch.randn(batch, 6, generator=seeded(2))
        context = {
            "class": Context(batch, classes=torch.arange(batch) % 5),
            "text": Context(batch, pooled=pooled),
            "none": Context(batch),
        }[kind]
        logits = heads(torch.randn(batch, 2, 10, 12, generator=seeded(3)), context)
        assert logits.shape == (batch, 20) and logits.isfinite().all() and logits.std() > 0
        if kind == "text":
            torch.testing.assert_close(heads.condition(context).norm(dim=1), torch.ones(batch))


# --- crops ------------------------------------------------------------------------------------------------------------


def test_random_crop() -> None:
    offsets = [random_crop((48, 40), 32, 0.5, seed) for seed in range(400)]
    taken = [offset for offset in offsets if offset is not None]
    assert 150 < len(taken) < 250
    assert {top for top, _ in taken} == set(range(17)) and {left for _, left in taken} == set(range(9))
    assert random_crop((32, 32), 32, 1.0, 0) is None and random_crop((48, 20), 32, 1.0, 0) is None
    assert random_crop((48, 48), 32, 0.0, 0) is None


# --- backbones from files ---------------------------------------------------------------------------------------------

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def generator() -> Generator:
    return create_generator("maskgit:emoji64", device=CPU, dtype=torch.float32)


def reward_of(generator: Generator, seed: int = 0, **options: Any) -> AdversarialReward:
    made = create_reward(
        "adversarial", options, generator=generator, real=generator.real_images(), device=CPU, seed=seed
    )
    assert isinstance(made, AdversarialReward)
    return made


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of timm's smallest ViT, wrapped as training scripts do."""
    backbone = TimmViT(TINY)
    state = {
        key: torch.randn(value.shape, generator=seeded()) * 0.05 for key, value in backbone.model.state_dict().items()
    }
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, file)
    return file


def test_missing_weights_say_where_to_get_them(
    generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    for options in ({"architecture": "paper"}, {"backbone": "dino"}):
        with pytest.raises(WeightsError, match=r"vit_small_patch16_224.dino(.|\n)*backbone_weights"):
            reward_of(generator, **options)
    with pytest.raises(WeightsError, match="does not exist"):
        reward_of(generator, backbone="dinov2", backbone_weights=str(tmp_path / "absent.pth"))


def test_damaged_or_foreign_weights(generator: Generator, tmp_path: Path, tiny_file: Path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(tiny_file.read_bytes()[:5000])
    with pytest.raises(WeightsError):
        create_backbone("dino", model=TINY, weights=str(cut))
    with pytest.raises(WeightsError, match="misshapen"):
        create_backbone("dino", model=TINY, weights=str(_with_narrow_norm(tmp_path, tiny_file)))
    with pytest.raises(ConfigError, match="resnet18"):
        create_backbone("dino", model="resnet18", weights=str(tiny_file))
    with pytest.raises(WeightsError, match="known"):
        create_backbone("clip", model="RN50", weights=str(tiny_file))
    numbered = tmp_path / "numbered.pth"
    torch.save({"discriminator": {3: torch.zeros(1)}}, numbered)
    for file in (tiny_file, numbered):
        with pytest.raises(WeightsError, match="no published AdaNAT"):
            reward_of(generator, architecture="paper", published=str(file))


def _with_narrow_norm(folder: Path, file: Path) -> Path:
    state = torch.load(file)["state_dict"]
    torch.save({**state, "module.norm.weight": torch.ones(7)}, folder / "narrow.pth")
    return folder / "narrow.pth"


@pytest.mark.parametrize("name", ["dino", "dinov2"])
def test_timm_features(tiny_file: Path, name: str) -> None:
    """Against timm's own intermediate features, at another size than the network's."""
    backbone = create_backbone(name, model=TINY, weights=str(tiny_file)).freeze(CPU, torch.float32)
    images = torch.rand(2, 3, 336, 336, generator=seeded(4))
    with torch.no_grad():
        own = backbone(images)
        resized = F.interpolate(images, (224, 224), mode="area")
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = (resized - mean[:, None, None]) / std[:, None, None]
        layers = backbone.model.forward_intermediates(
            x, indices=[2, 5, 8, 11], return_prefix_tokens=True, norm=False, output_fmt="NLC", intermediates_only=True
        )
    expected = torch.stack([patches + prefix[:, :1] for patches, prefix in layers], dim=1)
    torch.testing.assert_close(own[:, :4], expected, atol=1e-5, rtol=1e-4)
    assert own.shape == (2, 5, 196, 192) and not own.requires_grad


def test_positions_of_another_size_are_resampled(tiny_file: Path) -> None:
    backbone = TimmViT(TINY)
    state = {key.removeprefix("module."): value for key, value in torch.load(tiny_file)["state_dict"].items()}
    ramp = torch.linspace(0, 1, 28)[None, :, None, None].expand(1, 28, 28, 192).reshape(1, 784, 192)
    load_timm(backbone, {**state, "pos_embed": torch.cat([state["pos_embed"][:, :1], ramp], 1)}, source="ramp")
    rows = backbone.model.pos_embed[0, 1:].view(14, 14, 192).mean((1, 2))
    torch.testing.assert_close(rows, torch.linspace(0, 1, 28).view(14, 2).mean(1), atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["deit3_small_patch16_224", "vit_small_patch14_reg4_dinov2"])
def test_positions_of_patches_alone_are_resampled(name: str) -> None:
    """Networks whose class and register tokens have no positions: all rows belong to patches."""
    backbone = TimmViT(name, size=224)
    side, width = backbone.side, backbone.channels
    state = backbone.model.state_dict()
    assert state["pos_embed"].shape[1] == side * side
    ramp = torch.linspace(0, 1, 28)[None, :, None, None].expand(1, 28, 28, width).reshape(1, 784, width)
    load_timm(backbone, {**state, "pos_embed": ramp}, source="ramp")
    rows = backbone.model.pos_embed[0].view(side, side, width).mean((1, 2))
    torch.testing.assert_close(rows, torch.linspace(0, 1, side), atol=0.03, rtol=0)
    features = backbone.freeze(CPU, torch.float32).features(torch.rand(2, 3, 64, 64, generator=seeded()))
    assert features.shape == (2, 5, side * side, width)


def test_a_network_without_class_token_is_refused() -> None:
    with pytest.raises(ConfigError, match="class token"):
        TimmViT("vit_base_patch16_rpn_224")


def test_a_clip_tower_without_its_first_norm_is_refused() -> None:
    config = json.loads((FOLDER / "clip.json").read_text())
    state = {key: value for key, value in load_file(str(FOLDER / "clip.safetensors")).items() if "ln_pre" not in key}
    with pytest.raises(WeightsError, match="no plain CLIP image tower"):
        ClipTower(state, config["vision_cfg"], (1, 3, 5), source="made up")


@pytest.mark.parametrize(
    ("shape", "message"), [((128, 5, 8, 8), "reads 5 channels"), ((128,), r"has the shape \[128\]")]
)
def test_a_clip_tower_of_other_images_is_refused(shape: tuple[int, ...], message: str) -> None:
    config = json.loads((FOLDER / "clip.json").read_text())
    state = load_file(str(FOLDER / "clip.safetensors")) | {"visual.conv1.weight": torch.zeros(shape)}
    with pytest.raises(WeightsError, match=message):
        ClipTower(state, config["vision_cfg"], (1, 3, 5), source="made up")


@pytest.mark.parametrize("rows", [0, 1, 12])
def test_positions_that_form_no_square_are_refused(rows: int) -> None:
    backbone = TimmViT(TINY)
    state = {**backbone.model.state_dict(), "pos_embed": torch.zeros(1, rows, 192)}
    with pytest.raises(WeightsError, match=rf"misshapen pos_embed \[1, {rows}, 192\]"):
        load_timm(backbone, state, source="made up")


def test_the_normalisation_of_a_release_is_taken_from_its_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in another normalisation give other features; an unknown id is OpenAI's."""
    import open_clip

    config = json.loads((FOLDER / "clip.json").read_text())
    release = {"hf_hub": "somebody/inception-clip/", "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config)
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["tag"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, tag: release)
    state = load_file(str(FOLDER / "clip.safetensors"))
    images = torch.rand(2, 3, 64, 64, generator=seeded())

    def features(hub: str) -> Tensor:
        tower = open_clip_tower("any", state, pool=1, source="file", hub=hub)
        return tower.freeze(CPU, torch.float32).features(images)

    layers = tuple(config["vision_cfg"]["layers"] * (i + 1) // 4 - 1 for i in range(4))
    halves = ClipTower(state, config["vision_cfg"], layers, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert torch.equal(features("somebody/inception-clip"), halves.freeze(CPU, torch.float32).features(images))
    assert not torch.allclose(features("somebody/inception-clip"), features("somebody/else"), atol=1e-2)
    assert torch.equal(features("somebody/else"), features(""))


@pytest.mark.parametrize("reward", ["adversarial", "clip-score", "fid", "imagereward", "mix"])
@pytest.mark.parametrize("way", ["create_reward", "environment", "trainer"])
def test_offline_holds_for_what_a_reward_loads(
    way: str, reward: str, generator: Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The hub's client would be asked for the network, and nobody asks it, whatever the environment's variables say."""
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked: list[Any] = []

    def ask(_: Any, address: Any) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    def look_up(host: Any, *_: Any, **__: Any) -> None:
        ask(None, host)

    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    options: dict[str, Any] = {
        "adversarial": {"backbone": "clip", "backbone_weights": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"},
        "clip-score": {"model": "ViT-B-32-quickgelu", "weights": "openai"},
        "mix": {"terms": "imagereward:1", "options": {"imagereward": {"weights": "a/b", "tokenizer": "a/b"}}},
        "fid": {"features": "dinov2", "feature_options": {"weights": "timm/vit_base_patch14_dinov2.lvd142m"}},
        "imagereward": {"weights": "THUDM/ImageReward", "tokenizer": "google-bert/bert-base-uncased"},
    }
    chosen: Any = options[reward]
    with pytest.raises(WeightsError, match="offline"):
        if way == "create_reward":
            real = generator.real_images()
            create_reward(reward, chosen, generator=generator, real=real, device=CPU, seed=0, offline=True)
        elif way == "environment":
            GenerationVectorEnv(
                2, generator="maskgit", reward=reward, reward_options=chosen, device="cpu", offline=True
            )
        else:
            Trainer(validate({"reward": {"name": reward, "options": chosen}, "device": "cpu", "offline": True}))
    assert not asked


def test_open_clip_features_from_a_file(tmp_path: Path) -> None:
    """A model of open_clip's own format, with its normalisation and another activation."""
    import open_clip

    config = json.loads((FOLDER / "clip.json").read_text())
    config["quick_gelu"] = True
    (tmp_path / "tiny-test-tower.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-test-tower.json")
    weights = load_file(str(FOLDER / "clip.safetensors"))
    save_file(weights, str(tmp_path / "model.safetensors"))
    backbone = create_backbone("clip", model="tiny-test-tower", weights=str(tmp_path / "model.safetensors"), pool=2)
    model = open_clip.CLIP(**config).eval()
    model.load_state_dict({key: value.float() for key, value in weights.items()})
    seen: list[Tensor] = []
    model.visual.transformer.resblocks[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    images = torch.rand(2, 3, 64, 64, generator=seeded())
    mean, std = open_clip.constants.OPENAI_DATASET_MEAN, open_clip.constants.OPENAI_DATASET_STD
    with torch.no_grad():
        model.visual((images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])
        own = backbone(images)
    expected = F.avg_pool2d(seen[0][:, 1:].transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(own[:, -1], expected + seen[0][:, :1], atol=1e-4, rtol=1e-4)
    assert own.shape == (2, 4, 16, 192)
    assert backbone(torch.rand(1, 3, 100, 80)).shape == (1, 4, 16, 192)


def test_paper_architecture_with_crops(generator: Generator, tiny_file: Path) -> None:
    """The published heads on a small backbone of 32 px: images of 64 px are cropped, at one place an iteration."""
    reward = reward_of(
        generator,
        architecture="paper",
        backbone_model=TINY,
        backbone_weights=str(tiny_file),
        backbone_size=32,
        crop=1.0,
        batch=6,
        updates=1,
    )
    assert reward.options.norm == "local" and reward.options.learning_rate == 1e-4
    source = generator.real_images()
    assert source is not None and reward.backbone is not None
    index = torch.arange(13)
    images, context = source.images(index), source.contexts(index)
    crops = []
    for step in range(3):
        embedded = reward.embed(images, context)
        assert torch.equal(embedded, reward.embed(images, context)), "the crop changes within an iteration"
        resized = reward.backbone.features(images)
        assert embedded.shape == (13, 5, 4, 192) and not torch.allclose(embedded, resized)
        crops.append(embedded)
        figures = reward.update(
            embedded[:6], context.select(slice(0, 6)), reward.embed(1 - images, context), context, seed=step
        )
        assert math.isfinite(figures["loss"])
    assert not torch.allclose(crops[0], crops[1]) and not torch.allclose(crops[1], crops[2]), "the crop never changes"
    scores = reward.score(images, context)
    assert scores.shape == (13,) and scores.isfinite().all()


def test_published_checkpoint_starts_backbone_and_heads(generator: Generator, tmp_path: Path) -> None:
    """The layout of a published training checkpoint (names as in the golden fixtures), for 98 classes."""
    backbone = TimmViT("vit_small_patch16_224.dino")
    heads = PaperDiscriminator(backbone.layers, backbone.channels, classes=98, text_dim=None, seed=3)
    state = {f"module.{key}": value for key, value in published_state(backbone, heads).items()}
    file = tmp_path / "ckpt_7.pth"
    torch.save({"discriminator": state, "model": {"policy.actor.x": torch.ones(1)}, "global_step": 7}, file)
    reward = reward_of(generator, seed=9, architecture="paper", published=str(file))
    assert isinstance(reward.backbone, TimmViT)
    own = published_state(reward.backbone, reward.discriminator)
    assert all(torch.equal(own[key.removeprefix("module.")], value) for key, value in state.items())
    for key in [key for key in state if "cmapper" in key]:
        state[key] = state[key][..., :7]
    torch.save({"discriminator": state}, file)
    with pytest.raises(WeightsError, match="cmapper"):
        reward_of(generator, architecture="paper", published=str(file))
