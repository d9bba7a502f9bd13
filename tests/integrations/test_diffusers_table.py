"""Pipeline class by what works: trained two iterations, put in, the images of ``sample``, saved, loaded, taken out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_toolkit.integrations.diffusers import seeded_latents

from ..helpers.diffusion_pipelines import save_pipeline
from ..helpers.doc_blocks import ROOT
from ..helpers.modular_pipelines import BLOCKS, make_modular
from ..helpers.released_pipelines import save_amused

STEPS = 3
PROMPTS = ("a cat", "tree", "re")  # lists are copied: Z-Image writes into the one it is given
SIZE = {"height": 16, "width": 16}
ROUNDING = 2e-4
CLASSES = {
    "AmusedPipeline": "amused",
    "StableDiffusionPipeline": "stable-diffusion",
    "StableDiffusionXLPipeline": "stable-diffusion-xl",
    "StableDiffusion3Pipeline": "stable-diffusion-3",
    "ZImagePipeline": "z-image",
}
"""Every class that policies go into, and its kind in the tests' helpers."""
MODULAR = {"StableDiffusionXLModularPipeline": "stable-diffusion-xl", "StableDiffusion3ModularPipeline": "stable-diffusion-3",
           "ZImageModularPipeline": "z-image"}  # fmt: skip


def trained(kind: str, folder: Path, **settings: Any) -> adanat.Run:
    """Two iterations of training on the kind's pipeline, which is saved at ``folder / "pipe"``."""
    from torchvision.utils import save_image

    more: dict[str, Any] = {}
    if kind == "amused":
        pipeline: Any = diffusers.AmusedPipeline
        pipeline(**save_amused(folder / "parts")).save_pretrained(folder / "pipe")
        options = {}
        (folder / "data").mkdir()
        for i in range(2):
            save_image(torch.rand(3, 8, 8), folder / "data" / f"{i}.png")
        rows = [f'{{"file": "{i}.png", "caption": "{prompt}"}}' for i, prompt in enumerate(PROMPTS[:2])]
        (folder / "data" / "metadata.jsonl").write_text("\n".join(rows))
        more["data"] = folder / "data"
    else:
        save_pipeline(kind, folder / "pipe")
        (folder / "prompts.txt").write_text("\n".join(PROMPTS))
        options = {"prompts": str(folder / "prompts.txt"), **SIZE}
    name = "amused" if kind == "amused" else "diffusers"
    return adanat.train(
        generator=adanat.load_generator(name, weights=str(folder / "pipe"), options=options, device="cpu", dtype="float32"),
        reward=lambda images, context: images.mean((1, 2, 3)),
        steps=STEPS,
        trajectories=8,
        batch=4,
        settings=settings,
        out=folder / "run",
        **more,
    )


def classic(name: str, folder: Path) -> tuple[Any, Callable[..., Tensor]]:
    """The pipeline out of a folder, and how it is called."""
    without = {"text_encoder_3": None, "tokenizer_3": None} if name == "StableDiffusion3Pipeline" else {}
    pipe = getattr(diffusers, name).from_pretrained(folder, local_files_only=True, **without)
    pipe.set_progress_bar_config(disable=True)
    size = {} if name == "AmusedPipeline" else SIZE

    def call(**more: Any) -> Tensor:
        made: Tensor = pipe(list(PROMPTS), num_inference_steps=STEPS, output_type="pt", **size, **more).images
        return made

    return pipe, call


@pytest.mark.parametrize("name", CLASSES)
def test_classic_pipelines(name: str, tmp_path: Path) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    kind, seeds = CLASSES[name], [4, 5, 6]
    run = trained(kind, tmp_path)
    assert len(run.metrics) == 2
    expected = adanat.sample(run.generator, run.policy, seeds=seeds, prompts=PROMPTS).images

    pipe, call = classic(name, tmp_path / "pipe")
    plain = call(generator=torch.Generator().manual_seed(0))
    size = None if kind == "amused" else (SIZE["height"], SIZE["width"])
    adanat.apply(pipe, run.path, seeds=seeds, size=size)
    torch.testing.assert_close(call(), expected, atol=ROUNDING, rtol=0)
    pipe.save_pretrained(tmp_path / "saved")
    adanat.remove(pipe)
    assert torch.equal(call(generator=torch.Generator().manual_seed(0)), plain)

    loaded, call = classic(name, tmp_path / "saved")
    assert torch.equal(call(generator=torch.Generator().manual_seed(0)), plain)
    adanat.apply(loaded, run.path, seeds=seeds, size=size)
    torch.testing.assert_close(call(), expected, atol=ROUNDING, rtol=0)


@pytest.mark.parametrize("name", MODULAR)
def test_modular_pipelines(name: str, tmp_path: Path) -> None:
    pytest.importorskip("diffusers.guiders", reason="this diffusers has no guiders")
    from diffusers import ModularPipeline

    from adanat_toolkit.integrations.diffusers import AdanatGuider

    kind, seeds = MODULAR[name], [4, 5, 6]
    run = trained(kind, tmp_path, policy={"knobs": ["guidance"]})
    expected = adanat.sample(run.generator, run.policy, seeds=seeds, prompts=PROMPTS).images
    latents = seeded_latents(seeds, run.generator.latent_shape)  # type: ignore[attr-defined]

    negative = {"negative_prompt": ""} if kind == "stable-diffusion-3" else {}  # which encodes none of its own accord

    def call(pipe: Any) -> Tensor:
        made: Tensor = pipe(
            prompt=list(PROMPTS), **negative, num_inference_steps=STEPS, latents=latents, output_type="pt",
            output="images", **SIZE,
        )  # fmt: skip
        return made

    pipe = make_modular(kind, tmp_path / "parts")
    assert type(pipe).__name__ == name
    own = pipe.guider
    plain = call(pipe)
    pipe.update_components(guider=AdanatGuider.from_pretrained(run.path))
    torch.testing.assert_close(call(pipe), expected, atol=ROUNDING, rtol=0)
    pipe.save_pretrained(str(tmp_path / "saved"), overwrite_modular_index=True)
    loaded = ModularPipeline.from_pretrained(tmp_path / "saved")
    loaded.load_components()
    torch.testing.assert_close(call(loaded), expected, atol=ROUNDING, rtol=0)
    pipe.update_components(guider=own)
    assert torch.equal(call(pipe), plain)


def test_the_page_names_every_class() -> None:
    text = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8").partition("## Use")[2]
    assert set(MODULAR.values()) == set(BLOCKS)
    for name in (*CLASSES, *MODULAR):
        assert f"| `{name}` |" in text
