"""The run's configuration: typed, frozen, unknown keys rejected; presets; how flags, files and ``--set`` are merged.

Later sources win: defaults < preset < ``--config FILE.yaml`` < flags < ``--set a.b=c``. Options belong to the plug-in that they
were given with: a later source that names another one drops them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from ..errors import ConfigError, nearest
from ..limits import MOST_IMAGES, MOST_SEED, MOST_STEPS, MOST_TRAJECTORIES
from ..registry import GeneratorConfig, explain, load, parse_override
from ..settings import CheckedModel
from ..storage import read_yaml_document, shortened


class PPOConfig(CheckedModel):
    """Everything the update depends on."""

    learning_rate: float = Field(5e-4, gt=0)
    learning_rate_decay: Literal["none", "linear"] = "none"
    """``linear``: to zero at the last iteration."""
    adam_epsilon: float = Field(1e-5, gt=0)
    """Adam's epsilon, for policy and critic. Where a gradient is nothing but rounding, a small one makes whole steps of it."""
    epochs: int = Field(4, ge=1, le=MOST_IMAGES)
    minibatches: int = Field(2, ge=1, le=MOST_IMAGES)
    """Mini-batches an epoch, cut from all states of all processes; at most as many as there are states."""
    clip: float = Field(0.2, gt=0)
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(1.0, ge=0, le=1)
    """1: Monte-Carlo returns, no bootstrapping."""
    standardise: Literal["returns", "reward"] = "reward"
    """What is standardised over the global batch: returns of all steps (the paper), or the terminal reward."""
    normalise_advantages: bool = False
    value_coefficient: float = Field(0.5, ge=0)
    max_gradient_norm: float | None = Field(1.0, gt=0)
    """None: no clipping (the paper)."""
    target_kl: float | None = Field(None, gt=0)
    """Stop the epochs of an iteration once the approximate KL exceeds this."""
    sigma: float = Field(0.6, gt=0)
    """Standard deviation of every raw coordinate at the start."""
    sigma_drop: float = Field(0.3, ge=0)
    sigma_drop_at: tuple[float, ...] = (0.6,)
    """Where sigma falls by ``sigma_drop``: below 1 a share of the run's iterations, from 1 on an iteration index."""
    sigma_floor: float = Field(0.1, gt=0)
    """Drops take sigma no lower; a start below it stays where it is."""
    group: int = Field(1, ge=1, le=MOST_IMAGES)
    """Trajectories that share one context and one token noise (common random numbers); with 2 or more, the group's mean
    reward is subtracted before standardising, which removes what the context and the noise contribute to the reward."""
    group_baseline: Literal["mean", "shrunk"] = "mean"
    """What is subtracted with ``group`` of 2 or more: ``mean`` is the group's mean; ``shrunk`` the mean of the group's other
    trajectories, shrunk towards that of the other groups by as much as it is noisier than they differ."""
    context_baseline: bool = False
    """Take off what the class or prompt alone lets expect of a score, by a ridge regression on earlier iterations. For
    policies that do not see the context, where scores differ much between contexts (docs/rewards.md)."""
    critic_statistics: bool = False
    """The critic reads, besides what the policy sees, the statistics of the prediction that ``lean`` sees. For other policies,
    with generators that give statistics (docs/rewards.md)."""

    @model_validator(mode="after")
    def _consistent(self) -> PPOConfig:
        if self.standardise == "returns" and (self.group > 1 or self.gae_lambda < 1):
            raise ValueError(
                "standardise = 'returns' is the paper's rule, which knows neither ppo.group nor ppo.gae_lambda; leave both "
                "at 1 or set standardise = 'reward'"
            )
        if self.group_baseline == "shrunk" and self.group < 2:
            raise ValueError("group_baseline = 'shrunk' needs groups; set ppo.group to 2 or more")
        if self.context_baseline and (self.group > 1 or self.standardise == "returns"):
            raise ValueError(
                "context_baseline = true goes with neither ppo.group, whose baseline takes the context off already, nor "
                "standardise = 'returns', the paper's rule; leave ppo.group at 1 and standardise at 'reward'"
            )
        return self

    @classmethod
    def paper(cls) -> PPOConfig:
        """The published settings."""
        return cls(
            learning_rate=1e-5,
            adam_epsilon=1e-8,
            epochs=5,
            minibatches=1,
            standardise="returns",
            max_gradient_norm=None,
            sigma_drop_at=(500,),
        )

    def sigma_at(self, iteration: int, iterations: int) -> float:
        """Sigma of rollout ``iteration`` (0-based) of ``iterations``.

        A drop listed for iteration i is in force from the rollout after the update of iteration i, as published.
        """
        marks = [at * iterations if at < 1 else at for at in self.sigma_drop_at]
        dropped = self.sigma - self.sigma_drop * sum(mark <= iteration - 1 for mark in marks)
        return max(dropped, min(self.sigma_floor, self.sigma))

    def learning_rate_at(self, iteration: int, iterations: int) -> float:
        if self.learning_rate_decay == "linear":
            return self.learning_rate * (1 - iteration / iterations)
        return self.learning_rate


