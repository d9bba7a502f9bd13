"""The generators in examples/: installed with pip, found by their entry points, kept to the contract, trained with."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adanat_toolkit.core import INITIAL, STEP, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.integrations.gym_env import GenerationVectorEnv
from adanat_toolkit.interfaces import Context, Generator
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator, discover
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.testing.check import check_plugin
from adanat_toolkit.training import Trainer, validate

from ..helpers.tiny import install_tiny
from .test_plugin_projects import ROOT, pip_install

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both examples, installed with pip into a folder that holds nothing else."""
    site = tmp_path_factory.mktemp("examples") / "site"
    for name in ("diffusion_emoji", "jax_generator"):
        pip_install(ROOT / "examples" / name, site)
    return site


@pytest.fixture
def site(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(installed))
    return installed


def create(name: str, **options: Any) -> Generator:
    return create_generator(name, options, device=CPU, dtype=torch.float32, offline=True)


def keeps_the_contract(name: str, **options: Any) -> None:
    outcomes = check_plugin(name, kind="generator", options=options)
    assert len(outcomes) >= 8
    assert [f"{o.check} {o.error}" for o in outcomes if o.error is not None] == []


def trains_and_samples(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Two iterations; the exported policy then makes the same images twice, in batches of another size."""
    install_tiny(folder / "tiny", monkeypatch)  # for its reward
    values: dict[str, Any] = {
        "generator": {"name": name, "options": options},
        "reward": {"name": "dark"},
        "steps": 3,
        "batch": 8,
        "trajectories": 16,
    }
    config = validate({**values, "device": "cpu", "dtype": "float32", "ppo": {"epochs": 1}})
    row = Trainer(config).run(folder / "run")
    assert row["iteration"] == 2
    generator = create(name, **options)
    policy = load_policy(str(folder / "run"), generator)
    assert policy.card["generator"]["name"].startswith(name)
    seeds = seed_range(50, 5)
    first, again = (torch.cat([s.images for s in sample(generator, policy, seeds, batch=n)]) for n in (5, 5))
    assert torch.equal(first, again)
    split = torch.cat([s.images for s in sample(generator, policy, seeds, batch=2)])
    assert float((split - first).abs().max()) < 1e-3
    with open(folder / "run" / "policy" / "policy.json") as file:
        assert tuple(k["name"] for k in json.load(file)["action_space"]["knobs"]) == generator.action_space.names


def test_both_are_found(site: Path) -> None:
    found = {p.name: p for p in discover("generator") if p.distribution != "adanat-toolkit"}
    assert {n: p.distribution for n, p in found.items()} == {
        "diffusion-emoji": "adanat-diffusion-emoji",
        "jax-maskgit": "adanat-jax-maskgit",
    }
    weights = site / "adanat_diffusion_emoji" / "emoji64.safetensors"
    assert 10**6 < weights.stat().st_size < 10**7


def test_diffusion_keeps_the_contract(site: Path) -> None:
    keeps_the_contract("diffusion-emoji")


def test_diffusion_trains(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trains_and_samples("diffusion-emoji", tmp_path, monkeypatch)


@pytest.mark.parametrize("steps", [4, 5, 10])
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.3])
def test_ddim_is_the_schedulers(site: Path, steps: int, eta: float) -> None:
    """At step size 1 a whole trajectory is that of diffusers' scheduler with the same network outputs and noise."""
    from diffusers import DDIMScheduler

    ddim = importlib.import_module("adanat_diffusion_emoji.ddim")
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
    )
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # at eta 1 its own float32 loses four digits
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    levels = ddim.NoiseLevels(scheduler.alphas_cumprod)
    noise = Noise(torch.arange(3))
    x = reference = noise.normal(INITIAL, 0, (6, 8, 8))
    remaining = torch.ones(3)
    for t, timestep in enumerate(scheduler.timesteps):
        velocity, drawn = (noise.normal(STEP, t + shift, (6, 8, 8)) for shift in (100, 0))
        assert levels.timestep(remaining) == pytest.approx(float(timestep), abs=1e-3)
        then = ddim.next_remaining(remaining, torch.ones(3), steps - t)
        alpha, next_alpha = levels.alpha(remaining), levels.alpha(then)
        x = ddim.ddim_step(x, velocity, alpha, next_alpha, torch.full((3,), eta), drawn)
        reference = scheduler.step(velocity, int(timestep), reference, eta=eta, variance_noise=drawn).prev_sample
        assert torch.allclose(x, reference, atol=1e-5), float((x - reference).abs().max())
        # The variance alone: what unit noise adds to a sample of zeros.
        zeros = torch.zeros(3, 1, 1, 1)
        added = ddim.ddim_step(zeros, zeros, alpha, next_alpha, torch.ones(3), zeros + 1)
        variance = scheduler._get_variance(int(timestep), int(timestep) - 1000 // steps)
        assert added.square() == pytest.approx(float(variance), rel=1e-4, abs=1e-9)
        remaining = then
    assert bool((remaining == 0).all())


def test_step_size_ends_at_the_image(site: Path) -> None:
    ddim = importlib.import_module("adanat_diffusion_emoji.ddim")
    sizes = torch.tensor([0.0, 0.5, 1.0, 4.0])
    remaining = torch.ones(4)
    seen = [remaining]
    for left in (4, 3, 2, 1):
        remaining = ddim.next_remaining(remaining, sizes, left)
        seen.append(remaining)
    table = torch.stack(seen)
    assert table[:, 2].tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert bool((table[1:-1].diff(dim=1) < 0).all())  # larger steps leave less
    assert table[1:-1, 0].tolist() == [1, 1, 1] and bool((table[-1] == 0).all())


def test_diffusion_runs_no_forward_that_is_not_used(site: Path) -> None:
    generator = create("diffusion-emoji")
    rows: list[int] = []
    generator.network.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))  # type: ignore[attr-defined]
    for guidance, expected in (("2", [4, 4, 4]), ("0", [2, 2, 2]), ("0/2/0", [2, 4, 2])):
        rows.clear()
        policy = load_policy(f"fixed:cosine,guidance={guidance},eta=0.3", generator, 3)
        list(sample(generator, policy, seed_range(0, 2)))
        assert rows == expected


