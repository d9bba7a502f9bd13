"""Every registered generator and each of its variants keeps the contract of ``interfaces``.

Embedded variants run as they are. Variants of third-party weights are built small, with random weights, saved in the
container they are published in, and loaded by the registered plug-in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_plugins.generators.google_net import GoogleTransformer
from adanat_plugins.generators.halton_net import HaltonTransformer
from adanat_plugins.generators.text_encoder import TextConfig
from adanat_plugins.tokenizers.llamagen_vq import LlamaGenVQ
from adanat_toolkit import testing
from adanat_toolkit.core import TOKEN_KNOBS, Knob, Noise, parse_schedule
from adanat_toolkit.errors import AdaNATError, ConfigError
from adanat_toolkit.interfaces import Context, Generator, TokenGenerator, TokenState
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import FIRST_PARTY, create_generator, discover
from adanat_toolkit.runtime import devices as compute
from adanat_toolkit.sampling import collect, sample, seed_range

from ..golden.published_files import save_flax, save_halton, save_llamagen
from ..helpers.diffusion_pipelines import save_pipeline
from ..helpers.released import randomise, save_latent, save_mage, save_uvit, save_var, save_vqgan
from ..helpers.released_pipelines import save_amused
from ..helpers.tiny import TinyGenerator
from .test_released_maskgit import GOOGLE, HALTON, VQ, filled, flax_tokenizer

CPU = torch.device("cpu")
SEEDS = torch.arange(30, 33)
PROMPTS = ("3d emoji of red apple", "a dog", "blue tree")

TEXT = TextConfig(context_length=8, vocab_size=49408, width=32, heads=2, layers=2, embed_dim=24)

Options = dict[str, Any]


def embedded(folder: Path) -> Options:
    return {}


def adanat(name: str) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        save_uvit(folder / f"{name}.pth", num_classes=11)
        save_vqgan(folder / "vqgan_jax_strongaug.ckpt")
        return {"heads": 4}

    return make


def cc3m(folder: Path) -> Options:
    from open_clip.transformer import TextTransformer

    state = save_uvit(folder / "cc3m.pth", clip_dim=TEXT.width)
    for part in ("weight", "bias"):  # these values favour one code so much that no knob could matter
        state[f"mlm_layer.ln.{part}"] *= 0.2
    torch.save({"model": state}, folder / "cc3m.pth")
    save_vqgan(folder / "vqgan_jax_strongaug.ckpt")
    tower = TextTransformer(
        context_length=TEXT.context_length, vocab_size=TEXT.vocab_size, width=TEXT.width, heads=TEXT.heads,
        layers=TEXT.layers, output_dim=TEXT.embed_dim,
    )  # fmt: skip
    torch.save(randomise(tower, 6), folder / "open_clip_pytorch_model.bin")
    return {"heads": 4, "text_encoder": str(folder / "open_clip_pytorch_model.bin")}


def mage(name: str) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        save_mage(folder / f"mage-{name}-1600.pth")
        return {}

    return make


def halton(name: str) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        state = filled(HaltonTransformer(HALTON), 1)
        state["head.weight"] = state["tok_emb.weight"]
        save_halton(folder / name, state)
        save_llamagen(folder / "vq_ds16_c2i.pt", filled(LlamaGenVQ(VQ), 2))
        return {"heads": HALTON.heads}

    return make


def google(side: int) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        state = filled(GoogleTransformer(GOOGLE), 3)
        tree = {f"params/{name.replace('.', '/')}": value for name, value in state.items()}
        save_flax(folder / f"maskgit_imagenet{side}_checkpoint", tree)
        save_flax(folder / f"tokenizer_imagenet{side}_checkpoint", flax_tokenizer(32, (1, 2, 2), 1, 16, 8))
        return {}

    return make


def var(name: str) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        save_var(folder, f"var_{name}.pth")
        return {}

    return make


def latent(folder: Path) -> Options:
    save_latent(folder)
    return {"heads": 4}


def amused(side: int) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        save_amused(folder / f"amused-{side}", halved=side == 512)
        return {}

    return make


def pipeline(kind: str) -> Callable[[Path], Options]:
    def make(folder: Path) -> Options:
        save_pipeline(kind, folder)
        return {"height": 16, "width": 16}

    return make


FILES: dict[str, Callable[[Path], Options]] = {
    "maskgit:emoji64": embedded,
    "mage:emoji64": embedded,
    "muse:emoji64": embedded,
    "maskgit:adanat-imagenet-l": adanat("imagenet-l"),
    "maskgit:adanat-imagenet-s": adanat("imagenet-s"),
    "maskgit:halton-256": halton("ImageNet_256_base.pth"),
    "maskgit:halton-384": halton("ImageNet_384_large.pth"),
    "maskgit:google-256": google(256),
    "maskgit:google-512": google(512),
    "mage:vit-b": mage("vitb"),
    "mage:vit-l": mage("vitl"),
    "muse:adanat-cc3m": cc3m,
    "amused:256": amused(256),
    "amused:512": amused(512),
    "diffusers:StableDiffusionPipeline": pipeline("stable-diffusion"),
    "diffusers:StableDiffusionXLPipeline": pipeline("stable-diffusion-xl"),
    "diffusers:StableDiffusion3Pipeline": pipeline("stable-diffusion-3"),
    "diffusers:ZImagePipeline": pipeline("z-image"),
    "dit:emoji64": embedded,
    "sit:emoji64": embedded,
    "var:emoji64": embedded,
    "dit:xl-2-256": latent,
    "sit:xl-2-256": latent,
    "var:d16": var("d16"),
    "var:d30": var("d30"),
}
"""What writes each variant's files, under their published names, into a folder; the options beside ``weights``."""


