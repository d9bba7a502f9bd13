"""The adversarial reward: what it sees, what it learns, what its options do, and that a resumed run is the same run."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from safetensors.torch import load_file, save_file
from torch import Tensor

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.rewards.adversarial import AdversarialReward
from adanat_plugins.rewards.clip_tower import emoji64_clip
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.interfaces import Context, Generator, ImageSource
from adanat_toolkit.registry import create_generator, create_reward
from adanat_toolkit.runtime import distributed

CPU = torch.device("cpu")


@dataclass(frozen=True)
class World:
    """A generator, real images with contexts, and their negatives, which stand for generated images."""

    generator: Generator
    source: ImageSource
    real: Tensor
    context: Context
    fake: Tensor

    def reward(self, seed: int = 0, **options: Any) -> AdversarialReward:
        made = create_reward(
            "adversarial", options, generator=self.generator, real=self.source, device=CPU, seed=seed
        )
        assert isinstance(made, AdversarialReward)
        return made

    def learn(self, reward: AdversarialReward, seed: int = 0, fakes: int = 24) -> dict[str, float]:
        """One update on images that depend on the seed."""
        index = (torch.arange(reward.real_per_update) * 7 + 3 * seed) % len(self.real)
        context, other = self.context.select(index), self.context.select(torch.arange(fakes) + seed)
        real = reward.embed(self.real[index], context)
        return reward.update(real, context, reward.embed(self.fake[seed : seed + fakes], other), other, seed=seed)


def make_world(name: str, count: int) -> World:
    generator = create_generator(name, device=CPU, dtype=torch.float32)
    source = generator.real_images()
    assert source is not None
    index = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))[:count]
    real = source.images(index)
    context = source.contexts(index)
    if context.prompts is not None:
        context = generator.encode_prompts(context.prompts)
    return World(generator, source, real, context, 1 - real)


@pytest.fixture(scope="module")
def world() -> World:
    return make_world("maskgit:emoji64", 100)


# --- scoring ----------------------------------------------------------------------------------------------------------


def test_tower_is_open_clips(world: World) -> None:
    import open_clip

    model = open_clip.CLIP(**json.loads((FOLDER / "clip.json").read_text())).eval()
    model.load_state_dict({k: v.float() for k, v in load_file(str(FOLDER / "clip.safetensors")).items()})
    seen: list[Tensor] = []
    for block in model.visual.transformer.resblocks:
        block.register_forward_hook(lambda _m, _i, out: seen.append(out))
    images = world.real[:5]
    with torch.no_grad():
        model.visual(2 * images - 1)
        own = emoji64_clip()(images)
        expected = torch.stack([seen[i][:, 1:] + seen[i][:, :1] for i in (1, 3, 5)], 1)
        pooled = emoji64_clip(pool=4)(images)
    torch.testing.assert_close(own, expected, atol=5e-5, rtol=1e-4)
    assert own.shape == (5, 3, 64, 192)
    corner = torch.stack([seen[i][:, 1:].view(5, 8, 8, 192)[:, :4, :4].mean((1, 2)) + seen[i][:, 0] for i in (1, 3, 5)], 1)
    torch.testing.assert_close(pooled[:, :, 0], corner, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"norm": "group"}, {"augment": ("color",)}, {"backbone": "none"}], ids=str)
def test_neighbours_do_not_matter(world: World, options: dict[str, Any]) -> None:
    reward = world.reward(**options)
    scores = reward.score(world.real[:30], world.context.select(slice(0, 30)))
    assert scores.shape == (30,) and ((scores > 0) & (scores < 1)).all() and scores.std() > 1e-3
    for size in (1, 13, 20):
        part = reward.score(world.real[7 : 7 + size], world.context.select(slice(7, 7 + size)))
        torch.testing.assert_close(part, scores[7 : 7 + size], atol=1e-5, rtol=0)


def test_bfloat16_scores_are_near_and_do_not_depend_on_the_batch(world: World) -> None:
    half = World(copy.copy(world.generator), world.source, world.real, world.context, world.fake)
    half.generator.dtype = torch.bfloat16
    context = world.context.select(slice(0, 30))
    reward = half.reward()
    assert reward.embed(world.real[:2], context.select(slice(0, 2))).dtype == torch.bfloat16
    scores = reward.score(world.real[:30], context)
    torch.testing.assert_close(scores, world.reward().score(world.real[:30], context), atol=5e-3, rtol=0)
    alone = reward.score(world.real[9:10], context.select(slice(9, 10)))
    torch.testing.assert_close(alone, scores[9:10], atol=1e-5, rtol=0)


def test_scoring_changes_nothing_and_training_advances_the_singular_vectors(world: World) -> None:
    reward = world.reward(batch=8)
    before = {key: value.clone() for key, value in reward.state().items()}
    first = reward.score(world.real[:4], world.context.select(slice(0, 4)))
    assert torch.equal(first, reward.score(world.real[:4], world.context.select(slice(0, 4))))
    assert all(torch.equal(value, reward.state()[key]) for key, value in before.items())
    world.learn(reward)
    changed = {key for key, value in before.items() if not torch.equal(value, reward.state()[key])}
    assert changed >= {key for key in before if key.endswith(("weight_orig", "weight_u", "weight_v"))}


def test_kernels_have_norm_one(world: World) -> None:
    reward = world.reward(batch=8)

    def norms() -> list[float]:
        reward.discriminator.eval()
        layers = [layer for head in reward.discriminator.heads for layer in (head.reduce, head.mix, head.out)]
        return [float(torch.linalg.matrix_norm(layer.weight().detach().flatten(1), ord=2)) for layer in layers]

    assert all(0.999 < norm < 1.02 for norm in norms()), "the first singular vectors are not found"
    for step in range(4):
        world.learn(reward, step, fakes=8)
    # Adam's first steps move the kernels fast; the vectors follow by one power iteration a pass.
    assert all(0.999 < norm < 1.15 for norm in norms()), "the vectors do not follow"


def test_seed_determines_the_heads(world: World) -> None:
    context = world.context.select(slice(0, 6))
    scores = [world.reward(seed).score(world.real[:6], context) for seed in (1, 1, 2)]
    assert torch.equal(scores[0], scores[1]) and not torch.allclose(scores[0], scores[2])


# --- learning ---------------------------------------------------------------------------------------------------------

LEARNING = [
    {},
    {"loss": "hinge"},
    {"loss": "relativistic"},
    {"label_smoothing": 0.1},
    {"r1": 10.0, "r1_every": 4},
    {"norm": "group"},
    {"augment": ("translation", "cutout")},
    {"replay": 40},
    {"backbone": "none", "width": 32},
]


@pytest.mark.parametrize("options", LEARNING, ids=str)
def test_learns_to_tell_images_apart(world: World, options: dict[str, Any]) -> None:
    shared = {"batch": 16, "learning_rate": 2e-3} | ({} if options.get("backbone") == "none" else {"pool": 2})
    reward = world.reward(**shared, **options)
    for step in range(8):
        figures = world.learn(reward, step, fakes=16)
    held_out = world.context.select(slice(70, 100))
    real, fake = reward.score(world.real[70:], held_out), reward.score(world.fake[70:], held_out)
    assert (real[:, None] > fake[None]).float().mean() > 0.8, figures
    assert figures["accuracy_real"] > 0.6 and figures["accuracy_fake"] > 0.6, figures
    assert figures["reward_real"] > 0.5 and figures["gradient_norm"] > 0


@pytest.mark.parametrize("name", ["maskgit:emoji64", "muse:emoji64"])
def test_sees_the_context(name: str) -> None:
    """Only the contexts of the "generated" images are wrong, so whoever tells them apart looks at both."""
    world = make_world(name, 64)
    reward = world.reward(batch=64, updates=1, learning_rate=3e-3, pool=4)
    embedded = reward.embed(world.real, world.context)
    wrong = world.context.select(torch.arange(64).roll(1))
    for step in range(30):
        reward.update(embedded, world.context, embedded, wrong, seed=step)
    right, other = reward.score_embedded(embedded, world.context), reward.score_embedded(embedded, wrong)
    assert (right > other).float().mean() > 0.8


def test_unconditional_generator() -> None:
    world = make_world("mage:emoji64", 48)
    reward = world.reward(batch=16)
    assert set(world.learn(reward, fakes=13)) >= {"loss", "accuracy_real", "logit_fake", "reward_real", "gradient_norm"}
    assert not any("classes" in key or "text" in key for key in reward.state())


def test_updates_every_other_iteration(world: World) -> None:
    reward = world.reward(every=2, batch=8)
    assert reward.real_per_update == 16
    assert world.learn(reward)
    assert reward.real_per_update == 1, "images would be read for an update that is not due"
    before = {key: value.clone() for key, value in reward.discriminator.state_dict().items()}
    assert world.learn(reward) == {}
    assert all(torch.equal(value, before[key]) for key, value in reward.discriminator.state_dict().items())
    assert reward.real_per_update == 16 and world.learn(reward)


def test_many_generated_images_are_spread_over_the_steps(world: World) -> None:
    """With three batches of them, each step sees another third: the first step must not see the others."""
    reward = world.reward(batch=8, updates=1)
    twin = world.reward(batch=8, updates=1)
    context = world.context.select(slice(0, 24))
    real, fake = reward.embed(world.real[:8], context.select(slice(0, 8))), reward.embed(world.fake[:24], context)
    changed = fake.clone()
    changed[1::3] = 0
    changed[2::3] = 0
    for each, images in ((reward, fake), (twin, changed)):
        each.update(real, context.select(slice(0, 8)), images, context, seed=0)
    assert all(torch.equal(value, twin.state()[key]) for key, value in reward.state().items())


# --- state ------------------------------------------------------------------------------------------------------------

RESUMED = [
    {},
    {"loss": "relativistic", "every": 2},
    {"replay": 16, "replay_share": 0.5},
    {"augment": ("color", "translation", "cutout"), "r1": 1.0, "r1_every": 2},
    {"backbone": "none", "width": 16},
    {"backbone": "latents", "width": 16},
]


@pytest.mark.parametrize("options", RESUMED, ids=str)
def test_resumes_exactly(world: World, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"batch": 12, **options}
    unbroken = world.reward(**settings)
    for step in range(4):
        if step == 2:
            save_file({k: v.contiguous() for k, v in unbroken.state().items()}, str(tmp_path / "reward.safetensors"))
        world.learn(unbroken, step)
    resumed = world.reward(seed=5, **settings)
    resumed.load_state(load_file(str(tmp_path / "reward.safetensors")))
    for step in (2, 3):
        world.learn(resumed, step)
    left, right = unbroken.state(), resumed.state()
    assert left.keys() == right.keys() and not any(key.startswith("backbone") for key in left)
    assert [key for key in left if not torch.equal(left[key], right[key])] == []
    context = world.context.select(slice(0, 5))
    assert torch.equal(unbroken.score(world.real[:5], context), resumed.score(world.real[:5], context))


def test_latents_are_judged_without_decoding(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout hands over the code vectors of the very tokens it would decode, and decodes nothing."""
    from adanat_toolkit.core import Noise
    from adanat_toolkit.policies import load_policy
    from adanat_toolkit.sampling import collect

    reward = world.reward(backbone="latents", batch=24, width=32, learning_rate=3e-3)
    policy = load_policy("fixed", world.generator, 2)
    noise = Noise(torch.arange(6))
    context = world.generator.sample_contexts(noise)
    seen: list[Tensor] = []
    decode = type(world.generator).decode_tokens
    with monkeypatch.context() as patch:
        patch.setattr(type(world.generator), "decode_tokens", lambda self, ids: seen.append(ids) or decode(self, ids))
        collect(world.generator, policy, context, noise, keep_images=6)
    monkeypatch.setattr(type(world.generator), "decode_tokens", lambda *_: pytest.fail("decoded"))
    embedded = collect(world.generator, policy, context, noise, reward=reward).embedded
    assert embedded is not None and embedded.shape[2:] == world.generator.grid
    table = world.generator.tokenizer.model.quantize.embedding.weight  # type: ignore[attr-defined]
    assert torch.equal(embedded.flatten(2).transpose(1, 2), table[torch.cat(seen)])
    # Real images come in as pixels and are encoded: the vectors of their codes.
    codes = world.generator.encode_images(world.real[:3])  # type: ignore[attr-defined]
    assert torch.equal(reward.embed(world.real[:3], context).flatten(2).transpose(1, 2), table[codes])
    for step in range(20):
        figures = world.learn(reward, step)
    assert figures["accuracy_real"] > 0.8 and figures["accuracy_fake"] > 0.8


