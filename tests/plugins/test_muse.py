"""Muse: prompts, text states, guidance; the embedded generator and the published layout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.emoji64.data import captions
from adanat_plugins.generators.muse import Muse
from adanat_plugins.generators.text_encoder import TextConfig, TextEncoder
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.tokenizers.vqgan import VQGANTokenizer
from adanat_plugins.weights import build
from adanat_toolkit.core import Noise, parse_schedule, sample_seeds
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Context

from ..helpers.released import TINY_UVIT, save_uvit, save_vqgan, tiny_vqgan

CPU = torch.device("cpu")
PROMPTS = ("3d emoji of red apple", "noto emoji of dog face", "", "3d emoji of red apple")


@cache
def embedded() -> Muse:
    return Muse.create(None, {}, device=CPU, dtype=torch.float32, offline=True)


def generate(
    generator: Muse, prompts: Sequence[str], seeds: Tensor, schedule: str | None = None, steps: int = 4
) -> Tensor:
    """(B, N) tokens of the prompts and seeds under a hand-made schedule."""
    noise = Noise(seeds)
    table = parse_schedule(schedule or generator.default_schedule, generator.action_space, steps).float()
    state = generator.reset(generator.encode_prompts(prompts), noise, steps)
    for row in table:
        state = generator.step(state, row.expand(len(noise), -1), noise)
    return state.proposal


def test_text_states_are_open_clips_own() -> None:
    import open_clip

    clip = open_clip.CLIP(**json.loads((FOLDER / "clip.json").read_text()))
    clip.load_state_dict({key: value.float() for key, value in load_file(FOLDER / "clip.safetensors").items()})
    clip.eval()
    seen: list[Tensor] = []
    clip.ln_final.register_forward_hook(lambda module, inputs, output: seen.append(output))
    tokenizer = open_clip.SimpleTokenizer(bpe_path=str(FOLDER / "bpe_4k.txt.gz"), context_length=24)
    with torch.no_grad():
        pooled = clip.encode_text(tokenizer(list(PROMPTS)))
    context = embedded().encode_prompts(PROMPTS)
    assert context.states is not None and context.pooled is not None
    torch.testing.assert_close(context.pooled, pooled, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(context.states, seen[0], atol=2e-5, rtol=1e-5)
    assert context.states.shape == (4, 24, 128) and context.prompts == PROMPTS
    assert torch.equal(context.states[0], context.states[3])


def test_a_prompt_is_encoded_the_same_in_any_batch() -> None:
    together = embedded().encode_prompts([f"3d emoji of number {i}" for i in range(40)])
    alone = embedded().encode_prompts(["3d emoji of number 33"])
    assert together.states is not None and alone.states is not None
    torch.testing.assert_close(together.states[33:34], alone.states, atol=1e-5, rtol=0)


def test_token_ids_are_kept_but_not_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = embedded().encoder
    monkeypatch.setattr(encoder, "_known", {})
    monkeypatch.setattr("adanat_plugins.generators.text_encoder.KEPT_PROMPTS", 4)
    cut: list[str] = []
    tokenizer = encoder.tokenizer
    monkeypatch.setattr(encoder, "tokenizer", lambda prompts: (cut.extend(prompts), tokenizer(prompts))[1])
    names = [f"blue circle {i}" for i in range(6)]
    first = encoder(names[:3])[0]
    again = encoder([names[2], names[0], names[3]])[0]
    assert cut == names[:4] and torch.equal(again[:2], first[[2, 0]])
    more = encoder([names[0], names[4], names[5]])[0]  # six do not fit: all are cut anew, the known one among them
    assert cut[4:] == [names[0], names[4], names[5]] and len(encoder._known) == 3
    assert torch.allclose(more[0], first[0], atol=1e-6)


def test_the_null_context_is_the_empty_prompt() -> None:
    null, empty = embedded().null_context(3), embedded().encode_prompts([""])
    assert null is not None and null.states is not None and empty.states is not None
    assert len(null) == 3 and torch.equal(null.states, empty.states.expand(3, -1, -1))


def test_captions_of_the_data_are_drawn_from_the_seeds() -> None:
    noise = Noise(sample_seeds(0, 0, 0, 20))
    drawn = embedded().sample_contexts(noise)
    assert drawn.prompts is not None and set(drawn.prompts) <= set(captions()) and len(set(drawn.prompts)) > 10
    again = embedded().sample_contexts(noise.select(torch.tensor([7])))
    assert again.prompts == (drawn.prompts[7],)
    source = embedded().real_images()
    assert source is not None
    context = source.contexts(torch.tensor([5, 6]))
    assert context.prompts == captions()[5:7] and context.states is not None


def test_the_prompt_decides_what_is_drawn() -> None:
    """Red apples come out redder than green ones, for the same seeds."""
    generator = embedded()
    seeds = sample_seeds(0, 0, 0, 8)
    red, green = (
        generator.decode_tokens(generate(generator, [f"3d emoji of {colour} apple"] * 8, seeds, steps=8)).mean((0, 2, 3))
        for colour in ("red", "green")
    )
    assert float(red[0] - red[1]) > float(green[0] - green[1]) + 0.05


@pytest.mark.parametrize(
    "change", ["guidance=0", "mask_temperature=0", "token_temperature=0.3", "mask_ratio=0.9/0.5/0.1/0"]
)
def test_every_declared_knob_matters(change: str) -> None:
    seeds = sample_seeds(1, 0, 0, 3)
    usual = generate(embedded(), PROMPTS[:3], seeds)
    other = generate(embedded(), PROMPTS[:3], seeds, schedule=f"{embedded().default_schedule},{change}")
    assert not torch.equal(usual, other)


def test_an_image_depends_on_its_seed_and_prompt_alone() -> None:
    seeds = sample_seeds(2, 0, 0, 7)
    prompts = [f"3d emoji of {thing}" for thing in ("cat", "dog", "car", "cat", "sun", "tree", "ball")]
    together = generate(embedded(), prompts, seeds)
    alone = torch.cat([generate(embedded(), [p], seeds[i : i + 1]) for i, p in enumerate(prompts)])
    assert torch.equal(together, alone)


def test_options_that_do_not_apply() -> None:
    with pytest.raises(ConfigError, match="leave these options out"):
        Muse.create(None, {"text_encoder": "x"}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="did you mean 'adanat-cc3m'"):
        Muse.create("adanat-cc3", {}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="not class-conditional"):
        embedded().encode_classes([1])


# --- the published layout ---------------------------------------------------------------------------------------------


def test_a_text_tower_is_taken_from_a_whole_clip(tmp_path: Path) -> None:
    """The CC3M generator's path at a small size: a full CLIP file, CLIP's own byte-pair merges, a wider context."""
    import open_clip

    config = TextConfig(context_length=77, vocab_size=49408, width=32, heads=2, layers=2, embed_dim=24)
    vision = {"image_size": 16, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    torch.save(clip.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    encoder = TextEncoder.load(tmp_path / "open_clip_pytorch_model.bin", config, device=CPU, dtype=torch.float32)
    states, pooled = encoder(["a photo of a cat", "an oil painting"])
    with torch.no_grad():
        expected = clip.encode_text(open_clip.get_tokenizer("ViT-bigG-14")(["a photo of a cat", "an oil painting"]))
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=1e-5)

    network = UViT(**TINY_UVIT, clip_dim=32)
    network = build(lambda: UViT(**TINY_UVIT, clip_dim=32), dict(network.state_dict()), source="memory")
    tokenizer = VQGANTokenizer.from_state(tiny_vqgan(), source="memory", device=CPU, dtype=torch.float32)
    generator = Muse(
        "muse:test", network, encoder, tokenizer, device=CPU, dtype=torch.float32, default_schedule="adanat"
    )
    assert (generator.grid, generator.image_size, generator.mask_id) == ((4, 4), (64, 64), 64)
    tokens = generate(generator, ["a photo of a cat", "an oil painting"], sample_seeds(0, 0, 0, 2))
    assert generator.decode_tokens(tokens).shape == (2, 3, 64, 64)
    logits, _ = generator.predict(tokens, Context(2, states=states))
    torch.testing.assert_close(logits, network(tokens, states)[0])
    with pytest.raises(ConfigError, match=r"no captions ship with muse:test; give --prompt"):
        generator.sample_contexts(Noise(sample_seeds(0, 0, 0, 2)))


def test_cc3m_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save_vqgan(tmp_path / "vqgan_jax_strongaug.ckpt")
    save_uvit(tmp_path / "cc3m.pth", clip_dim=96)
    options = {"weights": str(tmp_path), "heads": 4, "text_encoder": str(FOLDER / "clip.safetensors")}
    with pytest.raises(WeightsError, match="reads text states of width 96, but this variant's encoder gives 1280"):
        Muse.create("adanat-cc3m", options, device=CPU, dtype=torch.float32, offline=True)
    save_uvit(tmp_path / "cc3m.pth", num_classes=11)
    with pytest.raises(WeightsError, match="class-conditional"):
        Muse.create("adanat-cc3m", options, device=CPU, dtype=torch.float32, offline=True)
    save_uvit(tmp_path / "cc3m.pth", clip_dim=1280)
    with pytest.raises(WeightsError, match=r"(?s)does not fit TextTransformer.*misshapen token_embedding\.weight"):
        Muse.create("adanat-cc3m", options, device=CPU, dtype=torch.float32, offline=True)


def test_no_prompts_are_an_empty_context() -> None:
    one, none = embedded().encode_prompts(["a red apple"]), embedded().encode_prompts([])
    assert len(none) == 0 and none.prompts == ()
    for some, empty in ((one.states, none.states), (one.pooled, none.pooled)):
        assert some is not None and empty is not None
        assert empty.shape == (0, *some.shape[1:]) and empty.dtype == some.dtype
