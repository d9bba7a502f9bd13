"""A policy inside diffusers' own ``AmusedPipeline``: the images of ``sample``, and a pipeline that is as before."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adanat_toolkit as adanat
from adanat_plugins.generators.amused import Amused
from adanat_toolkit.core import GUIDANCE, ActionSpace, Noise, seen_shape
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.policies import FixedPolicy, SamplingPolicy, build_policy, export_policy, load_policy
from adanat_toolkit.registry import load
from adanat_toolkit.sampling import collect

from ..helpers.applied import featured_policy
from ..helpers.doc_blocks import ROOT
from ..helpers.released_pipelines import SIDE, save_amused

CPU = torch.device("cpu")
STEPS = 4
PROMPTS = ["a red cat", "blue tree", "re", "a red cat", "x", "sea", "blue tree", "y z"]
ROUNDING = 2e-5


def policy_folder(generator: Any, folder: Path, **space: Any) -> Path:
    return featured_policy(generator, folder, "cosine,guidance=3,mask_temperature=2:0", STEPS, **space)


def unfit_policy(generator: Any, folder: Path, kind: str) -> Path:
    """A fresh policy that sees something else than features."""
    policy_class = load("policy", kind)
    space = generator.bind("cosine,guidance=3,mask_temperature=2:0", STEPS)
    grid, width = seen_shape(generator, policy_class)
    network, _ = build_policy(policy_class, policy_class.Options(), space=space, grid=grid, feature_dim=width, seed=0)
    facts = {"trajectories": 8, "reward": "dark", "seed": 0, "engine": "adanat"}
    export_policy(folder, SamplingPolicy(network, space), network.state_dict(), options={}, generator=generator, facts=facts)
    return folder


@pytest.fixture(scope="module", params=[False, True], ids=["full", "halved"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder as diffusers saves it, and beside it ``policy``, which was made for it."""
    from diffusers import AmusedPipeline

    made = tmp_path_factory.mktemp("amused")
    kind: Any = AmusedPipeline
    kind(**save_amused(made / "parts", halved=request.param)).save_pretrained(made / "pipe")
    policy_folder(generator_of(made), made / "policy", smoothing=0.3)
    return made


def generator_of(folder: Path) -> Amused:
    return Amused.create("256", {"weights": str(folder / "pipe")}, device=CPU, dtype=torch.float32, offline=True)


def pipeline(folder: Path, **more: Any) -> Any:
    from diffusers import AmusedPipeline

    pipe = AmusedPipeline.from_pretrained(folder / "pipe", local_files_only=True, **more)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def images(pipe: Any, prompts: list[str], **more: Any) -> Tensor:
    out: Tensor = pipe(prompts, **{"num_inference_steps": STEPS, "output_type": "pt", **more}).images
    return out


@pytest.mark.rounding
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_the_images_are_those_of_sample(folder: Path, batch: int) -> None:
    generator, pipe = generator_of(folder), pipeline(folder)
    policy = load_policy(folder / "policy", generator)
    seeds = list(range(20, 20 + len(PROMPTS)))
    expected = collect(
        generator, policy, generator.encode_prompts(PROMPTS), Noise(torch.tensor(seeds)), keep_images=len(PROMPTS)
    )
    assert expected.images is not None
    assert bool((expected.physical[:, :-1].std(0) > 1e-3).all())  # all four knobs differ between the samples
    for start in range(0, len(PROMPTS), batch):
        rows = slice(start, start + batch)
        assert adanat.apply(pipe, folder / "policy", seeds=seeds[rows]) is pipe
        found = images(pipe, PROMPTS[rows])
        torch.testing.assert_close(found, expected.images[rows], atol=ROUNDING, rtol=0)
    plain = images(adanat.remove(pipe), PROMPTS, generator=torch.Generator().manual_seed(0))
    assert (plain - expected.images).abs().max() > 100 * ROUNDING


