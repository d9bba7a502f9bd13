"""Policies that ship with the toolkit, trained on the embedded generators (benchmarks/ has their figures)."""

from __future__ import annotations

import json
from pathlib import Path

from adanat_toolkit.interfaces import Generator

from .emoji64 import FOLDER


def pretrained_policy(generator: Generator) -> Path | None:
    """The folder of the policy that ships for a generator with just these weights, or None."""
    family, _, variant = generator.name.partition(":")
    folder = FOLDER / "policies" / family
    card = folder / "policy.json"
    if variant != "emoji64" or not card.is_file():
        return None
    made_for = json.loads(card.read_text(encoding="utf-8"))["generator"]["fingerprint"]
    return folder if made_for == generator.fingerprint else None
