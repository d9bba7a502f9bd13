"""Which generator a policy belongs to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..core import Generator, PolicySpec
from ..errors import CheckpointError, ConfigError
from ..registry import GeneratorConfig, create_generator, load, not_followed, parse_override, shown_options
from ..runtime import resolve_device, resolve_dtype
from ..storage import read_document


def open_generator(
    name: str | None,
    policies: Sequence[str] = (),
    *,
    weights: str | None = None,
    options: Sequence[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    offline: bool = False,
) -> Generator:
    """The generator that was named, or else the one that the first learned policy was trained for, or else the default.

    Only the caller names sources. Where a run folder's options name files, hub ids or addresses, or hold any other text,
    they are refused unless the caller gives them again: the folder may come from someone else.

    Args:
        name: ``NAME[:VARIANT]`` or None. policies: policy specs (see ``load_policy``); run and policy folders say which
            generator they belong to, a run folder also with which options.
        weights: a file, folder or hub id: the generator's option ``weights``. options: further ones as ``NAME=VALUE``.

    Raises:
        ConfigError: among others, a folder names sources that the caller does not give. PluginError, WeightsError,
        CheckpointError.
    """
    given: dict[str, Any] = {}
    for text in options or ():
        given |= parse_override(text, flag="--generator-option", example="tokenizer=FILE")
    if weights is not None:
        given["weights"] = weights
    chosen = GeneratorConfig() if name is None else GeneratorConfig(name=name)
    if name is None:
        for place in (Path(place) for spec in policies for place in PolicySpec.parse(spec).places):
            found = _trained_for(place)
            if found is not None:
                chosen = found
                _refuse_sources(chosen, place, given)
                break
    values = {**chosen.options, **given}
    where = resolve_device(device)
    return create_generator(chosen.name, values, device=where, dtype=resolve_dtype(dtype, where), offline=offline)


class _Run(BaseModel):
    """What is read of a run's configuration here."""

    generator: GeneratorConfig


class _Named(BaseModel):
    name: str


class _Card(BaseModel):
    """What is needed of a policy's card."""

    generator: _Named


def _trained_for(folder: Path) -> GeneratorConfig | None:
    """The generator of a run folder or of a policy folder; None for what is neither."""
    for file, key in ((folder / "config.json", "config"), (folder / "policy.json", "card")):
        if not os.path.exists(file):  # also where the name is too long for the system
            continue
        remedy = "So the policy's generator is unknown: restore the file, or give --generator."
        if key == "config":
            stored: _Run = read_document(file, _Run, error=CheckpointError, remedy=remedy)
            return stored.generator
        card: _Card = read_document(file, _Card, error=CheckpointError, remedy=remedy)
        return GeneratorConfig(name=card.generator.name)
    return None


def _refuse_sources(found: GeneratorConfig, folder: Path, given: Mapping[str, Any]) -> None:
    """Raises ConfigError where a folder's options name sources, or hold text, that the user does not give again."""
    if not found.options:
        return
    declared = load("generator", found.name.partition(":")[0]).Options
    named = not_followed(declared, {key: value for key, value in found.options.items() if key not in given})
    if named:
        flags = ["--weights ..." if key == "weights" else f"--generator-option {key}=..." for key in named]
        raise ConfigError(
            f"{folder / 'config.json'} says where its generator comes from: {shown_options(named)}. What a folder names is "
            f"not followed: give it again if you trust it ({' '.join(flags)})."
        )
