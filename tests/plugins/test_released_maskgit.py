"""``maskgit:halton-*`` and ``google-*`` from tiny files in the published containers, through ``build_generator``."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adanat_plugins.generators.google_net import GoogleConfig, GoogleTransformer
from adanat_plugins.generators.halton_net import HaltonConfig, HaltonTransformer
from adanat_plugins.generators.maskgit import MaskGIT
from adanat_plugins.tokenizers.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from adanat_toolkit.core import Noise, parse_schedule
from adanat_toolkit.decoding.released_samplers import published_sampler
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import TokenGenerator, TokenState

from ..golden.published_files import save_flax, save_halton, save_llamagen
from ..helpers.cli import adanat

CPU = torch.device("cpu")
HALTON = HaltonConfig(grid=4, width=32, depth=2, heads=4, mlp_width=64, codebook_size=24, num_classes=5)
VQ = LlamaGenVQConfig(codebook_size=24, code_width=4, latent_width=32, width=32, multipliers=(1, 2), blocks=1)
GOOGLE = GoogleConfig(vocabulary=16 + 5 + 1, positions=17, width=32, depth=2, heads=4, mlp_width=64)


def randomise(state: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Values at a healthy spread for every tensor, zero-initialised ones included."""
    source = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=source) * (0.3 if value.ndim < 2 else value[0].numel() ** -0.5)
        for name, value in state.items()
    }


def flax_tokenizer(
    width: int, multipliers: tuple[int, ...], blocks: int, codes: int, code_width: int
) -> dict[str, Tensor]:
    """The flat Flax tree of a google/maskgit tokenizer, layer by layer in the order of its calls."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, inputs: int, outputs: int, side: int = 3, bias: bool = True) -> None:
        shapes[f"{name}/kernel"] = (side, side, inputs, outputs)
        if bias:
            shapes[f"{name}/bias"] = (outputs,)

    def norm(name: str, channels: int) -> None:
        shapes[f"{name}/scale"] = shapes[f"{name}/bias"] = (channels,)

    def residual(name: str, inputs: int, outputs: int) -> None:
        norm(f"{name}/GroupNorm_0", inputs)
        conv(f"{name}/Conv_0", inputs, outputs, bias=False)
        norm(f"{name}/GroupNorm_1", outputs)
        conv(f"{name}/Conv_1", outputs, outputs, bias=False)
        if inputs != outputs:
            conv(f"{name}/Conv_2", outputs, outputs, side=1, bias=False)

    widths = [width * m for m in multipliers]
    conv("encoder/Conv_0", 3, width, bias=False)
    chain = [w for w in widths for _ in range(blocks)] + [widths[-1]] * blocks
    for i, (a, b) in enumerate(zip([width, *chain], chain, strict=False)):
        residual(f"encoder/ResBlock_{i}", a, b)
    norm("encoder/GroupNorm_0", widths[-1])
    conv("encoder/Conv_1", widths[-1], code_width, side=1)
    conv("decoder/Conv_0", code_width, widths[-1])
    chain = [widths[-1]] * blocks + [w for w in reversed(widths) for _ in range(blocks)]
    for i, (a, b) in enumerate(zip([widths[-1], *chain], chain, strict=False)):
        residual(f"decoder/ResBlock_{i}", a, b)
    for i, w in enumerate(reversed(widths[1:])):
        conv(f"decoder/Conv_{i + 1}", w, w)
    norm("decoder/GroupNorm_0", width)
    conv(f"decoder/Conv_{len(widths)}", width, 3)
    shapes["quantizer/codebook"] = (codes, code_width)
    values = randomise({name: torch.empty(shape) for name, shape in shapes.items()}, 5)
    return {f"params/{name}": value for name, value in values.items()}


def filled(module: nn.Module, seed: int) -> dict[str, Tensor]:
    return randomise(module.state_dict(), seed)


@pytest.fixture
def halton_folder(tmp_path: Path) -> Path:
    state = filled(HaltonTransformer(HALTON), 1)
    state["head.weight"] = state["tok_emb.weight"]
    save_halton(tmp_path / "ImageNet_256_base.pth", state)
    save_llamagen(tmp_path / "vq_ds16_c2i.pt", filled(LlamaGenVQ(VQ), 2))
    return tmp_path


@pytest.fixture
def google_folder(tmp_path: Path) -> Path:
    state = filled(GoogleTransformer(GOOGLE), 3)
    flat = {f"params/{name.replace('.', '/')}": value for name, value in state.items()}
    save_flax(tmp_path / "maskgit_imagenet256_checkpoint", flat)
    save_flax(tmp_path / "tokenizer_imagenet256_checkpoint", flax_tokenizer(32, (1, 2, 2), 1, 16, 8))
    return tmp_path


def load(variant: str, folder: Path, **options: object) -> TokenGenerator:
    options = {"weights": str(folder), **options}
    return MaskGIT.create(variant, options, device=CPU, dtype=torch.float32, offline=True)


@pytest.fixture(params=["halton-256", "google-256"])
def generator(request: pytest.FixtureRequest) -> TokenGenerator:
    if request.param.startswith("halton"):
        return load(request.param, request.getfixturevalue("halton_folder"), heads=HALTON.heads)
    return load(request.param, request.getfixturevalue("google_folder"))


def roll(generator: TokenGenerator, seeds: Tensor, sampler: str | None = None, steps: int = 4) -> list[TokenState]:
    """States of a trajectory under the generator's default schedule or a published sampler."""
    noise = Noise(seeds)
    published = None if sampler is None else published_sampler(sampler)
    if published is None:
        table = parse_schedule(generator.default_schedule, generator.action_space, steps)
    else:
        table = published.schedule(generator.action_space, steps, generator.cells)
    states = [generator.reset(generator.sample_contexts(noise), noise, steps, sampler=published)]
    for t in range(steps):
        states.append(generator.step(states[-1], table[t].float().expand(len(seeds), -1), noise))
    return states


