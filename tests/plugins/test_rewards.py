"""ImageReward, CLIP score, aesthetic heads and mixtures: what each computes, and how it fails."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from adanat_plugins.prepare import prepare_images
from adanat_plugins.rewards.aesthetic import LinearHead
from adanat_plugins.rewards.clip_score import ClipScoreReward
from adanat_plugins.rewards.imagereward import CLIP_MEAN, CLIP_STD, WordPiece, load_network
from adanat_toolkit.errors import AdaNATError, CheckpointError, ConfigError, DataError, WeightsError
from adanat_toolkit.images import FileImages, MemoryImages
from adanat_toolkit.interfaces import Context, Generator, LearnedReward, RewardModel
from adanat_toolkit.registry import create_features, create_generator, create_reward
from adanat_toolkit.registry.mixture import MixReward, standardise

from ..golden.checks_imagereward import check
from ..golden.harness import Fixture, Report
from ..helpers.subsets import in_memory
from .test_reward_contract import tiny_imagereward

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def generator() -> Generator:
    return create_generator("maskgit:emoji64", device=CPU, dtype=torch.float32)


@pytest.fixture(scope="module")
def emoji(generator: Generator) -> FileImages:
    source = generator.real_images()
    assert isinstance(source, FileImages)
    return source


@pytest.fixture(scope="module")
def few(emoji: FileImages) -> MemoryImages:
    """Every 40th image: some classes have one image, some none."""
    return in_memory(emoji, torch.arange(0, len(emoji), 40))


def make(spec: str, generator: Generator, real: MemoryImages | FileImages | None = None, **options: Any) -> Any:
    return create_reward(spec, options, generator=generator, real=real, device=CPU, seed=0)


def pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures with some noise, (count, H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 7, 9, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(c).resize((width, height), Image.Resampling.BICUBIC)) for c in coarse]
    noisy = np.stack(smooth).astype(int) + rng.integers(-20, 21, (count, height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8)


# --- images and prompts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "size"), [(64, 64, 224), (300, 300, 224), (256, 384, 224), (97, 61, 48)])
def test_images_are_prepared_as_by_torchvision(height: int, width: int, size: int) -> None:
    from torchvision import transforms as T

    reference = T.Compose(
        [
            T.Resize(size, interpolation=T.InterpolationMode.BICUBIC),
            T.CenterCrop(size),
            T.ToTensor(),
            T.Normalize(CLIP_MEAN, CLIP_STD),
        ]
    )
    raw = pictures(3, height, width)
    own = prepare_images(torch.from_numpy(raw).permute(0, 3, 1, 2) / 255, size, CLIP_MEAN, CLIP_STD)
    expected = torch.stack([reference(Image.fromarray(p)) for p in raw])
    assert own.shape == expected.shape == (3, 3, size, size)
    grey_levels = (own - expected).abs() * torch.tensor(CLIP_STD).view(1, 3, 1, 1) * 255
    assert grey_levels.max() < 2.01 and grey_levels.mean() < 0.02


def test_prompts_of_classes(generator: Generator, tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("".join(f"thing {i}\n" for i in range(98)))
    reward = make("clip-score", generator, template="emoji {id} of {name}", class_names=str(names))
    context = generator.encode_classes([3, 97])
    assert reward.prompts(context) == ("emoji 3 of thing 3", "emoji 97 of thing 97")
    default = make("clip-score", generator)
    assert default.prompts(context)[0] == f"a photo of a {generator.class_names[3]}"  # type: ignore[index]
    for field in ("colour", "name.foo", "name.__class__", "name[x]", "name:{id.foo}", "", "0"):
        with pytest.raises(ConfigError, match=r"does not fit .*may use \{name\} and \{id\}"):
            make("clip-score", generator, template=f"a {{{field}}} cat")
    with pytest.raises(ConfigError, match=r"1000 class names, but .* 98 classes"):
        make("clip-score", generator, class_names="imagenet")
    with pytest.raises(ConfigError, match=r"cannot read .*absent.txt.*one class name a line"):
        make("clip-score", generator, class_names=str(tmp_path / "absent.txt"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_class_names_are_read_as_prompts_are(generator: Generator, encoding: str, tmp_path: Path) -> None:
    """A mark at the start is no part of the first name, and a separator inside a name does not end it."""
    names = [f"größe\u2028{i}\x85x" for i in range(98)]
    (tmp_path / "names.txt").write_bytes("\r\n".join(names).encode(encoding))
    reward = make("clip-score", generator, template="{name}", class_names=str(tmp_path / "names.txt"))
    assert reward.prompts(generator.encode_classes([0, 97])) == (names[0], names[97])
    (tmp_path / "names.txt").write_bytes("\n".join(names).encode("latin-1", "replace"))
    with pytest.raises(DataError, match=r"line 1 of .* is not UTF-8"):
        make("clip-score", generator, class_names=str(tmp_path / "names.txt"))


def test_an_unconditional_generator_needs_a_prompt() -> None:
    mage = create_generator("mage:emoji64", device=CPU, dtype=torch.float32)
    with pytest.raises(ConfigError, match="unconditional"):
        make("clip-score", mage)
    reward = make("clip-score", mage, template="flat emoji of a cat")
    assert reward.prompts(Context(2)) == ("flat emoji of a cat",) * 2


# --- ImageReward ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_imagereward_at_its_real_size() -> None:
    report = Report()
    check(Fixture(Path(__file__).parents[1] / "golden" / "fixtures_slow" / "imagereward_full"), report)
    assert len(report.comparisons) == 6 and all(c.ok for c in report.comparisons), report.summary()


def test_wordpiece_ids(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "##s", ",", "red", "cafe", "三", "!", "emo", "##ji"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    tokenize = WordPiece(tmp_path / "vocab.txt")
    ids, mask = tokenize(["A red CATS, emoji!", "Café 三三 dog", "red " * 60, ""])
    assert ids.shape == mask.shape == (4, 35)
    assert ids[0, :10].tolist() == [2, 4, 8, 5, 6, 7, 12, 13, 11, 3] and mask[0].sum() == 10
    assert ids[1, :6].tolist() == [2, 9, 10, 10, 1, 3]
    assert ids[2].tolist() == [2, *[8] * 33, 3] and mask[2].all()
    assert ids[3].tolist() == [2, 3, *[0] * 33] and mask[3].sum() == 2
    (tmp_path / "other.txt").write_text("one\ntwo\n")
    with pytest.raises(WeightsError, match=r"\[PAD\]"):
        WordPiece(tmp_path / "other.txt")


def test_imagereward_reads_the_published_layout(generator: Generator, tmp_path: Path) -> None:
    options = tiny_imagereward(tmp_path)
    reward = make("imagereward", generator, **options)
    images = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    context = generator.encode_classes([0, 5, 5, 60, 97])
    network = load_network(Path(options["weights"]), CPU)
    names = [f"a photo of a {generator.class_names[i]}" for i in context.classes.tolist()]  # type: ignore[index,union-attr]
    ids, mask = WordPiece(Path(options["tokenizer"]))(names)
    expected = network(prepare_images(images, 32, CLIP_MEAN, CLIP_STD), ids, mask)[:, 0]
    torch.testing.assert_close(reward.score(images, context), expected)
    assert (reward.score(images, generator.encode_classes([7] * 5)) != expected).sum() > 2, "prompts are not read"
    # Files written by newer libraries leave the fixed position buffer out.
    state = torch.load(options["weights"], weights_only=True)
    del state["blip.text_encoder.embeddings.position_ids"]
    save_file(state, str(tmp_path / "plain.safetensors"))
    again = make("imagereward", generator, **{**options, "weights": str(tmp_path / "plain.safetensors")})
    torch.testing.assert_close(again.score(images, context), reward.score(images, context))


def test_imagereward_says_what_is_missing(
    generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / "nothing"))
    options = tiny_imagereward(tmp_path)
    with pytest.raises(WeightsError, match=r"vocabulary.*vocab\.txt does not exist"):
        make("imagereward", generator)
    with pytest.raises(WeightsError, match=r"(?s)ImageReward\.pt does not exist.*reward\.options\.weights="):
        make("imagereward", generator, tokenizer=options["tokenizer"])
    state = torch.load(options["weights"], weights_only=True)
    torch.save({k: v for k, v in state.items() if "blocks.1.mlp.fc2" not in k}, tmp_path / "cut.pt")
    with pytest.raises(WeightsError, match=r"missing .*blocks\.1\.mlp\.fc2\.weight"):
        make("imagereward", generator, tokenizer=options["tokenizer"], weights=str(tmp_path / "cut.pt"))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "foreign.pt")
    with pytest.raises(WeightsError, match="not an ImageReward file"):
        make("imagereward", generator, tokenizer=options["tokenizer"], weights=str(tmp_path / "foreign.pt"))
    (tmp_path / "short.pt").write_bytes(Path(options["weights"]).read_bytes()[:5000])
    with pytest.raises(WeightsError):
        make("imagereward", generator, tokenizer=options["tokenizer"], weights=str(tmp_path / "short.pt"))


# --- CLIP score -------------------------------------------------------------------------------------------------------


def test_clip_score_tells_captions_apart(emoji: FileImages) -> None:
    muse = create_generator("muse:emoji64", device=CPU, dtype=torch.float32)
    reward = make("clip-score", muse)
    index = torch.arange(50, len(emoji), 400)
    assert emoji.captions is not None
    prompts = [emoji.captions[i] for i in index.tolist()]
    images = emoji.images(index)
    own = reward.score(images, muse.encode_prompts(prompts))
    other = reward.score(images, muse.encode_prompts(prompts[1:] + prompts[:1]))
    assert own.mean() > 50 and other.mean() < 30
    assert (own > other).float().mean() > 0.95
    assert own.abs().max() <= 100
    with pytest.raises(ConfigError, match="prompts of its own"):
        make("clip-score", muse, template="a {name}")


def test_clip_score_is_open_clips_cosine(generator: Generator, emoji: FileImages) -> None:
    reward = make("clip-score", generator, template="noto emoji of {name}")
    context = generator.encode_classes([4, 60])
    images = emoji.images(torch.tensor([10, 20]))
    network, tokenize = reward.clip.network, reward.clip._tokenize
    with torch.no_grad():
        image = network.encode_image(images * 2 - 1)
        text = network.encode_text(tokenize(list(reward.prompts(context))))
    expected = 100 * torch.nn.functional.cosine_similarity(image, text)
    torch.testing.assert_close(reward.score(images, context), expected, rtol=1e-4, atol=1e-4)


def test_captions_say_more_about_a_class_than_its_name(generator: Generator, emoji: FileImages) -> None:
    index = torch.arange(3, len(emoji), 60)
    images, labels = emoji.images(index), emoji.labels[index]  # type: ignore[index]
    every = generator.encode_classes(range(98))

    def accuracy(reward: ClipScoreReward) -> float:
        guess = (reward.clip.images(images) @ reward.text_embeddings(every).T).argmax(1)
        return float((guess == labels).float().mean())

    by_captions, by_name = (
        accuracy(make("clip-score", generator, emoji, captions=32)),
        accuracy(make("clip-score", generator)),
    )
    assert by_captions > 0.12 > 0.06 > by_name


def test_class_embeddings_are_means_over_captions(generator: Generator, few: MemoryImages) -> None:
    assert few.labels is not None and few.captions is not None
    reward = make("clip-score", generator, few, captions=3)
    counts = torch.bincount(few.labels, minlength=98)
    several, absent = int(counts.argmax()), int(counts.argmin())
    assert counts[several] > 6 and counts[absent] == 0
    own = reward.text_embeddings(generator.encode_classes([several, absent]))
    captions = [few.captions[i] for i in (few.labels == several).nonzero()[:, 0].tolist()]
    spread = [captions[0], captions[round((len(captions) - 1) / 2)], captions[-1]]
    mean = reward.clip.texts(spread).mean(0)
    torch.testing.assert_close(own[0], mean / mean.norm())
    name = generator.class_names[absent]  # type: ignore[index]
    torch.testing.assert_close(own[1], reward.clip.texts([f"a photo of a {name}"])[0])


def test_any_open_clip_model_from_local_files(generator: Generator, tmp_path: Path) -> None:
    import open_clip

    model = {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(0)
    network = open_clip.CLIP(**model).eval()
    recipe = {"mean": [0.4, 0.5, 0.6], "std": [0.3, 0.2, 0.1], "interpolation": "bicubic", "resize_mode": "shortest"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": recipe}))
    save_file(network.state_dict(), str(tmp_path / "open_clip_model.safetensors"))
    reward = make("clip-score", generator, model=str(tmp_path), template="a {name}")
    context = generator.encode_classes([1, 2, 3])
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = network.encode_text(open_clip.get_tokenizer(f"local-dir:{tmp_path}")(list(reward.prompts(context))))
        image = network.encode_image(prepare_images(images, 32, (0.4, 0.5, 0.6), (0.3, 0.2, 0.1)))
    expected = 100 * torch.nn.functional.cosine_similarity(image, text)
    torch.testing.assert_close(reward.score(images, context), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        ("text_cfg", {"hf_model_name": "owner/repo"}, "hf_model_name = 'owner/repo'"),
        ("text_cfg", {"hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}}, "trust_remote_code = True"),
        ("text_cfg", {"tokenizer_kwargs": {"bpe_path": "/etc/passwd"}}, "bpe_path = '/etc/passwd'"),
        ("vision_cfg", {"timm_model_name": "hf-hub:owner/repo"}, "timm_model_name = 'hf-hub:owner/repo'"),
    ],
)
def test_a_clip_folder_is_not_followed_elsewhere(
    part: str, values: dict[str, Any], named: str, generator: Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("open_clip was asked"))
    model = {"embed_dim": 24, "vision_cfg": {}, "text_cfg": {}} | {part: values}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    with pytest.raises(ConfigError, match=re.escape(f"names {named}. What a folder names is not followed")):
        make("clip-score", generator, model=str(tmp_path))


def test_clip_errors_name_the_remedy(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ViT-B-32'"):
        make("clip-score", generator, model="ViT-B-32x")
    with pytest.raises(WeightsError, match=r"has no weights.*openai"):
        make("clip-score", generator, model="ViT-B-32")
    with pytest.raises(WeightsError, match="no file and no tag"):
        make("clip-score", generator, model="ViT-B-32", weights=str(tmp_path / "absent.pt"))
    with pytest.raises(ConfigError, match=r"another activation .* give model=ViT-B-32-quickgelu"):
        make("clip-score", generator, model="ViT-B-32", weights="openai")
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="could not be loaded"):
        make("clip-score", generator, model=str(tmp_path))
    for model in ("auto", "emoji64", str(tmp_path)):
        with pytest.raises(ConfigError, match=r"weights = 'openai' .* would not be used"):
            make("clip-score", generator, model=model, weights="openai")


def test_rewards_say_which_protocols_they_read(generator: Generator, emoji: FileImages) -> None:
    """What they have trained is then marked where one of these judges it."""
    embedded = create_features("clip-emoji64", device=CPU).protocol
    own = create_features("emoji64", device=CPU).protocol

    def reads(spec: str, **options: Any) -> frozenset[str]:
        return create_reward(spec, options, generator=generator, real=emoji, device=CPU, seed=0).reads

    assert reads("clip-score") == {embedded} and reads("adversarial") == {embedded} and reads("fid") == {own}
    assert reads("fid:influence", features="clip-emoji64") == {embedded}
    assert reads("adversarial", backbone="none") == frozenset()
    assert reads("clip-score:1,fid:0.5") == {embedded, own}


# --- aesthetic --------------------------------------------------------------------------------------------------------


def test_aesthetic_head_in_the_published_layout(generator: Generator, emoji: FileImages, tmp_path: Path) -> None:
    torch.manual_seed(0)
    # Numbers with gaps, where the published file had dropout; more than ten, so that "10" must not sort before "2".
    layers = {"layers.0": nn.Linear(128, 32), "layers.2": nn.Linear(32, 8), "layers.10": nn.Linear(8, 1)}
    torch.save(
        {f"{k}.{n}": p for k, layer in layers.items() for n, p in layer.state_dict().items()}, tmp_path / "head.pth"
    )
    images, context = emoji.images(torch.arange(4)), generator.encode_classes([0] * 4)
    for activation, function in (("none", lambda x: x), ("relu", torch.relu)):
        reward = make("aesthetic", generator, head=str(tmp_path / "head.pth"), activation=activation)
        x = reward.clip.images(images)
        expected = layers["layers.10"](function(layers["layers.2"](function(layers["layers.0"](x)))))[:, 0]
        torch.testing.assert_close(reward.score(images, context), expected)
    raw = make("aesthetic", generator, head=str(tmp_path / "head.pth"), normalise=False)
    assert not torch.allclose(raw.score(images, context), expected)


def test_aesthetic_heads_that_do_not_fit(generator: Generator, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a head"):
        make("aesthetic", generator)
    torch.save({"weight": torch.ones(1, 768), "bias": torch.ones(1)}, tmp_path / "vit_l.pth")
    with pytest.raises(WeightsError, match="from 128 features to 1 number, found weight"):
        make("aesthetic", generator, head=str(tmp_path / "vit_l.pth"))
    assert float(LinearHead.load(tmp_path / "vit_l.pth", 768, "none")(torch.ones(1, 768))) == 769
    with pytest.raises(WeightsError, match="does not exist"):
        make("aesthetic", generator, head=str(tmp_path / "absent.pth"))


# --- mix --------------------------------------------------------------------------------------------------------------


def test_standardise() -> None:
    values = torch.tensor([1.0, 2.0, 4.0, 9.0])
    own = standardise(values)
    torch.testing.assert_close(own, (values - 4) / values.std())
    torch.testing.assert_close(standardise(values * 1e4 - 7e5), own, rtol=1e-4, atol=1e-4)
    assert torch.equal(standardise(torch.full((5,), 0.3) + torch.arange(5) * 1e-9), torch.zeros(5))
    assert torch.equal(standardise(torch.tensor([3.0])), torch.zeros(1))


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("heads")
    weight = torch.randn(1, 128, generator=torch.Generator().manual_seed(2))
    save_file({"weight": weight}, str(folder / "head.safetensors"))
    return {"head": str(folder / "head.safetensors")}


def test_mixture_is_the_weighted_sum_of_standardised_terms(
    generator: Generator, few: MemoryImages, heads: dict[str, str]
) -> None:
    mix = make("clip-score:2,aesthetic:-0.5", generator, few, options={"aesthetic": heads})
    assert not mix.learns and mix.set_level
    index = torch.arange(0, 225, 25)
    images, context = few.images(index), few.contexts(index)
    terms: dict[str, RewardModel] = {
        "clip-score": make("clip-score", generator, few),
        "aesthetic": make("aesthetic", generator, **heads),
    }
    raw = {name: reward.score(images, context) for name, reward in terms.items()}
    z = {name: (s - s.mean()) / s.std() for name, s in raw.items()}
    scores = mix.score(images, context)
    torch.testing.assert_close(scores, 2 * z["clip-score"] - 0.5 * z["aesthetic"], rtol=1e-4, atol=1e-4)
    assert mix.terms().keys() == raw.keys()
    for name, values in mix.terms().items():
        torch.testing.assert_close(values, raw[name], rtol=1e-4, atol=1e-4)
    assert mix.embed(images, context).shape == (9, 2), "of a frozen term only the score is kept"


def test_mixture_that_learns(generator: Generator, emoji: FileImages, heads: dict[str, str]) -> None:
    options = {"adversarial": {"updates": 1, "batch": 8}, "fid:influence": {"history": 64}, "aesthetic": heads}
    spec = "aesthetic:1,adversarial:1,fid:influence:1"

    def build() -> MixReward:
        reward = make(spec, generator, emoji, options=options)
        assert isinstance(reward, MixReward) and reward.learns
        return reward

    first, second = build(), build()
    assert first.real_per_update == 8 and "real_images" in first.needs
    index = torch.arange(0, 800, 100)
    images, context = emoji.images(index), emoji.contexts(index)
    fakes, fake_context = images.flip(0) * 0.9, context.select(torch.arange(7, -1, -1))
    # The second reads only what its learners need of the real images, before anything else was embedded.
    real_short = second.embed_real(images, context)
    figures = first.update(
        first.embed(images, context), context, first.embed(fakes, fake_context), fake_context, seed=5
    )
    second.update(real_short, context, second.embed(fakes, fake_context), fake_context, seed=5)
    assert {"adversarial/loss", "fid:influence/distance"} <= figures.keys()
    assert torch.equal(first.score(images, context), second.score(images, context))
    assert {"adversarial", "aesthetic", "fid:influence", "fid:influence/frechet"} <= first.terms().keys()
    names = {key.partition("/")[0] for key in first.state()}
    assert names == {"adversarial", "fid:influence"}
    with pytest.raises(CheckpointError, match="no term"):
        first.load_state({"clip-score/x": torch.zeros(1)})


class Narrow(LearnedReward):
    """Embeds real images in fewer columns than generated ones: its update reads the colours, its score the first pixel."""

    real_per_update = 4

    def __init__(self) -> None:
        """Nothing to build."""

    def embed(self, images: Tensor, context: Context) -> Tensor:
        return torch.cat([images.mean((2, 3)), images.flatten(1)[:, :1]], 1)

    def embed_real(self, images: Tensor, context: Context) -> Tensor:
        return images.mean((2, 3))

    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        return embedded[:, 3]

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        return {"real": float(real.mean()), "fake": float(fake.mean()), "columns": float(real.shape[1])}


class Numbered(RewardModel):
    """Embeds images as whole numbers that float32 does not hold."""

    set_level = True

    def __init__(self, first: int = 2**24 + 1) -> None:
        self.first = first

    def embed(self, images: Tensor, context: Context) -> Tensor:
        return torch.arange(len(images))[:, None] + self.first

    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        return (embedded[:, 0] % 7).float()

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)


class Bright(RewardModel):
    def __init__(self) -> None:
        """Nothing to build."""

    def score(self, images: Tensor, context: Context) -> Tensor:
        return images.mean((1, 2, 3))


def test_terms_of_a_mixture_embed_real_images_in_their_own_form() -> None:
    images, context, alone = torch.rand(6, 3, 4, 4), Context(6), Narrow()
    mix = MixReward({"bright": Bright(), "narrow": Narrow()}, {"bright": 1.0, "narrow": 1.0})
    about = context.select(slice(0, 4))
    for _ in range(2):
        fakes = mix.embed(images, context)
        mix.score_embedded(fakes, context)
        figures = mix.update(mix.embed_real(images[:4], about), about, fakes, context, seed=1)
        own = alone.update(alone.embed_real(images[:4], about), about, alone.embed(images, context), context, seed=1)
        assert figures == pytest.approx({f"narrow/{key}": value for key, value in own.items()}) and own["columns"] == 3
        assert torch.equal(mix.score_embedded(fakes, context), mix.score(images, context))


def test_terms_of_a_mixture_embed_whole_numbers() -> None:
    images, context = torch.rand(6, 3, 4, 4), Context(6)
    for first in (5, 2**24 + 1, 2**40 + 1):
        mix = MixReward({"numbered": Numbered(first), "bright": Bright()}, {"numbered": 1.0, "bright": 1.0})
        mix.score(images, context)
        assert torch.equal(mix.terms()["numbered"], Numbered(first).score(images, context))
    with pytest.raises(ConfigError, match=r"'numbered' embeds images as torch.int64 with numbers above 2\*\*53"):
        MixReward({"numbered": Numbered(2**60), "bright": Bright()}, {"numbered": 1.0, "bright": 1.0}).score(images, context)


def test_mixture_errors(generator: Generator, few: MemoryImages) -> None:
    with pytest.raises(ConfigError, match="no term of the mixture"):
        make("clip-score:1,fid:1", generator, few, options={"clip-scor": {}})
    with pytest.raises(AdaNATError, match=r"(needs|compares with) real images"):
        make("clip-score:1,fid:1", generator)
    with pytest.raises(AdaNATError, match="unknown reward"):
        make("clip-score:1,clipscore:1", generator, few)
    with pytest.raises(ConfigError, match="contains a mixture"):
        make("mix:1,clip-score", generator, few)
