"""The generator ``diffusers`` on tiny pipelines of every family, saved and loaded as real folders."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import adanat_toolkit as adanat
from adanat_plugins.diffusion import loading
from adanat_plugins.diffusion.families import FAMILIES, family_of
from adanat_plugins.diffusion.features import FeatureHook
from adanat_plugins.generators import diffusers_pipeline
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline, PipelineState
from adanat_toolkit.errors import AdaNATError, CheckpointError, ConfigError, WeightsError
from adanat_toolkit.noise import INITIAL, Noise
from adanat_toolkit.sampling import forwards_of_an_image

from ..helpers.diffusion_pipelines import PIPELINES, TRAINED, make_pipeline, save_pipeline

PROMPTS = ["a red dog", "blue tree", "fox"]
SIZE = {"height": 16, "width": 16}
SCHEDULERS: dict[str, tuple[str, Callable[[], Any] | None]] = {
    **{kind: (kind, None) for kind in PIPELINES},
    "stable-diffusion-3-t5": ("stable-diffusion-3-t5", None),
    "pndm": ("stable-diffusion", lambda: diffusers.PNDMScheduler(**TRAINED, skip_prk_steps=True)),
    "dpm++": ("stable-diffusion", lambda: diffusers.DPMSolverMultistepScheduler(**TRAINED)),
    "unipc": ("stable-diffusion-xl", lambda: diffusers.UniPCMultistepScheduler(**TRAINED)),
    "dynamic": ("stable-diffusion-3", lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
}
"""Pipelines by a name: every kind with its own scheduler, and some with another."""


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    @cache
    def make(name: str) -> Path:
        kind, scheduler = SCHEDULERS[name]
        return save_pipeline(kind, tmp_path_factory.mktemp(name), scheduler=scheduler and scheduler())

    return make


@pytest.fixture(scope="module")
def generator_of(folder_of: Callable[[str], Path]) -> Callable[..., DiffusersPipeline]:
    @cache
    def make(name: str, **options: Any) -> DiffusersPipeline:
        return loaded(folder_of(name), **options)

    return make


def loaded(folder: Path, *, dtype: str = "float32", **options: Any) -> DiffusersPipeline:
    made = adanat.load_generator("diffusers", weights=folder, options={**SIZE, **options}, device="cpu", dtype=dtype)
    assert isinstance(made, DiffusersPipeline)
    return made


def follow(
    generator: DiffusersPipeline,
    prompts: list[str],
    seeds: list[int],
    steps: int,
    table: Tensor | None = None,
    *,
    look: bool = False,
) -> PipelineState:
    """The last state under the generator's own schedule, or a table (actions, B, K)."""
    noise = Noise(torch.tensor(seeds))
    state = generator.reset(generator.encode_prompts(prompts), noise, steps)
    if table is None:
        own = generator.bind(None, steps).schedule
        assert own is not None
        table = own.float()[:, None].expand(-1, len(seeds), -1)
    for actions in table:
        if look:
            generator.observe(state)
        state = generator.step(state, actions, noise)
    return state


def drawn(generator: DiffusersPipeline, samples: int, steps: int) -> Tensor:
    """Actions (actions, samples, K) of all kinds; every third sample is not guided."""
    shape = (generator.decisions(steps), samples, len(generator.action_space.knobs))
    table = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    table[..., 0] *= 5
    table[:, ::3, 0] = 0
    return table


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "negative"), [*((name, None) for name in SCHEDULERS), ("stable-diffusion-xl", "red")])
def test_the_own_schedule_makes_the_pipelines_own_images(
    name: str, negative: str | None, generator_of: Callable[..., DiffusersPipeline]
) -> None:
    generator = generator_of(name, negative_prompt=negative)
    latents = Noise(torch.tensor([3, 4, 5])).normal(INITIAL, 0, generator.latent_shape)
    images = generator.decode(follow(generator, PROMPTS, [3, 4, 5], 4))
    wanted = generator.pipe(
        PROMPTS,
        negative_prompt=None if negative is None else [negative] * 3,
        num_inference_steps=4,
        latents=latents,
        output_type="pt",
        **SIZE,
    ).images
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["stable-diffusion-xl", "z-image", "pndm", "dpm++"])
def test_an_image_does_not_depend_on_its_batch(name: str, generator_of: Callable[..., DiffusersPipeline]) -> None:
    generator = generator_of(name)
    prompts, seeds = [PROMPTS[i % 3] for i in range(8)], list(range(50, 58))
    table = drawn(generator, 8, 2)
    whole = generator.decode(follow(generator, prompts, seeds, 2, table))
    for size in (1, 3):
        parts = [slice(i, i + size) for i in range(0, 8, size)]
        made = [
            generator.decode(follow(generator, prompts[part], seeds[part], 2, table[:, part], look=True)) for part in parts
        ]
        torch.testing.assert_close(torch.cat(made), whole, rtol=0, atol=1e-5)


