"""A policy inside diffusers' classic diffusion pipelines: the images of ``sample``, and pipelines that are as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline
from adanat_toolkit.core import Noise
from adanat_toolkit.policies import load_policy
from adanat_toolkit.sampling import collect

from ..helpers.applied import featured_policy
from ..helpers.diffusion_pipelines import PIPELINES, save_pipeline

CPU = torch.device("cpu")
STEPS = 4
PROMPTS = ["a cat", "tree", "re", "a cat", "x", "sea", "tree", "y z"]
ROUNDING = 2e-4
"""Of images in [0, 1]: guidance of 5 and the autoencoder raise the rounding of a forward a hundred times."""


SIZED = {"z-image": {"height": 16, "width": 16}}
"""Pipelines without a size of their own in their folder, and what they are called with."""


class Case:
    """A pipeline's folder as diffusers saves it, and a policy that was made for it."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.weights, self.policy = kind, folder / "pipe", folder / "policy"
        self.size: dict[str, int] = SIZED.get(kind, {})
        save_pipeline(kind, self.weights)
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
