"""``AdanatGuider`` in diffusers' modular pipelines: the images of ``sample``, saved and loaded, refused where unfit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline
from adanat_toolkit.core import Noise
from adanat_toolkit.errors import CheckpointError, ConfigError
from adanat_toolkit.policies import ContextPolicy, SamplingPolicy, export_policy, load_policy
from adanat_toolkit.sampling import collect

from ..helpers.applied import featured_policy
from ..helpers.diffusion_pipelines import save_pipeline
from ..helpers.modular_pipelines import BLOCKS, make_modular

pytest.importorskip("diffusers.guiders", reason="this diffusers has no guiders")

from adanat_toolkit.integrations.diffusers import AdanatGuider, seeded_latents

CPU = torch.device("cpu")
STEPS = 4
PROMPTS = ["a cat", "tree", "re", "a cat", "x", "sea", "tree", "y z"]
SIZE = {"height": 16, "width": 16}
ROUNDING = 2e-4


class Case:
    """A pipeline's folder, and a policy of its guidance."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder, self.policy = kind, folder, folder / "policy"
        save_pipeline(kind, folder / "pipe")
        featured_policy(self.generator(), self.policy, "guidance=3", STEPS, smoothing=0.2, acted=["guidance"])

    def generator(self) -> DiffusersPipeline:
        options = {"weights": str(self.folder / "pipe"), **SIZE}
        return DiffusersPipeline.create(None, options, device=CPU, dtype=torch.float32, offline=True)

    def pipeline(self, guider: Any = None) -> Any:
        pipe = make_modular(self.kind, self.folder / "parts")
        if guider is not None:
            pipe.update_components(guider=guider)
        return pipe

    def images(self, pipe: Any, prompts: list[str], **more: Any) -> Tensor:
        if self.kind == "stable-diffusion-3":  # which encodes none of its own accord
            more = {"negative_prompt": "", **more}
        given = {"num_inference_steps": STEPS, "output_type": "pt", "output": "images", **SIZE, **more}
        out: Tensor = pipe(prompt=prompts, **given)
        return out


@pytest.fixture(scope="module", params=sorted(BLOCKS))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.rounding
def test_the_images_are_those_of_sample(case: Case) -> None:
    generator = case.generator()
    policy = load_policy(case.policy, generator)
    seeds = list(range(20, 20 + len(PROMPTS)))
    noise = Noise(torch.tensor(seeds))
    expected = collect(generator, policy, generator.encode_prompts(PROMPTS), noise, keep_images=len(PROMPTS))
    assert expected.images is not None
    assert bool((expected.physical[..., 0].std(0) > 1e-4).all())  # guidance differs between the samples
    pipe = case.pipeline(AdanatGuider.from_pretrained(case.policy))
    latents = seeded_latents(seeds, generator.latent_shape)
    for batch in (1, 3, 8):
        for start in range(0, len(PROMPTS), batch):
            rows = slice(start, start + batch)
            found = case.images(pipe, PROMPTS[rows], latents=latents[rows])
            torch.testing.assert_close(found, expected.images[rows], atol=ROUNDING, rtol=0)
    plain = case.images(case.pipeline(), PROMPTS, latents=latents)
    assert (plain - expected.images).abs().max() > 20 * ROUNDING
    assert hooks(pipe) == 0


def hooks(pipe: Any) -> int:
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in denoiser.modules())


