"""Every registered reward keeps the contract of ``RewardModel``, whatever it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adanat_plugins.rewards.imagereward_net import ImageRewardConfig, ImageRewardNet
from adanat_toolkit.data import MemoryImages
from adanat_toolkit.errors import CheckpointError
from adanat_toolkit.interfaces import Context, Generator, LearnedReward, RewardModel
from adanat_toolkit.registry import create_generator, create_reward, discover

CPU = torch.device("cpu")
COUNT = 12
VARIANTS = ("fid:influence",)
SPECS = sorted({plugin.name for plugin in discover("reward") if not plugin.shadowed} | set(VARIANTS))


@dataclass(frozen=True)
class World:
    """A generator, a small set of real images, and a batch of images with contexts to score."""

    generator: Generator
    real: MemoryImages
    images: Tensor
    context: Context
    options: dict[str, dict[str, Any]]

    def reward(self, spec: str, seed: int = 0) -> RewardModel:
        return create_reward(
            spec, self.options.get(spec), generator=self.generator, real=self.real, device=CPU, seed=seed
        )


def tiny_imagereward(folder: Path, seed: int = 0) -> dict[str, Any]:
    """Random weights of a small ImageReward in the published layout, and a vocabulary."""
    torch.manual_seed(seed)
    config = ImageRewardConfig(
        image_size=32,
        patch_size=16,
        vision_width=64,
        vision_depth=2,
        vision_heads=1,
        text_hidden=64,
        text_layers=2,
        text_heads=1,
        text_intermediate=128,
        vocab=40,
        max_positions=48,
        proj_dim=16,
    )
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "photo", "of", "&", "/", "animals", "activities", "sport", "game"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    state = ImageRewardNet(config).state_dict()
    state["mlp.layers.7.weight"] = state["mlp.layers.7.weight"] * 30  # untrained outputs hardly vary
    torch.save(state, folder / "ImageReward.pt")
    return {"weights": str(folder / "ImageReward.pt"), "tokenizer": str(folder / "vocab.txt")}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("rewards")
    generator = create_generator("maskgit:emoji64", device=CPU, dtype=torch.float32)
    every = generator.real_images()
    assert isinstance(every, MemoryImages) and every.labels is not None and every.captions is not None
    index = torch.arange(0, len(every), 45)
    real = MemoryImages(
        every.pixels[index], labels=every.labels[index], captions=[every.captions[i] for i in index.tolist()]
    )
    chosen = torch.arange(0, COUNT) * 7
    images = real.images(chosen) + 0.1 * torch.randn(COUNT, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    save_file(
        {"weight": torch.randn(1, 128, generator=torch.Generator().manual_seed(2))}, str(folder / "head.safetensors")
    )
    learner = {"updates": 1, "batch": 16}
    options = {
        "adversarial": learner,
        "imagereward": tiny_imagereward(folder),
        "aesthetic": {"head": str(folder / "head.safetensors")},
        "fid": {"group": 4},
        "fid:influence": {"history": 64},
        "mix": {"terms": "adversarial:1,clip-score:0.3,fid:influence:-0.2", "options": {"adversarial": learner}},
    }
    return World(generator, real, images.clamp(0, 1), real.contexts(chosen), options)


@pytest.mark.parametrize("spec", SPECS)
def test_scores(world: World, spec: str) -> None:
    reward = world.reward(spec)
    scores = reward.score(world.images, world.context)
    assert scores.shape == (COUNT,) and scores.dtype == torch.float32
    assert torch.isfinite(scores).all() and scores.std() > 0
    whole = reward.embed(world.images, world.context)
    assert whole.shape[0] == COUNT
    torch.testing.assert_close(reward.score_embedded(whole, world.context), scores)
    # Micro-batches of unlike sizes.
    rows = [slice(0, 5), slice(5, 6), slice(6, COUNT)]
    parts = torch.cat([reward.embed(world.images[r], world.context.select(r)) for r in rows])
    torch.testing.assert_close(reward.score_embedded(parts, world.context), scores, rtol=1e-3, atol=1e-3)
    for name, values in reward.terms().items():
        assert values.shape == (COUNT,) and torch.isfinite(values).all(), name
    assert all(count > 0 for count in reward.parameters_count().values())


@pytest.mark.parametrize("spec", SPECS)
def test_batch_of_one(world: World, spec: str) -> None:
    reward = world.reward(spec)
    score = reward.score(world.images[:1], world.context.select(slice(0, 1)))
    assert score.shape == (1,) and torch.isfinite(score).all()


@pytest.mark.parametrize("spec", SPECS)
def test_determinism(world: World, spec: str) -> None:
    first, second = world.reward(spec, seed=3), world.reward(spec, seed=3)
    torch.manual_seed(11)
    scores = first.score(world.images, world.context)
    torch.manual_seed(12)
    assert torch.equal(scores, first.score(world.images, world.context)), "scoring twice gives other scores"
    assert torch.equal(scores, second.score(world.images, world.context)), "the seed does not determine the reward"


@pytest.mark.parametrize("spec", SPECS)
def test_no_gradient_into_the_generator(world: World, spec: str) -> None:
    reward = world.reward(spec)
    images = world.images.clone().requires_grad_(True)
    with torch.enable_grad():
        scores = reward.score(images, world.context)
        embedded = reward.embed(images, world.context)
    assert not scores.requires_grad and not embedded.requires_grad
    network: Any = world.generator
    assert not any(p.requires_grad for p in network.network.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_neighbours_do_not_matter(world: World, spec: str) -> None:
    reward = world.reward(spec)
    if reward.set_level:
        pytest.skip(f"{spec} scores a set: its docstring says how it credits samples")
    scores = reward.score(world.images, world.context)
    order = torch.tensor([4, 0, 11, 7])
    some = reward.score(world.images[order], world.context.select(order))
    torch.testing.assert_close(some, scores[order], rtol=1e-4, atol=1e-4)
    one = slice(4, 5)
    alone = reward.score(world.images[one], world.context.select(one))
    torch.testing.assert_close(alone, scores[one], rtol=1e-4, atol=1e-4)


def learn(world: World, reward: LearnedReward, seed: int) -> dict[str, float]:
    index = torch.arange(reward.real_per_update) * 3 + seed
    context = world.real.contexts(index)
    real = reward.embed(world.real.images(index), context)
    fake = reward.embed(world.images[:7] * 0.8, world.context.select(slice(0, 7)))
    return reward.update(real, context, fake, world.context.select(slice(0, 7)), seed=seed)


@pytest.mark.parametrize("spec", SPECS)
def test_save_and_load(world: World, spec: str) -> None:
    reward = world.reward(spec)
    if not isinstance(reward, LearnedReward):
        assert reward.state() == {}
        reward.load_state({})
        return
    before = reward.score(world.images, world.context)
    figures = learn(world, reward, seed=1)
    assert figures and all(torch.isfinite(torch.tensor(value)) for value in figures.values())
    learned = reward.score(world.images, world.context)
    assert not torch.equal(learned, before), "an update changes nothing"
    saved = {key: value.clone() for key, value in reward.state().items()}
    resumed = world.reward(spec, seed=99)
    assert isinstance(resumed, LearnedReward)
    resumed.load_state({key: value.clone() for key, value in saved.items()})
    assert torch.equal(resumed.score(world.images, world.context), learned)
    learn(world, reward, seed=2)
    learn(world, resumed, seed=2)
    assert torch.equal(resumed.score(world.images, world.context), reward.score(world.images, world.context)), (
        "the state misses something that the next update needs"
    )
    key = max(saved, key=lambda k: saved[k].numel())
    with pytest.raises(CheckpointError):
        resumed.load_state({**saved, key: saved[key].flatten()[1:]})
