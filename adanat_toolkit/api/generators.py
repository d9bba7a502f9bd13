"""Generators by name, and what can be named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from ..core import Generator
from ..registry import create_generator, discover
from ..runtime import resolve_device, resolve_dtype
from .arguments import checked, wrong


@checked
def load_generator(
    name: str,
    *,
    weights: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    offline: bool = False,
) -> Generator:
    """A frozen generator, ready to sample with.

    Args:
        name: ``NAME`` or ``NAME:VARIANT`` (see :func:`list_generators`).
        weights: a file, a folder or a hub id; None: those that ship, or those of the hub's cache.
        options: further options of the generator by name, such as ``{"tokenizer": "vq.safetensors"}``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``. dtype: ``auto``, ``float32`` or ``bfloat16``, or
            ``torch.float32`` or ``torch.bfloat16``.
        offline: never reach out for weights.

    Raises:
        PluginError: the name is unknown or does not load. ConfigError: an option is unknown or does not fit.
        WeightsError: weights are missing or damaged.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> generator = adanat.load_generator("maskgit", device="cpu")
        >>> generator.name, generator.image_size
        ('maskgit:emoji64', (64, 64))
    """
    if options is not None and not isinstance(options, Mapping):
        raise wrong("options", options, 'a dictionary of options, such as {"tokenizer": "vq.safetensors"}')
    values = dict(options or {})
    if weights is not None:
        values["weights"] = os.fspath(weights)
    where = resolve_device(device)
    return create_generator(name, values, device=where, dtype=resolve_dtype(dtype, where), offline=offline)


def list_generators() -> list[str]:
    """Names that :func:`load_generator` takes, variants left out.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> {"mage", "maskgit", "muse"} <= set(adanat.list_generators())
        True
    """
    return _names("generator")


def list_rewards() -> list[str]:
    """Names that ``train(reward=...)`` takes; a mixture is written ``adversarial:1,clip-score:0.3``.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> {"adversarial", "fid"} <= set(adanat.list_rewards())
        True
    """
    return _names("reward")


def list_policies() -> list[str]:
    """Kinds of policies; ``train(policy=...)`` takes those that learn.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> {"adaptive", "fixed", "shared"} <= set(adanat.list_policies())
        True
    """
    return _names("policy")


def list_features() -> list[str]:
    """Feature protocols that ``evaluate(features=...)`` takes.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> "inception-fidelity" in adanat.list_features()
        True
    """
    return _names("features")


def _names(kind: str) -> list[str]:
    return [plugin.name for plugin in discover(kind) if not plugin.shadowed]