def registered() -> list[str]:
    """``NAME:VARIANT`` of everything first-party in the group ``adanat.generators``."""
    plugins = [p for p in discover("generator") if p.distribution == FIRST_PARTY and not p.shadowed]
    return [f"{plugin.name}:{variant}" for plugin in plugins for variant in plugin.load().variants()]


def test_every_registered_variant_is_covered() -> None:
    assert sorted(registered()) == sorted(FILES)


OTHERS = ("diffusers", "dit", "sit", "var")
"""Generators that are no token generators; their own tests are elsewhere."""
TOKENS = sorted(spec for spec in FILES if spec.split(":")[0] not in OTHERS)


def make(spec: str, folder: Path, **more: Any) -> Generator:
    """The variant from files that are written into a folder, with further options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("adanat_plugins.generators.muse.BIGG", TEXT)  # the published tower has 695 million parameters
        options = FILES[spec](folder)
        if FILES[spec] is not embedded:
            options["weights"] = str(folder)
        made = create_generator(spec, {**options, **more}, device=CPU, dtype=torch.float32, offline=True)
    assert made.name == spec
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Generator]:
    """Each variant, built once."""
    return cache(lambda spec: make(spec, tmp_path_factory.mktemp("weights")))


@pytest.fixture(scope="module", params=sorted(FILES))
def any_generator(request: pytest.FixtureRequest, made: Callable[[str], Generator]) -> Generator:
    return made(request.param)


@pytest.fixture(scope="module", params=TOKENS)
def generator(request: pytest.FixtureRequest, made: Callable[[str], Generator]) -> TokenGenerator:
    built = made(request.param)
    assert isinstance(built, TokenGenerator)
    return built


def contexts(generator: Generator) -> Context:
    """Three different contexts, or none for an unconditional generator."""
    if generator.context_kind == "class":
        return generator.encode_classes([0, 1, 2])
    if generator.context_kind == "text":
        return generator.encode_prompts(PROMPTS)
    return generator.sample_contexts(Noise(SEEDS))


def roll(generator: TokenGenerator, context: Context, noise: Noise, steps: int = 3) -> list[TokenState]:
    """States of a trajectory under the generator's own schedule."""
    table = parse_schedule(generator.default_schedule, generator.action_space, steps).float()
    states = [generator.reset(context, noise, steps)]
    for row in table:
        states.append(generator.step(states[-1], row.expand(len(noise), -1), noise))
    return states


