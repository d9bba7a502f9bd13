"""Generation as a gymnasium environment: one episode is one image, one step is one step of the generator.

Importing this module registers the ids. Gymnasium 1.0 dropped the ``gymnasium.envs`` entry-point group, so something
has to import it; ``adanat_toolkit.gym_env:ID`` makes gymnasium do so::

    import gymnasium
    envs = gymnasium.make_vec("adanat_toolkit.gym_env:adanat/MaskGIT-emoji64-v0", num_envs=64, steps=4)

Every variant of the first-party generators has the id ``adanat/CLASS-VARIANT-v0``, a third-party generator's default
variant has ``adanat/CLASS-v0``, and ``adanat/Generator-v0`` takes any ``generator="NAME:VARIANT"``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ..core import (
    DATA,
    REWARD,
    Context,
    Generator,
    ImageSource,
    Noise,
    Policy,
    RewardModel,
    as_seeds,
    called,
    derive,
    mix,
    see,
    seen_shape,
)
from ..errors import ConfigError, DataError, PluginError
from ..evaluation import class_id, own_contexts
from ..images import OwnContexts, draw_contexts, images_for
from ..registry import FIRST_PARTY, create_generator, create_reward, discover, load
from ..runtime import CPU_CHUNK, float32_by_default, resolve_device, resolve_dtype
from ..sampling import Rollout, checked_scores, embed, seed_range
from ..training import DataConfig

Observations = dict[str, np.ndarray]
RAW_LIMIT = 20.0
"""Bounds of the action space, which Stable-Baselines3 insists on: beyond them a sigmoid is 0 or 1 to 2e-9. Actions
outside are accepted all the same."""


class GenerationVectorEnv(VectorEnv[Observations, np.ndarray, np.ndarray]):
    """``num_envs`` images made side by side; all episodes have T steps and therefore end together.

    Observations (of one environment; ``observation_space`` stacks them):

    - ``features``: (N, D) float32, the generator's features, or what the kind of policy named by ``features`` sees. Zeros
      after the last step: no action follows, and computing them would cost a forward of the generator.
    - ``step``: 0..T, the index of the next step; T after the last one.
    - ``context``: the class id; or the (P,) float32 pooled text embedding; or 0 for a generator without context,
      or whose prompts have no embedding.

    Actions: (A,) float32 raw values of the acted knobs; the environment maps them to physical values (see
    ``actions.ActionSpace``), and with ``residual`` a zero action follows the hand-made schedule.

    Rewards: 0 but for an episode's last step, which gets the reward model's score. Episodes terminate, they are never
    truncated.

    Infos: ``seed`` (of the current episode's image, int64); ``knobs`` (K,) float32, the physical values just applied.
    With same-step autoreset, what belongs to the finished episodes is in ``final_obs`` and ``final_info``, as in
    gymnasium.

    Args:
        generator: ``NAME[:VARIANT]``, or a generator. generator_options: its options.
        reward: ``NAME``, ``NAME:VARIANT``, a mixture ``A:1,B:0.3``, or a reward model. reward_options: its options. A
            reward that learns does so when :meth:`update_reward` is called.
        steps: T. schedule: hand-made schedule (None: the generator's best known). knobs: those that the actions set
            (None: all). residual: add raw actions to the schedule's raw values. smoothing: see ``ActionSpace``; 0 is off.
        features: False leaves ``features`` out of the observations and spares their transfer to the host; a kind of policy
            (``lean``, ``context``) puts there what such a policy sees (``core.see``) in place of the generator's features.
        data: folder or zip with real images, or an image source; None: the generator's own. The generator draws its
            prompts or classes from the captions or classes there.
        micro_batch: images that go through the generator at once; None: 64 on a CPU, all of them elsewhere.
        autoreset_mode: gymnasium's: ``SameStep``, ``NextStep`` or ``Disabled``.
        render_mode: None or ``rgb_array``.
        seed: initialises what a reward learns, and decides which real images it sees.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: of the generator, the reward, or the real images.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as gymnasium types it
        "render_modes": ["rgb_array"],
        "render_fps": 2,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    @float32_by_default()
    def __init__(
        self,
        num_envs: int = 1,
        *,
        generator: str | Generator = "maskgit",
        generator_options: dict[str, Any] | None = None,
        reward: str | RewardModel = "adversarial",
        reward_options: dict[str, Any] | None = None,
        steps: int = 4,
        schedule: str | None = None,
        knobs: Sequence[str] | None = None,
        residual: bool = True,
        smoothing: float = 0.0,
        features: bool | str = True,
        data: str | ImageSource | None = None,
        device: str = "auto",
        dtype: str = "auto",
        offline: bool = False,
        micro_batch: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.SAME_STEP,
        render_mode: str | None = None,
        seed: int = 0,
    ) -> None:
        for name, count in (("num_envs", num_envs), ("steps", steps), ("micro_batch", micro_batch)):
            if count is not None and count < 1:
                raise ConfigError(f"{name} = {count} must be at least 1.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode {render_mode!r} is not supported; use None or 'rgb_array'.")
        if isinstance(generator, str):
            target = resolve_device(device)
            generator = create_generator(
                generator, generator_options, device=target, dtype=resolve_dtype(dtype, target), offline=offline
            )
        self.generator = generator
        self.space = generator.bind(schedule, steps, acted=knobs, residual=residual, smoothing=smoothing)
        if self.space.size == 0:
            raise ConfigError("knobs is empty: an environment needs at least one knob to act on.")
        self._data = data
        self._reward_seed = derive(seed, REWARD)
        if isinstance(reward, str):
            reward = create_reward(
                reward,
                reward_options,
                generator=generator,
                real=self.real,
                device=generator.device,
                seed=self._reward_seed,
                offline=offline,
            )
        self.reward = reward
        self.num_envs, self.render_mode = num_envs, render_mode
        self.mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "autoreset_mode": self.mode}
        size = micro_batch or (CPU_CHUNK if generator.device.type == "cpu" else num_envs)
        self._parts = [slice(i, min(i + size, num_envs)) for i in range(0, num_envs, size)]
        self._size = size
        entries: dict[str, spaces.Space[Any]] = {
            "step": spaces.Discrete(self.space.decisions + 1),
            "context": _context_space(generator),
        }
        self._watcher: type[Policy] = load("policy", features) if isinstance(features, str) else Policy
        if features and self._watcher.needs_features:
            grid, width = seen_shape(generator, self._watcher)
            shape = (grid[0] * grid[1], width)
            entries["features"] = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self._entries = entries
        self.single_observation_space = spaces.Dict(entries)
        self.single_action_space = spaces.Box(-RAW_LIMIT, RAW_LIMIT, (self.space.size,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._base: Tensor | None = None  # (num_envs,) int64: the seeds of the first episodes since reset(seed=...)
        self._episode = 0
        self._step: int | None = None  # None before the first reset; T after the last step
        self._updates = 0
        self.terms: dict[str, Tensor] = {}
        """(num_envs,) of each term of the reward, of the last finished episodes."""
        self._shown: Tensor | None = None  # finished images, as long as render shows them
        self.finished: Rollout | None = None
        """The last finished episodes: contexts, raw and physical actions, images, and ``RewardModel.embed`` of them."""
        self.seeds: Tensor | None = None
        """(num_envs,) int64, the seeds of the current episodes' images."""

    # --- the gymnasium interface --------------------------------------------------------------------------------------

    @float32_by_default()
    def reset(
        self, *, seed: int | Sequence[int] | Tensor | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: s makes environment i's first image the one of seed s + i (the same that :func:`sampling.sample` makes
                of this seed with the same actions); a sequence gives each environment its seed. Seeds of the episodes
                that follow are derived from the environment's own, so that they do not depend on ``num_envs``. None
                goes on with the next episode.
            options: ``classes`` (ids or names) or ``prompts``: the contexts of this episode (one an environment), instead
                of those that the seeds draw. ``reset_mask``: accepted when all True, since all episodes end together.

        Raises:
            ConfigError: a wrong number of seeds or contexts, a seed that is not in 0 .. 2^63 - 1, an unknown class,
                a partial mask, or an unknown option. The episodes that run are left as they were.
        """
        chosen = dict(options or {})
        self._check_mask(chosen.pop("reset_mask", None))
        if seed is not None:
            single = isinstance(seed, int | np.integer)
            base = seed_range(int(seed), self.num_envs) if single else as_seeds(seed).cpu()  # type: ignore[arg-type]
            if len(base) != self.num_envs:
                raise ConfigError(f"{len(base)} seeds given for num_envs = {self.num_envs}; give one an environment.")
            self._begin(base, 0, chosen)
            super().reset(seed=int(base[0]))
        elif self._base is None:
            self._begin(torch.from_numpy(self.np_random.integers(0, 2**63 - 1, self.num_envs)), 0, chosen)
        else:
            self._begin(self._base, self._episode + 1, chosen)
        self._shown = None
        return self._observe(), self._infos()

    @float32_by_default()
    def step(
        self, actions: np.ndarray | Tensor
    ) -> tuple[Observations, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """One step of the generator for every environment.

        Args:
            actions: (num_envs, A) float32, raw.

        Returns:
            observations, rewards (float64), terminations, truncations (always False), infos.

        Raises:
            ConfigError: misshapen or non-finite actions, or no reset before the first step (or, with autoreset
                disabled, after the last one).
        """
        raw = np.asarray(actions, dtype=np.float32)
        if raw.shape != self.action_space.shape:
            raise ConfigError(f"actions have shape {raw.shape}; they must have {self.action_space.shape}.")
        if not np.isfinite(raw).all():
            raise ConfigError("actions hold a value that is not finite; check what the policy computes.")
        rewards, ended = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        if self._step is None:
            raise ConfigError("step was called before reset; call reset first.")
        if self._step == self.space.decisions:  # the episodes ended with the last call
            if self.mode is AutoresetMode.DISABLED:
                raise ConfigError("the episodes have ended and autoreset is disabled; call reset first.")
            self._next()
            self._shown = None
            return self._observe(), rewards, ended, ended.copy(), self._infos()
        knobs = self._advance(torch.from_numpy(raw.copy()).to(self.generator.device))
        observations, infos = self._observe(), self._infos(knobs)
        if self._step == self.space.decisions:
            self._finish()
            rewards, ended = self.scores.double().cpu().numpy(), ~ended
            if self.mode is AutoresetMode.SAME_STEP:
                final: dict[str, Any] = {"final_obs": _each(observations, self.num_envs), "_final_obs": ended.copy()}
                final |= {"final_info": infos, "_final_info": ended.copy()}
                self._next()
                observations, infos = self._observe(), {**self._infos(), **final}
        return observations, rewards, ended, np.zeros(self.num_envs, dtype=bool), infos

    @float32_by_default()
    def render(self) -> tuple[np.ndarray, ...] | None:
        """num_envs frames (H, W, 3) uint8 of the images so far: gray before the first step; after the last one the
        finished images, also where the episode was reset in the same step. None without a render mode."""
        if self.render_mode is None:
            return None
        if self._shown is not None:
            images = self._shown
        elif not self._step:
            images = torch.full((self.num_envs, 3, *self.generator.image_size), 0.5)
        else:
            images = torch.cat([self.generator.decode(state) for state in self._states])
        frames = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return tuple(frame.copy() for frame in frames)

    # --- the reward ---------------------------------------------------------------------------------------------------

    @property
    def scores(self) -> Tensor:
        """(num_envs,) float32 rewards of the last finished episodes, as they were scored."""
        return self._scores

    @float32_by_default()
    def update_reward(self) -> dict[str, float]:
        """Train a reward that learns on the images just finished and on real ones; returns its figures.

        Raises:
            ConfigError: the reward does not learn, or no episode has finished. DataError: there are no real images.
        """
        if not self.reward.learns:
            raise ConfigError("this environment's reward does not learn, so there is nothing to update.")
        if self.finished is None:
            raise ConfigError("no episode has finished yet; update the reward after one.")
        if self.real is None and "real_images" in self.reward.needs:
            raise DataError(f"{self.generator.name} ships no real images to train the reward with; give data=FOLDER.")
        from ..training import prepared_update

        self._updates += 1
        update = prepared_update(
            self.reward,
            self.real,
            self.finished,
            data=DataConfig(),
            device=self.generator.device,
            seed=derive(self._reward_seed, DATA, self._updates),
            micro_batch=self._size,
        )
        return update()

    @cached_property
    def real(self) -> ImageSource | None:
        """Real images, opened when something asks for them."""
        return images_for(self.generator, self._data) if isinstance(self._data, str | None) else self._data

    @cached_property
    def contexts_from(self) -> OwnContexts | None:
        """Images whose captions or classes the episodes' contexts are drawn from (see ``evaluation.own_contexts``)."""
        return None if self._data is None else own_contexts(self.generator, self._data, self.real)

    # --- episodes -----------------------------------------------------------------------------------------------------

    def _contexts(self, options: dict[str, Any], noise: Noise) -> Context:
        """Contexts of the next episodes: those that the options name, else those that the seeds draw."""
        classes, prompts = options.pop("classes", None), options.pop("prompts", None)
        if options or (classes is not None and prompts is not None):
            raise ConfigError(f"reset options {sorted(options)} are unknown; give classes or prompts, and reset_mask.")
        given = classes if classes is not None else prompts
        if given is None:
            return draw_contexts(self.generator, noise, self.contexts_from)
        if isinstance(given, str) or not hasattr(given, "__len__"):
            raise ConfigError(f"reset options: {given!r} is one context; give a list of them, one an environment.")
        if len(given) != self.num_envs:
            raise ConfigError(f"{len(given)} contexts given for num_envs = {self.num_envs}; give one an environment.")
        if classes is not None:
            return self.generator.encode_classes([class_id(each, self.generator) for each in classes])
        return self.generator.encode_prompts(list(given))

    def _next(self) -> None:
        assert self._base is not None
        self._begin(self._base, self._episode + 1, {})

    def _begin(self, base: Tensor, episode: int, options: dict[str, Any]) -> None:
        """Start the ``episode``-th episodes (from 0) of these seeds. What can fail comes before anything is changed."""
        seeds = base if episode == 0 else mix(base ^ derive(episode)) & (2**63 - 1)
        noise = Noise(seeds.to(self.generator.device))
        context = self._contexts(options, noise)
        states = [
            self.generator.reset(context.select(rows), noise.select(rows), self.space.steps) for rows in self._parts
        ]
        self._base, self._episode, self.seeds = base, episode, seeds
        self._noise, self._context, self._states, self._step = noise, context, states, 0
        self._smoothed: Tensor | None = None  # of the action before, while episodes run
        self._actions: list[Tensor] = []
        self._physical: list[Tensor] = []

    @torch.no_grad()
    def _advance(self, raw: Tensor) -> np.ndarray:
        """Apply raw actions; returns the physical values (num_envs, K)."""
        assert self._step is not None
        self._shown = None
        self._smoothed = self.space.smoothed(raw, self._step, self._smoothed)
        physical = self.space.transformed(self._smoothed, self._step)
        self._states = [
            self.generator.step(state, physical[rows], self._noise.select(rows))
            for state, rows in zip(self._states, self._parts, strict=True)
        ]
        self._actions.append(raw)
        self._physical.append(physical)
        self._step += 1
        return physical.cpu().numpy().copy()

    @torch.no_grad()
    def _finish(self) -> None:
        """Decode and score the images of the episodes that just ended."""
        images, embedded = [], []
        for state, rows in zip(self._states, self._parts, strict=True):
            images.append(self.generator.decode(state))
            embedded.append(embed(self.reward, self.generator, state, self._context.select(rows), images[-1]))
        nothing = torch.zeros(self.num_envs, self.space.decisions, device=self.generator.device)
        self.finished = Rollout(
            context=self._context,
            features=None,
            actions=torch.stack(self._actions, 1),
            log_prob=nothing,
            values=nothing,
            physical=torch.stack(self._physical, 1),
            embedded=torch.cat(embedded),
            images=torch.cat(images),
        )
        self._shown = self.finished.images
        assert self.finished.embedded is not None
        name = called(self.reward)
        self._scores, self.terms = checked_scores(self.reward, name, self.finished.embedded, self._context)

    def _observe(self) -> Observations:
        """New arrays every time: users keep them."""
        out: Observations = {"step": np.full(self.num_envs, self._step, dtype=np.int64)}
        context = self._context
        if context.classes is not None:
            out["context"] = context.classes.cpu().numpy().astype(np.int64)
        elif isinstance(self._entries["context"], spaces.Box):
            out["context"] = context.embedding().float().cpu().numpy().copy()
        else:
            out["context"] = np.zeros(self.num_envs, dtype=np.int64)
        if "features" in self._entries:
            if self._step == self.space.decisions:
                out["features"] = np.zeros((self.num_envs, *(self._entries["features"].shape or ())), dtype=np.float32)
            else:
                parts = zip(self._states, self._parts, strict=True)
                seen = [see(self.generator, self._watcher, state, context.select(rows)) for state, rows in parts]
                out["features"] = np.concatenate([part.float().cpu().numpy() for part in seen if part is not None])
        return {key: out[key] for key in sorted(out)}

    def _infos(self, knobs: np.ndarray | None = None) -> dict[str, Any]:
        assert self.seeds is not None
        infos: dict[str, Any] = {"seed": self.seeds.numpy().copy()}
        if knobs is not None:
            infos["knobs"] = knobs
        return infos | {f"_{key}": np.ones(self.num_envs, dtype=bool) for key in infos}

    def _check_mask(self, mask: np.ndarray | None) -> None:
        if mask is not None and not np.asarray(mask, dtype=bool).all():
            raise ConfigError(
                "reset_mask leaves some episodes running, but all episodes of this environment end together; reset all "
                "or use vectorization_mode='sync'."
            )


class GenerationEnv(gymnasium.Env[Observations, np.ndarray]):
    """One image an episode: a :class:`GenerationVectorEnv` of one environment, with the same arguments (but for
    ``autoreset_mode``), spaces, seeds and infos, without the leading axis.

    For anything but debugging use ``gymnasium.make_vec``: one at a time, an image costs several times as much in bfloat16.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}  # noqa: RUF012 - as gymnasium types it

    def __init__(self, *, render_mode: str | None = None, **settings: Any) -> None:
        self.vector = GenerationVectorEnv(1, render_mode=render_mode, autoreset_mode=AutoresetMode.DISABLED, **settings)
        self.observation_space = self.vector.single_observation_space
        self.action_space = self.vector.single_action_space
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observations, dict[str, Any]]:
        """See :meth:`GenerationVectorEnv.reset`; ``options`` may hold ``class`` or ``prompt``."""
        chosen = options_of_all([options or {}])
        made = self.vector.reset(seed=seed, options=chosen)  # before gymnasium sees a seed: it has another message
        super().reset(seed=seed)
        return self._first(*made)

    def step(self, action: np.ndarray) -> tuple[Observations, float, bool, bool, dict[str, Any]]:
        """See :meth:`GenerationVectorEnv.step`; ``action`` is (A,) float32, raw."""
        observations, rewards, ended, _, infos = self.vector.step(np.asarray(action)[None])
        observation, info = self._first(observations, infos)
        return observation, float(rewards[0]), bool(ended[0]), False, info

    def render(self) -> np.ndarray | None:
        """(H, W, 3) uint8, or None without a render mode."""
        frames = self.vector.render()
        return None if frames is None else frames[0]

    def update_reward(self) -> dict[str, float]:
        """See :meth:`GenerationVectorEnv.update_reward`."""
        return self.vector.update_reward()

    def _first(self, observations: Observations, infos: dict[str, Any]) -> tuple[Observations, dict[str, Any]]:
        one = {key: value[0] for key, value in observations.items()}
        return one, {key: value[0] for key, value in infos.items() if not key.startswith("_")}


def options_of_all(each: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Options of :meth:`GenerationVectorEnv.reset` from those of single environments (``class`` or ``prompt``).

    Raises:
        ConfigError: some say what others do not: all episodes begin together.
    """
    if len({frozenset(one) for one in each}) > 1:
        said = " and ".join(sorted({str(sorted(one)) for one in each}))
        raise ConfigError(f"reset options name {said} in one reset; give the same ones for all environments.")
    names = {"class": "classes", "prompt": "prompts"}
    return {names.get(key, key): [one[key] for one in each] for key in each[0]}


def _context_space(generator: Generator) -> spaces.Space[Any]:
    if generator.context_kind == "class":
        assert generator.num_classes is not None
        return spaces.Discrete(generator.num_classes)
    if generator.context_kind == "text":
        probe = generator.encode_prompts([""])
        if probe.embeds:
            return spaces.Box(-np.inf, np.inf, (probe.embedding().shape[1],), np.float32)
    return spaces.Discrete(1)


def _each(observations: Observations, count: int) -> np.ndarray:
    """Batched observations as an object array of one dictionary an environment, gymnasium's form of ``final_obs``."""
    out = np.empty(count, dtype=object)
    for i in range(count):
        out[i] = {key: value[i] for key, value in observations.items()}
    return out


def register_environments() -> list[str]:
    """Register the ids (see the module's docstring) that are not registered yet; returns all of them.

    A plug-in that cannot be loaded has no id; ``adanat plugins`` says why.
    """
    ids = {"adanat/Generator-v0": ""}
    for plugin in discover("generator"):
        if plugin.shadowed:
            continue
        name = plugin.target.rpartition(":")[2].rpartition(".")[2]
        if plugin.distribution != FIRST_PARTY:  # importing it just to list its variants could be slow, or fail
            ids.setdefault(f"adanat/{name}-v0", plugin.name)
            continue
        try:
            variants = plugin.load().variants()
        except PluginError:
            continue
        for variant in variants:
            ids[f"adanat/{name}-{re.sub(r'[^A-Za-z0-9_.-]', '-', variant)}-v0"] = f"{plugin.name}:{variant}"
    for key, spec in ids.items():
        if key not in gymnasium.registry:
            gymnasium.register(
                key,
                entry_point=f"{__name__}:GenerationEnv",
                vector_entry_point=f"{__name__}:GenerationVectorEnv",
                kwargs={"generator": spec} if spec else {},
            )
    return sorted(ids)


register_environments()
