"""Stable-Baselines3 as a second engine: its PPO on our environments, with our networks as its policy.

Three parts that also work alone: :class:`GenerationVecEnv` (their VecEnv over our vector environment),
:class:`GenerationPolicy` (their ActorCriticPolicy around our policy and critic), and :class:`SB3Trainer`, which puts
them behind the interface, run folder and policy export of :class:`training.Trainer`. docs/gymnasium-and-sb3.md says
where the two engines differ.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ..core import ACTION, Context, Generator, ImageSource, Noise, Policy, RewardModel, derive, sample_seeds, seen_shape
from ..errors import ConfigError, NotFiniteError
from ..runtime import distributed, ready_to_learn
from ..training import (
    RunConfig,
    Trainer,
    describe,
    describe_shares,
    describe_statistics,
    require_finite_update,
    targets,
)
from .gym_env import GenerationVectorEnv, Observations, options_of_all


class GenerationVecEnv(VecEnv):
    """Stable-Baselines3's VecEnv over a :class:`GenerationVectorEnv` with autoreset disabled: a VecEnv resets itself.

    Args:
        env: the images made side by side.
        seeds: episode index (from 0) -> (num_envs,) int64 seeds of its images; None: those of the environment.
        shape_reward: (num_envs,) scores of the episodes that just ended -> the rewards that PPO is given; None: the
            scores. ``info["episode"]["r"]`` holds the score itself.
    """

    def __init__(
        self,
        env: GenerationVectorEnv,
        *,
        seeds: Callable[[int], Tensor] | None = None,
        shape_reward: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if env.mode is not AutoresetMode.DISABLED:
            raise ConfigError("a VecEnv resets by itself: create the environment with autoreset_mode='Disabled'.")
        self.env, self.seeds, self.shape_reward = env, seeds, shape_reward
        self.episode = 0
        """Index of the episode that the next reset starts."""
        self._started = time.perf_counter()
        self._pending: np.ndarray | None = None
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Observations:
        """Takes the seeds and the options (``class`` or ``prompt``) that were set for this reset alone.

        Raises:
            ConfigError: see :meth:`GenerationVectorEnv.reset`.
        """
        options = options_of_all(self._options)
        if self.seeds is not None:
            observations, _ = self.env.reset(seed=self.seeds(self.episode), options=options)
        else:
            observations, _ = self.env.reset(seed=self._seeds[0], options=options)
            self._reset_seeds()
        self._reset_options()
        self.episode += 1
        self._started = time.perf_counter()
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        self._pending = actions

    def step_wait(self) -> tuple[Observations, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        assert self._pending is not None
        observations, rewards, ended, _, infos = self.env.step(self._pending)
        self._pending = None
        each: list[dict[str, Any]] = [
            {"seed": int(infos["seed"][i]), "knobs": infos["knobs"][i]} for i in range(self.num_envs)
        ]
        if ended.all():  # all episodes end together
            seconds = time.perf_counter() - self._started
            for i, info in enumerate(each):
                info["terminal_observation"] = {key: value[i] for key, value in observations.items()}
                info["episode"] = {"r": float(rewards[i]), "l": self.env.space.decisions, "t": seconds}
            if self.shape_reward is not None:
                rewards = self.shape_reward(self.env.scores).double().cpu().numpy()
            observations = self.reset()
        return observations, rewards, ended, each

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Calls the method once: the environments are one object. Its result is repeated for each of ``indices``."""
        result = getattr(self.env, method_name)(*method_args, **method_kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        return self.env.render() or [None] * self.num_envs


class GenerationPolicy(ActorCriticPolicy):
    """Stable-Baselines3's policy around ours: the mean comes from ``actor``, the value from ``critic``, and the
    standard deviation is set from outside (:attr:`sigma`), not learned. ``predict(deterministic=True)`` is the mean.

    Args:
        actor: a trainable policy. critic: what its ``make_critic`` gave. sigma: standard deviation of raw actions.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        actor: Policy,
        critic: nn.Module,
        sigma: float,
        **kwargs: Any,
    ) -> None:
        self._parts = {"actor": actor, "critic": critic}  # modules cannot be assigned before nn.Module.__init__
        self._sigma = sigma
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor, self.critic = self._parts["actor"], self._parts["critic"]
        # A parameter as in their class, but not trained: it is no argument of the optimiser.
        self.log_std = nn.Parameter(torch.zeros(self.action_space.shape or ()), requires_grad=False)
        self.sigma = self._sigma
        self.exploration: Noise | None = None
        """One seed an environment: exploration that belongs to the trajectory. None: torch's global generator."""
        parameters = list(dict.fromkeys([*self.actor.parameters(), *self.critic.parameters()]))  # once each, where they share
        # mypy sees the abstract base class of optimisers here, which takes no learning rate
        self.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore

    @property
    def sigma(self) -> float:
        """Standard deviation of every raw coordinate."""
        return self._sigma

    @sigma.setter
    def sigma(self, value: float) -> None:
        self._sigma = value
        self.log_std.data.fill_(float(np.log(value)))

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """Observations -> (B, A) raw actions, (B, 1) values, (B,) log-probabilities."""
        features, step = _inputs(obs)
        distribution = self._distribution(self.actor(features, step))
        if deterministic or self.exploration is None:
            actions = distribution.get_actions(deterministic=deterministic)
        else:  # all environments are at the same step
            noise = self.exploration.normal(ACTION, int(step[0]), tuple(self.log_std.shape))
            actions = distribution.mode() + self.sigma * noise
        return actions, self.critic(features, step), distribution.log_prob(actions)

    def evaluate_actions(self, obs: Any, actions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """(B, 1) values, (B,) log-probabilities of the actions, and (B,) entropies (constant: sigma is not learned)."""
        features, step = _inputs(obs)
        distribution = self._distribution(self.actor(features, step))
        return self.critic(features, step), distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: Any) -> Distribution:
        return self._distribution(self.actor(*_inputs(obs)))

    def predict_values(self, obs: Any) -> Tensor:
        return self.critic(*_inputs(obs))

    def _distribution(self, mean: Tensor) -> Distribution:
        if not bool(mean.isfinite().all()):  # theirs waits for the device too, and raises a ValueError
            raise NotFiniteError(
                "the policy's actions are not finite (NaN or infinite), so the run was stopped; its last checkpoint is good. "
                "Lower ppo.learning_rate, or set ppo.max_gradient_norm."
            )
        assert isinstance(self.action_dist, DiagGaussianDistribution)
        return self.action_dist.proba_distribution(mean, self.log_std)


def _inputs(obs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
    """What our policies read of an observation: features or None, and the step as (B,) int64."""
    return obs.get("features"), obs["step"].reshape(-1).long()


class _GatedPPO(PPO):
    """PPO that can leave out the policy's update (while only the reward learns)."""

    updates_policy = True

    def train(self) -> None:
        if self.updates_policy:
            super().train()


class _RolloutEnd(BaseCallback):
    """Calls a function after each rollout, before the policy is updated on it."""

    def __init__(self, function: Callable[[], None]) -> None:
        super().__init__()
        self.function = function

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.function()


class SB3Trainer(Trainer):
    """:class:`training.Trainer` with Stable-Baselines3's PPO inside: the same configuration, metrics, checkpoints,
    resume and exported policy. Episodes have the same seeds, contexts and exploration as with our engine, so that the
    first rollouts of the two are the same.

    Raises:
        ConfigError: also for settings that Stable-Baselines3 has no counterpart of.
    """

    shows_distilled = False

    @classmethod
    def refuse(cls, config: RunConfig) -> None:
        if distributed.world_size() > 1:
            raise ConfigError("engine 'sb3' runs in one process; use engine 'adanat' on several.")
        ppo = config.ppo
        for name in ("context_baseline", "critic_statistics"):
            if getattr(ppo, name):
                raise ConfigError(f"engine 'sb3' has no ppo.{name}; leave it out, or use engine 'adanat'.")
        if ppo.normalise_advantages and ppo.minibatches >= config.batch * config.steps:
            raise ConfigError(
                f"ppo.minibatches = {ppo.minibatches} cuts {config.batch} images of {config.steps} steps into single states, "
                "whose advantages cannot be normalised; give fewer, or a larger batch."
            )
        if ppo.standardise == "returns" and (ppo.gamma, ppo.gae_lambda) != (1.0, 1.0):
            raise ConfigError(
                f"ppo.standardise = 'returns' with gamma = {ppo.gamma:g} and gae_lambda = {ppo.gae_lambda:g} cannot be "
                "expressed as rewards of an environment, which is all that engine 'sb3' can change; use standardise = "
                "'reward', set both to 1, or use engine 'adanat'."
            )

    @ready_to_learn()
    def __init__(
        self,
        config: RunConfig,
        generator: Generator | str | None = None,
        reward: RewardModel | Callable[[Tensor, Context], Tensor] | str | None = None,
        data: ImageSource | str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(config, generator, reward, data)
        if self.policy.penalty() is not None:
            raise ConfigError(
                f"policy {config.policy.name!r} adds a penalty to the loss, which engine 'sb3' has no place for; leave out "
                "policy.options.penalty, or use engine 'adanat' or 'offline'."
            )
        ppo = config.ppo
        self.env = GenerationVectorEnv(
            config.batch,
            generator=self.generator,
            reward=self.reward,
            steps=config.steps,
            schedule=config.policy.schedule,
            knobs=config.policy.knobs,
            residual=config.policy.residual,
            smoothing=config.policy.smoothing,
            features=config.policy.name,
            data=self.real,
            micro_batch=self.micro_batch.size,
            autoreset_mode=AutoresetMode.DISABLED,
        )
        self.env.contexts_from = self.contexts_from  # as the other engine has it: its own where --data is not given
        self.vec_env = GenerationVecEnv(self.env, seeds=self._seeds, shape_reward=self._terminal_reward)
        self._row: dict[str, Any] = {}
        self._rolled = self._reward_seconds = 0.0
        self.model = _GatedPPO(
            GenerationPolicy,
            self.vec_env,
            learning_rate=self._learning_rate,
            n_steps=self.space.decisions,
            batch_size=-(-config.batch * self.space.decisions // ppo.minibatches),
            n_epochs=ppo.epochs,
            gamma=ppo.gamma,
            gae_lambda=ppo.gae_lambda,
            clip_range=ppo.clip,
            normalize_advantage=ppo.normalise_advantages,
            ent_coef=0.0,
            vf_coef=ppo.value_coefficient,
            max_grad_norm=float("inf"),  # _clip does it, to know the norm from before
            target_kl=ppo.target_kl,
            device=self.device,
            policy_kwargs={
                "actor": self.policy,
                "critic": self.critic,
                "sigma": ppo.sigma,
                "optimizer_kwargs": {"eps": ppo.adam_epsilon},
            },
        )
        self.model.set_logger(Logger(folder=None, output_formats=[]))
        assert isinstance(self.model.policy, GenerationPolicy)
        self.sb3_policy = self.model.policy
        assert isinstance(self.sb3_policy.optimizer, torch.optim.Adam)
        self.optimiser = self.sb3_policy.optimizer
        self._norms: list[float] = []
        self.optimiser.register_step_pre_hook(lambda *_: self._clip())
        self.optimiser.register_step_post_hook(lambda *_: self._average_weights())

    def _iterate(self) -> dict[str, Any]:
        """Names as with our engine, see docs/gymnasium-and-sb3.md."""
        config, started = self.config, time.perf_counter()
        sigma = config.ppo.sigma_at(self.iteration, config.iterations)
        rate = config.ppo.learning_rate_at(self.iteration, config.iterations)
        self.sb3_policy.sigma = sigma
        self.sb3_policy.exploration = self._exploration(0, config.batch)
        self.model.updates_policy = self.iteration >= config.reward.warmup
        self._row = {"iteration": self.iteration + 1, "trajectories": (self.iteration + 1) * config.batch}
        if self.model._last_obs is None:  # the start, or a resume: begin the episodes of this iteration
            self.vec_env.episode = self.iteration
        updates = self.model._n_updates
        self._norms.clear()
        with _global_seed(derive(config.seed, self.iteration)):  # mini-batches come from NumPy's global generator
            self.model.learn(
                config.batch * self.space.decisions,
                callback=_RolloutEnd(self._after_rollout),
                log_interval=None,  # type: ignore
                reset_num_timesteps=False,
            )
        self.sb3_policy.exploration = None
        ended = time.perf_counter()
        row = self._row
        if self.model.updates_policy:
            found = self.model.logger.name_to_value
            row |= {f"ppo/{ours}": float(found[f"train/{theirs}"]) for ours, theirs in FIGURES}
            if self._norms:  # none where ppo.target_kl stopped the first mini-batch
                row["ppo/gradient_norm"] = sum(self._norms) / len(self._norms)
            row["ppo/epochs"] = float(self.model._n_updates - updates)
        row |= {
            "sigma": sigma,
            "learning_rate": rate,
            "seconds": ended - started,
            "seconds_rollout": self._rolled - started,
            "seconds_policy": ended - self._rolled - self._reward_seconds,
            "seconds_reward": self._reward_seconds,
            "trajectories_per_second": config.batch / (ended - started),
        }
        return row

    @ready_to_learn()
    def plan(self) -> dict[str, Any]:
        """As :meth:`training.Trainer.plan`; the rollout buffer is float32 on the host, and copied once to be read."""
        found = super().plan()
        key = "stored features of one iteration"
        if found["memory_bytes"][key]:
            (height, width), features = seen_shape(self.generator, self.policy)
            rows = self.config.batch * self.space.decisions * height * width
            found["memory_bytes"][key] = 2 * 4 * rows * features
        return found

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.model._last_obs = None  # the first rollout after a resume starts with a reset

    def _after_rollout(self) -> None:
        """Log the rollout and train the reward on its images: they were scored before, PPO has its rewards."""
        self._rolled = time.perf_counter()
        finished = self.env.finished
        assert finished is not None
        group = self.config.ppo.group
        self._row |= describe(finished, self.env.scores, self.env.terms, self.space, group=group)
        explore = self._exploration(0, self.config.batch)
        self._row |= describe_shares(finished, self.env.scores, explore, start=0, group=group)
        if self.policy.reads == "statistics":
            stored = self.model.rollout_buffer.observations["features"]
            seen = torch.as_tensor(stored, device=self.device).transpose(0, 1)  # theirs is (T, B, ...)
            self._row |= describe_statistics(seen, self.generator)
        self._row |= self._reward_update(finished)()
        self._reward_seconds = time.perf_counter() - self._rolled

    def _seeds(self, episode: int) -> Tensor:
        """Seeds of the images of iteration ``episode``, as our engine's."""
        groups = self.config.batch // self.config.ppo.group
        shared = sample_seeds(self.config.seed, episode, 0, groups)
        return shared.repeat_interleave(self.config.ppo.group)

    def _terminal_reward(self, scores: Tensor) -> Tensor:
        """The standardised terminal reward of our engine; with all values zero it is the last step's target."""
        self._require_finite(scores, self.env.terms)
        values = torch.zeros(len(scores), self.space.decisions, device=scores.device)
        return targets(scores, values, self.config.ppo)[0][:, -1]

    def _clip(self) -> None:
        """Before each step of the optimiser.

        Raises:
            NotFiniteError: the norm is not finite. Clipped to it the gradient would be zero, and nothing would be learned.
        """
        limit = self.config.ppo.max_gradient_norm
        norm = float(nn.utils.clip_grad_norm_(self.parameters, float("inf") if limit is None else limit))
        require_finite_update(self.iteration + 1, {"ppo/gradient_norm": norm}, {})
        self._norms.append(norm)

    def _learning_rate(self, progress_remaining: float) -> float:
        """Our schedule instead of their progress, which restarts with every rollout."""
        return self.config.ppo.learning_rate_at(self.iteration, self.config.iterations)


FIGURES = (
    ("policy_loss", "policy_gradient_loss"),
    ("value_loss", "value_loss"),
    ("approx_kl", "approx_kl"),
    ("clip_fraction", "clip_fraction"),
    ("explained_variance", "explained_variance"),
)
"""Our name of a figure of the update, and Stable-Baselines3's (without ``train/``)."""


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """NumPy's global generator seeded inside, and as it was outside."""
    before = np.random.get_state()  # noqa: NPY002 - Stable-Baselines3 draws from the global generator
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
