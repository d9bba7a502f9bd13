"""Gymnasium environments: gymnasium's own checks, autoreset modes, and images that equal those of ``sampling``."""

from __future__ import annotations

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import DictInfoToList, RecordEpisodeStatistics

from adanat_toolkit.core import ACTION, Noise
from adanat_toolkit.errors import ConfigError, PluginError
from adanat_toolkit.integrations.gym_env import GenerationEnv, GenerationVectorEnv
from adanat_toolkit.interfaces import Context, Generator, RewardModel
from adanat_toolkit.policies import SamplingPolicy, SharedPolicy
from adanat_toolkit.sampling import sample, seed_range

ID = "adanat/MaskGIT-emoji64-v0"
CPU = torch.device("cpu")
STEPS = 3


class Brightness(RewardModel):
    """Mean of the pixels: a reward whose value a test can compute."""

    def __init__(self) -> None:
        pass

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def generator() -> Generator:
    from adanat_plugins.generators.maskgit import MaskGIT

    return MaskGIT.create("emoji64", {}, device=CPU, dtype=torch.float32, offline=True)


def vector(generator: Generator, count: int = 3, **settings) -> GenerationVectorEnv:
    return GenerationVectorEnv(count, **{"generator": generator, "reward": Brightness(), "steps": STEPS, **settings})


def actions_of(env: VectorEnv, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.5, env.action_space.shape).astype(np.float32)


# --- gymnasium's rules ------------------------------------------------------------------------------------------------


def test_ids_are_registered_and_load_by_module():
    ids = [key for key in gymnasium.registry if key.startswith("adanat/")]
    assert {ID, "adanat/MAGE-emoji64-v0", "adanat/Muse-emoji64-v0", "adanat/Generator-v0"} <= set(ids)
    envs = gymnasium.make_vec(f"adanat_toolkit.gym_env:{ID}", num_envs=2, steps=2, reward=Brightness(), device="cpu")
    assert isinstance(envs.unwrapped, GenerationVectorEnv)
    assert envs.num_envs == 2 and envs.spec.id == ID
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    with pytest.raises(gymnasium.error.UnregisteredEnv):
        gymnasium.make_vec("adanat/MaskGIT-emoji65-v0", num_envs=2)


def test_passes_the_checker_of_gymnasium(generator):
    env = gymnasium.make(ID, generator=generator, reward=Brightness(), steps=2, render_mode="rgb_array")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_env(env.unwrapped, skip_render_check=True)
    # Raw actions are not normalised to [-1, 1] and features have no bounds; nothing else may be remarked upon.
    said = [str(w.message) for w in caught]
    unexpected = [m for m in said if "symmetric and normalized" not in m and "observation space m" not in m]
    assert not unexpected


