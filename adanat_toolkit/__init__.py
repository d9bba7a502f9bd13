"""adanat-toolkit: learned per-sample sampling policies for frozen image generators (AdaNAT, ECCV 2024).

The public Python API: ``import adanat_toolkit as adanat``. A name is imported when it is first used, so that this import
alone costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .api import (
        Distilled,
        Headroom,
        Run,
        Samples,
        SamplingPolicy,
        Scores,
        apply,
        distill,
        evaluate,
        headroom,
        list_features,
        list_generators,
        list_policies,
        list_rewards,
        load_generator,
        load_policy,
        remove,
        sample,
        train,
    )

__all__ = [
    "Distilled",
    "Headroom",
    "Run",
    "Samples",
    "SamplingPolicy",
    "Scores",
    "apply",
    "distill",
    "evaluate",
    "headroom",
    "list_features",
    "list_generators",
    "list_policies",
    "list_rewards",
    "load_generator",
    "load_policy",
    "remove",
    "sample",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(".api", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
