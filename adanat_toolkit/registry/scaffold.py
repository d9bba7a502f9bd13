"""``adanat plugins new``: a small installable project with a plug-in that works, its contract test and a README."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata, util
from importlib.resources import files
from pathlib import Path
from string import Template

from ..errors import ConfigError, OutputError, PluginError, nearest
from ..storage import holds_files, prepare_folder, write_file
from .discovery import FIRST_PARTY, GROUPS, discover
from .version import toolkit_version

KINDS = ("generator", "reward", "policy")
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")

_PROJECT = """\
[build-system]
requires = ["setuptools>=70.1"]
build-backend = "setuptools.build_meta"

[project]
name = "adanat-$name"
version = "0.1.0"
description = "The $kind $name for adanat-toolkit"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["adanat-toolkit>=$version"]

[project.entry-points."$group"]
$name = "$module:$class_name"

[tool.setuptools]
py-modules = ["$module"]
"""

_README = """\
# adanat-$name

The $kind `$name` for [adanat-toolkit](https://pypi.org/project/adanat-toolkit/).

```sh
pip install -e .
adanat plugins check $name --kind $kind
python -m pytest
$use
```

The plug-in is `$module.py`; `pyproject.toml` registers it under the entry-point group `$group`. The contract it keeps, with
shapes, units and errors, is in `adanat_toolkit.interfaces`; `docs/writing-a-plugin.md` of the toolkit explains each kind.
"""

_TEST = """\
\"\"\"The contract tests of the toolkit, on the installed plug-in.\"\"\"

from __future__ import annotations

from adanat_toolkit.testing.check import check_plugin


def test_contract() -> None:
    outcomes = check_plugin("$name", kind="$kind")
    assert [f"{o.check} {o.error}" for o in outcomes if o.error is not None] == []
"""

_USE = {
    # Nothing is the default for generators of others: what judges must be named.
    "generator": r"""# The embedded CLIP judges. It needs no files, but knows emoji alone.
adanat train --generator $name --reward clip-score --set reward.options.model=emoji64 --steps 4 --trajectories 1024
# Better: images of your own, in a folder for each class. Without backbone=none it wants the weights of DINO.
adanat train --generator $name --reward adversarial --data FOLDER --set reward.options.backbone=none \
  --steps 4 --trajectories 1024""",
    "reward": "adanat train --reward $name --steps 4 --trajectories 1024",
    "policy": "adanat train --policy $name --steps 4 --trajectories 1024",
}


def new_plugin(name: str, kind: str, folder: Path | None = None) -> Path:
    """Write a project: ``pyproject.toml``, one module, ``tests/test_contract.py``, ``README.md``.

    Args:
        name: what users will type: small letters, digits and single hyphens. kind: one of ``KINDS``.
        folder: where; default ``./adanat-NAME``.

    Returns:
        The folder.

    Raises:
        ConfigError: the name or the kind does not fit. PluginError: an installed plug-in of the kind has the name, or
            something installed has the module or the distribution that the project would make.
        OutputError: the folder is not empty or cannot be written.
    """
    if kind not in KINDS:
        raise ConfigError(f"cannot write a plug-in of kind {kind!r}{nearest(kind, KINDS)} Kinds: {', '.join(KINDS)}.")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"plug-in name {name!r}: use small letters, digits and single hyphens, such as my-{kind}.")
    taken = [plugin for plugin in discover(kind) if plugin.name == name]
    if taken:
        raise PluginError(f"{taken[0].distribution} already has a {kind} {name!r}; choose another name.")
    module = f"adanat_{name.replace('-', '_')}"
    _refuse_taken(name, module)
    target = folder or Path(f"adanat-{name}")
    if target.exists() and (not target.is_dir() or holds_files(target)):
        raise OutputError(f"{target} exists and is not empty; give another --out.")
    values = {
        "name": name,
        "kind": kind,
        "group": GROUPS[kind],
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("-")) + kind.capitalize(),
        "version": toolkit_version(),
        "colours": "12",
    }
    values["use"] = Template(_USE[kind]).substitute(values)
    source = (files(__package__) / "templates" / f"{kind}.txt").read_text(encoding="utf-8")
    prepare_folder(target)
    for path, text in {
        "pyproject.toml": _PROJECT,
        "README.md": _README,
        f"{values['module']}.py": source,
        "tests/test_contract.py": _TEST,
    }.items():
        write_file(target / path, Template(text).substitute(values))
    return target


def _refuse_taken(name: str, module: str) -> None:
    """
    Raises:
        PluginError: ``pip install`` of the project would replace a distribution that is there, or hide a module.
    """
    distribution = f"adanat-{name}"
    there = distribution == FIRST_PARTY
    with contextlib.suppress(metadata.PackageNotFoundError):
        there = there or bool(metadata.version(distribution))
    found = None
    with contextlib.suppress(ValueError):  # a module that is loaded and does not say from where
        found = util.find_spec(module)
    if there or (found is not None and found.origin is not None):  # a folder of that name is no module
        what = f"distribution {distribution!r}" if there else f"module {module!r}"
        raise PluginError(
            f"the {what} is installed already, and the project would replace it; choose another name than {name!r}."
        )