def test_diffusion_as_an_environment(site: Path) -> None:
    envs = GenerationVectorEnv(2, generator=create("diffusion-emoji"), reward="adversarial", steps=2, device="cpu")
    observations, _ = envs.reset(seed=3)
    assert observations["features"].shape == (2, 64, 112)
    for last in (False, True):
        _, rewards, ended, _, infos = envs.step(envs.action_space.sample() * 0)
        assert ended.tolist() == [last, last]
    assert rewards.shape == (2,) and infos["final_info"]["knobs"].shape == (2, 3)


def test_diffusion_refuses(site: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no variant 'emoji46'; did you mean 'emoji64'"):
        create("diffusion-emoji:emoji46")
    (tmp_path / "weights").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="Give a file written by train"):
        create("diffusion-emoji", weights=str(tmp_path / "weights"))


def test_jax_is_not_imported_to_be_listed(site: Path) -> None:
    """Whether or not JAX is installed, the plug-in loads, and says what is missing when it is made."""
    (plugin,) = [p for p in discover("generator") if p.name == "jax-maskgit"]
    assert plugin.load().variants() == ("emoji64",)
    assert "adanat_jax_maskgit.network" not in sys.modules or "jax" in sys.modules


def needs_jax() -> None:
    for name in ("jax", "flax"):
        pytest.importorskip(name, reason=f"{name} is not installed: pip install 'adanat-toolkit[jax]'")


def test_jax_equals_the_torch_network(site: Path) -> None:
    needs_jax()
    ours, torchs = create("jax-maskgit", chunk=4), create("maskgit")
    assert isinstance(ours.action_space, ActionSpace) and ours.fingerprint == torchs.fingerprint
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 1025, (5, 64), generator=draw)
    context = Context(5, classes=torch.tensor([0, 3, 97, 98, 5]))
    for found, wanted in zip(ours.predict(ids, context), torchs.predict(ids, context), strict=True):  # type: ignore[attr-defined]
        assert float((found - wanted).abs().max()) < 1e-4


def test_jax_exchanges_memory(site: Path) -> None:
    """Through DLPack: 32-bit ids go in and logits come out without a copy (on a CPU, where memory is aligned)."""
    needs_jax()
    import jax

    to_jax = importlib.import_module("adanat_jax_maskgit").to_jax
    ids = torch.zeros(16, 64, dtype=torch.int32)
    array = to_jax(ids)
    if ids.data_ptr() % 64 == 0:
        assert array.unsafe_buffer_pointer() == ids.data_ptr()
    assert to_jax(ids.long()).dtype == jax.numpy.int32
    result = jax.numpy.ones((4, 4)) * 2
    assert torch.from_dlpack(result).data_ptr() == result.unsafe_buffer_pointer()


def test_jax_keeps_the_contract_and_trains(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_jax()
    keeps_the_contract("jax-maskgit", chunk=4)
    trains_and_samples("jax-maskgit", tmp_path, monkeypatch, chunk=4)


def test_shipped_policy_fits_both_networks(site: Path) -> None:
    """Same weights, same fingerprint: the policy trained on the torch generator steers the JAX one alike."""
    needs_jax()
    policies = sorted((ROOT / "plugins" / "adanat_plugins" / "emoji64" / "policies").glob("*/policy.json"))
    spec = next(str(p.parent) for p in policies if json.loads(p.read_text())["generator"]["name"] == "maskgit:emoji64")
    assert load_file(Path(spec) / "policy.safetensors")
    knobs = []
    for name in ("maskgit", "jax-maskgit"):
        generator = create(name, **({"chunk": 4} if name == "jax-maskgit" else {}))
        policy = load_policy(spec, generator)
        knobs.append(next(iter(sample(generator, policy, seed_range(7, 2)))).knobs[:, 0])
    assert torch.allclose(knobs[0], knobs[1], atol=1e-2)
