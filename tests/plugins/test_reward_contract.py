"""Every registered reward keeps the contract of ``RewardModel``, whatever it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adanat_plugins.rewards.imagereward_net import ImageRewardConfig, ImageRewardNet
from adanat_toolkit import testing
from adanat_toolkit.errors import CheckpointError
from adanat_toolkit.images import FileImages, MemoryImages
from adanat_toolkit.interfaces import Context, Generator, RewardModel
from adanat_toolkit.registry import create_generator, create_reward, discover

from ..helpers.subsets import in_memory

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
    assert isinstance(every, FileImages)
    real = in_memory(every, torch.arange(0, len(every), 45))
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
@pytest.mark.parametrize("check", testing.REWARD_CHECKS, ids=lambda check: check.__name__)
def test_contract(world: World, check: Callable[[testing.RewardCase], None], spec: str) -> None:
    check(testing.RewardCase(lambda seed: world.reward(spec, seed), world.images, world.context, world.real))


def test_the_generator_is_not_trained(world: World) -> None:
    network: Any = world.generator
    assert not any(p.requires_grad for p in network.network.parameters())


class Novelty(RewardModel):
    """Learns from generated images alone: how far they are from those of before."""

    learns = True

    def __init__(self) -> None:
        self.usual = torch.zeros(())

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        return (images.mean((1, 2, 3)) - self.usual).abs()

    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        assert len(real) == len(real_context) == 0 and real.shape[1:] == fake.shape[1:]
        self.usual = fake.mean()
        return {"usual": float(self.usual)}

    def state(self) -> dict[str, Tensor]:
        return {"usual": self.usual}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if state["usual"].shape != ():
            raise CheckpointError("usual must be one number.")
        self.usual = state["usual"].clone()


def test_a_reward_that_learns_without_real_images_is_checked_without(world: World) -> None:
    testing.check_reward(testing.RewardCase(lambda seed: Novelty(), world.images, world.context))