def test_render_shows_each_step(generator):
    env = GenerationEnv(generator=generator, reward=Brightness(), steps=2, render_mode="rgb_array")
    env.reset(seed=3)
    assert (env.render() == 128).all()
    frames = []
    for _ in range(2):
        env.step(np.zeros(4, dtype=np.float32))
        frames.append(env.render())
    assert frames[0].shape == (64, 64, 3) and frames[0].dtype == np.uint8
    assert (frames[0] != frames[1]).any()
    finished = (env.vector.finished.images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    assert (frames[1] == finished).all()
    assert GenerationEnv(generator=generator, reward=Brightness()).render() is None


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_protocol(generator, mode):
    env = vector(generator, autoreset_mode=mode)
    assert env.metadata["autoreset_mode"] is mode
    observations, infos = env.reset(seed=5)
    kept = []
    for count in range(2 * STEPS + 1):
        assert observations in env.observation_space
        assert observations["features"].dtype == np.float32 and observations["step"].dtype == np.int64
        if kept:
            assert not any(np.shares_memory(observations[k], kept[-1][k]) for k in observations)
        kept.append(observations)
        if mode is AutoresetMode.DISABLED and count == STEPS:
            with pytest.raises(ConfigError, match="call reset first"):
                env.step(actions_of(env, count))
            observations, infos = env.reset(options={"reset_mask": np.ones(3, dtype=bool)})
            continue
        before = env.seeds.tolist()
        observations, rewards, ended, truncated, infos = env.step(actions_of(env, count))
        assert rewards.shape == ended.shape == truncated.shape == (3,) and rewards.dtype == np.float64
        assert not truncated.any()
        # With next-step autoreset an episode takes one call more, which only resets.
        last = count in ((STEPS - 1, 2 * STEPS - 1) if mode is AutoresetMode.SAME_STEP else (STEPS - 1, 2 * STEPS))
        assert ended.all() == last and ended.any() == last
        if last:
            np.testing.assert_array_equal(rewards, env.finished.images.mean((1, 2, 3)).double().numpy())
        else:
            assert (rewards == 0).all()
        if last and mode is AutoresetMode.SAME_STEP:
            assert (observations["step"] == 0).all() and infos["seed"].tolist() != before
            assert infos["final_info"]["seed"].tolist() == before
            for i in range(3):
                final = infos["final_obs"][i]
                assert final in env.single_observation_space
                assert final["step"] == STEPS and not final["features"].any()
        elif last:
            assert (observations["step"] == STEPS).all() and infos["seed"].tolist() == before


def test_wrappers_of_gymnasium_see_whole_episodes(generator):
    env = DictInfoToList(RecordEpisodeStatistics(vector(generator)))
    env.reset(seed=0)
    for step in range(STEPS):
        _, rewards, ended, _, infos = env.step(actions_of(env, step))
    assert ended.all()
    found = [info["episode"] for info in infos]
    np.testing.assert_allclose([e["r"] for e in found], rewards)
    assert [e["l"] for e in found] == [STEPS] * 3


# --- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("micro_batch", "smoothing"), [(5, 0.0), (2, 0.6)])
def test_images_equal_those_of_sampling(generator, micro_batch, smoothing):
    env = vector(generator, 5, micro_batch=micro_batch, smoothing=smoothing)
    env.reset(seed=39)
    for t in range(STEPS):  # what smoothing carries ends with an episode
        env.step(actions_of(env, t))
    network = SharedPolicy(
        SharedPolicy.Options(), space=env.space, grid=generator.grid, feature_dim=generator.feature_dim
    )
    sigma, seeds = 0.7, seed_range(40, 5)
    parts = list(sample(generator, SamplingPolicy(network, env.space), seeds, batch=micro_batch, sigma=sigma))
    images, knobs = torch.cat([part.images for part in parts]), torch.cat([part.knobs for part in parts])
    env.reset(seed=40)
    for t in range(STEPS):  # a fresh policy has mean zero, so what remains is the exploration
        _, rewards, _, _, infos = env.step((sigma * Noise(seeds).normal(ACTION, t, (4,))).numpy())
        applied = infos["final_info"]["knobs"] if t == STEPS - 1 else infos["knobs"]
        np.testing.assert_array_equal(applied, knobs[:, t].numpy())
    assert torch.equal(env.finished.images, images)
    assert torch.equal(env.finished.context.classes, torch.cat([part.context.classes for part in parts]))
    np.testing.assert_array_equal(rewards, images.mean((1, 2, 3)).double().numpy())


def test_single_environments_equal_the_vector_environment(generator):
    def single() -> GenerationEnv:
        return GenerationEnv(generator=generator, reward=Brightness(), steps=2)

    many = vector(generator, 3, steps=2)
    one_by_one = SyncVectorEnv([single] * 3, autoreset_mode=AutoresetMode.SAME_STEP)
    assert one_by_one.observation_space == many.observation_space
    assert one_by_one.action_space == many.action_space
    ours, theirs = many.reset(seed=11), one_by_one.reset(seed=11)
    for call in range(5):  # two episodes and a half: seeds that follow do not depend on num_envs either
        assert ours[0].keys() == theirs[0].keys()
        for key in ours[0]:
            np.testing.assert_allclose(ours[0][key], theirs[0][key], atol=2e-5)
        np.testing.assert_array_equal(ours[-1]["seed"], theirs[-1]["seed"])
        if call:
            np.testing.assert_allclose(ours[1], theirs[1], atol=2e-5)
            np.testing.assert_array_equal(ours[2], theirs[2])
            assert ("final_info" in ours[-1]) == ("final_info" in theirs[-1])
        actions = actions_of(many, call)
        ours, theirs = many.step(actions), one_by_one.step(actions)


def test_seeds_and_contexts(generator):
    env = vector(generator)

    def images(**reset) -> torch.Tensor:
        env.reset(**reset)
        for t in range(STEPS):
            env.step(actions_of(env, t))
        return env.finished.images

    first = images(seed=7)
    after = images()
    assert not torch.equal(first, after)
    assert torch.equal(images(seed=7), first) and torch.equal(images(), after)
    assert torch.equal(images(seed=[7, 8, 9]), first) and torch.equal(images(seed=torch.tensor([7, 8, 9])), first)
    images(seed=7, options={"classes": [4, 5, 6]})
    assert env.finished.context.classes.tolist() == [4, 5, 6]
    unseeded = vector(generator)
    unseeded.reset()
    again = vector(generator)
    again.reset()
    assert unseeded.seeds.tolist() != again.seeds.tolist()


def test_a_reset_that_is_refused_changes_nothing(generator):
    """Episodes that run go on with the noise and the seeds they were begun with."""
    ends = []
    for refused in (False, True):
        env = vector(generator)
        env.reset(seed=7)
        env.step(actions_of(env, 0))
        if refused:
            for options in ({"classes": [1]}, {"classes": [1, 2, 98]}, {"clases": [1, 2, 3]}):
                for seed in (None, 5):
                    with pytest.raises(ConfigError):
                        env.reset(seed=seed, options=options)
        for t in range(1, STEPS):
            *_, infos = env.step(actions_of(env, t))
        first = env.finished.images
        env.reset()
        ends.append((first, infos["seed"].tolist(), env.seeds.tolist(), env.np_random.integers(2**60)))
    assert torch.equal(ends[0][0], ends[1][0]) and ends[0][1:] == ends[1][1:]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda env: env.reset(seed=[1, 2]), "2 seeds given"),
        (lambda env: env.reset(seed=0, options={"classes": [1]}), "1 contexts given"),
        (lambda env: env.reset(seed=0, options={"classes": [1, 2, 98]}), "98"),
        (lambda env: env.reset(seed=0, options={"prompts": ["a", "b", "c"]}), "not text-conditional"),
        (lambda env: env.reset(seed=0, options={"clases": [1, 2, 3]}), "clases"),
        (lambda env: env.reset(seed=0, options={"reset_mask": np.array([True, False, True])}), "reset_mask"),
        (lambda env: env.step(np.zeros((3, 4))), "before reset"),
        (lambda env: (env.reset(seed=0), env.step(np.zeros((3, 3)))), r"\(3, 3\)"),
        (lambda env: (env.reset(seed=0), env.step(np.full((3, 4), np.nan))), "not finite"),
        (lambda env: env.update_reward(), "does not learn"),
        (lambda env: vector(env.generator, render_mode="human"), "human"),
        (lambda env: vector(env.generator, steps=0), "steps = 0"),
        (lambda env: vector(env.generator, knobs=[]), "knobs is empty"),
    ],
)
def test_errors_say_what_to_do(generator, call, message):
    with pytest.raises(ConfigError, match=message):
        call(vector(generator))


