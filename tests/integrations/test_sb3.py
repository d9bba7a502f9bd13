"""Stable-Baselines3 as an engine: its environment and policy interfaces, and agreement with the toolkit's own engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_checker import check_env

from adanat_toolkit.core import seen_shape
from adanat_toolkit.errors import CheckpointError, ConfigError, NotFiniteError, PluginError
from adanat_toolkit.integrations.gym_env import GenerationEnv, GenerationVectorEnv
from adanat_toolkit.integrations.sb3 import GenerationPolicy, GenerationVecEnv, SB3Trainer
from adanat_toolkit.interfaces import Context, Generator, RewardModel
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, build_policy, load_policy
from adanat_toolkit.sampling import gaussian_log_prob, sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import RunConfig, Trainer, create_trainer, validate

BATCH, STEPS = 8, 2


class Brightness(RewardModel):
    """Mean of the pixels."""

    def __init__(self) -> None:
        pass

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def generator() -> Generator:
    from adanat_plugins.generators.maskgit import MaskGIT

    return MaskGIT.create("emoji64", {}, device=torch.device("cpu"), dtype=torch.float32, offline=True)


def vector(generator: Generator, count: int = 4, **settings: Any) -> GenerationVectorEnv:
    defaults = {"generator": generator, "reward": Brightness(), "steps": STEPS}
    return GenerationVectorEnv(count, **{**defaults, "autoreset_mode": AutoresetMode.DISABLED, **settings})


def configuration(engine: str = "sb3", **settings: Any) -> RunConfig:
    """A run of a few seconds with a reward that learns; full-batch epochs unless said otherwise."""
    values: dict[str, Any] = {
        "engine": engine,
        "reward": {"options": {"updates": 1, "batch": 8}},
        "ppo": {"minibatches": 1, "epochs": 2},
        "steps": STEPS,
        "batch": BATCH,
        "trajectories": 2 * BATCH,
        "device": "cpu",
        "dtype": "float32",
        "checkpoint_every": 1,
        "offline": True,
    }
    return validate({**values, **settings})


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.parameters])


# --- the parts alone --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(symmetric|unconventional shape)")
def test_passes_the_checker_of_stable_baselines(generator):
    check_env(GenerationEnv(generator=generator, reward=Brightness(), steps=STEPS), skip_render_check=True)


def test_vec_env_protocol(generator):
    env = GenerationVecEnv(vector(generator), shape_reward=lambda scores: 2 * scores)
    env.seed(5)
    first = env.reset()
    zeros = np.zeros((4, 4), dtype=np.float32)
    observations, rewards, ended, infos = env.step(zeros)
    assert not ended.any() and not rewards.any() and (observations["step"] == 1).all()
    assert [info["seed"] for info in infos] == [5, 6, 7, 8]
    observations, rewards, ended, infos = env.step(zeros)
    images = env.env.finished.images
    assert ended.all() and (observations["step"] == 0).all()
    np.testing.assert_allclose(rewards, 2 * images.mean((1, 2, 3)).numpy(), rtol=1e-6)
    for i, info in enumerate(infos):
        assert info["terminal_observation"]["step"] == STEPS
        assert info["episode"]["l"] == STEPS and info["episode"]["r"] == pytest.approx(rewards[i] / 2)
        assert not info.get("TimeLimit.truncated", False)
    assert not np.array_equal(env.env.seeds.numpy(), [5, 6, 7, 8])
    env.seed(5)
    np.testing.assert_array_equal(env.reset()["features"], first["features"])
    with pytest.raises(ConfigError, match="Disabled"):
        GenerationVecEnv(vector(generator, autoreset_mode="SameStep"))


def test_options_are_those_of_the_next_reset(generator):
    env = GenerationVecEnv(vector(generator))
    env.seed(5)
    drawn = env.reset()["context"].tolist()
    for options, expected in (({"class": 3}, [3] * 4), ([{"class": c} for c in (4, 5, 6, 7)], [4, 5, 6, 7])):
        env.set_options(options)
        assert env.reset()["context"].tolist() == expected
    env.seed(5)
    assert env.reset()["context"].tolist() == drawn
    for wrong, message in (([{"class": 3}, {}, {}, {}], "the same ones"), ({"clas": 3}, "clas"), ({"class": 999}, "999")):
        env.set_options(wrong)
        with pytest.raises(ConfigError, match=message):
            env.reset()


def test_policy_is_ours_and_learns_in_plain_stable_baselines(generator):
    """Their PPO with our parts but without our trainer, as a user would write it."""
    env = GenerationVecEnv(vector(generator))
    policy, critic = build_policy(
        AdaptivePolicy,
        AdaptiveOptions(),
        space=env.env.space,
        grid=generator.grid,
        feature_dim=generator.feature_dim,
        seed=0,
    )
    for p in policy.parameters():  # the last layer starts at zero
        p.data += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    parts = {"actor": policy, "critic": critic, "sigma": 0.5}
    model = PPO(
        GenerationPolicy, env, n_steps=STEPS, batch_size=8, n_epochs=4, policy_kwargs=parts, seed=0, device="cpu"
    )
    observations = env.reset()
    features, step = torch.from_numpy(observations["features"]), torch.from_numpy(observations["step"])
    mean = policy(features, step).detach()
    predicted, _ = model.predict(observations, deterministic=True)
    np.testing.assert_allclose(predicted, mean.numpy(), atol=1e-6)
    drawn, _ = model.predict(observations, deterministic=False)
    assert 0.2 < (drawn - predicted).std() < 1
    tensors = {key: torch.from_numpy(value) for key, value in observations.items()}
    actions = mean + 0.3
    values, log_prob, entropy = model.policy.evaluate_actions(tensors, actions)
    torch.testing.assert_close(log_prob, gaussian_log_prob(actions, mean, 0.5))
    torch.testing.assert_close(values, critic(features, step))
    torch.testing.assert_close(entropy, torch.full((4,), 4 * (0.5 + 0.5 * np.log(2 * np.pi) + np.log(0.5))).float())
    # Some layers only get a gradient once layers after them, which start at zero, have moved: hence four epochs.
    before = [p.detach().clone() for p in (*policy.parameters(), *critic.parameters())]
    model.learn(4 * STEPS)
    moved = [not torch.equal(a, b) for a, b in zip(before, (*policy.parameters(), *critic.parameters()), strict=True)]
    assert all(moved)
    assert model.policy.log_std.exp().tolist() == pytest.approx([0.5] * 4)


# --- the two engines --------------------------------------------------------------------------------------------------


@pytest.mark.rounding
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ppo": {"minibatches": 1, "epochs": 2, "gamma": 0.9, "gae_lambda": 0.8, "group": 2}},
        {"ppo": {"minibatches": 1, "epochs": 2, "standardise": "returns", "max_gradient_norm": None}},
        {"policy": {"name": "shared", "smoothing": 0.6}},
    ],
    ids=["default", "gae-groups", "paper-returns", "shared-smoothed"],
)
def test_engines_agree(settings):
    """With full-batch epochs nothing of the two engines differs but the order of sums."""
    ours, theirs = (create_trainer(configuration(engine, **settings)) for engine in ("adanat", "sb3"))
    assert isinstance(theirs, SB3Trainer) and torch.equal(weights(ours), weights(theirs))
    start = weights(ours)
    first = ours.step(), theirs.step()
    exact = [key for key in first[0] if key.startswith(("reward/", "knob", "reward_model/")) or key == "sigma"]
    assert len(exact) > 10
    assert {key: first[0][key] for key in exact} == {key: first[1][key] for key in exact}
    second = ours.step(), theirs.step()
    # A gradient that is nothing but rounding has either sign: compare as a whole.
    apart = (weights(theirs) - weights(ours)).norm() / (weights(ours) - start).norm()
    assert apart < 0.05
    for row, other in (first, second):
        for key in ("ppo/policy_loss", "ppo/value_loss", "ppo/explained_variance", "reward/mean"):
            assert other[key] == pytest.approx(row[key], abs=5e-3), key
        assert other["ppo/gradient_norm"] == pytest.approx(row["ppo/gradient_norm"], rel=0.02)
        assert set(row) - set(other) == {"seconds_score"}
        assert set(other) <= set(row)
    for key, value in theirs.average.items():
        torch.testing.assert_close(value, theirs.policy.state_dict()[key])


def test_single_states_cannot_be_normalised() -> None:
    with pytest.raises(ConfigError, match="cuts 8 images of 2 steps into single states"):
        create_trainer(configuration(ppo={"minibatches": 16, "normalise_advantages": True}))


@pytest.mark.parametrize("policy", ["lean", "context", "adaptive"])
def test_memory_is_planned_for_what_the_policy_sees(policy: str) -> None:
    trainer = create_trainer(configuration(policy={"name": policy}))
    row = trainer.plan()["memory_bytes"]["stored features of one iteration"]
    (height, width), features = seen_shape(trainer.generator, trainer.policy)
    assert row == 2 * 4 * BATCH * STEPS * height * width * features


def test_run_folder_resume_and_sampling(tmp_path: Path, generator):
    settings = {"trajectories": 3 * BATCH, "ppo": {"minibatches": 2, "epochs": 2}}
    whole = create_trainer(configuration(**settings))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    whole.run(tmp_path / "whole")
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002

    class Cut(Exception):
        pass

    def cut(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise Cut

    with pytest.raises(Cut):
        create_trainer(configuration(**settings)).run(tmp_path / "cut", on_iteration=cut)
    resumed = create_trainer(configuration(**settings))
    resumed.run(tmp_path / "cut")
    assert resumed.iteration == 3
    assert torch.equal(weights(resumed), weights(whole))
    one, other = (RunFolder(tmp_path / name).metrics() for name in ("whole", "cut"))
    assert [row["iteration"] for row in other] == [1, 2, 3]
    for a, b in zip(one, other, strict=True):
        timed = [key for key in a if "second" in key]
        assert {k: v for k, v in a.items() if k not in timed} == {k: v for k, v in b.items() if k not in timed}
    assert not [f for f in (tmp_path / "whole").rglob("*") if f.suffix in (".zip", ".pkl", ".pth", ".pt")]

    policy = load_policy(str(tmp_path / "whole"), generator)
    assert policy.card["kind"] == "adaptive" and policy.card["training"]["engine"] == "sb3"
    (made,) = sample(generator, policy, seed_range(0, 4))
    env = GenerationVecEnv(vector(generator))  # the same images as with their deterministic predictions
    env.seed(0)
    observations = env.reset()
    for _ in range(STEPS):
        actions, _ = whole.model.predict(observations, deterministic=True)
        observations, *_ = env.step(actions)
    torch.testing.assert_close(env.env.finished.images, made.images, atol=1e-4, rtol=0)

    with pytest.raises(CheckpointError, match="engine: 'sb3' -> 'adanat'"):
        create_trainer(configuration("adanat", **settings)).run(tmp_path / "whole")
    assert json.loads((tmp_path / "whole" / "config.json").read_text())["engine"] == "sb3"


def test_warmup_leaves_the_policy_alone():
    trainer = create_trainer(configuration(reward={"options": {"updates": 1, "batch": 8}, "warmup": 1}))
    before, scores = weights(trainer), []
    row = trainer.step()
    scores.append(row["reward_model/loss"])
    assert torch.equal(weights(trainer), before) and not any(key.startswith("ppo/") for key in row)
    row = trainer.step()
    assert not torch.equal(weights(trainer), before) and row["ppo/epochs"] == 2
    assert row["reward_model/loss"] != scores[0]


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_a_gradient_whose_norm_overflows_stops_both_engines(engine: str, limit: float | None) -> None:
    """Clipped to such a norm the gradient is zero: nothing would be learned, and nothing be said."""
    ppo = {"minibatches": 1, "epochs": 2, "value_coefficient": 1e30, "max_gradient_norm": limit}
    trainer = create_trainer(configuration(engine, policy={"name": "shared"}, ppo=ppo))
    before = weights(trainer)
    with pytest.raises(NotFiniteError, match=r"iteration 1: .* not finite, first ppo/gradient_norm = (inf|nan)"):
        trainer.step()
    assert torch.equal(weights(trainer), before) and trainer.iteration == 0


def test_schedules_reach_stable_baselines():
    ppo = {"learning_rate_decay": "linear", "sigma_drop_at": [0], "epochs": 1, "minibatches": 1}
    trainer = create_trainer(configuration(ppo=ppo, trajectories=3 * BATCH))
    rows, rates, sigmas = [], [], []
    for _ in range(3):
        rows.append(trainer.step())
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        sigmas.append(trainer.sb3_policy.log_std.exp()[0].item())
    assert rates == pytest.approx([5e-4, 5e-4 * 2 / 3, 5e-4 / 3]) == [row["learning_rate"] for row in rows]
    assert sigmas == pytest.approx([0.6, 0.3, 0.3]) == [row["sigma"] for row in rows]


def test_plan_counts_their_buffer():
    theirs = create_trainer(configuration()).plan()["memory_bytes"]["stored features of one iteration"]
    ours = create_trainer(configuration("adanat")).plan()["memory_bytes"]["stored features of one iteration"]
    buffer = create_trainer(configuration()).model.rollout_buffer.observations["features"]
    assert theirs == 2 * buffer.nbytes == 4 * ours


def test_what_has_no_counterpart_is_refused():
    with pytest.raises(ConfigError, match=r"gamma = 0\.9"):
        create_trainer(configuration(ppo={"standardise": "returns", "gamma": 0.9}))
    with pytest.raises(PluginError, match=r"unknown engine 'sb4'.*did you mean.*sb3"):
        create_trainer(configuration("sb4"))


def test_documentation_runs():
    """The Python blocks of the page, one after the other in one namespace."""
    page = (Path(__file__).parents[2] / "docs" / "gymnasium-and-sb3.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 3
    assert names["rewards"].shape == (8,) and names["model"].num_timesteps >= 32


def test_their_other_algorithms_train(generator):
    env = GenerationVecEnv(vector(generator))
    model = SAC("MultiInputPolicy", env, buffer_size=32, learning_starts=8, batch_size=8, device="cpu", seed=0)
    before = [p.detach().clone() for p in model.actor.parameters()]
    model.learn(16)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.actor.parameters(), strict=True))