def test_sizes_come_from_the_checkpoint(halton_folder: Path, google_folder: Path) -> None:
    vq = str(halton_folder / "vq_ds16_c2i.pt")
    halton = load("halton-384", halton_folder / "ImageNet_256_base.pth", heads=4, tokenizer=vq)
    google = load("google-256", google_folder)
    assert (halton.grid, halton.image_size, halton.codebook_size, halton.num_classes) == ((4, 4), (8, 8), 24, 5)
    assert (google.grid, google.image_size, google.codebook_size, google.num_classes) == ((4, 4), (16, 16), 16, 5)
    assert halton.action_space.names == ("mask_ratio", "mask_temperature", "token_temperature", "guidance")
    assert (halton.released_sampler, google.released_sampler) == ("halton", "maskgit")
    assert google.action_space.names == ("mask_ratio", "mask_temperature", "token_temperature")
    assert set(halton.parameters_count()) == set(google.parameters_count()) == {"generator", "tokenizer"}


def test_commands_take_further_options_of_the_generator(halton_folder: Path, tmp_path: Path) -> None:
    file, vq = halton_folder / "elsewhere.pth", halton_folder / "vq.pt"
    (halton_folder / "ImageNet_256_base.pth").rename(file)
    (halton_folder / "vq_ds16_c2i.pt").rename(vq)
    common = ["sample", "--generator", "maskgit:halton-256", "--weights", file, "--policy", "fixed", "--steps", "2"]
    common += ["--num", "1", "--offline", "--quiet", "--out", tmp_path / "out", "--generator-option"]
    result = adanat(*common, f"tokenizer={vq}", "--generator-option", "heads=4")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "out" / "grid.png").is_file()
    for option, part in (("tokenzier=x", "did you mean 'tokenizer'"), ("tokenizer", "must be written KEY=VALUE")):
        refused = adanat(*common, option)
        assert refused.exit_code != 0 and part in refused.stderr


def test_shapes_and_images(generator: TokenGenerator) -> None:
    state = roll(generator, torch.arange(3))[-1]
    assert (state.proposal < generator.codebook_size).all()
    assert (state.proposal >= 0).all()
    image = generator.decode(state)
    assert image.shape == (3, 3, *generator.image_size)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    codes = generator.encode_images(image)
    assert codes.shape == (3, generator.cells)
    assert codes.dtype == torch.int64
    features = generator.observe(generator.reset(state.context, Noise(torch.arange(3)), 4))
    assert features.shape == (3, generator.cells, generator.feature_dim)


def test_prediction_depends_on_class_tokens_and_place(generator: TokenGenerator) -> None:
    context = generator.encode_classes([0, 1])
    masked = torch.full((2, generator.cells), generator.mask_id)
    logits, features = generator.predict(masked, context)
    assert logits.shape == (2, generator.cells, generator.codebook_size)
    assert (logits[0] - logits[1]).abs().max() > 1e-3  # class
    assert (logits[0, 0] - logits[0, 1]).abs().max() > 1e-3  # place
    assert (features[0] - features[1]).abs().max() > 1e-3
    told = masked.clone()
    told[:, 3] = 2
    assert (generator.predict(told, context)[0][:, 0] - logits[:, 0]).abs().max() > 1e-4  # another cell's code