def test_a_released_sampler_can_be_applied(folder: Path) -> None:
    generator, pipe = generator_of(folder), pipeline(folder)
    policy = load_policy("fixed:amused,guidance_scale=4", generator, 3)
    expected = collect(generator, policy, generator.encode_prompts(PROMPTS), Noise(torch.arange(8)), keep_images=8)
    found = images(adanat.apply(pipe, policy, seeds=range(8)), PROMPTS, num_inference_steps=3, guidance_scale=1.5)
    torch.testing.assert_close(found, expected.images, atol=ROUNDING, rtol=0)


def test_seeds_come_from_the_pipelines_generators(folder: Path) -> None:
    pipe = adanat.apply(pipeline(folder), folder / "policy", seeds=[5, 6])
    given = images(pipe, PROMPTS[:2])
    adanat.apply(pipe, folder / "policy")
    each = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
    assert torch.equal(images(pipe, PROMPTS[:2], generator=each), given)
    one = torch.Generator().manual_seed(5)
    first, second = (images(pipe, PROMPTS[:2], generator=one) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(images(pipe, PROMPTS[:2], generator=torch.Generator().manual_seed(5)), first)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        free = images(pipe, PROMPTS[:2])
        torch.manual_seed(1)
        assert torch.equal(images(pipe, PROMPTS[:2]), free)
    with pytest.raises(ConfigError, match="makes 2 images and has 1 generators; give one an image"):
        images(pipe, PROMPTS[:2], generator=each[:1])
    with pytest.raises(ConfigError, match="makes 3 images and has 2 seeds"):
        images(adanat.apply(pipe, folder / "policy", seeds=[5, 6]), PROMPTS[:3])


def test_known_cells_stay(folder: Path) -> None:
    pipe = adanat.apply(pipeline(folder), folder / "policy", seeds=[1, 2])
    start = torch.full((2, SIDE, SIDE), pipe.scheduler.config.mask_token_id)
    start[:, :2] = torch.arange(2 * SIDE).view(2, SIDE)
    tokens = images(pipe, PROMPTS[:2], latents=start, output_type="latent")
    assert torch.equal(tokens[:, :2], start[:, :2])
    assert bool((tokens < 48).all())


def hooks(pipe: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.transformer.modules())


def test_remove_restores_and_saving_is_plain(folder: Path, tmp_path: Path) -> None:
    pipe = pipeline(folder)
    pipe.save_pretrained(tmp_path / "plain")
    before, state = dict(pipe.config), dict(vars(pipe))
    assert hooks(pipe) == 0
    plain = images(pipe, PROMPTS[:3], generator=torch.Generator().manual_seed(0))
    for _ in range(2):  # a second one replaces the first
        adanat.apply(pipe, folder / "policy", seeds=[0, 1, 2])
    assert hooks(pipe) == 2
    followed = images(pipe, PROMPTS[:3])
    pipe.save_pretrained(tmp_path / "saved")
    for name in ("model_index.json", "scheduler/scheduler_config.json", "transformer/config.json"):
        assert json.loads((tmp_path / "saved" / name).read_text()) == json.loads((tmp_path / "plain" / name).read_text())

    assert adanat.remove(pipe) is pipe
    assert hooks(pipe) == 0 and dict(pipe.config) == before and dict(vars(pipe)) == state
    assert torch.equal(images(pipe, PROMPTS[:3], generator=torch.Generator().manual_seed(0)), plain)
    assert adanat.remove(pipe) is pipe

    from diffusers import AmusedPipeline

    loaded = AmusedPipeline.from_pretrained(tmp_path / "saved", local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(images(loaded, PROMPTS[:3], generator=torch.Generator().manual_seed(0)), plain)
    assert torch.equal(images(adanat.apply(loaded, folder / "policy", seeds=[0, 1, 2]), PROMPTS[:3]), followed)


def test_bfloat16_runs_and_says_what_it_cannot_tell(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipe = pipeline(folder, torch_dtype=torch.bfloat16)
    adanat.apply(pipe, folder / "policy", seeds=[0, 1])
    assert "is in bfloat16, so it cannot be told whether its weights" in caplog.text
    found = images(pipe, PROMPTS[:2])
    assert found.shape == (2, 3, 2 * SIDE, 2 * SIDE) and bool(found.isfinite().all())


def test_what_does_not_fit_is_refused_with_both_named(folder: Path, tmp_path: Path) -> None:
    pipe, spec = pipeline(folder), folder / "policy"
    with pytest.raises(ConfigError, match=r"policies apply to AmusedPipeline.*; this is of the class dict"):
        adanat.apply({}, spec)
    with pytest.raises(ConfigError, match=r"policy must be a run or policy folder.*it is int 3"):
        adanat.apply(pipe, 3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="called with 5 steps and the policy makes an image in 4; call it with"):
        images(adanat.apply(pipe, spec), PROMPTS[:1], num_inference_steps=5)
    with pytest.raises(ConfigError, match="images of 8x8 cells and the policy was trained for 4x4; leave height"):
        images(pipe, PROMPTS[:1], height=16, width=16)
    with pytest.raises(ConfigError, match="guidance_scale of 1 or less"):
        images(pipe, PROMPTS[:1], guidance_scale=1.0)
    images(adanat.apply(pipe, "fixed:cosine"), PROMPTS[:1], guidance_scale=1.0, num_inference_steps=4)  # needs no guidance

    def changed(name: str, where: str, value: Any) -> Path:
        """The policy, made for something else, its files unharmed."""
        generator = generator_of(folder)
        setattr(generator, where, value)
        return policy_folder(generator, tmp_path / name)

    for name, where, value, message in (
        ("other", "name", "muse:256", "trained for muse:256, and the AmusedPipeline.* is the generator 'amused'"),
        ("width", "feature_dim", 24, "reads 24 features a cell .*, and the AmusedPipeline.* has 40"),
        ("grid", "grid", (5, 4), "reads a grid of 5x4 cells .*, and the AmusedPipeline.* has 4x4"),
        ("weights", "fingerprint", "0" * 16, "with the weights 0{16}, and the AmusedPipeline.* has the weights [0-9a-f]{16}"),
    ):
        with pytest.raises(ConfigError, match=f"(?s){message}"):
            adanat.apply(pipe, changed(name, where, value))
    generator = generator_of(folder)
    for kind, reads in (("context", "context"), ("lean", "statistics")):
        for unreadable in (told := unfit_policy(generator, tmp_path / kind, kind), load_policy(told, generator)):
            with pytest.raises(ConfigError, match=f"policy '{kind}' reads the {reads}, which a pipeline does not show"):
                adanat.apply(pipe, unreadable)
    with pytest.raises(ConfigError, match="policy 'context' reads the context"):
        adanat.apply(pipe, f"{spec}*0.5+{tmp_path / 'context'}*0.5")
    space = ActionSpace((GUIDANCE,)).bind(torch.ones(STEPS, 1), acted=(), residual=False)
    foreign = SamplingPolicy(FixedPolicy(FixedPolicy.Options(), space=space, grid=(1, 1), feature_dim=1), space)
    with pytest.raises(ConfigError, match=r"the policy sets .*, and the AmusedPipeline"):
        adanat.apply(pipe, foreign)
    pipe.transformer.compile()
    with pytest.raises(ConfigError, match="UVit2DModel is compiled"):
        adanat.apply(pipe, spec)


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["diffusers_amused.py", "--out", str(tmp_path)])
    with torch.random.fork_rng():
        runpy.run_path(str(ROOT / "examples" / "diffusers_amused.py"), run_name="__main__")
    found = re.search(r"largest difference from adanat.sample: (\S+)", capsys.readouterr().out)
    assert found is not None and float(found[1]) < ROUNDING
    assert (tmp_path / "applied.png").is_file()