def test_saved_and_loaded_alone_and_with_the_pipeline(case: Case, tmp_path: Path) -> None:
    from diffusers import ModularPipeline

    guider = AdanatGuider.from_pretrained(case.policy)
    assert guider.config.policy == str(case.policy) and len(guider.config.policy_hash) == 64
    pipe = case.pipeline(guider)
    latents = seeded_latents([1, 2, 3], case.generator().latent_shape)
    expected = case.images(pipe, PROMPTS[:3], latents=latents)
    again = case.images(case.pipeline(guider.new()), PROMPTS[:3], latents=latents)
    assert torch.equal(again, expected)

    guider.save_pretrained(tmp_path / "alone")
    found = case.images(case.pipeline(AdanatGuider.from_pretrained(tmp_path / "alone")), PROMPTS[:3], latents=latents)
    assert torch.equal(found, expected)

    saved = tmp_path / "pipe"
    pipe.save_pretrained(str(saved), overwrite_modular_index=True)
    index = json.loads((saved / "modular_model_index.json").read_text())
    assert index["guider"][:2] == ["adanat_toolkit.integrations.diffusers.guider", "AdanatGuider"]
    moved = saved.rename(tmp_path / "moved")  # the policy's files travel with the pipeline
    text = (moved / "modular_model_index.json").read_text()
    (moved / "modular_model_index.json").write_text(text.replace(str(saved), str(moved)))
    loaded = ModularPipeline.from_pretrained(moved)
    loaded.load_components()
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.guider) is AdanatGuider
    assert torch.equal(case.images(loaded, PROMPTS[:3], latents=latents), expected)

    other = featured_policy(case.generator(), tmp_path / "other", "guidance=1", STEPS, acted=["guidance"])
    shutil.copyfile(other / "policy.json", moved / "guider" / "policy.json")
    shutil.copyfile(other / "policy.safetensors", moved / "guider" / "policy.safetensors")
    with pytest.raises(CheckpointError, match=r"has the hash .* and the guider was saved with"):
        AdanatGuider.from_pretrained(moved, subfolder="guider")


def test_bfloat16(case: Case) -> None:
    pipe = case.pipeline(AdanatGuider.from_pretrained(case.policy)).to(torch.bfloat16)
    found = case.images(pipe, PROMPTS[:2])
    assert found.shape == (2, 3, 16, 16) and bool(found.isfinite().all())


def test_what_does_not_fit_is_refused_with_both_named(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no policy at .*nowhere"):
        AdanatGuider.from_pretrained(tmp_path / "nowhere")
    pipe = case.pipeline(AdanatGuider.from_pretrained(case.policy))
    with pytest.raises(ConfigError, match="called with 5 steps and the policy makes an image in 4"):
        case.images(pipe, PROMPTS[:1], num_inference_steps=5)
    with pytest.raises(ConfigError, match=r"reads a grid of .* cells, and images of this size have"):
        case.images(pipe, PROMPTS[:1], height=32, width=32)
    assert hooks(pipe) == 0
    every = featured_policy(case.generator(), tmp_path / "every", "guidance=3", STEPS)
    with pytest.raises(ConfigError, match=r"also sets time_shift, and a guider sets guidance alone"):
        AdanatGuider.from_pretrained(every)

    for where, value, message in (
        ("name", "diffusers:StableDiffusionPipeline", "trained for diffusers:StableDiffusionPipeline, and this pipeline's"),
        ("feature_dim", 25, "reads 25 features a cell .*, and this pipeline has"),
    ):
        other = case.generator()
        setattr(other, where, value)
        policy = featured_policy(other, tmp_path / where, "guidance=3", STEPS, acted=["guidance"])
        with pytest.raises(ConfigError, match=message):
            case.images(case.pipeline(AdanatGuider.from_pretrained(policy)), PROMPTS[:1])
    space = case.generator().bind("guidance=3", STEPS, acted=["guidance"])
    network = ContextPolicy(ContextPolicy.Options(), space=space, grid=(1, 1), feature_dim=8)
    facts = {"trajectories": 8, "reward": "dark", "seed": 0, "engine": "adanat"}
    made = SamplingPolicy(network, space)
    export_policy(tmp_path / "sees", made, network.state_dict(), options={}, generator=case.generator(), facts=facts)
    with pytest.raises(ConfigError, match="policy 'context' reads the context, which a pipeline does not show"):
        AdanatGuider.from_pretrained(tmp_path / "sees")
    other = case.generator()
    other.name = "amused:256"
    policy = featured_policy(other, tmp_path / "tokens", "guidance=3", STEPS, acted=["guidance"])
    with pytest.raises(ConfigError, match=r"was trained for amused:256 .* needs one of the generator 'diffusers'"):
        AdanatGuider.from_pretrained(policy)
    with pytest.raises(ConfigError, match="Modular pipelines take an AdanatGuider"):
        adanat.apply(pipe, case.policy)
    if case.kind == "stable-diffusion-3":
        with pytest.raises(ConfigError, match=r"no unconditional prompt.*call it with negative_prompt=''"):
            case.images(pipe, PROMPTS[:1], negative_prompt=None)
    (pipe.unet if hasattr(pipe, "unet") else pipe.transformer).compile()
    with pytest.raises(ConfigError, match="is compiled, so its hidden state cannot be read"):
        case.images(pipe, PROMPTS[:1])
