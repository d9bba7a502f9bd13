"""Policies that ship with the toolkit, trained on the embedded generators (benchmarks/ has their figures)."""

from __future__ import annotations

import json
from pathlib import Path

from adanat_toolkit.interfaces import Generator

from .emoji64 import FOLDER


def pretrained_policy(generator: Generator, steps: int | None = None) -> Path | None:
    """The folder of the policy that ships for a generator with just these weights (and as many steps, if given), or None."""
    family, _, variant = generator.name.partition(":")
    folder = FOLDER / "policies" / family
    card = folder / "policy.json"
    if variant != "emoji64" or not card.is_file():
        return None
    facts = json.loads(card.read_text(encoding="utf-8"))
    fits = steps is None or steps == facts["action_space"].get("steps", len(facts["action_space"]["schedule"]))
    return folder if fits and facts["generator"]["fingerprint"] == generator.fingerprint else None