def test_what_it_declares(generator: TokenGenerator) -> None:
    assert generator.action_space.schedule is None  # unbound
    assert set(generator.action_space.knobs) <= set(TOKEN_KNOBS)
    assert generator.action_space.names[0] == "mask_ratio"
    assert ("guidance" in generator.action_space.names) == (generator.null_context(2) is not None)
    assert generator.image_size[0] % generator.grid[0] == generator.image_size[1] % generator.grid[1] == 0
    assert generator.mask_id >= generator.codebook_size > 1
    assert (generator.context_kind == "class") == (generator.num_classes is not None)
    assert len(generator.fingerprint) == 16 and int(generator.fingerprint, 16) >= 0
    assert all(count > 0 for count in generator.parameters_count().values())
    assert parse_schedule(generator.default_schedule, generator.action_space, 5).shape[0] == 5
    if generator.class_names is not None:
        assert len(generator.class_names) == generator.num_classes
    context = contexts(generator)
    assert len(context) == 3
    assert Context.cat([context, context]).distinct()[0].tolist() == ([0] if context.describe(0) == {} else [0, 1, 2])
    null = generator.null_context(3)
    if null is not None:  # one batch holds both
        assert len(Context.cat([context, null])) == 6


def test_shapes_dtypes_and_ranges(generator: TokenGenerator) -> None:
    noise, states = Noise(SEEDS), roll(generator, contexts(generator), Noise(SEEDS))
    assert (states[0].tokens == generator.mask_id).all()
    for state in states[:-1]:
        features = generator.observe(state)
        assert features.shape == (3, generator.cells, generator.feature_dim)
        assert features.dtype == torch.float32 and bool(features.isfinite().all())
        assert state.prediction is not None
        assert state.prediction[0].shape == (3, generator.cells, generator.codebook_size)
        assert state.prediction[0].dtype == torch.float32 and bool(state.prediction[0].isfinite().all())
    masked = [int((state.tokens == generator.mask_id).sum()) for state in states]
    assert masked == sorted(masked, reverse=True) and masked[-1] < masked[0]
    last = states[-1].proposal
    assert last.dtype == torch.int64 and last.shape == (3, generator.cells)
    assert int(last.min()) >= 0 and int(last.max()) < generator.codebook_size
    images = generator.decode(states[-1])
    assert images.shape == (3, 3, *generator.image_size) and images.dtype == torch.float32
    assert float(images.min()) >= 0 and float(images.max()) <= 1 and float(images.std()) > 1e-3
    codes = generator.encode_images(images)
    assert codes.shape == last.shape and codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < generator.codebook_size
    assert not any(parameter.requires_grad for parameter in generator.network.parameters())  # type: ignore[attr-defined]
    assert len(noise) == 3


@pytest.mark.parametrize("check", testing.GENERATOR_CHECKS, ids=lambda check: check.__name__)
def test_contract(any_generator: Generator, check: Callable[[testing.GeneratorCase], None]) -> None:
    check(testing.GeneratorCase(any_generator))


@pytest.mark.parametrize("knob", TOKEN_KNOBS, ids=lambda knob: knob.name)
def test_knobs_that_are_not_declared_cannot_be_passed(generator: TokenGenerator, knob: Knob) -> None:
    space, noise, context = generator.action_space, Noise(SEEDS), contexts(generator)
    if knob.name in space.names:
        return
    with pytest.raises(ConfigError, match=f"no knob '{knob.name}'"):
        parse_schedule(f"cosine,{knob.name}=1", space, 3)
    with pytest.raises(ConfigError, match=f"no knob '{knob.name}'"):
        space.bind(parse_schedule("cosine", space, 3), acted=[knob.name])
    with pytest.raises(ValueError, match="zip"):
        generator.step(generator.reset(context, noise, 3), torch.ones(3, len(space.names) + 1), noise)