def test_only_samples_with_guidance_are_in_the_unconditional_forward(
    folder_of: Callable[[str], Path],
) -> None:
    generator = loaded(folder_of("stable-diffusion"))
    plain, batches = generator.family, list[str]()

    def predict(network: Any, latents: Tensor, times: Tensor, conditions: Any, size: Any) -> Tensor:
        batches.append("".join("-" if condition is generator._null else "+" for condition in conditions))
        return plain.predict(network, latents, times, conditions, size)

    generator.family = replace(plain, predict=predict)
    actions = torch.tensor([[[0.0, 0.5, 0.0], [2.0, 0.5, 0.0], [0.0, 0.5, 0.0], [3.0, 0.5, 0.0]]])
    prompts = [*PROMPTS, "fox"]
    follow(generator, prompts, [1, 2, 3, 4], 1, actions)
    follow(generator, prompts, [1, 2, 3, 4], 1, actions, look=True)
    follow(generator, prompts, [1, 2, 3, 4], 1, actions * torch.tensor([0.0, 1, 1]), look=True)
    assert batches == ["++++--", "++++", "--", "++++"]
    assert forwards_of_an_image(generator, generator.bind(None, 4)) == 8  # both halves at every step


def test_eta_adds_noise_of_the_samples_own(generator_of: Callable[..., DiffusersPipeline]) -> None:
    generator = generator_of("stable-diffusion")
    assert generator.action_space.names == ("guidance", "time_shift", "eta")
    table = torch.tensor([1.0, 0.5, 0.0]).expand(3, 3, 3).clone()
    plain = follow(generator, PROMPTS, [1, 2, 3], 3, table).latents
    table[0, 1, 2] = 0.8
    noisy = follow(generator, PROMPTS, [1, 2, 3], 3, table).latents
    torch.testing.assert_close(noisy[[0, 2]], plain[[0, 2]], rtol=0, atol=1e-6)
    assert float((noisy[1] - plain[1]).abs().max()) > 0.1
    table[0, 0, 2] = 5e-5  # as good as none: it must not depend on what others have
    beside = follow(generator, PROMPTS, [1, 2, 3], 3, table).latents
    assert torch.equal(beside[0], noisy[0])


def test_a_scheduler_without_times_of_each_sample_leaves_guidance(
    folder_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="adanat_toolkit"):
        generator = loaded(folder_of("pndm"))
    assert "PNDMScheduler has no formula here" in caplog.text and "DDIMScheduler" in caplog.text
    assert generator.action_space.names == ("guidance",)
    assert generator.decisions(4) == 5
    assert generator.bind(None, 4).steps == 4


def test_latents_are_what_the_autoencoder_makes_of_images(generator_of: Callable[..., DiffusersPipeline]) -> None:
    generator = generator_of("stable-diffusion-3")
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    vae = generator.pipe.vae
    wanted = (vae.encode(images * 2 - 1).latent_dist.mean - 0.06) * 1.5
    torch.testing.assert_close(generator.encode_latents(images), wanted)
    assert generator.encode_latents(images).shape[1:] == generator.latent_shape


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_features_are_the_last_hidden_state(name: str, generator_of: Callable[..., DiffusersPipeline]) -> None:
    """What the denoiser's output layer makes of them is its prediction."""
    generator = generator_of(name)
    state = generator.reset(generator.encode_prompts(PROMPTS), Noise(torch.tensor([1, 2, 3])), 2)
    features = generator.observe(state)
    layer = generator.denoiser.get_submodule(generator.family.last_hidden)
    height, width = generator.grid
    with torch.no_grad():
        if generator.family.tokens:
            patches = layer(features).view(3, height, width, 2, 2, -1)
            made = torch.einsum("bhwpqc->bchpwq", patches).reshape(3, -1, 2 * height, 2 * width)
            made = -made if name == "z-image" else made
        else:
            made = layer(features.transpose(1, 2).unflatten(2, generator.grid))
    torch.testing.assert_close(made, state.output, rtol=1e-5, atol=1e-5)


