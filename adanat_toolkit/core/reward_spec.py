"""How a reward is written: ``NAME``, ``NAME:VARIANT``, or a mixture ``NAME[:VARIANT]:WEIGHT,NAME[:VARIANT]:WEIGHT``.

A part after a name that reads as a number is a weight; any other is a variant. One term with a weight is a mixture of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class RewardTerm:
    """One reward of a spec: ``name``, and ``variant`` where one is written.

    Raises:
        ConfigError: there is no name, or a part that would be read back as something else.
    """

    name: str
    variant: str | None = None

    def __post_init__(self) -> None:
        if not self.name or self.variant == "":
            raise ConfigError(
                f"reward {self.name!r} with variant {self.variant!r} is incomplete; write NAME or NAME:VARIANT."
            )
        for part in (self.name, self.variant):
            if part is not None and ("," in part or part != part.strip()):
                raise ConfigError(
                    f"{part!r} in a reward must hold no comma and no space at its ends; write NAME:VARIANT."
                )
        if ":" in self.name or (self.variant is not None and _weight(self.variant.rpartition(":")[2]) is not None):
            raise ConfigError(
                f"reward {self.name!r} with variant {self.variant!r} cannot be told from a name with a weight."
            )

    def __str__(self) -> str:
        return self.name if self.variant is None else f"{self.name}:{self.variant}"


@dataclass(frozen=True)
class RewardSpec:
    """What a text asks for: one reward as it is (no weights), or a mixture (a weight for each term, in their order).

    Raises:
        ConfigError: no term or one that repeats, or a weight that is 0 or not finite.
    """

    terms: tuple[RewardTerm, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms or len(self.weights) not in ({0, 1} if len(self.terms) == 1 else {len(self.terms)}):
            raise ConfigError(
                f"a reward has {len(self.terms)} terms and {len(self.weights)} weights; give one for each term."
            )
        for term, weight in zip(self.terms, self.weights, strict=False):
            if not math.isfinite(weight) or weight == 0:
                raise ConfigError(f"weight {weight:g} of reward {str(term)!r} must be a finite number other than 0.")
        twice = [str(term) for position, term in enumerate(self.terms) if term in self.terms[:position]]
        if twice:
            raise ConfigError(f"reward {str(self)!r} names {twice[0]!r} twice; add up its weights.")

    @property
    def mixture(self) -> bool:
        """Whether it is a weighted sum of standardised rewards, not one reward as it is."""
        return bool(self.weights)

    @classmethod
    def parse(cls, text: str) -> RewardSpec:
        """The inverse of ``str``. In a mixture the weight is 1 where none is written.

        Raises:
            ConfigError: naming the part that does not fit.
        """
        terms: list[RewardTerm] = []
        weights: list[float | None] = []
        for part in text.split(","):
            head, _, tail = part.strip().rpartition(":")
            weight = _weight(tail) if head else None
            name, colon, variant = (part.strip() if weight is None else head).partition(":")
            if not name.strip() or (colon and not variant.strip()):
                raise ConfigError(
                    f"reward {text!r} has the part {part!r}; write NAME, NAME:VARIANT or NAME:WEIGHT,NAME:WEIGHT."
                )
            terms.append(RewardTerm(name.strip(), variant.strip() if colon else None))
            weights.append(weight)
        if len(terms) == 1 and weights[0] is None:
            return cls(tuple(terms))
        return cls(tuple(terms), tuple(1.0 if weight is None else weight for weight in weights))

    def __str__(self) -> str:
        if not self.weights:
            return str(self.terms[0])
        return ",".join(f"{term}:{_print(weight)}" for term, weight in zip(self.terms, self.weights, strict=True))


def _print(weight: float) -> str:
    return repr(float(weight)).removesuffix(".0")


def _weight(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
