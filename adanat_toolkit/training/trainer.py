"""The alternation of policy and reward (AdaNAT algorithm 1), from its parts to the end of a run.

One iteration (:meth:`Trainer.step`): contexts -> rollout under the current policy -> rewards -> PPO epochs -> reward update on
the images just made. Every random number is a function of (run seed, iteration, sample), so that the state of a run is its
tensors and its iteration counter, and a resumed run continues bit-exactly. What else happens to a run (its log, checkpoints,
held-out readings, alarms) is done by callbacks (``callbacks.py``).
"""

from __future__ import annotations

import copy
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..core import (
    ACTION,
    DATA,
    REWARD,
    Context,
    Engine,
    Generator,
    ImageSource,
    Noise,
    Policy,
    RewardModel,
    derive,
    sample_seeds,
    seen_shape,
)
from ..errors import CheckpointError, ConfigError, PluginError
from ..evaluation import own_contexts
from ..images import draw_contexts, images_for
from ..policies import SamplingPolicy, build_policy, export_policy, policy_class
from ..registry import create_generator, create_reward, load, parse_options
from ..runtime import (
    CPU_CHUNK,
    Adam,
    MicroBatch,
    distributed,
    dtype_name,
    fastest_dtype,
    may_go_side_by_side,
    measured_size,
    ready_to_learn,
    resolve_device,
    resolve_dtype,
    together,
)
from ..sampling import Rollout, WholeStep, collect
from ..storage import MetricsLog, RunFolder, held, prepare_folder
from .baseline import ContextBaseline
from .callbacks import Callback, Calls, Checkpoints, MetricsFile, watched
from .checkpoint import (
    copied,
    load_module,
    load_optimiser,
    load_sums,
    made_with,
    open_run,
    optimiser_state,
    same_in_all_processes,
    save_checkpoint,
    settle,
    with_epsilon,
)
from .config import RunConfig
from .decoder import Rebuilt, choose_decoder
from .describe import describe, describe_shares, describe_statistics
from .held_out import AlarmWatch, Readings, held_out_of
from .objects import RewardFunction, as_reward, require_callbacks, require_learnable, with_objects
from .plan import local_batch, plan, stored_features
from .ppo import Batch, explained_variance, ppo_update, targets
from .reward_update import load_into, prepared_update, state_of
from .same_run import source_hashes
from .scoring import REWARD_FIGURES, require_finite, require_finite_update, score
from .settings_read import READ_BY_PPO, Reads, refuse_unread
from .trackers import Trackers


