"""Proximal policy optimisation with a fixed-variance Gaussian: returns, advantages, loss, update.

Readable top to bottom. ``PPOConfig()`` is the toolkit's default; ``PPOConfig.paper()`` is the published algorithm (AdaNAT
section 4.3 and its appendix): full-batch epochs, Monte-Carlo returns standardised over all steps, no gradient clipping.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..core import SHUFFLE, derive
from ..runtime import Adam, MicroBatch, clip_gradients, distributed
from ..sampling import Rollout, gaussian_log_prob, value_of
from .config import PPOConfig
from .standard import mean_and_divisor


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates (Schulman et al. 2016) of whole episodes: (B, T), (B, T) -> (B, T)."""
    advantages, running = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        running = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * running
        advantages[:, t] = running
    return advantages


def shrunk_baseline(reward: Tensor, group: int) -> Tensor:
    """A baseline a trajectory: the mean of the others of its group, shrunk towards the mean of the other groups.

    The mean of few trajectories is noisy. It is shrunk by v / (v + t), where v is the noise of that mean and t how much the
    groups' true means differ (James and Stein 1961, empirical Bayes); both are estimated from the other groups alone. Hence
    a trajectory's baseline does not depend on its own reward, and the gradient stays unbiased. With fewer than three
    groups in all there is nothing to estimate them from, and nothing is shrunk.

    Args:
        reward: (B,) of this process, B a multiple of ``group`` >= 2; trajectories of a group stand together.

    Returns:
        (B,). All processes call it together.
    """
    own = reward.view(-1, group)
    means, noise = distributed.gather(own.mean(1)), distributed.gather(own.var(1))
    first, count = distributed.position(len(own), reward.device)
    inside = (own.sum(1, keepdim=True) - own) / (group - 1)
    if count < 3:
        return inside.flatten()
    others = count - 1

    def without_own(values: Tensor) -> Tensor:
        return ((values.sum() - values) / others)[first : first + len(own)]

    centre, within = without_own(means), without_own(noise)
    # Shifted to the mean of all, so that a large common level costs no digits.
    shifted = means - means.mean()
    between = (without_own(shifted**2) - without_own(shifted) ** 2) * others / (others - 1)
    differ = (between - within / group).clamp_min(0)
    error = within / (group - 1)
    shrink = torch.where(error > 0, error / (error + differ), torch.zeros_like(error))[:, None]
    return ((1 - shrink) * inside + shrink * centre[:, None]).flatten()


def targets(reward: Tensor, values: Tensor, config: PPOConfig) -> tuple[Tensor, Tensor]:
    """Value targets and advantages from terminal rewards.

    Args:
        reward: (B,) terminal rewards of this process; values: (B, T) critic values at collection.

    Returns:
        (targets, advantages), both (B, T).
    """
    steps = values.shape[1]
    if config.standardise == "returns":  # the published order: returns of all steps and episodes together
        powers = config.gamma ** torch.arange(steps - 1, -1, -1, device=reward.device, dtype=reward.dtype)
        returns = reward[:, None] * powers
        mean, divisor = mean_and_divisor(returns)
        returns = (returns - mean) / divisor
        return returns, returns - values
    centred = reward
    if config.group > 1 and config.group_baseline == "shrunk":
        centred = reward - shrunk_baseline(reward, config.group)
    elif config.group > 1:
        centred = reward - reward.view(-1, config.group).mean(1).repeat_interleave(config.group)
    mean, divisor = mean_and_divisor(centred, reward if config.group > 1 else None)
    terminal = torch.zeros_like(values)
    terminal[:, -1] = (centred - mean) / divisor
    advantages = gae(terminal, values, config.gamma, config.gae_lambda)
    return advantages + values, advantages


