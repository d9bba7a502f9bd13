"""aMUSEd against diffusers' own pipeline and scheduler, on a small random pipeline in the published layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from adanat_plugins.generators.amused import Amused
from adanat_toolkit.core import REMASK, TOKEN, Noise
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import collect, sample

from ..helpers.released_pipelines import CODES, MASK, SIDE, save_amused

CPU = torch.device("cpu")
PROMPTS = ("a red cat", "blue tree", "a red cat")
CELLS = SIDE * SIDE


def create(folder: Path, variant: str = "256", dtype: torch.dtype = torch.float32) -> Amused:
    return Amused.create(variant, {"weights": str(folder)}, device=CPU, dtype=dtype, offline=True)


@pytest.fixture(scope="module", params=[False, True], ids=["full", "halved"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Amused, Any]:
    """Our generator and the stock pipeline of the same parts; the grid of the transformer is whole or halved."""
    from diffusers import AmusedPipeline

    folder = tmp_path_factory.mktemp("amused")
    parts = save_amused(folder, halved=request.param)
    stock = AmusedPipeline(**parts)
    stock.set_progress_bar_config(disable=True)
    return create(folder), stock


def stock_tokens(stock: Any, noise: Noise, steps: int, scale: float, patch: pytest.MonkeyPatch) -> Tensor:
    """(B, N) tokens of the stock pipeline, its two random draws a step replaced by the samples' own noise."""
    from diffusers.schedulers import scheduling_amused

    drawn: list[int] = []  # one entry a step

    def multinomial(probabilities: Tensor, count: int, generator: Any = None) -> Tensor:
        uniform = noise.uniform(TOKEN, len(drawn), (CELLS,)).reshape(-1, 1).double()
        drawn.append(count)
        cumulative = probabilities.double().cumsum(-1)
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:]).clamp_max(CODES - 1)

    def gumbel(like: Tensor, generator: Any = None) -> Tensor:
        return noise.gumbel(REMASK, len(drawn) - 1, (CELLS,))

    with patch.context() as patched:
        patched.setattr(torch, "multinomial", multinomial)
        patched.setattr(scheduling_amused, "gumbel_noise", gumbel)
        out = stock(list(PROMPTS), num_inference_steps=steps, guidance_scale=scale, output_type="latent").images
    assert len(drawn) == steps
    return out.flatten(1)


