"""What a generator is judged by, where the user does not say: feature protocol, scorer, real images, captions."""

from __future__ import annotations

import contextlib
import operator
import re
from pathlib import Path
from typing import Any

from ..core import FeatureExtractor, Generator, ImageSource, PromptScorer
from ..errors import ConfigError, DataError, PluginError, nearest
from ..images import ClassCounts, OwnContexts, Progress, class_positions, images_for
from ..metrics import FeatureStatistics, Reference
from ..registry import (
    create_features,
    discover,
    features_named_in,
    load,
)


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


def own_contexts(
    generator: Generator, given: str | ImageSource | None, real: ImageSource | Reference | None
) -> OwnContexts | None:
    """What the generator draws its contexts from where the user gave images: their captions or classes, so that it is trained
    and judged on what they show. None: its own distribution.

    Args:
        given: what the user gave as ``--data``. real: what was opened there, or the generator's own images.
    """
    if given is None or real is None or generator.context_kind == "none":
        return None
    if isinstance(real, Reference):
        counts = real.statistics.card.get("classes")
        if counts is None or generator.context_kind != "class":
            return None
        return ClassCounts.read(generator, counts, real.statistics.count)
    return real if generator.context_kind == "text" else ClassCounts.of(generator, real)


def is_statistics(path: str) -> bool:
    """Whether a path names a file of statistics, not images."""
    return Path(path).suffix in (".safetensors", ".npz")


def real_side(generator: Generator, path: str | None, extractor: FeatureExtractor) -> ImageSource | Reference:
    """What generated images are held against: real images, or their statistics alone.

    Args:
        path: see :func:`require_real_images`; or a file of ``adanat stats``, or a published ``.npz`` with ``mu`` and
            ``sigma``, which does not name its protocol: it is taken to be the extractor's.

    Raises:
        DataError: there is nothing, it cannot be used, or the statistics are of another protocol or of images of another
            size.
    """
    if path is None or not is_statistics(path):
        return require_real_images(generator, path)
    statistics = FeatureStatistics.load(path, extractor.protocol)
    width = len(statistics.mean)
    if statistics.protocol != extractor.protocol or width != extractor.feature_dim:
        named = Path(path).suffix == ".safetensors"
        own = features_named_in(extractor.protocol)
        fitting = features_named_in(statistics.protocol) if named else _features_of_width(width)
        if fitting and fitting != own:
            remedy = f"give --features {' or '.join(fitting)}, which they fit"
        elif fitting:
            remedy = f"they were made with other weights of {own[0]}"
        else:
            remedy = "no protocol that is installed fits them"
        again = f"adanat stats --generator {generator.name}" + "".join(f" --features {name}" for name in own)
        what = f"statistics of {statistics.protocol}" if named else "statistics"
        raise DataError(
            f"{path} holds {what} ({width} features), and the images are judged by {extractor.protocol} "
            f"({extractor.feature_dim} features): {remedy}, or make them again with {again}."
        )
    statistics.require_size(generator, path)
    return Reference(statistics)


def _features_of_width(width: int) -> list[str]:
    """Names of the feature protocols that say, before they are loaded, that they have so many features."""
    found = []
    for name in _protocols():
        with contextlib.suppress(PluginError):
            if load("features", name).feature_dim == width:
                found.append(name)
    return found


_NUMBER = re.compile(r"[+-]?[0-9]+")
"""``int`` reads more: 1_0 as 10, and the digits of other scripts."""


def class_id(value: Any, generator: Generator) -> int:
    """The id of a class: a whole number, one as text, a name, or the last part of an ``A / B`` name.

    Raises:
        ConfigError: not a class-conditional generator, an id out of range, or a name that is unknown or stands for several.
    """
    if generator.context_kind != "class" or generator.num_classes is None:
        raise ConfigError(f"{generator.name} is not class-conditional, so classes do not apply; leave them out.")
    try:
        if isinstance(value, bool) or (isinstance(value, str) and not _NUMBER.fullmatch(value.strip())):
            raise ValueError
        number = int(value) if isinstance(value, str) else operator.index(value)
    except (TypeError, ValueError):  # of an integer with more digits than Python reads, too
        names = generator.class_names or ()
        found = class_positions(str(value), names)
        if len(found) != 1:
            short = {n.rpartition(" / ")[2] for n in names}
            why = "stands for several classes" if found else "is unknown"
            raise ConfigError(
                f"class {value!r} of {generator.name} {why}{nearest(str(value), [*names, *short])} Give names or ids "
                f"0..{generator.num_classes - 1}."
            ) from None
        number = found[0]
    if not 0 <= number < generator.num_classes:
        raise ConfigError(
            f"class id {number} is outside 0..{generator.num_classes - 1}, the classes of {generator.name}; give an id in "
            "that range, or a class's name."
        )
    return number
