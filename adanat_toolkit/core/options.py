"""Options of plug-ins."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class PluginOptions(BaseModel):
    """Base of every plug-in's ``Options``: frozen, unknown keys are rejected with suggestions."""

    model_config = ConfigDict(frozen=True, extra="forbid")
