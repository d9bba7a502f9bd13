"""The CLIP score of generators with prompts: which network gives it, and that it is of these images and these prompts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adanat_plugins.clip_models import ClipOptions, load_clip
from adanat_plugins.features.clip import EmbeddedClipFeatures
from adanat_toolkit.core import PromptScorer
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.evaluation import Yardstick, choose_scorer, evaluate_policies
from adanat_toolkit.images import MemoryImages
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_features, create_generator
from adanat_toolkit.sampling import sample, seed_range

from ..helpers.tiny_plugins import Pixels, TinyWithData

CPU = torch.device("cpu")


class Coarse(Pixels):
    """Pixels of 8x8 blocks: a Frechet distance of all 12,288 numbers of a 64x64 image takes minutes."""

    protocol = "coarse-v1"

    def __call__(self, images: Tensor) -> Tensor:
        return super().__call__(F.avg_pool2d(images, 8))


def test_images_are_scored_with_their_own_prompts() -> None:
    muse = create_generator("muse", {}, device=CPU, dtype=torch.float32)
    scorer = choose_scorer(muse, Coarse())
    assert isinstance(scorer, EmbeddedClipFeatures) and scorer.protocol.startswith("clip-emoji64-")
    real = muse.real_images()
    assert real is not None
    few = torch.arange(48)
    yardstick = Yardstick(muse, Coarse(), MemoryImages((real.images(few) * 255).round().to(torch.uint8)), scorer=scorer)
    policy = load_policy("fixed", muse, 2)
    seeds = seed_range(5, 24)
    images = yardstick.make(policy, seeds, batch=7)
    assert images.clip is not None

    made = [part for part in sample(muse, policy, seeds)]
    pictures = torch.cat([part.images for part in made])
    prompts = [prompt for part in made for prompt in part.context.prompts or ()]
    clip = load_clip("test", ClipOptions(model="emoji64"), "", CPU)
    rounded = (pictures.clamp(0, 1) * 255).round() / 255
    expected = 100 * (clip.images(rounded) * clip.texts(prompts)).sum(1).clamp(min=0)
    torch.testing.assert_close(images.clip.float(), expected, atol=1e-3, rtol=1e-4)
    # The prompts of other images give other scores: the pairing matters.
    mixed = 100 * (clip.images(rounded) * clip.texts(prompts[1:] + prompts[:1])).sum(1).clamp(min=0)
    assert float(images.clip.mean()) > float(mixed.mean()) + 5

    found = yardstick.judge(images, bootstrap=20)
    assert found.figures["clip_score"] == pytest.approx(float(expected.mean()), abs=1e-2)
    low, high = found.intervals["clip_score"]
    assert low < found.figures["clip_score"] < high
    assert found.settings["clip"] == scorer.protocol


def test_without_prompts_there_is_no_clip_score() -> None:
    generator = TinyWithData()
    assert choose_scorer(generator, Pixels()) is None
    yardstick = Yardstick(generator, Pixels(), generator.real_images())
    policy = load_policy("fixed", generator, 2)
    images = yardstick.make(policy, seed_range(0, 16))
    assert images.clip is None and "clip_score" not in yardstick.judge(images).figures


def test_a_protocol_that_reads_prompts_is_its_own_scorer() -> None:
    extractor = create_features("clip-emoji64", device=CPU)
    assert isinstance(extractor, PromptScorer)
    muse = create_generator("muse", {}, device=CPU, dtype=torch.float32)
    assert choose_scorer(muse, extractor) is extractor
    with pytest.raises(ConfigError, match="model"):
        create_features("clip-emoji64", {"model": "ViT-B-32"}, device=CPU)


class Grey(TinyWithData):
    """All its images are one, and so are its real ones."""

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return torch.ones(len(tokens), 3, *self.image_size)

    def real_images(self) -> MemoryImages:
        white = torch.full((40, 3, *self.image_size), 255, dtype=torch.uint8)
        return MemoryImages(white, labels=torch.zeros(40, dtype=torch.int64))


def test_a_hand_made_schedule_without_distance_has_no_multiple() -> None:
    """What is there is told; a ratio to nothing must not end in a traceback once all images were made."""
    generator = Grey()
    found = evaluate_policies(generator, ["fixed:linear"], Pixels(), generator.real_images(), count=32, steps=2)
    assert found.baselines[0].evaluation.figures["frechet"] == 0
    assert [row.ratio for row in found.rows] == [0]