# --- contexts and knobs of other generators ---------------------------------------------------------------------------


def test_text_and_unconditional_contexts():
    from adanat_plugins.generators.mage import MAGE
    from adanat_plugins.generators.muse import Muse

    muse = Muse.create("emoji64", {}, device=CPU, dtype=torch.float32, offline=True)
    mage = MAGE.create("emoji64", {}, device=CPU, dtype=torch.float32, offline=True)
    for generator in (muse, mage):
        env = vector(generator, 2, steps=1)
        observations, _ = env.reset(seed=0)
        assert observations in env.observation_space
        zeros = np.zeros(env.action_space.shape, dtype=np.float32)
        assert env.step(zeros)[2].all()
    text = vector(muse, 2, steps=1)
    observations, _ = text.reset(seed=0, options={"prompts": ["a cat", "a dog"]})
    pooled = muse.encode_prompts(["a cat", "a dog"]).pooled.numpy()
    np.testing.assert_allclose(observations["context"], pooled, atol=1e-6)
    assert vector(mage, steps=1).single_observation_space["context"].n == 1


def test_acted_knobs_and_left_out_features(generator):
    env = vector(generator, 2, knobs=["guidance"], schedule="cosine,guidance=2", features=False)
    observations, _ = env.reset(seed=0)
    assert set(observations) == {"step", "context"} and env.single_action_space.shape == (1,)
    *_, infos = env.step(np.array([[0.0], [1.0]], dtype=np.float32))
    names = env.space.names
    guidance = infos["knobs"][:, names.index("guidance")]
    assert guidance[0] == pytest.approx(2, abs=1e-5) and 2.5 < guidance[1] < 3
    ratio = infos["knobs"][:, names.index("mask_ratio")]
    assert (ratio == env.space.schedule[0, names.index("mask_ratio")].float().item()).all()


# --- a reward that learns ---------------------------------------------------------------------------------------------


def test_update_reward_trains_on_the_finished_images(generator):
    options = {"updates": 1, "batch": 16}
    env = vector(generator, 16, reward="adversarial", reward_options=options, steps=1)
    with pytest.raises(ConfigError, match="no episode has finished"):
        env.update_reward()
    env.reset(seed=0)
    *_, infos = env.step(actions_of(env, 0))
    assert "final_info" in infos
    finished = env.finished
    figures = env.update_reward()
    assert figures["gradient_norm"] > 0
    after = env.reward.score_embedded(finished.embedded, finished.context)
    assert not torch.equal(after, env.scores)
    again = vector(generator, 16, reward="adversarial", reward_options=options, steps=1)
    again.reset(seed=0)
    again.step(actions_of(env, 0))
    assert again.update_reward() == figures


@pytest.mark.parametrize(("kind", "width"), [("lean", 5), ("context", 98)])
def test_features_are_what_a_kind_of_policy_sees(generator, kind, width):
    env = vector(generator, 3, features=kind)
    first, _ = env.reset(seed=5)
    assert env.single_observation_space["features"].shape == (1, width) and first in env.observation_space
    second, *_ = env.step(np.zeros((3, 4), dtype=np.float32))
    if kind == "context":
        np.testing.assert_array_equal(first["features"][:, 0].argmax(1), first["context"])
        np.testing.assert_array_equal(first["features"], second["features"])
    else:
        assert (first["features"] != second["features"]).any(-1).all()
    with pytest.raises(PluginError, match="did you mean 'lean'"):
        vector(generator, 1, features="leen")
    assert "features" not in vector(generator, 1, features="shared").single_observation_space.spaces
