"""Engine ``offline``: try K sequences of actions a context, then fit the policy to what they gained.

The two steps of EVATok, on whole trajectories, whose reward comes at the end. A round is an iteration of ``batch`` images:

1. Each context gets K sequences of actions around the policy's own (the policy's answer to the states it meets, plus one
   draw of exploration), and each of these R images with noise of their own. What a sequence gained is the mean of its R
   scores above a baseline that its own scores have no part in (``ppo.shrunk_baseline``), in standard deviations.
2. The policy is fitted by least squares to targets at all states of the round, for ``ppo.epochs``. With
   ``fit.keep = all`` the target lies from the policy's answer along the exploration, as far as it gained; the mean of
   these targets at a state is the gradient of the reward. With ``best`` it is the best of the K, weighted by its gain.

A reward that learns is trained between rounds, as with PPO. There is no critic, no ratio and no clipping.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import Context, Noise, derive, sample_seeds
from ..errors import ConfigError
from ..images import draw_contexts
from ..runtime import distributed
from ..sampling import Rollout, explored_by
from .config import RunConfig
from .ppo import Batch, descend, shrunk_baseline, unpacked
from .settings_read import SIGMA, Reads
from .standard import mean_and_divisor
from .trainer import Trainer


class OfflineTrainer(Trainer):
    """:class:`Trainer` with another update: the same configuration, metrics, checkpoints, resume and exported policy.

    Raises:
        ConfigError: also for settings of PPO that it has no counterpart of, and for a batch that K x R does not divide.
    """

    needs_critic = False
    reads: ClassVar[Reads] = {
        "ppo": SIGMA
        | {"learning_rate", "learning_rate_decay", "adam_epsilon", "epochs", "minibatches", "max_gradient_norm"},
        "fit": frozenset({"actions", "repeats", "keep", "pull"}),
    }

    @classmethod
    def refuse(cls, config: RunConfig) -> None:
        group, *_ = cls.groups(config)
        what = f"fit.actions x fit.repeats = {config.fit.actions} x {config.fit.repeats} = {group}"
        if config.trajectories < group:
            raise ConfigError(
                f"trajectories = {config.trajectories} is too small a budget for engine 'offline': {what} images are drawn for "
                "one context. Use more trajectories, or lower fit.actions or fit.repeats."
            )
        if config.batch % group:
            raise ConfigError(f"batch = {config.batch} must be a multiple of {what}; choose another batch.")

    @classmethod
    def groups(cls, config: RunConfig) -> tuple[int, int, int]:
        return config.fit.actions * config.fit.repeats, config.fit.repeats, 1

    def _begin(self, first: int, count: int) -> tuple[Context, Noise, Noise]:
        """A group shares its context; R trajectories at a time share their exploration; none share their token noise.

        (Images of one noise under other actions have nothing in common but their context, and one noise a trajectory
        shows the policy more states.)
        """
        group, repeats, seed = self.group, self.copies, self.config.seed
        shared = sample_seeds(seed, self.iteration, first, count, self.device)
        context = draw_contexts(self.generator, Noise(shared.repeat_interleave(group)), self.contexts_from)
        own = sample_seeds(derive(seed, self.iteration), 0, first * group, count * group, self.device)
        tried = self._exploration(first * group // repeats, count * group // repeats)
        return context, Noise(own), Noise(tried.seeds.repeat_interleave(repeats))

    def _update_policy(self, rollout: Rollout, scores: Tensor, explore: Noise, sigma: float, start: int) -> dict[str, Any]:
        config, fit = self.config, self.config.fit
        _, steps, size = rollout.actions.shape
        worth = scores.view(-1, fit.repeats).mean(1)
        gained = worth - shrunk_baseline(worth, fit.actions)
        gained = gained / mean_and_divisor(gained, worth)[1]
        ranked = gained.view(-1, fit.actions)
        best = ranked.max(1).values
        if fit.keep == "best":
            target = rollout.actions
            first = torch.zeros_like(ranked).scatter_(1, ranked.argmax(1, keepdim=True), 1.0)
            weight = (first * ranked.clamp_min(0)).flatten().repeat_interleave(fit.repeats)
        else:
            along = gained.repeat_interleave(fit.repeats)[:, None, None]
            target = rollout.actions + (fit.pull * along - 1) * sigma * explored_by(explore, steps, size)
            weight = torch.ones_like(scores)
        batch = Batch.of(rollout, target, weight[:, None].expand(-1, steps), start)

        def loss(own: Batch, count: int) -> tuple[Tensor, dict[str, Tensor]]:
            distance = (self.policy(unpacked(self.policy, own.features), own.step) - own.targets).square().sum(1)
            found = (own.advantages * distance).sum() / count
            return found, {"loss": found.detach()}

        figures = descend(
            self.optimiser,
            batch,
            loss,
            config.ppo,
            total=config.batch * steps,
            seed=derive(config.seed, self.iteration),
            micro_batch=self._states_at_once,
            on_step=self._average_weights,
            penalty=self.policy.penalty,
        )
        mean, _ = distributed.mean_and_std(best)
        return {**{f"fit/{key}": value for key, value in figures.items()}, "fit/best": float(mean)}