def test_guidance_subtracts_the_null_class(halton_folder: Path) -> None:
    generator = load("halton-256", halton_folder, heads=4)
    null = generator.null_context(2)
    assert null is not None
    assert null.classes is not None
    assert null.classes.tolist() == [HALTON.num_classes] * 2
    state = generator.reset(generator.encode_classes([0, 1]), Noise(torch.arange(2)), 1)
    action = torch.tensor([[0.0, 0.0, 1e-6, 50.0]]).expand(2, -1)  # greedy
    guided = generator.step(state, action, Noise(torch.arange(2))).proposal
    conditional, _ = generator.predict(state.tokens, state.context)
    unconditional, _ = generator.predict(state.tokens, null)
    assert torch.equal(guided, (conditional + 50 * (conditional - unconditional)).argmax(-1))
    assert not torch.equal(guided, conditional.argmax(-1))


@pytest.mark.parametrize("sampler", ["maskgit", "mage", "halton", "halton-confidence", "amused"])
def test_published_samplers_drive_the_generator(generator: TokenGenerator, sampler: str) -> None:
    seeds = torch.arange(10, 14)
    together = roll(generator, seeds, sampler)
    alone = roll(generator, seeds[2:3], sampler)
    masked = [int((state.tokens[2] == generator.mask_id).sum()) for state in together]
    assert masked == sorted(masked, reverse=True)
    assert masked[-1] <= 1
    for whole, single in zip(together, alone, strict=True):
        assert torch.equal(whole.tokens[2], single.tokens[0])
    assert generator.decode(together[-1]).shape[0] == 4


def test_halton_sampler_ignores_the_mask_temperature(halton_folder: Path) -> None:
    generator = load("halton-256", halton_folder, heads=4)
    sampler = published_sampler("halton")
    noise = Noise(torch.arange(3))
    state = generator.reset(generator.sample_contexts(noise), noise, 4, sampler=sampler)
    table = sampler.schedule(generator.action_space, 4, generator.cells)[1].float().expand(3, -1).clone()
    before = generator.step(state, table, noise)
    table[:, generator.action_space.names.index("mask_temperature")] = 9.0
    assert torch.equal(generator.step(state, table, noise).tokens, before.tokens)


def test_errors_name_the_tensor_and_the_remedy(halton_folder: Path, google_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="option heads"):
        load("halton-256", halton_folder)
    with pytest.raises(ConfigError, match="did you mean 'tokenizer'"):
        load("google-256", google_folder, tokeniser="x")
    with pytest.raises(WeightsError, match="maskgit_imagenet512_checkpoint does not exist"):
        load("google-512", google_folder)  # the folder holds the files of the other size
    with pytest.raises(ConfigError, match="did you mean 'halton-256'"):
        load("halton-255", halton_folder)

    state = filled(HaltonTransformer(HALTON), 1)
    del state["transformer.layers.1.ff.w3.weight"]
    state["extra.weight"] = torch.zeros(2)
    save_halton(halton_folder / "ImageNet_256_base.pth", state)
    with pytest.raises(WeightsError, match=r"(?s)missing   transformer\.layers\.1\.ff\.w3\.weight.*extra     extra"):
        load("halton-256", halton_folder, heads=4)

    short = {f"params/{n.replace('.', '/')}": v for n, v in filled(GoogleTransformer(GOOGLE), 3).items()}
    short["params/MlmLayer_0/mlm_ln/scale"] = torch.zeros(7)
    save_flax(google_folder / "maskgit_imagenet256_checkpoint", short)
    with pytest.raises(WeightsError, match=r"misshapen MlmLayer_0\.mlm_ln\.scale \[7\], expected \[32\]"):
        load("google-256", google_folder)

    with pytest.raises(WeightsError, match="do not belong together"):
        other = tmp_path / "other.pt"
        vq = LlamaGenVQConfig(codebook_size=12, code_width=4, latent_width=32, width=32, multipliers=(1, 2), blocks=1)
        save_llamagen(other, filled(LlamaGenVQ(vq), 2))
        good = filled(HaltonTransformer(HALTON), 1)
        save_halton(halton_folder / "ImageNet_256_base.pth", good)
        load("halton-256", halton_folder, heads=4, tokenizer=str(other))


def test_a_missing_file_says_where_it_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    for variant, address in {"halton-384": "huggingface.co/llvictorll", "google-512": "storage.googleapis.com"}.items():
        with pytest.raises(WeightsError, match=address):
            MaskGIT.create(variant, {}, device=CPU, dtype=torch.float32, offline=True)
