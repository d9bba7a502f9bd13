"""The installed version."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from .discovery import FIRST_PARTY


def toolkit_version() -> str:
    try:
        return importlib.metadata.version(FIRST_PARTY)
    except importlib.metadata.PackageNotFoundError:
        from ..version import __version__

        return __version__
