"""MAGE: the embedded generator and the published layout, from the checkpoint to the pixels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adanat_plugins.generators.mage import MAGE
from adanat_plugins.generators.mage_net import MAGENet
from adanat_toolkit.core import Noise, parse_schedule, sample_seeds
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Context

from ..helpers.released import TINY_MAGE, save_mage

CPU = torch.device("cpu")


@cache
def embedded() -> MAGE:
    return MAGE.create(None, {}, device=CPU, dtype=torch.float32, offline=True)


def generate(generator: MAGE, seeds: Tensor, steps: int = 4, schedule: str | None = None) -> tuple[Tensor, Tensor]:
    """(tokens, images) of the seeds under a hand-made schedule."""
    noise = Noise(seeds)
    table = parse_schedule(schedule or generator.default_schedule, generator.action_space, steps).float()
    state = generator.reset(generator.sample_contexts(noise), noise, steps)
    for row in table:
        state = generator.step(state, row.expand(len(noise), -1), noise)
    return state.proposal, generator.decode(state)


def test_unconditional_without_a_guidance_knob() -> None:
    generator = embedded()
    assert generator.action_space.names == ("mask_ratio", "mask_temperature", "token_temperature")
    assert generator.context_kind == "none" and generator.null_context(3) is None
    with pytest.raises(ConfigError, match="no knob 'guidance'"):
        parse_schedule("cosine,guidance=1", generator.action_space, 4)
    with pytest.raises(ConfigError, match="not text-conditional"):
        generator.encode_prompts(["a dog"])


def test_shapes_ranges_and_parameters() -> None:
    generator = embedded()
    tokens = torch.full((3, 64), generator.mask_id)
    tokens[1, :30] = torch.arange(30)
    logits, features = generator.predict(tokens, Context(3))
    assert logits.shape == (3, 64, 1024) and features.shape == (3, 64, generator.feature_dim)
    assert logits.dtype == features.dtype == torch.float32
    assert generator.parameters_count()["generator"] == 4_050_345
    codes, images = generate(generator, sample_seeds(0, 0, 0, 5))
    assert codes.shape == (5, 64) and int(codes.min()) >= 0 and int(codes.max()) < 1024
    assert images.shape == (5, 3, 64, 64) and float(images.min()) >= 0 and float(images.max()) <= 1


def test_features_are_what_the_head_reads() -> None:
    generator = embedded()
    tokens = torch.full((2, 64), generator.mask_id)
    tokens[:, ::3] = 17
    logits, features = generator.predict(tokens, Context(2))
    torch.testing.assert_close(generator.network.logits(features), logits)


def test_an_unknown_cell_enters_the_decoder_as_the_class_token() -> None:
    """The published quirk: the encoder's own state at a masked cell must not reach the output."""
    network = embedded().network
    ids = torch.full((1, 64), 2024)
    ids[0, :20] = torch.arange(20)
    sequence, encoded = network.encode(ids)
    changed = encoded.clone()
    changed[:, 40] += 5.0
    torch.testing.assert_close(network.decode(sequence, changed), network.decode(sequence, encoded))
    changed = encoded.clone()
    changed[:, 5] += 5.0  # cell 4 is known
    assert not torch.allclose(network.decode(sequence, changed), network.decode(sequence, encoded), atol=1e-2)


def test_an_image_depends_on_its_seed_alone() -> None:
    generator = embedded()
    seeds = sample_seeds(3, 0, 0, 40)  # more than one chunk
    together, _ = generate(generator, seeds)
    alone = torch.cat([generate(generator, seeds[i : i + 1])[0] for i in (0, 13, 39)])
    assert torch.equal(together[[0, 13, 39]], alone)
    sevens = torch.cat([generate(generator, seeds[i : i + 7])[0] for i in range(0, 14, 7)])
    assert torch.equal(together[:14], sevens)


@pytest.mark.parametrize("change", ["mask_temperature=0", "token_temperature=0.3", "mask_ratio=0.9/0.5/0.1/0"])
def test_every_declared_knob_matters(change: str) -> None:
    seeds = sample_seeds(1, 0, 0, 4)
    usual, _ = generate(embedded(), seeds)
    other, _ = generate(embedded(), seeds, schedule=f"cosine,mask_temperature=4.5:0,{change}")
    assert not torch.equal(usual, other)


def test_real_images_pass_through_the_tokenizer() -> None:
    generator = embedded()
    images = generator.real_images()
    assert images is not None
    real = images.images(torch.arange(0, 10934, 1000))
    codes = generator.encode_images(real)
    assert codes.shape == (11, 64) and codes.dtype == torch.int64
    assert float((generator.decode_tokens(codes) - real).abs().mean()) < 0.05
    assert images.contexts(torch.arange(2)).classes is None


# --- the published layout ---------------------------------------------------------------------------------------------


def test_a_published_file_brings_its_sizes_and_its_tokenizer(tmp_path: Path) -> None:
    file = tmp_path / "mage-vitb-1600.pth"
    state = save_mage(file)
    generator = MAGE.create("vit-b", {"weights": str(file)}, device=CPU, dtype=torch.float32, offline=True)
    assert (generator.grid, generator.image_size, generator.feature_dim) == ((4, 4), (64, 64), 32)
    assert (generator.mask_id, generator.codebook_size) == (2024, 1024)

    reference = MAGENet(TINY_MAGE)
    reference.load_state_dict(state)
    tokens = torch.full((2, 16), 2024)
    tokens[0, :8] = torch.arange(8)
    with torch.no_grad():
        logits, features = reference(tokens)
    own = generator.predict(tokens, Context(2))
    torch.testing.assert_close(own[0], logits)
    torch.testing.assert_close(own[1], features)

    codes, images = generate(generator, sample_seeds(0, 0, 0, 3))
    assert codes.shape == (3, 16) and images.shape == (3, 3, 64, 64)
    assert generator.encode_images(images).shape == (3, 16)
    assert generator.real_images() is None


def test_a_file_of_another_variant_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "mage.pth"
    save_mage(file)
    tree = torch.load(file)
    del tree["model"]["blocks.1.norm1.weight"]
    tree["model"]["decoder_norm.bias"] = torch.zeros(7)
    tree["model"]["surprise"] = torch.zeros(1)
    torch.save(tree, file)
    with pytest.raises(WeightsError) as error:
        MAGE.create("vit-b", {"weights": str(file)}, device=CPU, dtype=torch.float32, offline=True)
    for part in ("missing   blocks.1.norm1.weight", "misshapen decoder_norm.bias [7]", "extra     surprise"):
        assert part in str(error.value)
    del tree["model"]["decoder_embed.weight"]
    torch.save(tree, file)
    with pytest.raises(WeightsError, match="no MAGE checkpoint"):
        MAGE.create("vit-b", {"weights": str(file)}, device=CPU, dtype=torch.float32, offline=True)


def test_unknown_variants_and_options() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vit-l'"):
        MAGE.create("vit-large", {}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="unknown key 'weight'"):
        MAGE.create(None, {"weight": "x"}, device=CPU, dtype=torch.float32, offline=True)
