"""Generators, rewards and feature protocols by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..core import FeatureExtractor, Generator, ImageSource, RewardModel
from .discovery import load
from .options import parse_options


def create_generator(
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    device: torch.device,
    dtype: torch.dtype,
    offline: bool = False,
) -> Generator:
    """A generator from ``NAME[:VARIANT]``.

    Raises:
        PluginError: the name is unknown or does not load.
        ConfigError: an option is unknown or does not fit.
        WeightsError: weights are missing or damaged.
    """
    from ..runtime import float32_by_default  # imports torch, which a list of plug-ins does not need

    name, _, variant = spec.partition(":")
    with float32_by_default():
        return load("generator", name).create(
            variant or None, dict(options or {}), device=device, dtype=dtype, offline=offline
        )


def create_reward(
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    generator: Generator,
    real: ImageSource | None,
    device: torch.device,
    seed: int,
) -> RewardModel:
    """A reward from ``NAME`` or ``NAME:VARIANT`` or a mixture ``A:1,B:0.3`` (see the ``mix`` reward).

    Raises:
        PluginError: the name is unknown or does not load.
        ConfigError: an option is unknown or does not fit.
        WeightsError: weights are missing or damaged.
        DataError: the reward needs real images and there are none.
    """
    from ..runtime import float32_by_default

    values = dict(options or {})
    name, _, variant = spec.partition(":")
    if "," in spec or _is_number(variant):
        name, values = "mix", {"terms": spec, **values}
    elif variant:
        values = {"variant": variant, **values}
    reward_class = load("reward", name)
    parsed = parse_options(f"reward {name!r}", reward_class.Options, values)
    if "real_images" in reward_class.needs and real is None:
        from ..errors import DataError

        raise DataError(
            f"reward {name!r} needs real images, and {generator.name} ships none. Give --data FOLDER or FILE.zip."
        )
    with float32_by_default():
        return reward_class(parsed, generator=generator, real=real, device=device, seed=seed)


def create_features(
    name: str, options: Mapping[str, Any] | None = None, *, device: torch.device, offline: bool = False
) -> FeatureExtractor:
    """A feature protocol by name.

    Raises:
        PluginError: the name is unknown or does not load.
        WeightsError: weights are missing or damaged.
    """
    from ..runtime import float32_by_default

    with float32_by_default():
        return load("features", name).create(dict(options or {}), device=device, offline=offline)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
