"""Another default type, set by the user's program, changes nothing; and arguments in the forms that Python users write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_plugins.pretrained import pretrained_policy
from adanat_toolkit.core import Noise, as_seeds
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.evaluation import class_id, evaluate_policies, real_side
from adanat_toolkit.integrations.gym_env import GenerationEnv, GenerationVectorEnv
from adanat_toolkit.interfaces import Generator, PluginOptions
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_features, create_generator
from adanat_toolkit.sampling import sample
from adanat_toolkit.training import create_trainer, validate

from ..helpers.tiny_plugins import Brightness
from ..helpers.train_process import write_images

CPU = torch.device("cpu")


def maskgit() -> Generator:
    return create_generator("maskgit", device=CPU, dtype=torch.float32, offline=True)


def brightness() -> Brightness:
    return Brightness(PluginOptions(), generator=None, real=None, device=CPU, seed=0)  # type: ignore[arg-type]


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def default_dtype(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(torch.float32)


def images_of(name: str) -> torch.Tensor:
    generator = create_generator(name, device=CPU, dtype=torch.float32, offline=True)
    policy = load_policy(pretrained_policy(generator) or "fixed", generator)
    (made,) = sample(generator, policy, [3, 5])
    return made.images


@pytest.mark.parametrize("name", ["maskgit", "mage", "muse"])
def test_images(name: str, default_dtype: torch.dtype) -> None:
    expected = images_of(name)
    torch.set_default_dtype(default_dtype)
    assert torch.equal(images_of(name), expected) and expected.dtype == torch.float32
    assert torch.get_default_dtype() == default_dtype


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "default_dtype"), [("adanat", torch.float64), ("sb3", torch.bfloat16)], indirect=["default_dtype"]
)
def test_training_and_figures(engine: str, default_dtype: torch.dtype, tmp_path: Path) -> None:
    images = write_images(tmp_path / "real")

    def run(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        settings: dict[str, Any] = {
            "steps": 2, "trajectories": 16, "batch": 8, "device": "cpu", "dtype": "float32", "engine": engine,
            "ppo": {"epochs": 1, "minibatches": 1}, "reward": {"options": {"batch": 8, "updates": 1}},
            "data": {"path": str(images)},
        }  # fmt: skip
        trainer = create_trainer(validate(settings))
        trainer.run(out)
        if engine == "sb3":
            return trainer.state(), {}
        extractor = create_features("emoji64", device=CPU, offline=True)
        real = real_side(trainer.generator, str(images), extractor)
        found = evaluate_policies(trainer.generator, [out], extractor, real, count=16)
        return trainer.state(), found.to_json()["policies"][0]["figures"]

    state, figures = run(tmp_path / "float32")
    torch.set_default_dtype(default_dtype)
    other, others = run(tmp_path / "other")
    assert others == figures and other.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(other[key], value) and other[key].dtype == value.dtype, key


def test_an_environment(default_dtype: torch.dtype) -> None:
    def episode() -> tuple[Any, ...]:
        envs = GenerationVectorEnv(2, generator=maskgit(), reward=brightness(), steps=2, autoreset_mode="Disabled")
        observations, _ = envs.reset(seed=3)
        for _ in range(2):
            observations, rewards, *_ = envs.step(0.5 + 0 * envs.action_space.sample())
        return observations["features"].dtype, rewards.tolist()

    expected = episode()
    torch.set_default_dtype(default_dtype)
    assert episode() == expected


# --- forms of arguments -------------------------------------------------------------------------------------------------


def test_seeds_in_any_form() -> None:
    seeds = torch.tensor([0, 7, 2**63 - 1])
    for form in ([0, 7, 2**63 - 1], (0, 7, 2**63 - 1), seeds.numpy(), seeds):
        assert torch.equal(as_seeds(form), seeds)  # type: ignore[arg-type]
        assert torch.equal(Noise(form).uniform(1, 0, (2,)), Noise(seeds).uniform(1, 0, (2,)))  # type: ignore[arg-type]
    assert torch.equal(as_seeds(range(3)), torch.arange(3)) and as_seeds(
        torch.tensor([1], dtype=torch.int16)
    ).tolist() == [1]
    wrong: list[Any] = [[-1], [2**63], [0.5], ["a"], 3, None, torch.zeros(2), torch.zeros(2, 2, dtype=torch.int64)]
    for form in wrong:
        with pytest.raises(ConfigError, match="seed"):
            as_seeds(form)


def test_a_policy_by_its_path() -> None:
    generator = maskgit()
    folder = pretrained_policy(generator)
    assert folder is not None
    assert load_policy(folder, generator).card == load_policy(str(folder), generator).card
    with pytest.raises(ConfigError, match="no policy at 'nowhere'"):
        load_policy(Path("nowhere"), generator)


def test_classes_by_name() -> None:
    generator = maskgit()
    assert generator.class_names is not None
    name = generator.class_names[3]
    assert class_id(name, generator) == class_id(3, generator) == class_id("3", generator) == 3
    env = GenerationEnv(generator=generator, reward=brightness(), steps=2)
    assert env.reset(seed=1, options={"class": name})[0]["context"] == 3
    envs = GenerationVectorEnv(2, generator=generator, reward=brightness(), steps=2)
    assert envs.reset(seed=1, options={"classes": [name, 5]})[0]["context"].tolist() == [3, 5]
    for classes, message in (
        (["face-smilin", 1], "did you mean 'face-smiling'"), ([1.5, 1], "class 1.5"), ([98, 1], "outside 0..97"),
        ("12", "give a list"), (3, "give a list"), ([1], "1 contexts given for num_envs = 2"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            envs.reset(seed=1, options={"classes": classes})


def test_seeds_of_an_environment_end_at_2_to_63() -> None:
    envs = GenerationVectorEnv(2, generator=maskgit(), reward=brightness(), steps=1)
    _, infos = envs.reset(seed=2**63 - 2)
    assert infos["seed"].tolist() == [2**63 - 2, 2**63 - 1]
    env = GenerationEnv(generator=envs.generator, reward=brightness(), steps=1)
    for seed in (2**63 - 1, 2**64, -1):
        with pytest.raises(ConfigError, match="2\\^63"):
            envs.reset(seed=seed)
    for seed in (2**64, -1):
        with pytest.raises(ConfigError, match="2\\^63"):
            env.reset(seed=seed)
    with pytest.raises(ConfigError, match="2\\^63"):
        envs.reset(seed=[0, 2**63])
