"""Engine ``slopes``: which way the reward rises for each context, estimated in closed form and shrunk by how sure it is.

PPO and ``offline`` follow gradients with Adam, which moves every weight alike, whatever its gradient: weights whose gradients
are noise wander as far as those that matter (docs/results/ablation.md). Here a policy is linear in the context's vector
(``policies.LinearPolicy``), and the exploration is independent noise of known variance, so that slopes are means of products
and their errors are known.

An iteration makes images of groups: K of one context and one token noise, which differ in their exploration alone
(``fit.actions``). What an image gained is its score above the mean of the others of its group, in standard deviations of that.
For each step and knob, with the exploration z of an image, its gain g, and its context's vector in whitened coordinates u:

- the slope common to all is the mean of g z,
- the slope along coordinate j of the context is the mean of g z u_j; its error has variance 1 / n,
- the p slopes of one step and knob are multiplied by max(0, 1 - p / (n sum of their squares)), the positive part of James and
  Stein (1961), which leaves nothing where all that is seen is as large as noise.

Sums go on from iteration to iteration, each time ``fit.memory`` of what they were, because the slopes of a moving policy
change slowly. The policy moves ``fit.pull`` times sigma times the slopes. A reward that learns is trained as with PPO.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import Noise
from ..errors import ConfigError
from ..policies import LinearPolicy
from ..runtime import distributed
from ..sampling import Rollout, explored_by
from .checkpoint import load_sums
from .config import RunConfig
from .context_sums import no_sums, remembered, spread
from .settings_read import SIGMA, Reads
from .trainer import Trainer


class SlopesTrainer(Trainer):
    """:class:`Trainer` with another update: the same configuration, metrics, checkpoints, resume and exported policy.

    Raises:
        ConfigError: also for another policy than ``linear``, and for a batch that ``fit.actions`` does not divide.
    """

    needs_critic = False
    reads: ClassVar[Reads] = {"ppo": SIGMA, "fit": frozenset({"actions", "pull", "memory"})}

    @classmethod
    def refuse(cls, config: RunConfig) -> None:
        if config.policy.name != LinearPolicy.kind:
            raise ConfigError(
                f"engine 'slopes' trains the policy {LinearPolicy.kind!r} alone, and policy.name = {config.policy.name!r}; use "
                f"--policy {LinearPolicy.kind}, or another engine."
            )
        if config.batch % config.fit.actions:
            raise ConfigError(
                f"batch = {config.batch} must be a multiple of fit.actions = {config.fit.actions}; choose another batch."
            )

    @classmethod
    def groups(cls, config: RunConfig) -> tuple[int, int, int]:
        return config.fit.actions, config.fit.actions, config.fit.actions

    def _build_policy(self) -> None:
        super()._build_policy()
        assert isinstance(self.policy, LinearPolicy)
        decisions, size, width = self.policy.actor.weight.shape
        self.sums = no_sums(width, self.device, slope=(decisions, size), slopes=(width, decisions, size))

    def _update_policy(self, rollout: Rollout, scores: Tensor, explore: Noise, sigma: float, start: int) -> dict[str, Any]:
        fit, (_, decisions, size) = self.config.fit, rollout.actions.shape
        assert rollout.features is not None
        gain = scores.view(-1, fit.actions).double()
        gain = (gain - gain.mean(1, keepdim=True)).flatten()  # that of the others is a multiple, which the next line undoes
        gain = gain / (distributed.mean_and_std(gain)[1] + 1e-12)
        tried = gain[:, None, None] * explored_by(explore, decisions, size).double()  # (B, T, A)
        seen = rollout.features[:, 0, 0].double()  # (B, P): the same at every step
        by_context = torch.einsum("bp,bta->pta", seen, tried)
        self.sums = remembered(self.sums, fit.memory, seen, slope=tried.sum(0), slopes=by_context)
        common, own, shrunk = slopes(**self.sums)
        assert isinstance(self.policy, LinearPolicy)
        with torch.no_grad():
            actor, far = self.policy.actor, fit.pull * sigma
            centre = self.sums["vector"] / self.sums["count"][0]
            actor.table.add_(far * (common - torch.einsum("pta,p->ta", own, centre)).to(actor.table))
            actor.weight.add_(far * own.permute(1, 2, 0).to(actor.weight))
        self._average_weights()
        return {"fit/slope": float(common.norm()), "fit/kept": float(shrunk.mean()), "fit/most_kept": float(shrunk.max())}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"slopes.{name}": value for name, value in self.sums.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        super().load_state(state)
        self.sums = load_sums(self.sums, state, "slopes.")


def slopes(count: Tensor, vector: Tensor, vectors: Tensor, slope: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Slopes from weighted sums over images.

    Args:
        count: (2,) sums of the weights and of their squares. vector: (P,), of the contexts' vectors v. vectors: (P, P), of
            v v^T. slope: (T, A), of gain times exploration. slopes: (P, T, A), of that times v.

    Returns:
        common: (T, A), in standard deviations of the gain a sigma. own: (P, T, A), what v less its mean adds to it, shrunk.
        kept: (T, A) in [0, 1], by how much.
    """
    weight, squares = count
    centre, common = vector / weight, slope / weight
    variances, directions = spread(count, vector, vectors)
    whiten = directions / variances.sqrt()  # (P, p)
    along = torch.einsum("pk,pta->kta", whiten, slopes / weight - centre[:, None, None] * common)
    noise = len(along) * squares / weight**2
    seen = along.square().sum(0)  # all 0 where there is one context alone
    kept = torch.where(seen > 0, 1 - noise / seen.clamp_min(1e-12), 0).clamp_min(0)
    return common, torch.einsum("pk,kta->pta", whiten, along * kept), kept
