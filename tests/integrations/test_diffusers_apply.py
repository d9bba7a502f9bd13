"""A policy inside diffusers' classic diffusion pipelines: the images of ``sample``, and pipelines that are as before."""

from __future__ import annotations

import gc
import inspect
import json
import weakref
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline
from adanat_toolkit.core import Noise
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.sampling import collect

from ..helpers.applied import featured_policy
from ..helpers.diffusion_pipelines import PIPELINES, TRAINED, save_pipeline

CPU = torch.device("cpu")
STEPS = 4
PROMPTS = ["a cat", "tree", "re", "a cat", "x", "sea", "tree", "y z"]
ROUNDING = 2e-4
"""Of images in [0, 1]: guidance of 5 and the autoencoder raise the rounding of a forward a hundred times."""


SIZED = {"z-image": {"height": 16, "width": 16}}
"""Pipelines without a size of their own in their folder, and what they are called with."""


class Case:
    """A pipeline's folder as diffusers saves it, and a policy that was made for it."""

    def __init__(self, kind: str, folder: Path, scheduler: Any = None) -> None:
        self.kind, self.weights, self.policy = kind, folder / "pipe", folder / "policy"
        self.size: dict[str, int] = SIZED.get(kind, {})
        save_pipeline(kind, self.weights, scheduler=scheduler)
        generator = self.generator()
        schedule = "guidance=3,eta=0.5" if "eta" in generator.action_space.names else "guidance=3"
        featured_policy(generator, self.policy, schedule, STEPS, smoothing=0.2)

    def generator(self) -> DiffusersPipeline:
        options = {"weights": str(self.weights), **self.size}
        return DiffusersPipeline.create(None, options, device=CPU, dtype=torch.float32, offline=True)

    def pipeline(self, folder: Path | None = None, **more: Any) -> Any:
        from diffusers import DiffusionPipeline

        if self.kind == "stable-diffusion-3":
            more = {"text_encoder_3": None, "tokenizer_3": None, **more}
        pipe = DiffusionPipeline.from_pretrained(folder or self.weights, local_files_only=True, **more)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def apply(self, pipe: Any, seeds: Any = None, policy: Any = None) -> Any:
        size = (self.size["height"], self.size["width"]) if self.size else None
        return adanat.apply(pipe, policy or self.policy, seeds=seeds, size=size)

    def images(self, pipe: Any, prompts: list[str], **more: Any) -> Tensor:
        out: Tensor = pipe(prompts, **{"num_inference_steps": STEPS, "output_type": "pt", **self.size, **more}).images
        return out


