"""Captions of the user's own: what a text-conditional generator makes is asked for by the data that it is judged against."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adanat_plugins.emoji64 import data as emoji
from adanat_toolkit.compare import Comparison, configure
from adanat_toolkit.core import Noise, sample_seeds
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.evaluation import evaluate_policies, own_contexts
from adanat_toolkit.images import MemoryImages, draw_contexts, images_for
from adanat_toolkit.integrations.gym_env import GenerationVectorEnv
from adanat_toolkit.interfaces import Context
from adanat_toolkit.policies import load_policy
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.training import Trainer, create_trainer, validate

from ..helpers.tiny import Dark, TinyGenerator
from ..helpers.tiny_plugins import Pixels

CAPTIONS = ("a red kite", "two boats", "snow at night")
SETTINGS: dict[str, Any] = {
    "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 2,
    "trajectories": 32, "batch": 16, "device": "cpu", "dtype": "float32",
}  # fmt: skip


class WithoutCaptions(TinyGenerator):
    """Ships no captions, as most text-conditional generators."""

    def __init__(self) -> None:
        super().__init__("text")
        self.asked: set[str] = set()

    def sample_contexts(self, noise: Noise) -> Context:
        raise ConfigError("no captions ship with it")

    def reset(self, context: Context, *rest: Any, **more: Any) -> Any:
        self.asked |= set(context.prompts or ())
        return super().reset(context, *rest, **more)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real images with captions; the generator, the reward and the features are installed as plug-ins."""
    info = tmp_path / "site" / "own_captions-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-captions\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[adanat.generators]\ntiny = {__name__}:WithoutCaptions\n[adanat.rewards]\ndark = {__name__}:Dark\n"
        f"[adanat.features]\npixels = {__name__}:Pixels\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    images, rows = tmp_path / "images", []
    images.mkdir()
    for i in range(40):
        Image.new("RGB", (5, 3), (6 * i, 250 - 6 * i, 10 * (i % 20))).save(images / f"{i}.png")
        rows.append(json.dumps({"file": f"{i}.png", "caption": CAPTIONS[i % 3]}))
    (images / "metadata.jsonl").write_text("\n".join(rows))
    return images


def prompts_of(generator: Any) -> set[str]:
    assert isinstance(generator, WithoutCaptions)
    return generator.asked


def test_a_seed_draws_one_caption_of_the_data(folder: Path) -> None:
    generator = WithoutCaptions()
    source = images_for(generator, folder)
    noise = Noise(sample_seeds(0, 0, 0, 400))
    drawn = draw_contexts(generator, noise, source).prompts
    assert drawn is not None
    shares = torch.tensor([drawn.count(caption) / 400 for caption in CAPTIONS])
    torch.testing.assert_close(shares, torch.tensor([14, 13, 13]) / 40, atol=0.1, rtol=0)
    some = torch.tensor([7, 3, 200])
    assert draw_contexts(generator, noise.select(some), source).prompts == tuple(drawn[i] for i in some)
    with pytest.raises(ConfigError, match="no captions ship"):
        draw_contexts(generator, noise)


def test_the_embedded_captions_are_drawn_alike() -> None:
    def encode(prompts: Any) -> Context:
        return Context(len(prompts), prompts=tuple(prompts))

    noise, generator = Noise(sample_seeds(1, 0, 0, 50)), WithoutCaptions()
    source = emoji.emoji_images().conditioned("text", encode)
    assert draw_contexts(generator, noise, source).prompts == emoji.sample_captions(noise)


def test_captions_of_the_users_own_only() -> None:
    text, classes = WithoutCaptions(), TinyGenerator("class")
    source = MemoryImages(torch.zeros(2, 3, 3, 5, dtype=torch.uint8), captions=["a", "b"])
    assert own_contexts(text, "folder", source) is source
    assert own_contexts(text, None, source) is None and own_contexts(classes, "folder", source) is None


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_training_and_its_readings(folder: Path, tmp_path: Path, engine: str) -> None:
    settings = {
        "evaluate_every": 1,
        "evaluate_images": 16,
        "evaluate_features": "pixels",
        "data": {"path": str(folder)},
    }
    trainer = create_trainer(validate({**SETTINGS, **settings, "engine": engine}))
    row = trainer.run(tmp_path / "run")
    assert row["iteration"] == 2 and "yardstick/frechet" in row
    assert prompts_of(trainer.generator) == set(CAPTIONS)
    with pytest.raises(ConfigError, match="no captions ship"):
        Trainer(validate(SETTINGS)).step()


def test_evaluating_and_comparing(folder: Path, tmp_path: Path) -> None:
    generator = WithoutCaptions()
    source = images_for(generator, folder)
    found = evaluate_policies(generator, [], Pixels(), source, count=40, steps=2, contexts_from=source)  # type: ignore[arg-type]
    assert found.baselines and prompts_of(generator) == set(CAPTIONS)
    base = validate({**SETTINGS, "data": {"path": str(folder)}})
    comparison = Comparison(
        configure(base=base, policies=("shared",), rewards=("dark",), steps=(2,), seeds=(0,), candidates=0, images=40,
                  features="pixels"), tmp_path / "out"
    )  # fmt: skip
    assert [result.error for result in comparison.run()] == [None, None]


def test_episodes_of_the_environment(folder: Path) -> None:
    generator = WithoutCaptions()
    env = GenerationVectorEnv(
        16, generator=generator, reward=Dark(None, generator=generator, real=None, device=torch.device("cpu"), seed=0),  # type: ignore[arg-type]
        steps=2, data=str(folder),
    )  # fmt: skip
    env.reset(seed=3)
    assert prompts_of(generator) == set(CAPTIONS)


def test_contexts_are_drawn_a_batch_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text states of 50,000 prompts at once would take gigabytes."""
    generator = WithoutCaptions()
    source = images_for(generator, folder)
    sizes: list[int] = []

    def contexts(noise: Noise) -> Context:
        sizes.append(len(noise))
        return draw_contexts(generator, noise, source)

    monkeypatch.setattr(sys.modules["adanat_toolkit.sampling.sample"], "measured_size", lambda *_, **__: None)
    policy = load_policy("fixed:cosine", generator, 2)
    parts = list(sample(generator, policy, seed_range(0, 20), contexts, batch=8))
    assert sizes == [8, 8, 4]
    whole = contexts(Noise(seed_range(0, 20)))
    (at_once,) = sample(generator, policy, seed_range(0, 20), whole, batch=20)
    torch.testing.assert_close(torch.cat([part.images for part in parts]), at_once.images, rtol=0, atol=0)
