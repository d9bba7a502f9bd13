"""Which generator a policy belongs to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ..core import Generator
from ..errors import CheckpointError
from ..registry import GeneratorConfig, create_generator, parse_override
from ..runtime import resolve_device, resolve_dtype


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

    Args:
        name: ``NAME[:VARIANT]`` or None. policies: policy specs (see ``load_policy``); run and policy folders say which
            generator they belong to, a run folder also with which options.
        weights: a file, folder or hub id: the generator's option ``weights``. options: further ones as ``NAME=VALUE``.

    Raises:
        ConfigError, PluginError, WeightsError, CheckpointError.
    """
    chosen = GeneratorConfig()
    if name is not None:
        chosen = GeneratorConfig(name=name)
    else:
        for spec in policies:
            found = _trained_for(Path(spec))
            if found is not None:
                chosen = found
                break
    values = dict(chosen.options)
    for text in options or ():
        values |= parse_override(text, flag="--generator-option", example="tokenizer=FILE")
    if weights is not None:
        values["weights"] = weights
    where = resolve_device(device)
    return create_generator(chosen.name, values, device=where, dtype=resolve_dtype(dtype, where), offline=offline)


def _trained_for(folder: Path) -> GeneratorConfig | None:
    """The generator of a run folder or of a policy folder; None for ``fixed...`` and for what is neither."""
    for file, key in ((folder / "config.json", "config"), (folder / "policy.json", "card")):
        if not file.is_file():
            continue
        try:
            stored = json.loads(file.read_text())
            if key == "config":
                return GeneratorConfig.model_validate(stored["generator"])
            return GeneratorConfig(name=stored["generator"]["name"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{file} is damaged, so the policy's generator is unknown. Restore the file, or give --generator."
            ) from None
    return None