class FitConfig(CheckedModel):
    """Of the engines ``offline`` (``training/offline.py``) and ``slopes`` (``training/slopes.py``)."""

    actions: int = Field(8, ge=2, le=MOST_IMAGES)
    """K, sequences of actions that are tried for each context."""
    repeats: int = Field(1, ge=1, le=MOST_IMAGES)
    """R, images that are drawn for each of them, with noise of their own; their mean reward is what it is worth."""
    keep: Literal["all", "best"] = "all"
    """``all``: a policy moves towards actions that gained and away from those that lost, each by what it gained.
    ``best``: it is fitted to the best of the K alone, weighted by what that gained (EVATok)."""
    pull: float = Field(1.0, gt=0)
    """With ``all``: how far the fit's target is from the policy, in standard deviations of the gain. Engine ``slopes``: how
    far an iteration moves along a slope, in units of sigma times what one sigma gains in standard deviations."""
    memory: float = Field(0.95, ge=0, lt=1)
    """Of engine ``slopes``: what an iteration's images count in the next one's slopes."""


class RewardConfig(CheckedModel):
    name: str = "adversarial"
    """``NAME``, ``NAME:VARIANT`` or a mixture ``A:1,B:0.3``."""
    options: dict[str, Any] = Field(default_factory=dict)
    warmup: int = Field(0, ge=0, le=MOST_TRAJECTORIES)
    """Iterations at the start in which only the reward learns (their trajectories count)."""


class PolicyConfig(CheckedModel):
    name: str = "adaptive"
    options: dict[str, Any] = Field(default_factory=dict)
    schedule: str | None = None
    """What residual actions are added to; None is the generator's best known hand-made schedule."""
    residual: bool = True
    knobs: tuple[str, ...] | None = None
    """Knobs the policy sets (None: all); the others follow the schedule."""
    smoothing: float = Field(0.0, ge=0, lt=1)
    """Action smoothing (AdaGen): the share of a sample's raw values that is carried from step to step; 0 is off."""
    average: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, exported instead of the last weights; 0 is off."""


class DataConfig(CheckedModel):
    path: str | None = None
    """Folder or zip file with real images; None: the generator's own."""
    flip: bool = True
    """Mirror half of the real images at random."""
    shift: int = Field(0, ge=0, le=MOST_IMAGES)
    """Shift real images by up to so many pixels."""


class RunConfig(CheckedModel):
    """Everything a training run depends on, fully resolved."""

    generator: GeneratorConfig = GeneratorConfig()
    reward: RewardConfig = RewardConfig()
    policy: PolicyConfig = PolicyConfig()
    ppo: PPOConfig = PPOConfig()
    fit: FitConfig = FitConfig()
    data: DataConfig = DataConfig()
    engine: str = "adanat"
    """What trains: the toolkit's own PPO, ``sb3`` for Stable-Baselines3's (docs/gymnasium-and-sb3.md), ``offline`` for
    regression to the best of several actions (docs/offline.md), or another plug-in of the group ``adanat.engines``."""
    steps: int = Field(4, ge=1, le=MOST_STEPS)
    """T, generation steps of an image."""
    trajectories: int = Field(8192, ge=1, le=MOST_TRAJECTORIES)
    """Total number of trajectories (images generated for training), the unit of work."""
    batch: int = Field(128, ge=2, le=MOST_IMAGES)
    """Trajectories of one iteration, over all processes."""
    micro_batch: int | None = Field(None, ge=1, le=MOST_IMAGES)
    """Samples in flight at once in one process; None: derived from the device."""
    seed: int = Field(0, ge=0, le=MOST_SEED)
    device: str = "auto"
    dtype: str = "auto"
    """Compute type of the generator; the policy is always trained in float32."""
    decoder: str = "own"
    """What makes the images that the reward sees: ``own`` (the generator's), ``distilled`` (the small one that ships), or a
    ``FILE.safetensors`` of ``adanat distill``. Samples, readings and evaluation always come from the own one."""
    offline: bool = False
    checkpoint_every: int = Field(10, ge=1, le=MOST_TRAJECTORIES)
    """Iterations between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, le=MOST_TRAJECTORIES)
    tracker: tuple[str, ...] = ()
    """Where figures go besides ``metrics.jsonl``: plug-ins of the group ``adanat.trackers``."""
    evaluate_every: int = Field(0, ge=0, le=MOST_TRAJECTORIES)
    """Iterations between readings of the held-out yardstick (docs/logged-names.md); 0: none."""
    evaluate_images: int = Field(512, ge=16, le=MOST_IMAGES)
    """Images of a reading; always those of the same seeds."""
    evaluate_features: str | None = None
    """Feature protocol of the readings; None: the generator's own."""

    @property
    def iterations(self) -> int:
        return -(-self.trajectories // self.batch)


PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "demo": {
        "steps": 4,
        "trajectories": 8192,
        "ppo": {"learning_rate": 1.5e-3, "learning_rate_decay": "linear"},
        "policy": {"name": "lean", "average": 0.9},
    },
    "gpu": {"batch": 1024, "trajectories": 153_600, "checkpoint_every": 20},
    "paper": {
        "ppo": PPOConfig.paper().model_dump(),
        "policy": {"options": {"size": "paper", "feature_dtype": "float32"}, "residual": False},
        "reward": {"options": {"architecture": "paper"}},
        "batch": 4096,
        "trajectories": 4_096_000,
        "data": {"flip": False},
    },
}
PRESETS["adagen"] = {**PRESETS["paper"], "policy": {**PRESETS["paper"]["policy"], "residual": True}}
"""``demo``: minutes on two CPU cores. ``gpu``: larger batches for one GPU. ``adagen``: with the schedule, smoothing and T that
AdaGen published for the generator (``Generator.preset_settings``). ``paper``: the published algorithm (ImageNet
recipe: no residual). Add ``--set policy.residual=true --set policy.schedule=adanat`` for the published CC3M recipe."""

