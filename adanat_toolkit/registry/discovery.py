"""Plug-ins: found through entry points, loaded when asked for, never able to stop the others.

Groups: ``adanat.generators``, ``adanat.rewards``, ``adanat.policies``, ``adanat.features``, ``adanat.trackers``,
``adanat.engines``.
Discovery reads metadata only (the ``entrypoints`` package) and imports nothing.
"""

from __future__ import annotations

import configparser
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import entrypoints

from ..errors import PluginError, nearest

GROUPS = {
    "generator": "adanat.generators",
    "reward": "adanat.rewards",
    "policy": "adanat.policies",
    "features": "adanat.features",
    "tracker": "adanat.trackers",
    "engine": "adanat.engines",
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
        """Import the class.

        Raises:
            PluginError: whatever the import raised, or what is there is no class of the kind; with the plug-in's name and
                origin.
        """
        module, _, attribute = self.target.partition(":")
        try:
            found = entrypoints.EntryPoint(self.name, module, attribute).load()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.version} could not be loaded from {self.target}: "
                f"{type(error).__name__}: {error}"
            ) from error
        base = base_of(self.kind)
        if not (isinstance(found, type) and issubclass(found, base)):
            what = f"the class {found.__name__}" if isinstance(found, type) else f"a {type(found).__name__}"
            raise PluginError(
                f"{self.kind} {self.name!r} of {self.distribution} {self.version} is {what} ({self.target}); the entry point "
                f"must name a subclass of {base.__name__}, as module:Class."
            )
        return found


def base_of(kind: str) -> type:
    """What a plug-in of a kind is a subclass of."""
    from .. import core

    return {
        "generator": core.Generator,
        "reward": core.RewardModel,
        "policy": core.Policy,
        "features": core.FeatureExtractor,
        "tracker": core.Tracker,
        "engine": core.Engine,
    }[kind]


def features_named_in(protocol: str) -> list[str]:
    """The registered feature protocols that a protocol's identity begins with (their name, then what tells their weights), the
    longest name alone: at most one."""
    names = [plugin.name for plugin in discover("features") if not plugin.shadowed]
    found = [name for name in names if protocol == name or protocol.startswith(f"{name}-")]
    return sorted(found, key=len)[-1:]


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
        for point in _points_of_folder(group, folder, _changed(folder)):
            if seen.setdefault(point.distro.name, folder) == folder:
                yield point


def _changed(folder: str) -> int:
    """When something was last installed in a folder or removed from it."""
    try:
        return os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return 0


@lru_cache(maxsize=1024)
def _points_of_folder(group: str, folder: str, changed: int) -> tuple[entrypoints.EntryPoint, ...]:
    """Read once for each state of the folder: every lookup of a plug-in asks for all of them."""
    try:
        return tuple(entrypoints.get_group_all(group, path=[folder]))
    except (configparser.Error, UnicodeDecodeError):
        return tuple(_readable_entry_points(group, folder))


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
        PluginError: unknown (with the nearest names; nothing is imported for that), or it cannot be loaded.
    """
    plugins = [p for p in discover(kind) if not p.shadowed]
    for plugin in plugins:
        if plugin.name == name:
            return plugin.load()
    names = [p.name for p in plugins]
    raise PluginError(f"unknown {kind} {name!r}{nearest(name, names)} Installed: {', '.join(names) or 'none'}.")