def test_what_latents_exclude(world: World) -> None:
    for options, part in (({"augment": ("color",)}, "augment"), ({"pool": 2}, "pool"), ({"architecture": "paper"}, "paper")):
        with pytest.raises(ConfigError, match=part):
            world.reward(backbone="latents", **options)
    with pytest.raises(ConfigError, match="latents"):
        create_reward(
            "adversarial:1,clip-score:1", {"options": {"adversarial": {"backbone": "latents"}}},
            generator=world.generator, real=world.source, device=CPU, seed=0,
        )  # fmt: skip


def test_foreign_state_is_refused_untouched(world: World) -> None:
    reward = world.reward(batch=4)
    world.learn(reward)
    state = reward.state()
    cases = {
        "missing": {key: value for key, value in state.items() if "adam.step" not in key},
        "unknown": {**state, "discriminator.heads.7.bias": torch.zeros(1)},
        "other width": world.reward(width=32).state(),
        "replay": world.reward(replay=4).state(),
    }
    target = world.reward()
    before = {key: value.clone() for key, value in target.state().items()}
    for what, foreign in cases.items():
        with pytest.raises(CheckpointError, match="options"):
            target.load_state(foreign)
        assert all(torch.equal(before[key], value) for key, value in target.state().items()), what
    with pytest.raises(CheckpointError, match="replay"):
        world.reward(replay=4).load_state(state)


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge", "label_smoothing": 0.1}, "label_smoothing"),
        ({"loss": "wasserstein"}, "loss"),
        ({"architecture": "paper", "width": 32}, "width"),
        ({"architecture": "paper", "backbone": "none"}, "backbone"),
        ({"architecture": "paper", "published": "x.pth", "backbone": "dino"}, "published"),
        ({"published": "x.pth"}, "architecture=paper"),
        ({"backbone": "none", "pool": 2}, "pool"),
        ({"pool": 3}, "pool = 3"),
        ({"backbone": "dinosaur"}, "did you mean 'dino'.* Known: .*none, latents"),
        ({"backbone": "latent"}, "did you mean 'latents'"),
        ({"backbone": "emoji64-clip", "backbone_weights": "x"}, "embedded"),
        ({"augment": ("rotate",)}, "augment"),
        ({"replay_share": 0.0}, "replay_share"),
        ({"learnin_rate": 1.0}, "learning_rate"),
    ],
    ids=str,
)
def test_bad_options(world: World, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        world.reward(**options)


def test_parameter_counts(world: World) -> None:
    counts = world.reward().parameters_count()
    assert counts["discriminator"] == sum(
        value.numel() for key, value in world.reward().state().items()
        if key.startswith("discriminator.") and not key.endswith(("weight_u", "weight_v"))
    )
    assert counts["backbone (frozen)"] > 2_000_000


# --- several processes ------------------------------------------------------------------------------------------------


def _one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    _train_and_save(Path(folder) / f"rank{rank}.safetensors")
    torch.distributed.destroy_process_group()


def _train_and_save(file: Path) -> None:
    world = make_world("maskgit:emoji64", 40)
    reward = world.reward(batch=10, updates=2)
    for step in range(2):
        real, fake = slice(*distributed.local_slice(20)), slice(*distributed.local_slice(13))
        contexts = world.context.select(real), world.context.select(fake)
        embedded = reward.embed(world.real[real], contexts[0]), reward.embed(world.fake[fake], contexts[1])
        figures = reward.update(embedded[0], contexts[0], embedded[1], contexts[1], seed=step)
    state = reward.state() | {f"figure.{k}": torch.tensor(v) for k, v in figures.items()}
    save_file({key: value.contiguous() for key, value in state.items()}, str(file))


def test_two_processes_train_like_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_one_rank, args=(str(tmp_path),), nprocs=2)
    _train_and_save(tmp_path / "alone.safetensors")
    alone, *ranks = (load_file(str(tmp_path / f"{name}.safetensors")) for name in ("alone", "rank0", "rank1"))
    for key, value in alone.items():
        assert torch.equal(ranks[0][key], ranks[1][key]), f"{key} differs between ranks"
        torch.testing.assert_close(ranks[0][key], value, atol=2e-4, rtol=1e-3, msg=lambda m, k=key: f"{k}: {m}")