@pytest.mark.parametrize("guided", [False, True])
def test_no_forward_is_run_for_nothing(
    generator: TokenGenerator, guided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if guided and "guidance" not in generator.action_space.names:
        guided = False
    rows: list[int] = []
    predict = generator.predict
    monkeypatch.setattr(
        generator, "predict", lambda tokens, context: rows.append(len(tokens)) or predict(tokens, context)
    )
    policy = load_policy("fixed:cosine,guidance=2" if guided else "fixed:cosine", generator, 3)
    rollout = collect(generator, policy, contexts(generator), Noise(SEEDS), keep_images=3)
    assert rollout.images is not None and len(rollout.images) == 3
    first = sum(rows) - 2 * len(SEEDS) * (2 if guided else 1)
    # Two steps in full; the all-mask state once a distinct context (and once unconditionally), or from the cache.
    assert 0 <= first <= len(SEEDS) + guided


def test_contexts_of_another_kind_are_refused(any_generator: Generator) -> None:
    generator = any_generator
    if generator.context_kind != "class":
        with pytest.raises(ConfigError, match="not class-conditional"):
            generator.encode_classes([0])
    else:
        assert generator.num_classes is not None
        with pytest.raises(ConfigError, match=f"class id {generator.num_classes} is outside"):
            generator.encode_classes([generator.num_classes])
    if generator.context_kind != "text":
        with pytest.raises(ConfigError, match="not text-conditional"):
            generator.encode_prompts(["a dog"])
    elif generator.real_images() is None:
        with pytest.raises(ConfigError, match="give --prompt"):
            generator.sample_contexts(Noise(SEEDS))


@pytest.mark.parametrize("spec", sorted(FILES))
def test_a_missing_file_or_a_wrong_option_says_what_to_do(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path))
    with pytest.raises(ConfigError, match="did you mean 'weights'"):
        create_generator(spec, {"wieghts": "x"}, device=CPU, dtype=torch.float32, offline=True)
    if FILES[spec] is not embedded and not spec.startswith("diffusers:"):  # pipelines have no place of their own
        with pytest.raises(AdaNATError) as error:
            create_generator(spec, {}, device=CPU, dtype=torch.float32, offline=True)
        text = str(error.value)
        assert all(part in text for part in (spec, "published:", "licence:", "Put it at", "--weights")), text
    with pytest.raises(ConfigError, match="has no variant"):
        create_generator(f"{spec}x", {}, device=CPU, dtype=torch.float32, offline=True)


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """What was traced before, with another backend, is not used again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
@pytest.mark.parametrize("name", ["maskgit", "mage", "muse"])
def test_a_compiled_generator_makes_the_same_images(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile does it, without gaps, and run by the eager backend, which needs no compiler."""
    calls: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        calls.append(len(inputs))
        return graph.forward

    monkeypatch.setitem(compute.COMPILED, "backend", backend)
    monkeypatch.setitem(compute.COMPILED, "fullgraph", True)
    images = []
    options: Options
    for options in ({}, {"compile": True}):
        generator = create_generator(name, options, device=CPU, dtype=torch.float32, offline=True)
        policy = load_policy("fixed", generator, 2)
        images.append([samples.images for samples in sample(generator, policy, seed_range(0, 9), batch=5)])
        if not options:
            assert not calls
    assert 2 <= len(calls) <= 4  # the network and the decoder, whatever the batch
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*images, strict=True))


@pytest.mark.usefixtures("nothing_compiled")
def test_every_variant_compiles(generator: TokenGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its option reaches the network and the decoder, and changes neither features nor images."""
    traced: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        traced.append(len(inputs))
        return graph.forward

    monkeypatch.setitem(compute.COMPILED, "backend", backend)
    compiled = make(generator.name, tmp_path, compile=True)
    assert isinstance(compiled, TokenGenerator)
    states = [g.reset(contexts(g), Noise(SEEDS), 2) for g in (generator, compiled)]
    plain, own = (g.observe(state) for g, state in zip((generator, compiled), states, strict=True))
    after_network = len(traced)
    assert after_network
    assert torch.allclose(plain, own, atol=1e-4)
    codes = torch.arange(2 * generator.cells).view(2, -1) % generator.codebook_size
    images = [g.decode_tokens(codes) for g in (generator, compiled)]
    assert len(traced) > after_network
    assert torch.allclose(*images, atol=1e-4)


def test_a_generator_without_networks_to_compile_says_so() -> None:
    with pytest.raises(ConfigError, match="cannot be compiled"):
        TinyGenerator().compile()
