"""Generators, rewards and feature protocols by name."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from ..core import FeatureExtractor, Generator, ImageSource, RewardModel, RewardSpec
from .discovery import base_of, load
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
    # These import torch, which a list of plug-ins does not need.
    from ..runtime import float32_by_default, plugin_call, require_made
    from ..storage import downloads_refused

    name, _, variant = spec.partition(":")
    made_by, plugin = load("generator", name), f"generator {name!r}"
    with plugin_call(plugin, "create"), float32_by_default(), downloads_refused(offline):
        made: Generator = made_by.create(
            variant or None, dict(options or {}), device=device, dtype=dtype, offline=offline
        )
    require_made(plugin, made, base_of("generator"))
    return made


def create_reward(
    spec: str,
    options: Mapping[str, Any] | None = None,
    *,
    generator: Generator,
    real: ImageSource | None,
    device: torch.device,
    seed: int,
    offline: bool = False,
) -> RewardModel:
    """A reward as :class:`RewardSpec` writes it: ``NAME``, ``NAME:VARIANT`` or a mixture ``A:1,B:0.3``.

    Args:
        offline: nothing may be downloaded.

    Raises:
        PluginError: the name is unknown or does not load.
        ConfigError: the spec cannot be read, or an option is unknown or does not fit.
        WeightsError: weights are missing or damaged.
        DataError: the reward needs real images and there are none.
    """
    from ..core import RewardSpec
    from ..runtime import float32_by_default, plugin_call, require_made
    from ..storage import downloads_refused

    written = RewardSpec.parse(spec)
    made_by, values = reward_class(written)
    name = str(written) if written.mixture else written.terms[0].name
    parsed = parse_options(f"reward {name!r}", made_by.Options, {**values, **(options or {})})
    if "real_images" in made_by.needs and real is None:
        from ..errors import DataError

        raise DataError(
            f"reward {name!r} needs real images, and {generator.name} ships none. Give --data FOLDER or FILE.zip."
        )
    plugin = f"reward {spec!r}"
    with plugin_call(plugin, "create"), float32_by_default(), downloads_refused(offline):
        made = made_by.create(parsed, generator=generator, real=real, device=device, seed=seed, offline=offline)
    require_made(plugin, made, base_of("reward"))
    with contextlib.suppress(AttributeError):  # one that takes no attributes is called by its class
        made.made_as = spec
    return made


def reward_class(spec: RewardSpec) -> tuple[type[RewardModel], dict[str, Any]]:
    """What makes the reward of a spec, and the options that the spec itself stands for.

    Raises:
        PluginError: the name is unknown or does not load.
    """
    if spec.mixture:
        from .mixture import MixReward

        return MixReward, {"terms": str(spec)}
    (term,) = spec.terms
    return load("reward", term.name), {} if term.variant is None else {"variant": term.variant}


def create_features(
    name: str, options: Mapping[str, Any] | None = None, *, device: torch.device, offline: bool = False
) -> FeatureExtractor:
    """A feature protocol by name.

    Raises:
        PluginError: the name is unknown or does not load.
        ConfigError: an option is unknown or does not fit.
        WeightsError: weights are missing or damaged.
    """
    from ..runtime import float32_by_default, plugin_call, require_made
    from ..storage import downloads_refused

    made_by = load("features", name)
    parsed = parse_options(f"features {name!r}", made_by.Options, options or {})
    with plugin_call(f"features {name!r}", "create"), float32_by_default(), downloads_refused(offline):
        made: FeatureExtractor = made_by.create(parsed, device=device, offline=offline)
    require_made(f"features {name!r}", made, base_of("features"))
    return made
