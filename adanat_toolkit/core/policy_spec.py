"""How a policy is written: ``fixed[:SCHEDULE|:SAMPLER]``, a path or hub id, or a blend ``A*0.7+B*0.3`` of such.

What stands before a ``*`` and a number, at the end of a text or before a ``+``, is a part of a blend.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from ..errors import ConfigError

FIXED = "fixed"
_NUMBER = r"(?:[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|inf)"
_MARK = re.compile(rf"\*\s*{_NUMBER}\s*(?:\+|$)")
_PART = re.compile(rf"(?P<text>.+?)\*\s*(?P<weight>{_NUMBER})\s*(?:\+|$)")


@dataclass(frozen=True)
class PolicyTerm:
    """One policy of a spec: ``text`` is ``fixed``, ``fixed:SCHEDULE``, or a place (a path, or a hub id)."""

    text: str

    @property
    def fixed(self) -> bool:
        """Whether it is hand-made."""
        return self.text.partition(":")[0] == FIXED

    @property
    def schedule(self) -> str:
        """Schedule or sampler of a hand-made one; empty for the generator's own."""
        return self.text.partition(":")[2] if self.fixed else ""


@dataclass(frozen=True)
class PolicySpec:
    """One policy (no weights), or a blend: a weight for each of two or more terms.

    Raises:
        ConfigError: a weight outside [0, 1], or weights that do not sum to 1.
    """

    terms: tuple[PolicyTerm, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if len(self.weights) != (len(self.terms) if len(self.terms) > 1 else 0) or not self.terms:
            raise ConfigError(
                f"a policy of {len(self.terms)} parts and {len(self.weights)} weights cannot be read; write one policy, or "
                "a blend of two or more such as A*0.7+B*0.3."
            )
        for term, weight in zip(self.terms, self.weights, strict=False):
            if not 0 <= weight <= 1:
                raise ConfigError(f"weight {weight:g} of policy {term.text!r} in a blend must lie in [0, 1].")
        if self.weights and not math.isclose(sum(self.weights), 1, abs_tol=1e-6):
            shown = " + ".join(map(_print, self.weights))
            raise ConfigError(
                f"the weights of blend {str(self)!r} sum to {sum(self.weights):.9g} ({shown}); they must sum to 1."
            )

    @property
    def blend(self) -> bool:
        return bool(self.weights)

    @property
    def fixed(self) -> bool:
        """Whether all of it is hand-made."""
        return all(term.fixed for term in self.terms)

    @property
    def places(self) -> tuple[str, ...]:
        """Paths and hub ids of the learned policies in it."""
        return tuple(term.text for term in self.terms if not term.fixed)

    @classmethod
    def parse(cls, text: str | os.PathLike[str]) -> PolicySpec:
        """The inverse of ``str``. A path that exists is no blend, whatever its name looks like.

        Raises:
            ConfigError: naming the part that does not fit.
        """
        text = os.fspath(text)
        if _MARK.search(text) is None or os.path.exists(text):
            return cls((PolicyTerm(text),))
        terms, weights, at = [], [], 0
        while at < len(text) or text.endswith("+"):
            part = _PART.match(text, at)
            if part is None or not part["text"].strip():
                raise ConfigError(
                    f"blend {text!r} has the part {text[at:]!r}; write a policy and its weight for each, such as A*0.7+B*0.3."
                )
            terms.append(PolicyTerm(part["text"].strip()))
            weights.append(float(part["weight"]))
            at = part.end()
        if len(terms) == 1:
            raise ConfigError(f"blend {text!r} has one policy; write two or more, such as A*0.7+B*0.3, or no weight.")
        return cls(tuple(terms), tuple(weights))

    def __str__(self) -> str:
        if not self.weights:
            return self.terms[0].text
        return "+".join(f"{term.text}*{_print(weight)}" for term, weight in zip(self.terms, self.weights, strict=True))


def _print(weight: float) -> str:
    """Every digit that makes a difference: what is printed is read again."""
    return repr(float(weight)).removesuffix(".0")
