"""The alternation of policy and reward (AdaNAT algorithm 1), checkpoints and resume.

One iteration: contexts -> rollout under the current policy -> rewards -> PPO epochs -> reward update on the images just
made. Every random number is a function of (run seed, iteration, sample), so that the state of a run is its tensors and its
iteration counter, and a resumed run continues bit-exactly.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import (
    ACTION,
    DATA,
    REWARD,
    Context,
    LearnedReward,
    Noise,
    derive,
    sample_seeds,
)
from ..errors import CheckpointError, ConfigError
from ..evaluation import own_captions
from ..images import draw_contexts, images_for
from ..policies import SamplingPolicy, build_policy
from ..registry import create_generator, create_reward, load, parse_options
from ..runtime import (
    CPU_CHUNK,
    MicroBatch,
    distributed,
    dtype_name,
    float32_by_default,
    gather,
    measured_size,
    resolve_device,
    resolve_dtype,
    whole,
    world_size,
)
from ..sampling import Rollout, collect
from ..storage import RunFolder, held, prepare_folder
from .checkpoint import load_module, load_optimiser, open_run, optimiser_state, same_in_all_processes, save_run
from .config import RunConfig
from .diversity import context_diversity
from .held_out import Watch
from .ppo import Batch, explained_variance, ppo_update, targets
from .reward_update import update_reward
from .scoring import checked_scores, require_finite, require_finite_state
from .trackers import Trackers


def gather_context(context: Context) -> Context:
    """The contexts of all ranks, in rank order."""
    if world_size() == 1:
        return context
    prompts: list[tuple[str, ...] | None] = [None] * world_size()
    dist.all_gather_object(prompts, context.prompts)

    def join(value: Tensor | None) -> Tensor | None:
        return None if value is None else gather(value)

    sizes = gather(torch.tensor([context.size], device=None if context.classes is None else context.classes.device))
    return Context(
        int(sizes.sum()),
        join(context.classes),
        join(context.states),
        join(context.pooled),
        None if context.prompts is None else tuple(text for part in prompts for text in part or ()),
    )


class Trainer:
    """A training run. Building it loads generator, data, reward and policy, and checks everything that can be checked.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: before any work starts.
    """

    @float32_by_default()
    def __init__(self, config: RunConfig) -> None:
        same_in_all_processes(config)
        if config.batch // config.ppo.group < distributed.world_size():
            raise ConfigError(
                f"batch = {config.batch} gives {config.batch // config.ppo.group} groups of trajectories for "
                f"{distributed.world_size()} processes; each needs at least one. Use a larger batch or fewer processes."
            )
        self.device = resolve_device(config.device)
        if config.offline:
            os.environ["HF_HUB_OFFLINE"] = "1"  # what rewards and feature networks load weights through reads this
        dtype = resolve_dtype(config.dtype, self.device)
        # What is stored says what was computed: another machine may resolve "auto" to another type.
        self.config = config = config.model_copy(update={"dtype": dtype_name(dtype)})
        self.generator = create_generator(
            config.generator.name, config.generator.options, device=self.device, dtype=dtype, offline=config.offline
        )
        generator = self.generator
        policy_class = load("policy", config.policy.name)
        if not policy_class.trainable:
            raise ConfigError(
                f"policy {config.policy.name!r} has nothing to learn; use adaptive or shared, or adanat sample."
            )
        self.space = generator.bind(
            config.policy.schedule,
            config.steps,
            acted=config.policy.knobs,
            residual=config.policy.residual,
            smoothing=config.policy.smoothing,
        )
        if self.space.size == 0:
            raise ConfigError("policy.knobs is empty: a learned policy must set at least one knob.")
        options = parse_options(f"policy {config.policy.name!r}", policy_class.Options, config.policy.options)
        policy, critic = build_policy(
            policy_class,
            options,
            space=self.space,
            grid=generator.grid,
            feature_dim=generator.feature_dim,
            seed=config.seed,
        )
        assert critic is not None
        self.policy, self.critic = policy.to(self.device), critic.to(self.device)
        self.average = {key: value.detach().clone() for key, value in self.policy.state_dict().items()}
        self.parameters = [*self.policy.parameters(), *self.critic.parameters()]
        self.optimiser = torch.optim.Adam(self.parameters, lr=config.ppo.learning_rate, eps=config.ppo.adam_epsilon)
        self.real = images_for(generator, config.data.path)
        self.captions = own_captions(generator, config.data.path, self.real)
        self.reward = create_reward(
            config.reward.name,
            config.reward.options,
            generator=generator,
            real=self.real,
            device=self.device,
            seed=derive(config.seed, REWARD),
        )
        self.watch = Watch(self)
        for name in config.tracker:
            load("tracker", name)
        self.iteration = 0
        """Completed iterations."""
        self.micro_batch = MicroBatch(config.micro_batch or (CPU_CHUNK if self.device.type == "cpu" else None))
        """Samples in flight at once in this process."""
        self._measured = config.micro_batch is not None
        self._scored_at_once = MicroBatch()
        self._states_at_once = MicroBatch(
            what="states of a mini-batch", remedy="use a smaller batch or a smaller policy"
        )
        self.initial = {key: value.detach().cpu().clone() for key, value in self.state().items()}
        """The state that a run starts from: a trainer that has worked before begins every new folder with it."""
        self.used = False

    # --- what it will cost ----------------------------------------------------------------------------------------------

    @float32_by_default()
    def plan(self) -> dict[str, Any]:
        """What the run will need, for ``--dry-run``: parameter counts, generator forwards, memory of one iteration.

        Memory and micro-batch are those of one process.
        """
        config, generator = self.config, self.generator
        guided = 2 if "guidance" in generator.action_space.names else 1
        self._measure()
        return {
            "iterations": config.iterations,
            "trajectories": config.iterations * config.batch,
            "generator_forwards": config.iterations * config.batch * guided * (self.space.decisions - 1),
            "generator_forwards_note": "samples times (conditional + unconditional) after the first step; first states are "
            "computed once per distinct context",
            "parameters": {
                **generator.parameters_count(),
                "policy": sum(p.numel() for p in self.policy.parameters()),
                "critic": sum(p.numel() for p in self.critic.parameters()),
                **{f"reward {key}": value for key, value in self.reward.parameters_count().items()},
            },
            "memory_bytes": {
                "stored features of one iteration": self._stored_features(),
                "policy, critic and optimiser": 16 * sum(p.numel() for p in self.parameters),
                "generator": sum(generator.parameters_count().values())
                * (2 if generator.dtype == torch.bfloat16 else 4),
            },
            "micro_batch": self.micro_batch.size or self._local_batch(),
            "processes": distributed.world_size(),
        }

    def _local_batch(self) -> int:
        """Trajectories of an iteration in one process, at most."""
        groups = -(-(self.config.batch // self.config.ppo.group) // distributed.world_size())
        return groups * self.config.ppo.group

    def _stored_features(self) -> int:
        """Bytes of the features that one iteration keeps for the policy's update."""
        if not self.policy.needs_features:
            return 0
        generator = self.generator
        width = 2 if getattr(self.policy, "feature_dtype", torch.float32) == torch.bfloat16 else 4
        cells = generator.grid[0] * generator.grid[1]
        return self._local_batch() * self.space.decisions * cells * generator.feature_dim * width

    def _measure(self) -> None:
        """Choose the micro-batch by the memory that a few samples need, unless it was given; once."""
        if self._measured:
            return
        self._measured = True

        def probe(count: int) -> None:
            noise = Noise(torch.arange(count, device=self.device))
            self._collect(draw_contexts(self.generator, noise, self.captions), noise, noise, 1.0, MicroBatch(count))

        size = measured_size(probe, self.device, most=self._local_batch(), stored=self._stored_features())
        if size is not None:
            self.micro_batch.size = size

    # --- the loop -------------------------------------------------------------------------------------------------------

    @float32_by_default()
    def run(self, out: Path, *, on_iteration: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
        """Train to the end, from scratch or from the newest checkpoint in ``out``, whatever the trainer did before.

        Returns:
            The last row of metrics with the run's folder; only the main process reads and writes the folder.

        Raises:
            OutputError: ``out`` cannot be written, or another process is training in it (``InUseError``).
            CheckpointError: what is there is damaged or belongs to another run.
        """
        if not distributed.is_main():
            return self._run(RunFolder(out), on_iteration)
        with held(prepare_folder(out)):
            return self._run(RunFolder(out), on_iteration)

    def _run(self, folder: RunFolder, on_iteration: Callable[[dict[str, Any]], None] | None) -> dict[str, Any]:
        open_run(self, folder)
        self.watch.rows = folder.metrics()
        row: dict[str, Any] = {}
        names = self.config.tracker if distributed.is_main() and self.iteration < self.config.iterations else ()
        with Trackers(names, folder.path, self.config.model_dump(mode="json")) as trackers:
            while self.iteration < self.config.iterations:
                self.used = True
                row = self.watch.look(self.step())
                if distributed.is_main():
                    folder.append_metrics(row)
                    trackers.log(row)
                    if self._saves():
                        save_run(self, folder)
                    if on_iteration is not None:
                        on_iteration(row)
                if self._saves():
                    # A process that fails in the next iteration must not take a half written checkpoint with it; and what
                    # the main process wrote is complete when any of them returns.
                    distributed.barrier()
        if not row and distributed.is_main():  # already complete
            row = (folder.metrics() or [{}])[-1]
        return {**row, "run": str(folder.path)}

    def _saves(self) -> bool:
        """Whether a checkpoint belongs after the iterations that are done."""
        return self.iteration == self.config.iterations or self.iteration % self.config.checkpoint_every == 0

    @float32_by_default()
    def step(self) -> dict[str, Any]:
        """One iteration; returns its row of metrics (every name is explained in docs/logged-names.md)."""
        config, started = self.config, time.perf_counter()
        sigma = config.ppo.sigma_at(self.iteration, config.iterations)
        rate = config.ppo.learning_rate_at(self.iteration, config.iterations)
        rollout, start = self._rollout(sigma)
        rolled = time.perf_counter()
        assert rollout.embedded is not None
        scores, terms = self._score(rollout.embedded, rollout.context)
        row: dict[str, Any] = {"iteration": self.iteration + 1, "trajectories": (self.iteration + 1) * config.batch}
        self._require_finite(scores, actions_of_the_policy=rollout.actions, values_of_the_critic=rollout.values)
        row |= self._describe(rollout, scores, terms)
        scored = time.perf_counter()
        if self.iteration >= config.reward.warmup:
            row |= self._update_policy(rollout, scores, sigma, rate, start)
        updated = time.perf_counter()
        if isinstance(self.reward, LearnedReward):
            row |= {f"reward_model/{key}": value for key, value in self._update_reward(rollout).items()}
        self.iteration += 1
        require_finite_state(self.iteration, self.state())
        ended = time.perf_counter()
        row |= {
            "sigma": sigma,
            "learning_rate": rate,
            "seconds": ended - started,
            "seconds_rollout": rolled - started,
            "seconds_score": scored - rolled,
            "seconds_policy": updated - scored,
            "seconds_reward": ended - updated,
            "trajectories_per_second": config.batch / (ended - started),
        }
        return row

    def _rollout(self, sigma: float) -> tuple[Rollout, int]:
        """This process's share of the iteration's trajectories (whole groups), and the index of its first one."""
        config = self.config
        groups = config.batch // config.ppo.group
        first, last = distributed.local_slice(groups)
        start, stop = first * config.ppo.group, last * config.ppo.group
        shared = sample_seeds(config.seed, self.iteration, first, last - first, self.device)
        noise = Noise(shared.repeat_interleave(config.ppo.group))
        explore = Noise(sample_seeds(derive(config.seed, ACTION), self.iteration, start, stop - start, self.device))
        self._measure()
        context = draw_contexts(self.generator, noise, self.captions)
        return self._collect(context, noise, explore, sigma, self.micro_batch), start

    def _collect(
        self, context: Context, noise: Noise, explore: Noise, sigma: float, micro_batch: MicroBatch
    ) -> Rollout:
        return collect(
            self.generator,
            SamplingPolicy(self.policy, self.space),
            context,
            noise,
            critic=self.critic,
            sigma=sigma,
            action_noise=explore,
            reward=self.reward,
            micro_batch=micro_batch,
        )

    def _score(self, embedded: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) scores of this process's samples, and their terms; a set-level reward sees the samples of all processes."""
        reward, device = self.reward, self.device

        def score(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
            return checked_scores(reward, self.config.reward.name, embedded[rows], context.select(rows))

        with torch.no_grad():
            if not reward.set_level:
                parts = self._scored_at_once.map(score, len(context))
                terms = {name: torch.cat([part[1][name] for part in parts]) for name in parts[0][1]}
                return torch.cat([part[0] for part in parts]), terms
            start, _ = distributed.position(len(context), device)
            own = slice(start, start + len(context))
            embedded, context = distributed.gather(embedded), gather_context(context)
            with whole("the score of a reward that judges the set", "use a smaller batch, or a per-sample reward"):
                scores, terms = score(slice(0, len(context)))
            return scores[own], {name: values[own] for name, values in terms.items()}

    def _require_finite(self, scores: Tensor, **others: Tensor) -> None:
        """Nothing is learned from numbers that are not finite; of the reward first, whose numbers come from outside."""
        name = f"scores of reward {self.config.reward.name!r}"
        remedy = "Mend the reward, or lower ppo.learning_rate (and the reward's own), and run the same command again."
        require_finite(self.iteration + 1, remedy, **{name: scores}, **others)

    def _update_policy(
        self, rollout: Rollout, scores: Tensor, sigma: float, rate: float, start: int
    ) -> dict[str, float]:
        config = self.config
        goal, advantages = targets(scores, rollout.values, config.ppo)
        samples, steps = rollout.values.shape
        device = self.device
        batch = Batch(
            features=None if rollout.features is None else rollout.features.flatten(0, 1),
            step=torch.arange(steps, device=device).repeat(samples),
            actions=rollout.actions.flatten(0, 1),
            log_prob=rollout.log_prob.flatten(),
            targets=goal.flatten(),
            advantages=advantages.flatten(),
            index=torch.arange(start * steps, (start + samples) * steps, device=device),
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        figures = ppo_update(
            self.policy,
            self.critic,
            self.optimiser,
            batch,
            sigma=sigma,
            config=config.ppo,
            total=config.batch * steps,
            seed=derive(config.seed, self.iteration),
            micro_batch=self._states_at_once,
            on_step=self._average_weights,
        )
        return {
            **{f"ppo/{key}": value for key, value in figures.items()},
            "ppo/explained_variance": explained_variance(rollout.values, goal),
        }

    def _average_weights(self) -> None:
        values = self.policy.state_dict()
        torch._foreach_lerp_(
            list(self.average.values()), [values[key] for key in self.average], 1 - self.config.policy.average
        )

    def _update_reward(self, rollout: Rollout) -> dict[str, float]:
        assert isinstance(self.reward, LearnedReward)
        return update_reward(
            self.reward,
            self.real,
            rollout,
            data=self.config.data,
            seed=derive(self.config.seed, DATA, self.iteration),
            device=self.device,
            micro_batch=self.micro_batch,
        )

    def _describe(self, rollout: Rollout, scores: Tensor, terms: dict[str, Tensor] | None = None) -> dict[str, float]:
        """Figures of the rollout: reward, its terms (default: the last), each knob's mean by step and spread over samples."""
        mean, std = distributed.mean_and_std(scores)
        row = {"reward/mean": float(mean), "reward/std": float(std)}
        assert rollout.embedded is not None
        # Trajectories of a group share their noise, so only one of each is an independent image.
        alone = slice(None, None, self.config.ppo.group)
        diversity = context_diversity(rollout.embedded[alone], rollout.context.select(alone))
        if diversity is not None:
            row["diversity"] = diversity
        for name, values in (self.reward.terms() if terms is None else terms).items():
            mean, std = distributed.mean_and_std(values.float())
            row |= {f"reward/{name}/mean": float(mean), f"reward/{name}/std": float(std)}
        means, stds = (figures.tolist() for figures in distributed.mean_and_std(rollout.physical, over_samples=True))
        for k, name in enumerate(self.space.names):
            for t in range(self.space.decisions):
                row |= {f"knob/{name}/{t}": means[t][k], f"knob_spread/{name}/{t}": stds[t][k]}
        return row

    # --- state ----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the run: policy, critic, averaged policy, optimiser, reward."""
        out = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        out |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        out |= {f"average.{k}": v for k, v in self.average.items()}
        out |= optimiser_state(self.optimiser, "optimiser.")
        return out | {f"reward.{k}": v for k, v in self.reward.state().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Inverse of :meth:`state`.

        Raises:
            CheckpointError: a tensor is missing or misshapen.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            # Copies: what is trained here must not change what the caller holds.
            return {
                k.removeprefix(prefix): v.to(self.device, copy=True) for k, v in state.items() if k.startswith(prefix)
            }

        for prefix, module in (("policy.", self.policy), ("critic.", self.critic)):
            load_module(module, part(prefix), prefix)
        average = part("average.")
        if average.keys() != self.average.keys():
            raise CheckpointError(
                "the checkpoint does not hold the averaged policy. It is damaged or of another version."
            )
        self.average = average
        load_optimiser(self.optimiser, part("optimiser."))
        self.reward.load_state(part("reward."))
