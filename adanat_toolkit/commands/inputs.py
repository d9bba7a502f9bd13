"""What a command works with: the generator, contexts, policy and features that the user named, or did not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..core import Context, Generator
from ..errors import ConfigError
from ..evaluation import class_id
from ..storage import folder_name, text_lines
from ..training import RunConfig


def run_name(config: RunConfig) -> str:
    """``GENERATOR-POLICY-REWARD-T<steps>-s<seed>``, safe as a folder's name."""
    return folder_name(
        f"{config.generator.name}-{config.policy.name}-{config.reward.name}-T{config.steps}-s{config.seed}"
    )


def parse_classes(text: str, generator: Generator) -> list[int]:
    """Class ids of a text such as ``3,17`` or ``face-smiling,3``: ids, names, or the last part of ``A / B`` names.

    Raises:
        ConfigError: not a class-conditional generator, an id out of range, or a name that is unknown or stands for several.
    """
    if generator.context_kind != "class" or generator.num_classes is None:
        raise ConfigError(f"{generator.name} is not class-conditional, so --classes does not apply; leave it out.")
    ids = [class_id(part.strip(), generator) for part in text.split(",") if part.strip()]
    if not ids:
        raise ConfigError(f"--classes {text!r} names no class; give ids or names, separated by commas.")
    return ids


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, empty lines left out.

    Raises:
        ConfigError: it cannot be read or holds none. DataError: its encoding is neither UTF-8 nor UTF-16 with a mark.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read the prompts {path}: {error.strerror}. Give a text file with one prompt a line."
        ) from None
    prompts = [line.strip() for line in text_lines(data, str(path)) if line.strip()]
    if not prompts:
        raise ConfigError(f"{path} holds no prompt; write one a line.")
    return prompts


def choose_contexts(generator: Generator, classes: str | None, prompts: Sequence[str], count: int | None) -> list[Any]:
    """Class ids or prompts that the images take in turn; empty where each image draws its own by its seed.

    Args:
        count: number of images, None when the user did not say.

    Raises:
        ConfigError: classes or prompts for a generator that does not take them, or more of them than images.
    """
    if classes is not None and prompts:
        raise ConfigError(
            "--classes and --prompt exclude each other; give the one that the generator is conditioned on."
        )
    chosen: list[Any] = [] if classes is None else list(parse_classes(classes, generator))
    if prompts:
        if generator.context_kind != "text":
            raise ConfigError(f"{generator.name} is not text-conditional, so prompts do not apply; leave them out.")
        chosen = list(prompts)
    if count is not None and count < 1:
        raise ConfigError(f"--num {count}: at least 1 image must be made.")
    if count is not None and len(chosen) > count:
        raise ConfigError(
            f"--num {count} is less than the {len(chosen)} contexts given; give at least {len(chosen)}, or fewer contexts."
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
