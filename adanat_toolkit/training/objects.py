"""What a run works with, as objects: a generator, a reward or images that nobody has registered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, TypeAlias

from torch import Tensor

from ..core import Context, Generator, ImageSource, RewardModel
from ..errors import ConfigError
from .config import RunConfig, validate
from .reward_update import state_of

RewardFunction: TypeAlias = Callable[[Tensor, Context], Tensor]
"""``(images, context) -> scores``: (B, 3, H, W) float32 in [0, 1] -> (B,) floating point, higher is better."""


class FunctionReward(RewardModel):
    """A plain function as a reward; its name is the function's."""

    def __init__(self, function: RewardFunction) -> None:
        self.function = function
        self.name: str = getattr(function, "__name__", type(function).__name__)

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.function(images, context)


def name_of(reward: RewardModel) -> str:
    """What a reward that was given as an object is called in the configuration."""
    return str(getattr(reward, "name", type(reward).__name__))


def as_reward(reward: RewardModel | RewardFunction | str | None) -> RewardModel | str | None:
    """A reward as it is used: a function becomes a :class:`FunctionReward`.

    Raises:
        ConfigError: it is none of these.
    """
    if reward is None or isinstance(reward, str | RewardModel):
        return reward
    if isinstance(reward, type) or not callable(reward):
        raise _wrong(
            "reward", reward, "a RewardModel, a function (images, context) -> (B,) scores, or a registered name"
        )
    return FunctionReward(reward)


def with_objects(
    config: RunConfig,
    generator: Generator | str | None,
    reward: RewardModel | str | None,
    data: ImageSource | str | PathLike[str] | None,
) -> RunConfig:
    """The configuration that names what was given: a name as it is, an object by its own name and without options.

    Options of the configuration are those of the name that it has; another name starts without.

    Raises:
        ConfigError: an argument is of the wrong type.
    """
    if not isinstance(config, RunConfig):
        raise _wrong("config", config, "a RunConfig, as training.resolve and training.validate return")
    if generator is not None and not isinstance(generator, str | Generator):
        raise _wrong("generator", generator, "a Generator, or a registered name")
    changes: dict[str, Any] = {}
    if generator is not None and generator != config.generator.name:
        changes["generator"] = {"name": generator if isinstance(generator, str) else generator.name, "options": {}}
    if reward is not None and reward != config.reward.name:
        name = reward if isinstance(reward, str) else name_of(reward)
        changes["reward"] = {"name": name, "options": {}, "warmup": config.reward.warmup}
    if isinstance(data, str | PathLike):
        changes["data"] = {"path": str(data)}
    elif data is not None:
        if not all(hasattr(data, part) for part in ("images", "contexts", "fingerprint", "__len__")):
            raise _wrong("data", data, "real images (an ImageSource, such as open_images returns), or a path")
        changes["data"] = {"path": None}
    if not changes:
        return config
    # Only what was set: that Adam's epsilon was not asked for must stay known (see checkpoint.open_run).
    values = config.model_dump(exclude_unset=True)
    return validate({**values, **changes, "data": {**values.get("data", {}), **changes.get("data", {})}})


def require_callbacks(callbacks: Sequence[Any], kind: type) -> None:
    """
    Raises:
        ConfigError: one of them is no callback.
    """
    for callback in callbacks:
        if not isinstance(callback, kind):
            raise _wrong("callbacks", callback, "Callback objects alone (a function goes to on_iteration)")


def require_learnable(reward: RewardModel) -> None:
    """
    Raises:
        ConfigError: it learns, and its weights were made where torch forbids that for good.
    """
    if reward.learns and any(value.is_inference() for value in state_of(reward).values()):
        raise ConfigError(
            f"reward {name_of(reward)!r} learns, and was made inside torch.inference_mode(), whose tensors no gradient can "
            "change; make it outside."
        )


def _wrong(argument: str, value: object, wanted: str) -> ConfigError:
    found = f"the class {value.__name__}" if isinstance(value, type) else f"{type(value).__name__}"
    return ConfigError(f"{argument} must be {wanted}; it is {found}.")