def test_features_are_pooled_to_the_largest_grid_and_the_hook_can_go(tmp_path: Path) -> None:
    pipe, family = make_pipeline("stable-diffusion", tmp_path), family_of("StableDiffusionPipeline")
    fine, coarse = FeatureHook(family, pipe.unet, (8, 8)), FeatureHook(family, pipe.unet, (8, 8), largest=4)
    condition = family.encode(pipe, "fox", torch.device("cpu"))
    with torch.no_grad():
        family.predict(pipe.unet, torch.ones(1, 4, 8, 8), torch.tensor([5.0]), [condition], (16, 16))
    full = fine.take().view(1, 4, 2, 4, 2, -1)
    torch.testing.assert_close(coarse.take(), full.mean((2, 4)).flatten(1, 2))
    assert coarse.grid == (4, 4) and coarse.dim == 8
    for hook in (fine, coarse):
        hook.remove()
    assert not pipe.unet.conv_out._forward_pre_hooks


# --- text -------------------------------------------------------------------------------------------------------------


def test_a_prompt_is_encoded_once_and_few_are_kept(
    folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = loaded(folder_of("stable-diffusion"))
    asked: list[str] = []
    encode = generator.pipe.encode_prompt
    monkeypatch.setattr(generator.pipe, "encode_prompt", lambda **given: asked.extend(given["prompt"]) or encode(**given))
    for _ in range(2):
        follow(generator, [*PROMPTS, *PROMPTS], list(range(6)), 1)
    assert sorted(asked) == sorted([*PROMPTS, ""])
    wanted = follow(generator, PROMPTS, [1, 2, 3], 2).latents
    each = generator.family.encode(generator.pipe, "a", torch.device("cpu"))["states"].nbytes
    monkeypatch.setattr(diffusers_pipeline, "KEPT_TEXT", 2 * each)
    torch.testing.assert_close(follow(generator, PROMPTS, [1, 2, 3], 2).latents, wanted, rtol=0, atol=0)
    assert list(generator._kept) == PROMPTS[1:]


def test_text_encoders_wait_in_main_memory(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    generator = loaded(folder_of("stable-diffusion-xl"), offload=True)
    moves: list[str] = []
    generator.device = torch.device("meta")  # not where it is, so that moves are seen
    for name in ("text_encoder", "text_encoder_2"):
        part = getattr(generator.pipe, name)
        monkeypatch.setattr(part, "to", lambda device, name=name: moves.append(f"{name} {device}"))
    with generator._text_encoders(True):
        pass
    with generator._text_encoders(False):
        pass
    assert moves == ["text_encoder meta", "text_encoder_2 meta", "text_encoder cpu", "text_encoder_2 cpu"]


def test_prompts_of_a_file_are_drawn_by_the_seeds(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red dog\n\nblue tree\n", encoding="utf-8")
    generator = loaded(folder_of("stable-diffusion"), prompts=str(file))
    found = generator.sample_contexts(Noise(torch.arange(40))).prompts
    assert found is not None and set(found) == {"a red dog", "blue tree"}
    assert generator.sample_contexts(Noise(torch.tensor([7, 3]))).prompts == (found[7], found[3])


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_bfloat16_and_its_fingerprint(
    name: str, folder_of: Callable[[str], Path], generator_of: Callable[..., DiffusersPipeline]
) -> None:
    generator = loaded(folder_of(name), dtype="bfloat16")
    assert {p.dtype for p in generator.denoiser.parameters()} == {torch.bfloat16}
    images = generator.decode(follow(generator, PROMPTS, [1, 2, 3], 2, look=True))
    plain = generator_of(name)
    assert images.dtype == torch.float32 and generator.fingerprint == plain.fingerprint
    other = plain.decode(follow(plain, PROMPTS, [1, 2, 3], 2))
    assert 1e-5 < float((images - other).abs().max()) < 0.1


def test_fingerprints_tell_schedulers_and_sizes_apart(
    folder_of: Callable[[str], Path], generator_of: Callable[..., DiffusersPipeline], broken: Path
) -> None:
    made = [generator_of("stable-diffusion"), generator_of("dpm++"), loaded(folder_of("stable-diffusion"), height=32)]
    change(broken / "scheduler" / "scheduler_config.json", timestep_spacing="trailing")
    made.append(loaded(broken))
    change(broken / "scheduler" / "scheduler_config.json", timestep_spacing="leading", prediction_type="v_prediction")
    made.append(loaded(broken))
    assert len({generator.fingerprint for generator in made}) == 5
    change(broken / "scheduler" / "scheduler_config.json", prediction_type="epsilon", a_newer_setting=False)
    assert loaded(broken).fingerprint == made[0].fingerprint
    assert made[2].image_size == (32, 16) and made[2].latent_shape == (4, 16, 8) and made[2].grid == (16, 8)


def test_its_defaults_are_the_pipelines(folder_of: Callable[[str], Path]) -> None:
    generator = adanat.load_generator("diffusers", weights=folder_of("stable-diffusion"), device="cpu")
    assert generator.image_size == (16, 16)  # 8 latents of 2 pixels
    assert generator.default_schedule == "guidance=6.5" and generator.default_steps == 50
    assert set(generator.parameters_count()) == {"unet", "vae", "text_encoder"}


def test_every_family_has_a_tiny_pipeline() -> None:
    names = {make_name for family in FAMILIES for make_name in family.pipelines}
    assert len(names) == len(PIPELINES)


# --- training and sampling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PIPELINES)
def test_a_policy_is_trained_and_used(
    name: str, folder_of: Callable[[str], Path], generator_of: Callable[..., DiffusersPipeline], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red dog\nblue tree\n", encoding="utf-8")
    generator = loaded(folder_of(name), prompts=str(file))
    run = adanat.train(
        generator=generator,
        reward=lambda images, context: images.mean((1, 2, 3)),
        steps=2,
        trajectories=8,
        batch=4,
        out=tmp_path / "run",
    )
    assert len(run.metrics) == 2
    policy = adanat.load_policy(tmp_path / "run", generator)
    samples = adanat.sample(generator, policy, seeds=range(3), prompts=PROMPTS)
    assert samples.images.shape == (3, 3, 16, 16)
    other = generator_of("stable-diffusion-xl" if name == "stable-diffusion" else "stable-diffusion")
    with pytest.raises((ConfigError, CheckpointError), match="diffusers:Stable"):
        adanat.load_policy(tmp_path / "run", other)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.fixture
def broken(folder_of: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a folder, to break."""
    return Path(shutil.copytree(folder_of("stable-diffusion"), tmp_path / "pipe"))


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _no_vae(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def _null_text_encoder(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder=[None, None])


def _foreign_code(folder: Path) -> None:
    change(folder / "model_index.json", unet=["my_unet", "MyUNet"])


def _pipeline_within(folder: Path) -> None:
    """Some versions of diffusers import the module that such a folder names."""
    change(folder / "model_index.json", scheduler=["diffusers", "DiffusionPipeline"])
    (folder / "scheduler" / "model_index.json").write_text('{"_class_name": ["evil", "Evil"]}')
    (folder / "scheduler" / "evil.py").write_text("raise SystemExit('ran')")


def _model_of_another_kind(folder: Path) -> None:
    change(folder / "model_index.json", text_encoder=["transformers", "pipeline"])


def _unknown_family(folder: Path) -> None:
    change(folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")


def _quantised(folder: Path) -> None:
    change(folder / "unet" / "config.json", quantization_config={"quant_method": "bitsandbytes"})


def _tensor_missing(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["conv_out.weight"]
    save_file(state, file, metadata={"format": "pt"})


def _cut_short(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:200])


def _ancestral(folder: Path) -> None:
    shutil.rmtree(folder / "scheduler")
    diffusers.EulerAncestralDiscreteScheduler(**TRAINED).save_pretrained(folder / "scheduler")
    change(folder / "model_index.json", scheduler=["diffusers", "EulerAncestralDiscreteScheduler"])


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


@pytest.mark.parametrize(
    ("harm", "kind", "text"),
    [
        (_no_vae, WeightsError, "lacks vae"),
        (_null_text_encoder, WeightsError, "lacks text_encoder"),
        (_foreign_code, ConfigError, "'my_unet', whose code is not run"),
        (_pipeline_within, ConfigError, "the scheduler is of the class 'DiffusionPipeline'"),
        (_model_of_another_kind, ConfigError, "the text_encoder is of the class 'pipeline'"),
        (_unknown_family, ConfigError, "'StableDiffusionInpaintPipeline' are not known"),
        (_quantised, ConfigError, "unet is quantised"),
        (_tensor_missing, WeightsError, "conv_out.weight"),
        (_cut_short, WeightsError, "is damaged or truncated"),
        (_ancestral, ConfigError, "EulerAncestralDiscreteScheduler"),
        (_no_index, WeightsError, "holds no model_index.json"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_folder_that_cannot_be_used(
    harm: Callable[[Path], None], kind: type[AdaNATError], text: str, broken: Path
) -> None:
    harm(broken)
    with pytest.raises(kind, match=text):
        loaded(broken)


def test_weights_that_do_not_fit_into_memory(folder_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, generator = folder_of("stable-diffusion"), loaded(folder_of("stable-diffusion"))
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        found, counts = loading.weight_bytes(folder, dtype), generator.parameters_count()
        assert {name: found[name] // width for name in counts} == counts
    free = sum(loading.weight_bytes(folder, torch.bfloat16).values())
    monkeypatch.setattr(loading, "free_host_memory", lambda: free)
    assert loaded(folder, dtype="bfloat16").parameters_count() == generator.parameters_count()
    with pytest.raises(ConfigError, match=r"the weights take .* of main memory are free"):
        loaded(folder)


def test_loading_shows_no_bars_of_the_libraries(
    folder_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = (diffusers.utils.logging, transformers.utils.logging)
    monkeypatch.setattr(logs[0], "_tqdm_active", True)
    monkeypatch.setattr(logs[1], "_tqdm_active", True)
    folder = folder_of("stable-diffusion")
    capfd.readouterr()  # saving has bars
    loading.load_pipeline(folder, torch.float32)
    assert capfd.readouterr().err == ""
    assert all(log._tqdm_active for log in logs)


def test_a_safety_checker_is_not_run_and_said_so(broken: Path, caplog: pytest.LogCaptureFixture) -> None:
    change(broken / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    with caplog.at_level(logging.WARNING, logger="adanat_toolkit"):
        assert loaded(broken).pipe.safety_checker is None
    assert "safety checker, which is not run" in caplog.text


def test_options_that_do_not_fit(folder_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = folder_of("stable-diffusion")
    with pytest.raises(ConfigError, match="height is 17"):
        loaded(folder, height=17)
    with pytest.raises(ConfigError, match="width is 18; this pipeline makes images of a multiple of 4"):
        loaded(folder_of("stable-diffusion-3"), width=18)
    with pytest.raises(ConfigError, match=r"cannot read .*one prompt a line"):
        loaded(folder, prompts=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match="is a StableDiffusionPipeline, and a ZImagePipeline"):
        adanat.load_generator("diffusers:ZImagePipeline", weights=folder, device="cpu")
    with pytest.raises(ConfigError, match="give --weights"):
        adanat.load_generator("diffusers", device="cpu")


def test_denoisers_that_do_not_fit(tmp_path: Path) -> None:
    def generator(**config: Any) -> None:
        pipe, family = make_pipeline("stable-diffusion", tmp_path), family_of("StableDiffusionPipeline")
        own = {key: value for key, value in pipe.unet.config.items() if not key.startswith("_")}
        unet = diffusers.UNet2DConditionModel.from_config({**own, **config})
        pipe.register_modules(unet=torch.compile(unet) if not config else unet)
        DiffusersPipeline(pipe, family, device=torch.device("cpu"), dtype=torch.float32)

    with pytest.raises(ConfigError, match="takes 9 channels and the latents have 4"):
        generator(in_channels=9)
    with pytest.raises(ConfigError, match="distilled"):
        generator(time_cond_proj_dim=8)
    with pytest.raises(ConfigError, match="compiled"):
        generator()