BY_POLICY: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {
        "lean": {"ppo": {"learning_rate": 1e-2, "sigma_drop": 0.0}},
        "residual": {"ppo": {"learning_rate": 5e-3, "sigma_drop": 0.0}},
    },
}
"""What a preset adds where such a policy is trained: small ones learn more from few images at a larger rate
(docs/results/quality.md)."""


def resolve(
    *,
    preset: str = "default",
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    generator: str | None = None,
    by_policy: bool = True,
) -> RunConfig:
    """Merge all sources and validate.

    Args:
        flags: nested mapping of flags that were given. overrides: ``a.b=c`` texts, values read as YAML.
        generator: name of the one that is given as an object, for what a preset says of its family alone.
        by_policy: whether what a preset adds for a kind of policy counts; a comparison trains all kinds alike.

    Raises:
        ConfigError: unknown preset or key, unreadable file, or a value out of range.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}{nearest(preset, PRESETS)} Presets: {', '.join(PRESETS)}.")
    sources: list[Mapping[str, Any]] = [] if file is None else [read_yaml(file)]
    sources += [flags or {}, *map(parse_override, overrides)]
    config = validate(functools.reduce(_merge_source, sources, merge({}, PRESETS[preset])))
    family = _family_settings(preset, generator or config.generator.name)
    small = BY_POLICY.get(preset, {}).get(config.policy.name, {}) if by_policy else {}
    if not family and not small:
        return config
    return validate(functools.reduce(_merge_source, sources, merge(merge(PRESETS[preset], family), small)))


def _family_settings(preset: str, generator: str) -> dict[str, Any]:
    """What the generator's family adds to a preset; the presets that all generators share need no plug-in to be loaded."""
    if preset != "adagen":
        return {}
    name, _, variant = generator.partition(":")
    settings: dict[str, Any] = load("generator", name).preset_settings(preset, variant or None)
    return settings


def _merge_source(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """:func:`merge`; where the later source names another plug-in, the earlier one's options do not stay with it."""
    kept = dict(values)
    for part in ("generator", "reward", "policy"):
        old, new = kept.get(part), over.get(part)
        if isinstance(old, Mapping) and isinstance(new, Mapping) and "options" in old and "name" in new:
            named = old.get("name", RunConfig.model_fields[part].default.name)
            if new["name"] != named:
                kept[part] = {key: value for key, value in old.items() if key != "options"}
    return merge(kept, over)


def validate(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig of nested values.

    Raises:
        ConfigError: naming the key, the value and what is expected.
    """
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(explain(error, RunConfig, "configuration", settings=True)) from None
    group = config.ppo.group
    if config.batch % group:
        raise ConfigError(f"batch = {config.batch} must be a multiple of ppo.group = {group}; choose another batch.")
    return config


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings of a file.

    Raises:
        ConfigError: it cannot be read, is no YAML, or holds no mapping.
    """
    loaded = read_yaml_document(path, error=ConfigError, remedy="Give a file of settings, as printed by --dry-run.")
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, as printed by --dry-run.")
    return loaded


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested merge; ``over`` wins."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


LONGEST_SHOWN = 120
"""Characters of a value that a message shows whole."""


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``key: old -> new`` for every setting that differs; what is long, in a damaged file, is cut."""
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            name = f"{prefix}{key}"
            name = name if len(name) <= LONGEST_SHOWN and name.isprintable() else shortened(name)
            out.append(f"{name}: {_shown(a)} -> {_shown(b)}")
    return out


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else shortened(value)