@pytest.fixture(scope="module", params=sorted(PIPELINES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    if request.param == "z-image" and not hasattr(diffusers, "ZImagePipeline"):
        pytest.skip(f"diffusers {diffusers.__version__} has no ZImagePipeline")
    return Case(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.rounding
def test_the_images_are_those_of_sample(case: Case) -> None:
    generator, pipe = case.generator(), case.pipeline()
    policy = load_policy(case.policy, generator)
    seeds = list(range(20, 20 + len(PROMPTS)))
    noise = Noise(torch.tensor(seeds))
    expected = collect(generator, policy, generator.encode_prompts(PROMPTS), noise, keep_images=len(PROMPTS))
    assert expected.images is not None
    assert bool((expected.physical.std(0) > 1e-4).all())  # all knobs differ between the samples
    for batch in (1, 3, 8):
        for start in range(0, len(PROMPTS), batch):
            rows = slice(start, start + batch)
            assert case.apply(pipe, seeds[rows]) is pipe
            found = case.images(pipe, PROMPTS[rows])
            torch.testing.assert_close(found, expected.images[rows], atol=ROUNDING, rtol=0)
    plain = case.images(adanat.remove(pipe), PROMPTS, generator=torch.Generator().manual_seed(0))
    assert (plain - expected.images).abs().max() > 20 * ROUNDING


SCHEDULERS = {
    "EulerDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {},
    "PNDMScheduler": {"skip_prk_steps": True},  # calls its network once more than it is asked for steps
    "UniPCMultistepScheduler": {},
}


@pytest.mark.rounding
@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_other_schedulers(name: str, tmp_path: Path) -> None:
    chosen = getattr(diffusers, name)(**TRAINED, **SCHEDULERS[name])
    case = Case("stable-diffusion", tmp_path, scheduler=chosen)
    generator, seeds = case.generator(), [3, 4, 5]
    policy = load_policy(case.policy, generator)
    context = generator.encode_prompts(PROMPTS[:3])
    expected = collect(generator, policy, context, Noise(torch.tensor(seeds)), keep_images=3)
    found = case.images(case.apply(case.pipeline(), seeds), PROMPTS[:3])
    torch.testing.assert_close(found, expected.images, atol=ROUNDING, rtol=0)


def test_without_seeds_the_latents_are_the_pipelines(case: Case) -> None:
    pipe = case.apply(case.pipeline())
    generator = torch.Generator().manual_seed(5)
    first, second = (case.images(pipe, PROMPTS[:2], generator=generator) for _ in range(2))
    assert (first - second).abs().max() > 0.01
    again = case.images(pipe, PROMPTS[:2], generator=torch.Generator().manual_seed(5))
    assert torch.equal(again, first)
    # A schedule of constant guidance is the pipeline's own call with that scale.
    steps = pipe_steps(pipe)
    case.apply(pipe, policy="fixed:guidance=2")
    one: dict[str, Any] = {"generator": torch.Generator().manual_seed(5), "num_inference_steps": steps}
    found = case.images(pipe, PROMPTS[:2], **one)
    scale = 2.0 if case.kind == "z-image" else 3.0
    one["generator"].manual_seed(5)
    expected = case.images(adanat.remove(pipe), PROMPTS[:2], guidance_scale=scale, **one)
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0)


def test_bfloat16_and_what_users_do_between_steps(case: Case) -> None:
    """The policy belongs to the pipeline in bfloat16 too, and a callback's latents are the ones that go on."""
    pipe = case.apply(case.pipeline().to(torch.bfloat16), [7, 8])
    seen: list[Tensor] = []

    def callback(pipe: Any, step: int, timestep: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(given["latents"])
        return {"latents": torch.zeros_like(given["latents"])} if step == STEPS - 1 else given

    found = case.images(pipe, PROMPTS[:2], callback_on_step_end=callback)
    assert len(seen) == STEPS and all(bool(latents.isfinite().all()) for latents in seen)
    assert torch.equal(found[0], found[1])  # both decoded from zeros
    assert (seen[-1][0] - seen[-1][1]).abs().max() > 0.1


def test_an_applied_pipeline_is_freed(case: Case) -> None:
    pipe = case.apply(case.pipeline(), [7])
    case.images(pipe, PROMPTS[:1])
    alive = weakref.ref(pipe)
    del pipe
    gc.collect()
    assert alive() is None


def pipe_steps(pipe: Any) -> int:
    """T of a hand-made schedule: what the pipeline is called with where nobody says another."""
    return int(inspect.signature(type(pipe).__call__).parameters["num_inference_steps"].default)


def hooks(pipe: Any) -> int:
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in denoiser.modules())


def test_remove_restores_and_saving_is_plain(case: Case, tmp_path: Path) -> None:
    pipe = case.pipeline()
    pipe.save_pretrained(tmp_path / "plain")
    before, state = dict(pipe.config), dict(vars(pipe))
    one = {"generator": torch.Generator().manual_seed(0)}
    plain = case.images(pipe, PROMPTS[:3], **one)
    for _ in range(2):  # a second one replaces the first
        case.apply(pipe, [0, 1, 2])
    followed = case.images(pipe, PROMPTS[:3])
    assert hooks(pipe) == 3
    pipe.save_pretrained(tmp_path / "saved")
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        assert json.loads((tmp_path / "saved" / file).read_text()) == json.loads((tmp_path / "plain" / file).read_text())

    adanat.remove(pipe)
    changed = {name for name, value in vars(pipe).items() if state.get(name) is not value}
    assert all(name.startswith("_") for name in changed), changed  # what a call itself notes down
    assert hooks(pipe) == 0 and dict(pipe.config) == before and pipe.scheduler is state["scheduler"]
    assert torch.equal(case.images(pipe, PROMPTS[:3], generator=torch.Generator().manual_seed(0)), plain)

    loaded = case.pipeline(tmp_path / "saved")
    assert torch.equal(case.images(loaded, PROMPTS[:3], generator=torch.Generator().manual_seed(0)), plain)
    assert torch.equal(case.images(case.apply(loaded, [0, 1, 2]), PROMPTS[:3]), followed)


def test_what_does_not_fit_is_refused_with_both_named(case: Case, tmp_path: Path) -> None:
    pipe, name = case.pipeline(), type(case.pipeline()).__name__
    with pytest.raises(ConfigError, match="called with 5 steps and the policy makes an image in 4; call it with"):
        case.images(case.apply(pipe), PROMPTS[:1], num_inference_steps=5)
    with pytest.raises(ConfigError, match="has 2 seeds; give one an image"):
        case.images(case.apply(pipe, [5, 6]), PROMPTS[:3])
    with pytest.raises(ConfigError, match=r"makes latents of \dx16x8 and the policy is for \dx8x8; call it with height=16, "):
        case.images(case.apply(pipe), PROMPTS[:1], height=32, width=16)
    none = 0.0 if case.kind == "z-image" else 1.0
    with pytest.raises(ConfigError, match="a guidance_scale at which it does not run the empty prompt"):
        case.images(case.apply(pipe), PROMPTS[:1], guidance_scale=none)

    generator = case.generator()
    for where, value, message in (
        ("name", "amused:256", f"trained for amused:256, and the {name}.* is the generator 'diffusers'"),
        ("feature_dim", 25, f"reads 25 features a cell .*, and the {name}.* has {generator.feature_dim}"),
        ("fingerprint", "0" * 16, f"with the weights 0{{16}}, and the {name}.* has the weights [0-9a-f]{{16}}"),
    ):
        other = case.generator()
        setattr(other, where, value)
        with pytest.raises(ConfigError, match=message):
            case.apply(pipe, policy=featured_policy(other, tmp_path / where, "guidance=3", STEPS))
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    denoiser.compile()
    with pytest.raises(ConfigError, match="is compiled, so"):
        case.apply(pipe)
