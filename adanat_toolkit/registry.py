"""Plug-ins: found through entry points, loaded when asked for, never able to stop the others.

Groups: ``adanat.generators``, ``adanat.rewards``, ``adanat.policies``, ``adanat.features``, ``adanat.trackers``.
Discovery reads metadata only (the ``entrypoints`` package) and imports nothing.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import entrypoints
from pydantic import BaseModel, ValidationError

from .errors import ConfigError, PluginError, nearest

if TYPE_CHECKING:
    import torch

    from .interfaces import FeatureExtractor, Generator, ImageSource, PluginOptions, RewardModel

GROUPS = {
    "generator": "adanat.generators",
    "reward": "adanat.rewards",
    "policy": "adanat.policies",
    "features": "adanat.features",
    "tracker": "adanat.trackers",
}
FIRST_PARTY = "adanat-toolkit"


@dataclass(frozen=True)
class PluginInfo:
    """One entry point.

    Attributes:
        kind: a key of :data:`GROUPS`. name: what users type. target: ``module:attribute``.
        distribution, version: where it comes from.
        shadowed: another distribution registered the same name and wins; this one cannot be used.
    """

    kind: str
    name: str
    target: str
    distribution: str
    version: str
    shadowed: bool = False

    def load(self) -> Any:
        """Import the object.

        Raises:
            PluginError: whatever the import raised, with the plug-in's name and origin.
        """
        module, _, attribute = self.target.partition(":")
        try:
            return entrypoints.EntryPoint(self.name, module, attribute).load()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.version} could not be loaded from {self.target}: "
                f"{type(error).__name__}: {error}"
            ) from error


def discover(kind: str) -> list[PluginInfo]:
    """All plug-ins of a kind, sorted by name; of two with one name the first-party one wins, then the alphabetical first."""
    found = []
    for point in _entry_points(GROUPS[kind]):
        target = f"{point.module_name}:{point.object_name or ''}"
        distribution = point.distro.name.replace("_", "-")
        found.append(PluginInfo(kind, point.name, target, distribution, point.distro.version or "?"))
    ordered = sorted(found, key=lambda p: (p.name, p.distribution != FIRST_PARTY, p.distribution, p.target))
    seen: set[str] = set()
    out = []
    for plugin in ordered:
        out.append(PluginInfo(**{**vars(plugin), "shadowed": plugin.name in seen}))
        seen.add(plugin.name)
    return out


def _entry_points(group: str) -> Iterator[entrypoints.EntryPoint]:
    """Entry points of a group; of a distribution that is on the path twice, the first one's."""
    seen: dict[str, str] = {}
    for folder in dict.fromkeys(sys.path):
        try:
            points = entrypoints.get_group_all(group, path=[folder])
        except (configparser.Error, UnicodeDecodeError):
            points = _readable_entry_points(group, folder)
        for point in points:
            if seen.setdefault(point.distro.name, folder) == folder:
                yield point


def _readable_entry_points(group: str, folder: str) -> Iterator[entrypoints.EntryPoint]:
    """Entry points of a folder one of whose distributions has a malformed entry_points.txt, which is skipped."""
    for file in sorted(Path(folder).glob("*.*-info/entry_points.txt")):
        parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",))
        try:
            parser.read(file)
        except (configparser.Error, UnicodeDecodeError) as error:
            warnings.warn(f"{file} cannot be read, its plug-ins are ignored: {error}", stacklevel=2)
            continue
        distribution = entrypoints.Distribution.from_name_version(file.parent.stem)
        for name, target in parser[group].items() if group in parser else ():
            with entrypoints.BadEntryPoint.err_to_warnings():
                yield entrypoints.EntryPoint.from_string(target, name, distribution)


def load(kind: str, name: str) -> Any:
    """The plug-in object of that name.

    Raises:
        PluginError: unknown (with the nearest names and the plug-ins that do not load), or it cannot be loaded.
    """
    plugins = [p for p in discover(kind) if not p.shadowed]
    for plugin in plugins:
        if plugin.name == name:
            return plugin.load()
    names = [p.name for p in plugins]
    from .plugin_probe import probe

    foreign = [plugin for plugin in plugins if plugin.distribution != FIRST_PARTY]
    broken = [state["error"] for state in probe(foreign, time_limit=5.0) if state["status"] != "ok"]
    message = f"unknown {kind} {name!r}{nearest(name, names)} Installed: {', '.join(names) or 'none'}."
    if broken:
        message += " Not loadable: " + "; ".join(broken)
    raise PluginError(message)


def parse_options(owner: str, model: type[PluginOptions], values: Mapping[str, Any]) -> PluginOptions:
    """Validate plug-in options.

    Raises:
        ConfigError: an unknown key (with the nearest ones) or a value that does not fit.
    """
    try:
        return model(**values)
    except ValidationError as error:
        raise ConfigError(explain(error, model, f"options of {owner}")) from None


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """A validation error in one sentence a fault: the key, the value, what is expected."""
    parts = []
    for fault in error.errors():
        key = ".".join(str(p) for p in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _fields(model, fault["loc"][:-1])
            parts.append(f"unknown key {key!r}{nearest(str(fault['loc'][-1]), known)} Known: {', '.join(known)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            whole = isinstance(fault["input"], Mapping | BaseModel)  # settings that contradict each other
            parts.append(": ".join(filter(None, [key, message])) if whole else f"{key} = {fault['input']!r}: {message}")
    return f"{where}: " + "; ".join(parts) + "."


def _fields(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    for part in path:
        annotation = model.model_fields[str(part)].annotation if str(part) in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)


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
    name, _, variant = spec.partition(":")
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
    values = dict(options or {})
    name, _, variant = spec.partition(":")
    if "," in spec or _is_number(variant):
        name, values = "mix", {"terms": spec, **values}
    elif variant:
        values = {"variant": variant, **values}
    reward_class = load("reward", name)
    parsed = parse_options(f"reward {name!r}", reward_class.Options, values)
    if "real_images" in reward_class.needs and real is None:
        from .errors import DataError

        raise DataError(
            f"reward {name!r} needs real images, and {generator.name} ships none. Give --data FOLDER or FILE.zip."
        )
    return reward_class(parsed, generator=generator, real=real, device=device, seed=seed)


def create_features(
    name: str, options: Mapping[str, Any] | None = None, *, device: torch.device, offline: bool = False
) -> FeatureExtractor:
    """A feature protocol by name.

    Raises:
        PluginError: the name is unknown or does not load.
        WeightsError: weights are missing or damaged.
    """
    return load("features", name).create(dict(options or {}), device=device, offline=offline)


def toolkit_version() -> str:
    try:
        return importlib.metadata.version(FIRST_PARTY)
    except importlib.metadata.PackageNotFoundError:
        from . import __version__

        return __version__


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
