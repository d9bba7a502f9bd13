"""``dit`` and ``sit``: small networks with random weights, in the published containers, through the registered plug-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adanat_plugins.emoji64 import FOLDER
from adanat_plugins.generators.dit import LatentGenerator
from adanat_plugins.generators.dpm_solver import Diffusion, Flow, first_order, second_order
from adanat_plugins.generators.dpm_solver import Path as NoisePath
from adanat_plugins.released_policy import ADAGEN
from adanat_plugins.tokenizers.principal import PrincipalLatents
from adanat_toolkit.core import Noise
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.policies import SIZES, AdaptiveNetwork, load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import collect, forwards_of_an_image, sample, seed_range
from adanat_toolkit.training import create_trainer, validate

from ..helpers.released import randomise, save_latent
from ..helpers.tiny import install_tiny

CPU = torch.device("cpu")
SEEDS = torch.arange(30, 33)


def make(family: str, folder: Path) -> LatentGenerator:
    options = {"weights": str(folder), "heads": 4}
    made = create_generator(f"{family}:xl-2-256", options, device=CPU, dtype=torch.float32, offline=True)
    assert isinstance(made, LatentGenerator)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("weights")
    save_latent(made)
    return made


@pytest.fixture(scope="module", params=["dit", "sit"])
def generator(request: pytest.FixtureRequest, folder: Path) -> LatentGenerator:
    return make(request.param, folder)


# --- the solver -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [Diffusion(), Flow()], ids=["diffusion", "flow"])
def test_the_solver_is_exact_for_one_image_and_second_order_beyond(path: NoisePath) -> None:
    """With a constant data prediction the latent stays on the path; with one linear in lambda the error is of third order."""
    draw = torch.Generator().manual_seed(0)
    image, noise = (torch.randn(2, 1, 2, 2, generator=draw, dtype=torch.float64) for _ in range(2))

    def latent(t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (x.exp()[:, None, None, None] for x in path.log_alpha_sigma(t))
        return alpha * image + sigma * noise

    s = torch.tensor([0.6, 0.4], dtype=torch.float64)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64) if path.start < path.end else torch.tensor([0.3, 0.2]).double()
    s = torch.minimum(s, t - 0.1) if path.start < path.end else s
    between = (s + t) / 2
    torch.testing.assert_close(first_order(path, latent(s), image, s, t), latent(t))
    torch.testing.assert_close(second_order(path, latent(s), image, image, s, between, t), latent(t))


@pytest.mark.parametrize("path", [Diffusion(), Flow()], ids=["diffusion", "flow"])
def test_time_moves_on_and_stays_on_the_path(path: NoisePath) -> None:
    forward = 1 if path.end > path.start else -1
    proposed = torch.linspace(0, 1, 21)
    first = path.move(proposed, None)
    again = path.move(proposed, first)
    inside = (first - path.end).abs() > 0.0101
    assert bool(((again - first)[inside] * forward >= 0.0099).all())
    log_alpha, log_sigma = path.log_alpha_sigma(first.double())
    assert bool((log_alpha - log_sigma).isfinite().all())
    end = torch.full((1,), path.end)
    assert torch.equal(path.move(torch.tensor([0.5]), end), end)  # the latent does not move any more


# --- forwards, batches, refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 5])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_no_forward_is_run_for_nothing(generator: LatentGenerator, steps: int, guidance: float) -> None:
    rows: list[int] = []
    hook = generator.network.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    schedule = generator.default_schedule.split(",")[0]
    policy = load_policy(f"fixed:{schedule},guidance={guidance}", generator, steps)
    assert (policy.steps, policy.space.decisions) == (steps, 5)
    rollout = collect(
        generator, policy, generator.encode_classes([0] * 6), Noise(torch.arange(6)), keep_images=6
    )
    hook.remove()
    assert rollout.images is not None and rollout.physical.shape == (6, 5, 2)
    assert rows == [12 if guidance else 6] * 4  # two an update, both halves of guidance in one batch
    assert not guidance or sum(rows) == 6 * forwards_of_an_image(generator, policy.space)


def test_unconditional_forwards_are_run_for_guided_samples_alone(generator: LatentGenerator) -> None:
    """In a batch of both, each image is bit for bit what it is when unconditional outputs are computed for all."""
    guidance, noise, context = torch.tensor([0.0, 2.0, 0.0, 0.5, 0.0, 1.0]), Noise(torch.arange(6)), [0, 1, 2, 3, 4, 5]
    times = torch.linspace(generator.path.start, generator.path.end, 5).clamp(0.01, 0.99)
    rows: list[int] = []

    def made(seen: bool) -> tuple[torch.Tensor, torch.Tensor]:
        rows.clear()
        state = generator.reset(generator.encode_classes(context), noise, 4)
        for time in times:
            if seen:
                generator.observe(state)
            before, state = state, generator.step(state, torch.stack([time.expand(6), guidance], 1), noise)
        return state.latents, generator.statistics(before)

    hook = generator.network.register_forward_hook(lambda module, inputs, out: rows.append(len(inputs[0])))
    wanted, statistics = made(seen=True)
    assert rows == [12] * 4
    found, again = made(seen=False)
    hook.remove()
    assert rows == [6, 3] * 4 + [6]  # the last is for the statistics
    assert torch.equal(found, wanted) and torch.allclose(again, statistics, atol=1e-6)


def test_the_batch_does_not_change_an_image(generator: LatentGenerator) -> None:
    policy = load_policy("fixed", generator, 8)
    whole = next(sample(generator, policy, seed_range(0, 17), batch=17)).images
    parts = torch.cat([part.images for part in sample(generator, policy, seed_range(0, 17), batch=3)])
    torch.testing.assert_close(whole, parts, atol=1e-5, rtol=0)


def test_statistics_are_of_the_predicted_image(generator: LatentGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    classes, noise = generator.encode_classes([0, 3, 5]), Noise(SEEDS)
    state = generator.reset(classes, noise, 4)
    assert torch.equal(generator.statistics(state), torch.zeros(3, 4))  # nothing is predicted yet
    time = 0.5 * (generator.path.start + generator.path.end)
    state = generator.step(state, torch.tensor([[time, 1.0]]).expand(3, -1), noise)
    given = torch.tensor([2.0, -2.0]).repeat(2).expand(3, 4, 4, 4).clone()  # neighbours in a row differ by 4, in a column by 0
    state.output, state.null_output, state.features = given, given + torch.arange(3.0)[:, None, None, None], torch.zeros(1)
    monkeypatch.setattr(type(generator.path), "data", lambda self, latents, output, time: output)
    found = dict(zip(generator.statistic_names, generator.statistics(state).T, strict=True))
    assert torch.allclose(found["spread"], given[0].std().expand(3))
    assert torch.allclose(found["detail"], torch.tensor(8.0).sqrt().expand(3))
    assert torch.allclose(found["divergence"], torch.arange(3.0))
    assert torch.equal(found["time"], state.time) and len(generator.statistic_ranges) == len(found)


def test_what_it_cannot_do_is_refused(generator: LatentGenerator) -> None:
    with pytest.raises(ConfigError, match="cannot make an image in 1 step"):
        load_policy("fixed", generator, 1)
    with pytest.raises(ConfigError, match="says nothing of 'time'"):
        load_policy("fixed:guidance=1", generator, 4)
    falls = generator.path.start > generator.path.end
    with pytest.raises(ConfigError, match="times fall: 1 is noise" if falls else "times rise: 0 is noise"):
        load_policy("fixed:time=" + ("0.1:0.9" if falls else "0.9:0.1"), generator, 4)
    with pytest.raises(ConfigError, match="goes from time"):
        load_policy("fixed:time=" + ("0.9/0.5/0.6/0.2/0.1" if falls else "0.1/0.5/0.4/0.8/0.9"), generator, 4)
    with pytest.raises(ConfigError, match="'time=nan' has the value nan"):
        load_policy("fixed:time=nan", generator, 4)
    with pytest.raises(ConfigError, match="is no token generator"):
        load_policy("fixed:halton", generator, 4)


def test_files_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_latent(tmp_path)
    state = torch.load(tmp_path / "DiT-XL-2-256x256.pt")
    state["blocks.0.attn.qkv.weight"] = state["blocks.0.attn.qkv.weight"][:-1]
    del state["t_embedder.mlp.0.bias"]
    torch.save(state, tmp_path / "DiT-XL-2-256x256.pt")
    with pytest.raises(WeightsError, match=r"(?s)missing   t_embedder.mlp.0.bias.*misshapen blocks.0.attn.qkv.weight"):
        make("dit", tmp_path)
    with pytest.raises(WeightsError, match="is no KL autoencoder"):
        torch.save({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "autoencoder_kl.pth")
        make("sit", tmp_path)
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / "nothing"))
    with pytest.raises(WeightsError, match=r"(?s)dit:xl-2-256 needs its generator weights.*CC-BY-NC"):
        create_generator("dit:xl-2-256", {}, device=CPU, dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="sit has no variant 'xl-2-265'; did you mean"):
        create_generator("sit:xl-2-265", {}, device=CPU, dtype=torch.float32, offline=True)


@pytest.mark.parametrize("heads", [0, -16, 1025])
def test_heads_have_bounds(heads: int) -> None:
    with pytest.raises(ConfigError, match=f"heads.*{heads}"):
        create_generator("dit:xl-2-256", {"heads": heads}, device=CPU, dtype=torch.float32, offline=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latents.into": torch.zeros(32)}, r"'latents\.into' has the shape \[32\]"),
        ({"latents.back": torch.zeros(5, 32)}, "do not lead from the tokenizer's 32 channels to the network's 6 and back"),
        ({"latents.mean": None}, r"'latents\.mean' is missing"),
    ],
)
def test_ways_to_the_latents_that_do_not_fit(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = load_file(FOLDER / "sit.safetensors") | change
    state = {name: value for name, value in state.items() if value is not None}
    save_file(state, tmp_path / "own.safetensors", {"training": '{"family": "sit"}'})
    with pytest.raises(WeightsError, match=message):
        options = {"weights": str(tmp_path / "own.safetensors")}
        create_generator("sit:emoji64", options, device=CPU, dtype=torch.float32, offline=True)


@pytest.mark.parametrize("training", ["[1]", "{", '{"family": "sit"'])
def test_what_a_file_says_of_its_training_is_checked(training: str, tmp_path: Path) -> None:
    state = load_file(FOLDER / "sit.safetensors")
    save_file(state, tmp_path / "own.safetensors", {"training": training})
    with pytest.raises(WeightsError, match=r"training of .*own\.safetensors"):
        options = {"weights": str(tmp_path / "own.safetensors")}
        create_generator("sit:emoji64", options, device=CPU, dtype=torch.float32, offline=True)


# --- policies ---------------------------------------------------------------------------------------------------------


def test_a_released_policy_is_given_by_its_file(generator: LatentGenerator, tmp_path: Path) -> None:
    hidden, pointwise, mlp = SIZES["paper"]
    network = AdaptiveNetwork(generator.feature_dim, 2, generator.grid, hidden, pointwise, mlp)
    torch.save(randomise(network, 5), tmp_path / "policy.pth")
    network.load_state_dict(randomise(network, 5))
    recipe = ADAGEN[generator.name]
    policy = load_policy(str(tmp_path / "policy.pth"), generator)
    space = policy.space
    assert (space.steps, space.decisions, space.smoothing) == (16, 17, recipe.smoothing)
    assert space.residual and policy.card["schedule"] == recipe.schedule
    features = torch.randn(3, generator.grid[0] ** 2, generator.feature_dim)
    with torch.no_grad():
        torch.testing.assert_close(policy.network(features, torch.arange(3)), network(features, torch.arange(3)))

    changed = load_policy(f"{tmp_path / 'policy.pth'},smoothing=0.5,guidance=3", generator, 5).space
    assert (changed.steps, changed.decisions, changed.smoothing) == (5, 5, 0.5)
    assert changed.schedule is not None and bool((changed.schedule[:, 1] == 3).all())
    whole = load_policy("fixed:" + recipe.schedule, generator, 6).space.schedule  # 7 rows
    assert whole is not None
    # The published times of an odd T are those of T + 1 rows without the last.
    assert changed.schedule[:, 0].tolist() == pytest.approx(torch.linspace(*whole[[0, -1], 0].tolist(), 6)[:5].tolist())
    with pytest.raises(ConfigError, match="no knob 'guidence'"):
        load_policy(f"{tmp_path / 'policy.pth'},guidence=3", generator)


@pytest.mark.parametrize(("engine", "policy"), [("adanat", "adaptive"), ("adanat", "lean"), ("sb3", "adaptive")])
def test_a_policy_trains(
    engine: str, policy: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first action before any forward, one action more than forwards, smoothing: nothing of it shows in PPO."""
    install_tiny(tmp_path / "site", monkeypatch)
    values: dict[str, Any] = {
        "generator": {"name": "sit:xl-2-256", "options": {"weights": str(folder), "heads": 4}},
        "reward": {"name": "dark"},
        "policy": {"name": policy, "smoothing": 0.6},
        "engine": engine,
        "steps": 4,
        "batch": 6,
        "trajectories": 6,
        "device": "cpu",
        "dtype": "float32",
        "offline": True,
    }
    trainer = create_trainer(validate(values))
    before = {key: value.clone() for key, value in trainer.policy.state_dict().items()}
    rows = trainer.run(tmp_path / "run")
    assert rows is not None
    assert any(not torch.equal(before[key], value) for key, value in trainer.policy.state_dict().items())
    learned = load_policy(str(tmp_path / "run"), trainer.generator, 4)
    assert (learned.space.decisions, learned.space.smoothing) == (5, 0.6) and learned.card["action_space"]["smoothing"] == 0.6
    images = next(sample(trainer.generator, learned, seed_range(0, 2))).images
    assert bool(images.isfinite().all())


def test_the_way_to_the_latents_is_part_of_the_tokenizer() -> None:
    """A distilled decoder knows its latents by that fingerprint: with another way to them it would decode others."""
    generators = [create_generator(name, {}, device=CPU, dtype=torch.float32, offline=True) for name in ("sit", "dit")]
    sit, dit = (made for made in generators if isinstance(made, LatentGenerator))
    assert sit.tokenizer_fingerprint == dit.tokenizer_fingerprint is not None
    assert isinstance(sit.tokenizer, PrincipalLatents)
    sit.tokenizer.into[0, 0] += 1
    assert sit.tokenizer_fingerprint != dit.tokenizer_fingerprint
