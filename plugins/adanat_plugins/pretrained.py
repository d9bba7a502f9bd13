"""Policies that ship with the toolkit, trained on the embedded generators (benchmarks/ has their figures)."""

from __future__ import annotations

import json
from pathlib import Path

from adanat_toolkit.interfaces import Generator

from .emoji64 import FOLDER


def pretrained_policy(generator: Generator, steps: int | None = None) -> Path | None:
    """The folder of the policy that ships for a generator with just these weights, or None.

    ``policies/FAMILY`` is the one where nothing is said of ``steps``; ``policies/FAMILY-TN`` is for N steps alone.
    """
    family, _, variant = generator.name.partition(":")
    names = [] if variant != "emoji64" else [family] if steps is None else [f"{family}-T{steps}", family]
    for card in (FOLDER / "policies" / name / "policy.json" for name in names):
        if card.is_file():
            facts = json.loads(card.read_text(encoding="utf-8"))
            own = facts["action_space"].get("steps", len(facts["action_space"]["schedule"]))
            if steps in (None, own) and facts["generator"]["fingerprint"] == generator.fingerprint:
                return card.parent
    return None