class Trainer(Engine):
    """A training run. Building it loads generator, data, reward and policy, and checks everything that can be checked.

    Args:
        config: every setting. generator, reward, data: objects, in place of what ``config`` names: a generator; a reward,
            or a function ``(images, context) -> (B,)`` scores; real images, or a path. A registered name is taken too.
            The configuration that is stored names an object by its own name; to resume the run, give the same again.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: before any work starts.
    """

    shows_distilled: ClassVar[bool] = True
    """Whether the reward can be shown images of a distilled decoder."""
    reads: ClassVar[Reads] = READ_BY_PPO
    """The settings of ``ppo`` and ``fit`` that the engine reads; a value of the user's of any other is refused."""
    needs_critic: ClassVar[bool] = True
    """Whether the policy's update reads the critic's values."""

    @ready_to_learn()
    def __init__(
        self,
        config: RunConfig,
        generator: Generator | str | None = None,
        reward: RewardModel | RewardFunction | str | None = None,
        data: ImageSource | str | os.PathLike[str] | None = None,
    ) -> None:
        reward = as_reward(reward)
        config = with_objects(config, generator, reward, data)
        self.refuse(config)
        refuse_unread(config, self.reads)
        self.group, self.copies, self.alike = self.groups(config)
        if config.batch // self.group < distributed.world_size():
            raise ConfigError(
                f"batch = {config.batch} gives {config.batch // self.group} groups of trajectories for "
                f"{distributed.world_size()} processes; each needs at least one. Use a larger batch or fewer processes."
            )
        same_in_all_processes(config)
        self.dtype_reason = "as given, or as the run was begun"
        if isinstance(generator, Generator):
            self.device, dtype = generator.device, generator.dtype
            if config.device != "auto" and resolve_device(config.device).type != self.device.type:
                raise ConfigError(f"device = {config.device}, and the generator is on {self.device}; load it there.")
            if config.dtype != "auto" and resolve_dtype(config.dtype, self.device) != dtype:
                raise ConfigError(
                    f"dtype = {config.dtype}, and the generator computes in {dtype_name(dtype)}; load it with that dtype."
                )
        else:
            self.device = resolve_device(config.device)
            dtype = resolve_dtype(config.dtype, self.device)
            if config.dtype == "auto":
                self.dtype_reason = fastest_dtype(self.device)[1]
            generator = create_generator(
                config.generator.name, config.generator.options, device=self.device, dtype=dtype, offline=config.offline
            )
        self.generator = generator
        # What is stored says what was computed: another machine may resolve "auto" to another type.
        self.config = config = config.model_copy(update={"dtype": dtype_name(dtype)})
        self._build_policy()
        self.real: ImageSource | None
        if data is None or isinstance(data, str | os.PathLike):
            self.real = images_for(generator, config.data.path)
            self.contexts_from = own_contexts(generator, config.data.path, self.real)
        else:
            self.real = data
            self.contexts_from = own_contexts(generator, data, data)
        self.reward = (
            reward
            if isinstance(reward, RewardModel)
            else create_reward(
                config.reward.name,
                config.reward.options,
                generator=generator,
                real=self.real,
                device=self.device,
                seed=derive(config.seed, REWARD),
                offline=config.offline,
            )
        )
        require_learnable(self.reward)
        self.decoder = choose_decoder(config.decoder, generator, self.reward, supported=self.shows_distilled)
        self.seen_real = self.real if self.decoder is None or self.real is None else Rebuilt(self.real, generator, self.decoder)
        """Real images as a reward that learns sees them."""
        self.held_out = held_out_of(config, generator, self.real, self.contexts_from)
        for name in config.tracker:
            load("tracker", name)
        self.iteration = 0
        """Completed iterations."""
        self.micro_batch = MicroBatch(config.micro_batch or (CPU_CHUNK if self.device.type == "cpu" else None))
        """Samples in flight at once in this process."""
        self._measured = config.micro_batch is not None
        self.whole: WholeStep | None = None
        """Takes the steps of rollouts as one compiled piece, where somebody sets it (``benchmarks/gpu_all.py``)."""
        self._scored_at_once = MicroBatch()
        self._states_at_once = MicroBatch(
            what="states of a mini-batch", remedy="use a smaller batch or a smaller policy"
        )
        self.initial = {key: value.detach().cpu().clone() for key, value in self.state().items()}
        """The state that a run starts from: a trainer that has worked before begins every new folder with it."""
        self.used = False

    @classmethod
    def refuse(cls, config: RunConfig) -> None:
        """Refuse settings that this engine has no counterpart of, before anything is loaded.

        Raises:
            ConfigError: there is one.
        """

    @classmethod
    def groups(cls, config: RunConfig) -> tuple[int, int, int]:
        """How many trajectories have one context, all made by one process; how many of them say the same of the headroom,
        so that one counts (``describe_shares``); and how many share their noise, so that one is an independent image
        (``describe``)."""
        return config.ppo.group, config.ppo.group, config.ppo.group

    def _build_policy(self) -> None:
        """Policy, critic, the average of the policy's weights, and the optimiser."""
        config, generator = self.config, self.generator
        kind = policy_class(
            config.policy.name,
            "a trained one is judged by adanat evaluate --policy {0}, and makes images with adanat sample --policy {0}. To go "
            "on with a run, give the command that began it again (a longer one with more --trajectories)",
        )
        if not kind.trainable:
            raise ConfigError(
                f"policy {config.policy.name!r} has nothing to learn; use adaptive, residual, lean, context or shared, or "
                "adanat sample."
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
        options = parse_options(f"policy {config.policy.name!r}", kind.Options, config.policy.options)
        grid, width = seen_shape(generator, kind)
        read = self._read_by_the_critic(kind)
        policy, critic = build_policy(
            kind, options, space=self.space, grid=grid, feature_dim=width, seed=config.seed, statistics=read
        )
        assert critic is not None
        self.policy, self.critic = policy.to(self.device), critic.to(self.device)
        self.average = {key: value.detach().clone() for key, value in self.policy.state_dict().items()}
        trained = (self.policy, self.critic) if self.needs_critic else (self.policy,)
        # Once each: a critic may share layers with its policy, and Adam would move those twice.
        self.parameters = list(dict.fromkeys(parameter for module in trained for parameter in module.parameters()))
        self.optimiser: Adam | torch.optim.Adam = Adam(
            self.parameters, lr=config.ppo.learning_rate, eps=config.ppo.adam_epsilon
        )
        self.baseline: ContextBaseline | None = None
        if config.ppo.context_baseline:
            if generator.context_dim == 0:
                raise ConfigError(
                    f"ppo.context_baseline = true: {generator.name} has no context to expect a score of (classes, or an "
                    "embedding of its prompts); leave it out."
                )
            self.baseline = ContextBaseline(generator.context_dim, self.device)

    def _read_by_the_critic(self, kind: type[Policy]) -> int:
        """How many statistics of the prediction the critic reads besides what a policy of this kind sees."""
        name, count = self.config.policy.name, len(self.generator.statistic_names)
        if not self.config.ppo.critic_statistics:
            return 0
        if kind.reads == "statistics":
            raise ConfigError(
                f"ppo.critic_statistics = true: policy {name!r} sees the statistics, and so does its critic; leave it out."
            )
        if not count:
            raise ConfigError(
                f"ppo.critic_statistics = true: {self.generator.name} gives no statistics of its prediction; leave it out."
            )
        return count

    # --- one iteration ----------------------------------------------------------------------------------------------------

    @ready_to_learn()
    def step(self) -> dict[str, Any]:
        """One iteration; returns its row of metrics (every name is explained in docs/logged-names.md).

        An iteration that fails or is interrupted leaves policy, critic, reward and optimisers as they were before it.

        Raises:
            NotFiniteError: a score, a gradient, a figure of the reward, or what came of them is NaN or infinite.
            PluginError: a plug-in failed or breaks its contract.
        """
        # Gradients are not looked at one by one: each look would wait for the device.
        try:
            before = copied(self.state())
            try:
                row = self._iterate()
                require_finite_update(self.iteration + 1, row, self.state(), self.config.reward.name)
            except BaseException:
                self.load_state(before)
                raise
        except PluginError as error:
            raise PluginError(f"iteration {self.iteration + 1}: {error}") from error
        self.iteration += 1
        return row

    def _iterate(self) -> dict[str, Any]:
        """What :meth:`step` does, without its guard."""
        config, iteration, started = self.config, self.iteration, time.perf_counter()
        sigma = config.ppo.sigma_at(iteration, config.iterations)
        rate = config.ppo.learning_rate_at(iteration, config.iterations)
        row: dict[str, Any] = {"iteration": iteration + 1, "trajectories": (iteration + 1) * config.batch}

        # The policy makes images of this process's share of the contexts: B samples, T decisions each.
        rollout, explore, start = self._rollout(sigma)
        rolled = time.perf_counter()

        # Each image is scored once, at its end.
        scores, terms = self._score(rollout)
        others = {"actions of the policy": rollout.actions, "values of the critic": rollout.values}
        self._require_finite(scores, terms, others)
        row |= describe(rollout, scores, terms, self.space, group=self.alike)
        row |= describe_shares(rollout, scores, explore, start=start, group=self.copies)
        if self.policy.reads == "statistics" and rollout.features is not None:
            row |= describe_statistics(rollout.features, self.generator)
        elif rollout.statistics is not None:
            row |= describe_statistics(rollout.statistics, self.generator)
        scored = time.perf_counter()

        warm = iteration >= config.reward.warmup

        def update_policy() -> dict[str, Any]:
            if not warm:
                return {}
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            return self._update_policy(rollout, scores, explore, sigma, start)

        # A reward that learns is trained on the images just made, and on real ones. Neither update reads what the other
        # writes, so that on a CPU they go side by side; several processes talk to each other in both.
        update_reward = self._reward_update(rollout)
        prepared = time.perf_counter()
        updates = _timed("policy", update_policy), _timed("reward", update_reward)
        both = warm and self.reward.learns
        beside = both and distributed.world_size() == 1 and may_go_side_by_side(self.device, self.reward)
        for found in together(*updates) if beside else [update() for update in updates]:
            row |= found
        row["seconds_reward"] += prepared - scored

        ended = time.perf_counter()
        return row | {
            "sigma": sigma,
            "learning_rate": rate,
            "seconds": ended - started,
            "seconds_rollout": rolled - started,
            "seconds_score": scored - rolled,
            "trajectories_per_second": config.batch / (ended - started),
        }

    def _update_policy(self, rollout: Rollout, scores: Tensor, explore: Noise, sigma: float, start: int) -> dict[str, Any]:
        """PPO: the standardised score is each trajectory's terminal reward; some epochs on the B x T states."""
        config, found = self.config, dict[str, Any]()
        if self.baseline is not None:
            left = self.baseline.take(scores, self.generator.context_vectors(rollout.context))
            found["ppo/context_explained"] = explained_variance(scores - left, scores)
            scores = left
        goal, advantages = targets(scores, rollout.values, config.ppo)
        figures = ppo_update(
            self.policy,
            self.critic,
            self.optimiser,
            Batch.of(rollout, goal, advantages, start),
            sigma=sigma,
            config=config.ppo,
            total=config.batch * self.space.decisions,
            seed=derive(config.seed, self.iteration),
            micro_batch=self._states_at_once,
            on_step=self._average_weights,
            penalty=self.policy.penalty,
        )
        found |= {f"ppo/{key}": value for key, value in figures.items()}
        return {**found, "ppo/explained_variance": explained_variance(rollout.values, goal)}

    def _rollout(self, sigma: float) -> tuple[Rollout, Noise, int]:
        """This process's share of the trajectories (whole groups), their exploration, and the index of its first one."""
        group = self.group
        first, last = distributed.local_slice(self.config.batch // group)
        self._measure()
        context, noise, explore = self._begin(first, last - first)
        return self._collect(context, noise, explore, sigma, self.micro_batch, self.whole), explore, first * group

    def _begin(self, first: int, count: int) -> tuple[Context, Noise, Noise]:
        """Contexts, token noise and exploration of ``count`` groups from the ``first``: a group shares all but the last."""
        config, group = self.config, self.group
        shared = sample_seeds(config.seed, self.iteration, first, count, self.device)
        noise = Noise(shared.repeat_interleave(group))
        context = draw_contexts(self.generator, noise, self.contexts_from)
        return context, noise, self._exploration(first * group, count * group)

    def _exploration(self, start: int, count: int) -> Noise:
        """Of the iteration's trajectories from ``start``."""
        return Noise(sample_seeds(derive(self.config.seed, ACTION), self.iteration, start, count, self.device))

    def _collect(
        self,
        context: Context,
        noise: Noise,
        explore: Noise,
        sigma: float,
        micro_batch: MicroBatch,
        whole: WholeStep | None = None,
    ) -> Rollout:
        return collect(
            self.generator,
            SamplingPolicy(self.policy, self.space),
            context,
            noise,
            critic=self.critic if self.needs_critic else None,
            sigma=sigma,
            action_noise=explore,
            reward=self.reward,
            micro_batch=micro_batch,
            decoder=self.decoder,
            whole=whole,
        )

    def _score(self, rollout: Rollout) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) scores of a rollout's images, and their terms."""
        assert rollout.embedded is not None
        return score(self.reward, self.config.reward.name, rollout.embedded, rollout.context, self._scored_at_once)

    def _require_finite(
        self, scores: Tensor, terms: Mapping[str, Tensor], others: Mapping[str, Tensor] | None = None
    ) -> None:
        """Nothing is learned from numbers that are not finite; of the reward first, whose numbers come from outside."""
        remedy = "Mend the reward, or lower ppo.learning_rate (and the reward's own), and run the same command again."
        require_finite(self.iteration + 1, remedy, self.config.reward.name, scores, terms, others or {})

    @torch.no_grad()
    def _average_weights(self) -> None:
        values = self.policy.state_dict(keep_vars=True)  # without a view of each
        averaged = [key for key, value in self.average.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self.average[key] for key in averaged], [values[key] for key in averaged], 1 - self.config.policy.average
        )
        for key in self.average.keys() - averaged:  # counters and tables of a plug-in's own
            self.average[key].copy_(values[key])

    def _reward_update(self, rollout: Rollout) -> Callable[[], dict[str, float]]:
        """The update of a reward that learns, which gives ``reward_model/FIGURE``; nothing of another."""
        if not self.reward.learns:
            return dict
        update = prepared_update(
            self.reward,
            self.seen_real,
            rollout,
            data=self.config.data,
            seed=derive(self.config.seed, DATA, self.iteration),
            device=self.device,
            micro_batch=self.micro_batch,
        )
        return lambda: {REWARD_FIGURES + key: value for key, value in update().items()}

    # --- the run ----------------------------------------------------------------------------------------------------------

    @ready_to_learn()
    def run(
        self,
        out: Path,
        *,
        callbacks: Sequence[Callback] = (),
        on_iteration: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Train to the end, from scratch or from the newest checkpoint in ``out``, whatever the trainer did before.

        Args:
            callbacks: called after the run's own. on_iteration: a function that is given each row, after all of them.

        Returns:
            The last row of metrics with the run's folder; only the main process reads and writes the folder.

        Raises:
            OutputError: ``out`` cannot be written, is gone, or another process is training in it (``InUseError``).
            CheckpointError: what is there is damaged or belongs to another run.
        """
        require_callbacks(callbacks, Callback)
        more = [*callbacks, *([] if on_iteration is None else [Calls(on_iteration)])]
        if not distributed.is_main():
            return self._run(RunFolder(out), more)
        with held(prepare_folder(out)):
            return self._run(RunFolder(out), more)

    def _run(self, folder: RunFolder, more: Sequence[Callback]) -> dict[str, Any]:
        self._open(folder)
        row: dict[str, Any] = {}
        with watched([*self._callbacks(folder), *more], self.iteration) as tell:
            while self.iteration < self.config.iterations:
                self.used = True
                row = self.step()
                tell(row)
        if not row and distributed.is_main():  # already complete
            row = (deque(folder.each_row(), maxlen=1) or [{}])[-1]
        return {**row, "run": str(folder.path)}

    def _open(self, folder: RunFolder) -> None:
        """Start a new run folder, or go to where the one that is there stopped. All processes call it."""
        found = open_run(folder, self.config, self._facts())
        self.config = with_epsilon(self.config, found.adam_epsilon)
        for group in self.optimiser.param_groups:
            group["eps"] = found.adam_epsilon
        state = found.state
        if state is None and (self.used or self.iteration):
            state = self.initial
        if state is not None:
            self.load_state(state)
        self.iteration = found.iteration
        if distributed.is_main():
            settle(folder, found)

    def _callbacks(self, folder: RunFolder) -> list[Callback]:
        """The run's own, in the order in which they are called (those of this process)."""
        config, last = self.config, self.config.iterations
        out: list[Callback] = []
        if self.held_out is not None:
            out.append(Readings(self.held_out, self.exported, every=config.evaluate_every, last=last))
        if not distributed.is_main():
            return [*out, Checkpoints(lambda: None, every=config.checkpoint_every, last=last)]
        log, sources = MetricsLog(folder), source_hashes(config)

        def save() -> None:
            self._save(folder, {"metrics": log.record(), "sources": sources})

        out += [AlarmWatch(folder.each_row()), MetricsFile(log)]
        if config.tracker and self.iteration < last:  # nothing is opened for a run that is complete
            out.append(Trackers(config.tracker, folder.path, config.model_dump(mode="json")))
        return [*out, Checkpoints(save, every=config.checkpoint_every, last=last)]

    def exported(self) -> SamplingPolicy:
        """The policy as it is exported: with the average of its weights, where that is asked for."""
        policy = self.policy
        if self.config.policy.average:
            policy = copy.deepcopy(policy)
            policy.load_state_dict(self.average)
        return SamplingPolicy(policy, self.space)

    def _save(self, folder: RunFolder, facts: dict[str, Any]) -> None:
        """Export the policy and write a checkpoint; called in the main process.

        The policy first: a run that is killed in between goes on from the older checkpoint and exports it again.
        """
        config = self.config
        export_policy(
            folder.path / "policy",
            SamplingPolicy(self.policy, self.space),
            self.average if config.policy.average else self.policy.state_dict(),
            options=config.policy.options,
            generator=self.generator,
            facts={
                "trajectories": self.iteration * config.batch,
                "reward": config.reward.name,
                "seed": config.seed,
                "engine": config.engine,
                "reads": sorted(self.reward.reads),
            },
        )
        facts = {**made_with(config, self.iteration), **self._facts(), **facts}
        save_checkpoint(folder, self.iteration, self.state(), facts, keep=config.keep_checkpoints)

    def _facts(self) -> dict[str, str | None]:
        """Fingerprints of what a run cannot go on without."""
        return {
            "generator": self.generator.fingerprint,
            "real_images": self.real.fingerprint if self.real is not None else None,
            "decoder": None if self.decoder is None else self.decoder.fingerprint,
        }

    # --- what it will cost ------------------------------------------------------------------------------------------------

    @ready_to_learn()
    def plan(self) -> dict[str, Any]:
        """What the run will need, for ``--dry-run``: parameter counts, generator forwards, memory of one iteration."""
        self._measure()
        size = self.micro_batch.size
        found = plan(self.config, self.generator, self.space, self.policy, self.critic, self.reward, size, self.group)
        return {**found, "dtype": f"{self.config.dtype}: {self.dtype_reason}"}

    def _measure(self) -> None:
        """Choose the micro-batch by the memory that a few samples need, unless it was given; once."""
        if self._measured:
            return
        self._measured = True

        def probe(count: int) -> None:
            noise = Noise(torch.arange(count, device=self.device))
            self._collect(draw_contexts(self.generator, noise, self.contexts_from), noise, noise, 1.0, MicroBatch(count))

        stored = stored_features(self.config, self.generator, self.space, self.policy, self.group)
        size = measured_size(probe, self.device, most=local_batch(self.config, self.group), stored=stored)
        if size is not None:
            self.micro_batch.size = size

    # --- state ----------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every tensor of the run: policy, critic, averaged policy, optimiser, reward."""
        out = {f"policy.{k}": v for k, v in self.policy.state_dict().items()}
        out |= {f"critic.{k}": v for k, v in self.critic.state_dict().items()}
        out |= {f"average.{k}": v for k, v in self.average.items()}
        out |= optimiser_state(self.optimiser, "optimiser.")
        if self.baseline is not None:
            out |= {f"baseline.{k}": v for k, v in self.baseline.sums.items()}
        return out | {f"reward.{k}": v for k, v in state_of(self.reward).items()}

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
        if self.baseline is not None:
            self.baseline.sums = load_sums(self.baseline.sums, state, "baseline.")
        load_into(self.reward, part("reward."))


def _timed(name: str, update: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """``update`` whose figures say how many seconds it took."""

    def timed() -> dict[str, Any]:
        started = time.perf_counter()
        found = update()
        return {**found, f"seconds_{name}": time.perf_counter() - started}

    return timed
