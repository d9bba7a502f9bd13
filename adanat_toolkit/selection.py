"""What a command works with: the generator, contexts, policy and features that the user named, or did not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .compute import resolve_device, resolve_dtype
from .config import GeneratorConfig, RunConfig, parse_override, validate
from .data import Progress, images_for
from .errors import CheckpointError, ConfigError, DataError, nearest
from .interfaces import Context, FeatureExtractor, Generator, ImageSource
from .judging import PromptScorer
from .metrics import FeatureStatistics, Reference
from .registry import create_features, create_generator, discover


def run_name(config: RunConfig) -> str:
    """``GENERATOR-POLICY-REWARD-T<steps>-s<seed>``, safe as a folder's name."""
    text = f"{config.generator.name}-{config.policy.name}-{config.reward.name}-T{config.steps}-s{config.seed}"
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)


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
                return validate(stored).generator
            return GeneratorConfig(name=stored["generator"]["name"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(
                f"{file} is damaged, so the policy's generator is unknown. Restore the file, or give --generator."
            ) from None
    return None


def parse_classes(text: str, generator: Generator) -> list[int]:
    """Class ids of a text such as ``3,17`` or ``face-smiling,3``: ids, names, or the last part of ``A / B`` names.

    Raises:
        ConfigError: not a class-conditional generator, an id out of range, or a name that is unknown or stands for several.
    """
    if generator.context_kind != "class" or generator.num_classes is None:
        raise ConfigError(f"{generator.name} is not class-conditional, so --classes does not apply; leave it out.")
    names = generator.class_names or ()
    ids = []
    for part in (p.strip() for p in text.split(",")):
        if not part:
            continue
        try:
            ids.append(int(part))
            continue
        except ValueError:
            pass
        wanted = part.casefold()
        found = [i for i, n in enumerate(names) if wanted in (n.casefold(), n.casefold().rpartition(" / ")[2])]
        if len(found) != 1:
            short = {n.rpartition(" / ")[2] for n in names}
            why = "stands for several classes" if found else "is unknown"
            raise ConfigError(
                f"class {part!r} of {generator.name} {why}{nearest(part, [*names, *short])} Give names or ids "
                f"0..{generator.num_classes - 1}, separated by commas."
            )
        ids += found
    if not ids:
        raise ConfigError(f"--classes {text!r} names no class; give ids or names, separated by commas.")
    for value in ids:
        if not 0 <= value < generator.num_classes:
            raise ConfigError(
                f"class id {value} is outside 0..{generator.num_classes - 1}, the classes of {generator.name}; give an id in "
                "that range, or a class's name."
            )
    return ids


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line, empty lines left out.

    Raises:
        ConfigError: it cannot be read or holds none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(
            f"cannot read the prompts {path}: {reason}. Give a text file with one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines if line.strip()]
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


def choose_features(generator: Generator, name: str | None) -> str:
    """The feature protocol to judge a generator by: the one named, else its variant's own, else Inception.

    Raises:
        ConfigError: none of them is registered.
    """
    if name is not None:
        return name
    known = _protocols()
    for candidate in (generator.name.partition(":")[2], "inception-fidelity"):
        if candidate in known:
            return candidate
    raise ConfigError(
        f"no feature protocol is known for {generator.name}; give --features, one of: {', '.join(known)}."
    )


def _protocols() -> list[str]:
    """Names of the feature protocols."""
    return [plugin.name for plugin in discover("features") if not plugin.shadowed]


def choose_scorer(generator: Generator, extractor: FeatureExtractor, *, offline: bool = False) -> PromptScorer | None:
    """What gives the CLIP score of a generator with prompts: the feature protocol itself where it reads prompts too, else
    the protocol ``clip-VARIANT`` where one is registered (the embedded generators), else nothing.

    Raises:
        WeightsError: its weights are damaged.
    """
    if generator.context_kind != "text":
        return None
    if isinstance(extractor, PromptScorer):
        return extractor
    name = f"clip-{generator.name.partition(':')[2]}"
    if name not in _protocols():
        return None
    found = create_features(name, device=generator.device, offline=offline)
    return found if isinstance(found, PromptScorer) else None


def require_real_images(generator: Generator, path: str | None, *, progress: Progress | None = None) -> ImageSource:
    """The real images at ``path``, or the generator's own.

    Raises:
        DataError: there are none, or they cannot be used.
    """
    real = images_for(generator, path, progress=progress)
    if real is None:
        raise DataError(f"{generator.name} ships no real images. Give --data FOLDER or FILE.zip.")
    return real


def own_captions(generator: Generator, path: str | None, real: ImageSource | Reference | None) -> ImageSource | None:
    """The images whose captions a text-conditional generator draws its contexts from: those that the user gave, so that it
    makes what it is judged against. None: its own captions.

    Args:
        path: what the user gave as ``--data``. real: what was opened there, or the generator's own images.
    """
    if path is None or generator.context_kind != "text" or isinstance(real, Reference):
        return None
    return real


def real_side(generator: Generator, path: str | None, extractor: FeatureExtractor) -> ImageSource | Reference:
    """What generated images are held against: real images, or their statistics alone.

    Args:
        path: see :func:`require_real_images`; or a file of ``adanat stats``, or a published ``.npz`` with ``mu`` and
            ``sigma``, which does not name its protocol: it is taken to be the extractor's.

    Raises:
        DataError: there is nothing, it cannot be used, or the statistics are of another protocol.
    """
    if path is None or Path(path).suffix not in (".safetensors", ".npz"):
        return require_real_images(generator, path)
    statistics = FeatureStatistics.load(path, extractor.protocol)
    if statistics.protocol != extractor.protocol or len(statistics.mean) != extractor.feature_dim:
        raise DataError(
            f"{path} holds statistics of {statistics.protocol} ({len(statistics.mean)} features), the images are judged by "
            f"{extractor.protocol} ({extractor.feature_dim}); give the matching --features, or make them with adanat stats."
        )
    return Reference(statistics)
