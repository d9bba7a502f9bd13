"""A folder gives way to its successor without a gap: who reads it finds the old one or the new one at all times."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import ReplacedError

P = ParamSpec("P")
R = TypeVar("R")
TRIES = 10
"""Times that a folder is read while a run replaces it; a run needs at least milliseconds from one to the next."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's ``renameat2(2)``."""


def replace_folder(aside: Path, folder: Path) -> None:
    """Put ``aside`` in the place of ``folder``, which may be there already and is removed then.

    In one step where the system can exchange two folders. Elsewhere the old one is moved to ``.NAME.old`` first, where
    :func:`standing` finds it, and after a kill ``RunFolder.recover`` too.

    Raises:
        OSError: they cannot be moved.
    """
    if not folder.exists():
        os.replace(aside, folder)
        return
    if exchange(aside, folder):
        shutil.rmtree(aside, ignore_errors=True)
        return
    previous = previous_of(folder)
    shutil.rmtree(previous, ignore_errors=True)
    os.replace(folder, previous)
    os.replace(aside, folder)
    shutil.rmtree(previous, ignore_errors=True)


ASIDE = ".", ".old"
"""What a folder's name begins and ends with while its successor takes its place."""


def previous_of(folder: Path) -> Path:
    """Where a folder lies while its successor takes its place."""
    return folder.with_name(f"{ASIDE[0]}{folder.name}{ASIDE[1]}")


def standing(folder: Path) -> Path:
    """Where to read a folder that may be replaced at this moment: where it belongs, or where it was moved to."""
    return previous_of(folder) if not os.path.exists(folder) and os.path.isdir(previous_of(folder)) else folder


def gave_way(folder: Path, file: Path) -> bool:
    """Whether a file of ``folder`` that was not found a moment ago can be missing because a successor took its place."""
    moved_aside = folder.name.startswith(ASIDE[0]) and folder.name.endswith(ASIDE[1])
    return moved_aside or os.path.exists(file) or os.path.isdir(previous_of(folder))


def exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; False where that cannot be done, and nothing was changed."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None) if sys.platform == "linux" else None
    if rename is None:
        return False
    code: int = rename(AT_FDCWD, os.fsencode(first), AT_FDCWD, os.fsencode(second), RENAME_EXCHANGE)
    return code == 0


def again_if_replaced(read: Callable[P, R]) -> Callable[P, R]:
    """A function that reads a folder of several files, called again when the folder is replaced in between."""

    @wraps(read)
    def reading(*args: P.args, **kwargs: P.kwargs) -> R:
        for _ in range(TRIES - 1):
            try:
                return read(*args, **kwargs)
            except ReplacedError:
                continue
        return read(*args, **kwargs)

    return reading