def ppo_loss(
    mean: Tensor, value: Tensor, batch: Batch, sigma: float, config: PPOConfig, count: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped objective plus value loss, as a sum over the local states divided by the global ``count``."""
    log_prob = gaussian_log_prob(batch.actions, mean, sigma)
    log_ratio = log_prob - batch.log_prob
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    policy_loss = -torch.minimum(ratio * batch.advantages, clipped * batch.advantages).sum() / count
    value_loss = ((value - batch.targets) ** 2).sum() / count
    with torch.no_grad():
        figures = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "approx_kl": ((ratio - 1) - log_ratio).sum() / count,  # Schulman's k3 estimator: positive, low variance
            "clip_fraction": ((ratio - 1).abs() > config.clip).float().sum() / count,
        }
    return policy_loss + config.value_coefficient * value_loss, figures


@dataclass
class Batch:
    """States of this process, flattened over samples and steps (M of them).

    features: (M, N, D) in their storage type, or None; step: (M,) int64; actions: (M, A); log_prob, targets, advantages: (M,);
    index: (M,) int64, the states' global positions, which decide their mini-batch; statistics: (M, 1, S), where the critic
    reads them. Engine ``offline`` has targets of (M, A) and weights as advantages.
    """

    features: Tensor | None
    step: Tensor
    actions: Tensor
    log_prob: Tensor
    targets: Tensor
    advantages: Tensor
    index: Tensor
    statistics: Tensor | None = None

    @classmethod
    def of(cls, rollout: Rollout, targets: Tensor, advantages: Tensor, start: int) -> Batch:
        """The states of a rollout, with the (B, T) ``targets`` and ``advantages``. start: position of its first trajectory."""
        samples, steps = rollout.values.shape
        device = rollout.values.device
        return cls(
            features=None if rollout.features is None else rollout.features.flatten(0, 1),
            step=torch.arange(steps, device=device).repeat(samples),
            actions=rollout.actions.flatten(0, 1),
            log_prob=rollout.log_prob.flatten(),
            targets=targets.flatten(0, 1),
            advantages=advantages.flatten(),
            index=torch.arange(start * steps, (start + samples) * steps, device=device),
            statistics=None if rollout.statistics is None else rollout.statistics.flatten(0, 1),
        )

    def select(self, rows: Tensor) -> Batch:
        """Some of the states."""
        features = None if self.features is None else self.features[rows]
        return Batch(
            features,
            self.step[rows],
            self.actions[rows],
            self.log_prob[rows],
            self.targets[rows],
            self.advantages[rows],
            self.index[rows],
            None if self.statistics is None else self.statistics[rows],
        )


def unpacked(policy: nn.Module, features: Tensor | None) -> Tensor | None:
    """Features that were kept in a policy's ``feature_dtype``, as its networks take them."""
    return features if features is None or getattr(policy, "rounds_features", False) else features.float()


def ppo_update(
    policy: nn.Module,
    critic: nn.Module,
    optimiser: Adam | torch.optim.Optimizer,
    batch: Batch,
    *,
    sigma: float,
    config: PPOConfig,
    total: int,
    seed: int,
    micro_batch: MicroBatch | int | None = None,
    on_step: Callable[[], None] | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
) -> dict[str, float]:
    """All epochs of one iteration.

    Args:
        total, seed, micro_batch, on_step, penalty: see :func:`descend`.

    Returns:
        Figures averaged over the mini-batches that were used: policy_loss, value_loss, approx_kl, clip_fraction,
        gradient_norm, epochs (how many ran).
    """
    if config.normalise_advantages:
        mean, std = distributed.mean_and_std(batch.advantages)
        batch = Batch(**{**vars(batch), "advantages": (batch.advantages - mean) / (std + 1e-8)})

    def loss(own: Batch, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        features = unpacked(policy, own.features)
        mean_action = policy(features, own.step)
        value = value_of(critic, features, own.step, own.statistics)
        return ppo_loss(mean_action, value, own, sigma, config, count)

    return descend(
        optimiser,
        batch,
        loss,
        config,
        total=total,
        seed=seed,
        micro_batch=micro_batch,
        on_step=on_step,
        penalty=penalty,
    )


def descend(
    optimiser: Adam | torch.optim.Optimizer,
    batch: Batch,
    loss_of: Callable[[Batch, int], tuple[Tensor, dict[str, Tensor]]],
    config: PPOConfig,
    *,
    total: int,
    seed: int,
    micro_batch: MicroBatch | int | None = None,
    on_step: Callable[[], None] | None = None,
    penalty: Callable[[], Tensor | None] = lambda: None,
) -> dict[str, float]:
    """Epochs of mini-batches, in all processes together.

    Args:
        loss_of: (local states, global size of the mini-batch) -> the loss, a sum divided by that size, and its figures.
        config: ``epochs``, ``minibatches``, ``max_gradient_norm``; and ``target_kl``, for figures with ``approx_kl``.
        total: number of states of all processes together. seed: decides the mini-batches.
        micro_batch: states that go through the networks at once; None for whole mini-batches. It is halved where memory runs
            out.
        on_step: called after every optimiser step. penalty: gives what is added to the loss (``Policy.penalty``).

    Returns:
        The figures, gradient_norm and epochs (how many ran), averaged over the mini-batches that were used.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    at_once = MicroBatch.of(micro_batch)
    history: list[Tensor] = []
    names: list[str] = []
    epoch, number = 0, min(config.minibatches, total)
    for epoch in range(1, config.epochs + 1):
        for rows, count in _minibatches(batch, total, number, derive(seed, SHUFFLE, epoch)):

            def gradients(size: int, rows: Tensor = rows, count: int = count) -> dict[str, Tensor]:
                optimiser.zero_grad(set_to_none=True)
                sums: dict[str, Tensor] = {}
                for piece in rows.split(size):
                    loss, figures = loss_of(batch.select(piece), count)
                    if (added := penalty()) is not None:
                        loss = loss + added * (len(piece) / count)  # once in the sum over pieces and processes
                    loss.backward()
                    sums = {key: sums.get(key, 0) + figure for key, figure in figures.items()}
                return sums

            sums = at_once.attempt(gradients, len(rows))
            distributed.sum_gradients(parameters)
            limit = config.max_gradient_norm if config.max_gradient_norm is not None else math.inf
            norm = clip_gradients(parameters, limit)
            optimiser.step()
            if on_step is not None:
                on_step()
            names = [*sums, "gradient_norm"]
            shared = distributed.sum_over_ranks(torch.stack(list(sums.values())))
            history.append(torch.cat([shared, norm.detach().to(shared.dtype)[None]]))
        if config.target_kl is not None:
            kl = torch.stack(history[-number:])[:, names.index("approx_kl")].mean()
            if float(kl) > config.target_kl:
                break
    averages = torch.stack(history).mean(0).tolist()
    return {**dict(zip(names, averages, strict=True)), "epochs": float(epoch)}


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns) over all processes; 0 is no better than the mean, below 0 worse."""
    _, spread = distributed.mean_and_std(returns)
    _, residual = distributed.mean_and_std(returns - values)
    scale, share = torch.stack([spread, residual / spread]).tolist()  # together: each transfer waits for the device
    return float("nan") if scale == 0 else 1 - share**2


def _minibatches(batch: Batch, total: int, number: int, seed: int) -> list[tuple[Tensor, int]]:
    """(local rows, global size) of each mini-batch: a permutation of all states that every process computes alike."""
    device = batch.index.device
    if number == 1:
        return [(torch.arange(len(batch.index), device=device), total)]
    generator = torch.Generator().manual_seed(seed)
    part_of = torch.empty(total, dtype=torch.int64)
    edges = [total * i // number for i in range(number + 1)]
    order = torch.randperm(total, generator=generator)
    for i in range(number):
        part_of[order[edges[i] : edges[i + 1]]] = i
    own = part_of.to(device)[batch.index]
    sizes = [edges[i + 1] - edges[i] for i in range(number)]
    # The states of all mini-batches one after the other. One process has all of them, so that it knows how many there are of
    # each; to ask would wait for the device.
    counts = sizes if len(own) == total else own.bincount(minlength=number).tolist()
    return list(zip(own.argsort(stable=True).split(counts), sizes, strict=True))
