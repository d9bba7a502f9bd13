"""What a command works with: the generator, contexts, policy and features that the user named, or did not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core import Context, Generator, ImageSource, RewardModel
from ..errors import ConfigError
from ..evaluation import class_id
from ..sampling import Refinement
from ..storage import RunFolder, folder_name
from ..training import RunConfig, Trainer, as_begun, create_trainer, load_judge, with_objects


def run_name(config: RunConfig) -> str:
    """``GENERATOR-POLICY-REWARD-T<steps>-s<seed>``, safe as a folder's name."""
    return folder_name(
        f"{config.generator.name}-{config.policy.name}-{config.reward.name}-T{config.steps}-s{config.seed}"
    )


def begin_run(
    config: RunConfig,
    out: str | os.PathLike[str] | None,
    generator: Generator | None = None,
    reward: RewardModel | None = None,
    data: ImageSource | None = None,
) -> tuple[Path, RunConfig, Trainer]:
    """The folder of a run, its settings, and what trains in it; a run that was begun goes on in its compute type.

    Args:
        out: None: a folder under ``runs`` that is named by the settings. generator, reward, data: in place of what
            ``config`` names.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: see ``create_trainer``.
    """
    objects = generator, reward, data
    folder = Path("runs") / run_name(with_objects(config, *objects)) if out is None else Path(out)
    config = as_begun(config, RunFolder(folder))
    return folder, config, create_trainer(config, *objects)


def choose_contexts(
    generator: Generator, classes: Sequence[int | str] | None, prompts: Sequence[str] | None, count: int, *, source: str
) -> list[Any]:
    """Class ids or prompts that ``count`` images take in turn; empty where each image draws its own by its seed.

    Args:
        classes: ids, names, or the last part of ``A / B`` names. source: what says how many images there are.

    Raises:
        ConfigError: classes or prompts for a generator that does not take them, a class that is unknown or stands for several,
            or more of them than images.
    """
    if classes and prompts:
        raise ConfigError("classes and prompts exclude each other; give the one that the generator is conditioned on.")
    chosen: list[Any] = [class_id(value, generator) for value in classes or ()]
    if prompts:
        if generator.context_kind != "text":
            raise ConfigError(f"{generator.name} is not text-conditional, so prompts do not apply; leave them out.")
        chosen = list(prompts)
    if len(chosen) > count:
        raise ConfigError(
            f"{source} is less than the {len(chosen)} {'classes' if classes else 'prompts'} given; give at least "
            f"{len(chosen)}, or fewer."
        )
    return chosen


def context_of(generator: Generator, contexts: Sequence[Any], count: int) -> Context | None:
    """``count`` contexts, taking ``contexts`` (see :func:`choose_contexts`) in turn; None for an empty list."""
    if not contexts:
        return None
    if generator.context_kind == "class":
        table = generator.encode_classes(list(contexts))
    else:
        table = generator.encode_prompts(list(contexts))
    return table.select(torch.arange(count, device=generator.device) % len(contexts))


def refuse_lone_judge(candidates: int | None, judge: object) -> None:
    """
    Raises:
        ConfigError: a judge of candidates, and no candidates.
    """
    if judge is not None and candidates is None:
        raise ConfigError("--judge says whose reward --refine goes by; give --refine N, or leave it out.")


def choose_refinement(
    generator: Generator, candidates: int | None, judge: object, *, offline: bool = False
) -> Refinement | None:
    """The best of ``candidates`` images by the reward of the run ``judge``; None where nobody asked for candidates.

    Raises:
        ConfigError: the judge is no path. ConfigError, CheckpointError, PluginError, WeightsError: see
            ``training.load_judge`` and ``Refinement``.
    """
    if candidates is None:
        return None
    if not isinstance(judge, str | os.PathLike):
        raise ConfigError(
            "refine keeps the image that a reward prefers: give judge, the folder of a training, or such a folder as policy."
        )
    reward, told = load_judge(judge, generator, offline=offline)
    return Refinement(reward, candidates, told)