@pytest.mark.parametrize(("scale", "steps"), [(10.0, 12), (3.0, 5), (1.0, 4)])
def test_the_stock_schedule_gives_the_stock_pipelines_tokens(
    pair: tuple[Amused, Any], scale: float, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, stock = pair
    noise, context = Noise(torch.arange(7, 10)), generator.encode_prompts(PROMPTS)
    policy = load_policy(f"fixed:amused,guidance_scale={scale}", generator, steps)
    assert policy.space.schedule is not None
    assert policy.space.schedule[:, policy.space.names.index("guidance")].tolist() == [scale - 1] * steps  # s = 1 + g
    state = generator.reset(context, noise, steps, sampler=policy.rule)
    for row in policy.space.schedule.float():
        state = generator.step(state, row.expand(len(noise), -1), noise)
    expected = stock_tokens(stock, noise, steps, scale, monkeypatch)
    assert torch.equal(state.tokens, expected)
    assert torch.equal(state.proposal, expected)
    images = stock.vqvae.decode(
        expected.view(-1, SIDE, SIDE),
        force_not_quantize=True,
        shape=(3, SIDE, SIDE, stock.vqvae.config.latent_channels),
    ).sample.clip(0, 1)
    torch.testing.assert_close(generator.decode(state), images, atol=1e-5, rtol=0)
    rollout = collect(generator, policy, context, noise, keep_images=3)
    assert rollout.images is not None
    torch.testing.assert_close(rollout.images, images, atol=1e-5, rtol=0)


def test_the_law_is_the_stock_schedulers_with_its_own_randomness(pair: tuple[Amused, Any]) -> None:
    """Images of the unchanged stock pipeline and of ours: how often each code occurs in an image, two-sample z-tests."""
    generator, stock = pair
    count, steps = 400, 4
    theirs = stock(
        ["a red cat"] * count, num_inference_steps=steps, guidance_scale=4.0, output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images.flatten(1)  # fmt: skip
    policy = load_policy("fixed:amused,guidance_scale=4", generator, steps)
    assert policy.space.schedule is not None
    context, noise = generator.encode_prompts(["a red cat"] * count), Noise(torch.arange(count))

    def occurrences(guidance: float) -> Tensor:
        """(count, CODES): how often our images hold each code."""
        state = generator.reset(context, noise, steps, sampler=policy.rule)
        for row in policy.space.schedule.float():
            action = row.clone()
            action[policy.space.names.index("guidance")] = guidance
            state = generator.step(state, action.expand(count, -1), noise)
        return one_hot(state.proposal, CODES).sum(1).double()

    stocks = one_hot(theirs, CODES).sum(1).double()

    def largest_z(own: Tensor) -> float:
        often = (own + stocks).sum(0) >= 20  # rarer codes are not close to normal
        assert often.sum() >= 10
        error = ((own.var(0) + stocks.var(0)) / count).sqrt()
        return float(((own.mean(0) - stocks.mean(0)) / error)[often].abs().max())

    assert largest_z(occurrences(guidance=3.0)) < 4.5
    assert largest_z(occurrences(guidance=1.0)) > 6  # the same test sees a wrong scale


def test_prediction_features_and_text_states(pair: tuple[Amused, Any]) -> None:
    generator, stock = pair
    context = generator.encode_prompts(PROMPTS)
    tokens = torch.full((3, CELLS), MASK)
    tokens[:, :5] = torch.arange(15).view(3, 5)
    ids = stock.tokenizer(list(PROMPTS), return_tensors="pt", padding="max_length", max_length=12).input_ids
    with torch.no_grad():
        text = stock.text_encoder(ids, output_hidden_states=True)
        size = 2 * SIDE
        micro = torch.tensor([[size, size, 0, 0, 6]]).expand(3, -1).float()
        expected = stock.transformer(tokens.view(3, SIDE, SIDE), text.hidden_states[-2], text.text_embeds, micro)
        logits, features = generator.predict(tokens, context)
        # What the features are: the vocabulary head alone maps them to the logits.
        head = torch.nn.functional.linear(features, stock.transformer.mlm_layer.conv2.weight[..., 0, 0])
    assert context.states is not None and context.pooled is not None
    torch.testing.assert_close(context.states, text.hidden_states[-2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(context.pooled, text.text_embeds, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected.flatten(2).transpose(1, 2), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(head, logits, atol=1e-4, rtol=1e-4)
    assert features.shape == (3, CELLS, generator.feature_dim)
    assert (logits[0] - logits[1]).abs().max() > 0.1  # the prompt matters
    null = generator.null_context(2)
    assert null.prompts == ("", "")


def test_images_are_encoded_by_the_same_tokenizer(pair: tuple[Amused, Any]) -> None:
    generator, stock = pair
    images = torch.rand(2, 3, *generator.image_size, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        latents = stock.vqvae.encode(images).latents
        expected = stock.vqvae.quantize(latents)[2][2].view(2, -1)
    assert torch.equal(generator.encode_images(images), expected)


def test_knobs_act_per_sample(pair: tuple[Amused, Any]) -> None:
    generator, _ = pair
    noise, context = Noise(torch.arange(3)), generator.encode_prompts(["a red cat"] * 3)
    action = torch.tensor([[0.9, 0.0, 1.0, 0.0], [0.5, 1.0, 0.5, 4.0], [0.1, 3.0, 2.0, 9.0]])
    state = generator.step(generator.reset(context, noise, 2), action, noise)
    assert (state.tokens == MASK).sum(1).tolist() == [14, 8, 1]
    for row in range(3):
        one = Noise(noise.seeds[row : row + 1])
        alone = generator.step(generator.reset(context.select(slice(row, row + 1)), one, 2), action[row : row + 1], one)
        assert torch.equal(alone.tokens[0], state.tokens[row])


def test_bfloat16_and_the_registered_name(tmp_path: Path) -> None:
    save_amused(tmp_path / "amused-256")
    generator = create_generator("amused", {"weights": str(tmp_path)}, device=CPU, dtype=torch.bfloat16, offline=True)
    assert generator.name == "amused:256"
    assert all(p.dtype == torch.bfloat16 for p in generator.network.parameters())
    policy = load_policy("fixed", generator, 3)
    images = next(sample(generator, policy, torch.arange(2), generator.encode_prompts(PROMPTS[:2]))).images
    assert images.shape == (2, 3, 8, 8) and images.dtype == torch.float32 and bool(images.isfinite().all())
    assert set(generator.parameters_count()) == {"generator", "text encoder", "tokenizer"}


def test_errors_name_the_part_and_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(
        WeightsError, match=r"(?s)amused:512 needs its pipeline weights.*huggingface.co/amused/amused-512"
    ):
        Amused.create("512", {}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(WeightsError, match="--offline forbids fetching hub id someone/not-there"):
        Amused.create("256", {"weights": "someone/not-there"}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="amused has no variant '255'; did you mean '256'"):
        Amused.create("255", {}, device=CPU, dtype=torch.float32, offline=True)

    parts = save_amused(tmp_path / "p")
    generator = create(tmp_path / "p")
    with pytest.raises(ConfigError, match="no captions ship with amused:256; give --prompt"):
        generator.sample_contexts(Noise(torch.arange(2)))
    config = tmp_path / "p/scheduler/scheduler_config.json"
    good = config.read_text()
    config.write_text(json.dumps({**json.loads(good), "mask_token_id": 7}))
    with pytest.raises(WeightsError, match="mask_token_id is 7; it must lie between the 48 codes"):
        create(tmp_path / "p")
    config.write_text(good)
    weights = parts["transformer"].state_dict()
    del weights["mlm_layer.conv2.weight"]
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "p/transformer/diffusion_pytorch_model.safetensors")
    with pytest.raises(WeightsError, match=r"missing   mlm_layer\.conv2\.weight, expected \[48, 40, 1, 1\]"):
        create(tmp_path / "p")
    parts["transformer"].save_pretrained(tmp_path / "p/transformer")
    text = parts["text_encoder"].state_dict()
    text.pop(next(name for name in text if name.endswith("token_embedding.weight")))
    save_file(text, tmp_path / "p/text_encoder/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"lacks or misshapes 1 tensors \(.*token_embedding\.weight"):
        create(tmp_path / "p")
    (tmp_path / "p/vqvae").rename(tmp_path / "p/vq")
    with pytest.raises(WeightsError, match="it lacks the folders vqvae"):
        create(tmp_path / "p")
