"""Policies inside diffusers: ``apply`` and ``remove`` for classic pipelines."""

from .applied import apply, remove

__all__ = ["apply", "remove"]
