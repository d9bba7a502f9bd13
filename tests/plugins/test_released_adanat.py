"""The generators and policies published with AdaNAT: from their files to the pixels, at small sizes."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from adanat_plugins.generators.maskgit import MaskGIT
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.released_policy import load_published_policy, published_policy
from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, Noise, adanat_heuristic, sample_seeds
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Context, TokenGenerator
from adanat_toolkit.policies import load_policy
from adanat_toolkit.policies.networks import SIZES, AdaptiveNetwork
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import sample

from ..helpers.released import TINY_UVIT, randomise, save_uvit, save_vqgan

CPU = torch.device("cpu")


def create(folder: Path, **options: object) -> TokenGenerator:
    chosen = {"weights": str(folder), "heads": 4, **options}
    return MaskGIT.create("adanat-imagenet-l", chosen, device=CPU, dtype=torch.float32, offline=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_uvit(tmp_path / "imagenet-l.pth", num_classes=11)
    save_vqgan(tmp_path / "vqgan_jax_strongaug.ckpt")
    return tmp_path


def test_sizes_and_numbers_come_from_the_file(folder: Path) -> None:
    generator = create(folder)
    assert generator.name == "maskgit:adanat-imagenet-l"
    assert (generator.grid, generator.image_size, generator.codebook_size) == ((4, 4), (64, 64), 64)
    assert generator.num_classes == 10 and generator.feature_dim == 32
    reference = UViT(**TINY_UVIT, num_classes=11)
    reference.load_state_dict(save_uvit(folder / "again.pth", num_classes=11))
    tokens = torch.full((2, 16), 64)
    tokens[1, :4] = 3
    with torch.no_grad():
        logits, features = reference(tokens, torch.tensor([[4], [10]]))
    own = generator.predict(tokens, Context(2, classes=torch.tensor([4, 10])))
    torch.testing.assert_close(own[0], logits)
    torch.testing.assert_close(own[1], features)
    null = generator.null_context(2)
    assert null is not None and null.classes is not None and null.classes.tolist() == [10, 10]


def test_files_that_do_not_belong_together(folder: Path) -> None:
    with pytest.raises(ConfigError, match="give the option heads"):
        create(folder, heads=None)
    save_vqgan(folder / "vqgan_jax_strongaug.ckpt", codes=32)
    with pytest.raises(WeightsError, match=r"predicts 64 codes and the tokenizer .* has 32"):
        create(folder)
    save_uvit(folder / "imagenet-l.pth", clip_dim=8)
    with pytest.raises(WeightsError, match="text-conditional; use it as --generator muse"):
        create(folder)
    save_vqgan(folder / "imagenet-l.pth")
    with pytest.raises(WeightsError, match="no AdaNAT/AutoNAT generator"):
        create(folder)


def save_policy(file: Path, network: AdaptiveNetwork, heuristic: int) -> None:
    actor = {f"actor.{name}": value for name, value in randomise(network, 5).items()}
    model = {f"{copy}.{name}": value for copy in ("policy", "policy_old") for name, value in actor.items()}
    torch.save({"model": model, "args": argparse.Namespace(heu=heuristic, gen_steps=4), "global_step": 3}, file)


@pytest.mark.parametrize("heuristic", [0, 1])
def test_a_published_policy_drives_the_generator(heuristic: int, folder: Path) -> None:
    generator = create(folder)
    hidden, pointwise, mlp = SIZES["paper"]
    network = AdaptiveNetwork(generator.feature_dim, 4, generator.grid, hidden, pointwise, mlp)
    save_policy(folder / "ckpt_3.pth", network, heuristic)
    _, facts = load_published_policy(folder / "ckpt_3.pth")
    assert facts.residual is bool(heuristic) and facts.steps == 4 and facts.counters == {"global_step": 3}

    schedule = adanat_heuristic(generator.action_space.knobs, 4)
    space = generator.action_space.bind(schedule, residual=bool(facts.residual))
    policy, _ = published_policy(
        folder / "ckpt_3.pth", space=space, grid=generator.grid, feature_dim=generator.feature_dim
    )
    network.load_state_dict(randomise(network, 5))
    noise = Noise(sample_seeds(0, 0, 0, 3))
    state = generator.reset(Context(3, classes=torch.tensor([0, 4, 9])), noise, 4)
    with torch.no_grad():
        for step in range(4):
            features, index = generator.observe(state), torch.full((3,), step)
            raw = policy(features, index)
            torch.testing.assert_close(raw, network(features, index))
            state = generator.step(state, space.to_physical(raw, step), noise)
    images = generator.decode(state)
    assert images.shape == (3, 3, 64, 64) and bool(images.isfinite().all())


def test_a_policy_of_another_generator_or_another_kind_of_file_is_refused(folder: Path) -> None:
    hidden, pointwise, mlp = SIZES["paper"]
    save_policy(folder / "ckpt_1.pth", AdaptiveNetwork(768, 4, (16, 16), hidden, pointwise, mlp), 0)
    space = ActionSpace(TOKEN_KNOBS).bind(adanat_heuristic(TOKEN_KNOBS, 4), residual=False)
    with pytest.raises(WeightsError, match="features of width 768, 4 knobs and 64 cells"):
        published_policy(folder / "ckpt_1.pth", space=space, grid=(4, 4), feature_dim=32)
    with pytest.raises(WeightsError, match="not a published AdaNAT policy"):
        load_published_policy(folder / "imagenet-l.pth")


@pytest.mark.parametrize("heuristic", [0, 1, None])
def test_a_published_policy_is_given_by_its_file(heuristic: int | None, folder: Path) -> None:
    """``adanat sample --policy FILE``: the same images as stepping by hand; the residual as the file or variant says."""
    generator = create(folder)
    hidden, pointwise, mlp = SIZES["paper"]
    network = AdaptiveNetwork(generator.feature_dim, 4, generator.grid, hidden, pointwise, mlp)
    file = folder / "ckpt_3.pth"
    save_policy(file, network, heuristic or 0)
    if heuristic is None:  # a file without the arguments of its training
        tree = torch.load(file, weights_only=False)
        torch.save({"model": tree["model"]}, file)
    policy = load_policy(str(file), generator, 4)
    assert policy.card["residual"] is policy.space.residual is bool(heuristic)
    assert policy.space.acted == generator.action_space.names and policy.steps == 4

    network.load_state_dict(randomise(network, 5))
    seeds = torch.arange(3)
    noise, context = Noise(seeds), generator.encode_classes([0, 4, 9])
    base = generator.action_space.bind(adanat_heuristic(generator.action_space.knobs, 4), residual=bool(heuristic))
    state = generator.reset(context, noise, 4)
    with torch.no_grad():
        for step in range(4):
            raw = network(generator.observe(state), torch.full((3,), step))
            state = generator.step(state, base.to_physical(raw, step), noise)
    images = next(sample(generator, policy, seeds, context)).images
    torch.testing.assert_close(images, generator.decode(state), atol=1e-5, rtol=0)

    if heuristic is not None:
        assert load_policy(str(file), generator).steps == 4
        with pytest.raises(ConfigError, match="makes an image in 4 steps, not 6"):
            load_policy(str(file), generator, 6)
    else:
        assert load_policy(str(file), generator).steps == 8
    other = create_generator("mage", device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="is a file, and no published policies are known for mage:emoji64"):
        load_policy(str(file), other)
    with pytest.raises(WeightsError, match="made for features of width 32"):
        embedded = create_generator("maskgit", device=CPU, dtype=torch.float32, offline=True)
        load_policy(str(file), embedded, None if heuristic is not None else 4)
