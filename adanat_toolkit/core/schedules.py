"""Hand-made schedules: the baselines, and what residual actions are added to.

A schedule gives every knob one physical value a step. On the command line it is a short text,
``cosine,guidance=0:3,mask_temperature=4.5:0,token_temperature=1``: first the curve of the masking ratio, then any knob
either constant (``1``), linear from the first to the last step (``0:3``), along a power of the way (``0:3^2``), or one value
a step (``0/1/2/3``). A generator without the knob ``mask_ratio`` needs no curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import ConfigError, nearest
from ..limits import check_steps
from .actions import ActionSpace, Knob


def cosine(r: float) -> float:
    """cos(pi r / 2): MaskGIT section 3.3, the usual choice. r = (t + 1) / T."""
    return math.cos(math.pi * r / 2)


RATIO_CURVES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "linear": lambda r: 1 - r,
    "square": lambda r: 1 - r**2,
    "cubic": lambda r: 1 - r**3,
    "sqrt": lambda r: 1 - math.sqrt(r),
    "arccos": lambda r: 2 / math.pi * math.acos(r),
}
"""Masked share after step t of T as a function of r = (t + 1) / T (MaskGIT figure 8; arccos: Halton-MaskGIT)."""

ADANAT_SHIFT = 0.001
"""The published heuristic evaluates its curves 0.001 steps early, which keeps their raw values finite."""


def adanat_heuristic(knobs: Sequence[Knob], steps: int) -> Tensor:
    """The schedule the published AdaNAT adds with ``--heu 1``: (T, len(knobs)) float64.

    With q = (t + 1 - 0.001) / T: ratio cos(pi q / 2), mask temperature 1 - q, token temperature 1, guidance (t + 0.001) / T.
    """
    rows = []
    for t in range(steps):
        q = (t + 1 - ADANAT_SHIFT) / steps
        values = {
            "mask_ratio": cosine(q),
            "mask_temperature": 1 - q,
            "token_temperature": 1.0,
            "guidance": (t + ADANAT_SHIFT) / steps,
        }
        rows.append([values.get(k.name, _neutral(k)) for k in knobs])
    return torch.tensor(rows, dtype=torch.float64)


def linear(first: float, last: float, steps: int) -> list[float]:
    """``steps`` values from first to last, both included; one step gives the last value."""
    if steps == 1:
        return [last]
    # The last value as given: by the formula, 0.1:0 in 4 steps would end at -1e-17, which no knob accepts.
    return [*(first + (last - first) * t / (steps - 1) for t in range(steps - 1)), last]


def powered(first: float, last: float, power: float, steps: int) -> list[float]:
    """first + (last - first) (t / (steps - 1))^power: a power above 1 stays longer near the first value, 1 is linear."""
    shares = [share**power for share in linear(0.0, 1.0, steps)]
    return [*(first + (last - first) * share for share in shares[:-1]), last]


def parse_schedule(text: str, space: ActionSpace, steps: int) -> Tensor:
    """The physical values of a schedule text: (T, len(knobs)) float64.

    Args:
        text: see the module's docstring; ``adanat`` alone is the published heuristic.
        space: the generator's action space (names and ranges of its knobs).
        steps: rows of the table, at least 1 (``Generator.decisions`` of T).

    Raises:
        ConfigError: unknown curve or knob, a value out of range, or a list of another length than T.
    """
    check_steps(steps)
    head, *rest = [part.strip() for part in text.split(",") if part.strip()] or [""]
    without_curve = "=" in head
    if without_curve:
        if "mask_ratio" in space.names:
            raise ConfigError(f"schedule {text!r} must begin with a ratio curve ({', '.join(RATIO_CURVES)} or adanat).")
        rest = [head, *rest]
    if head == "adanat":
        table = adanat_heuristic(space.knobs, steps)
    elif without_curve or head in RATIO_CURVES:
        rows = [[_neutral(k) for k in space.knobs] for _ in range(steps)]
        table = torch.tensor(rows, dtype=torch.float64)
        if "mask_ratio" in space.names:
            curve = [RATIO_CURVES[head]((t + 1) / steps) for t in range(steps)]
            table[:, space.names.index("mask_ratio")] = torch.tensor(curve, dtype=torch.float64).clamp_min(0)
    else:
        known = [*RATIO_CURVES, "adanat"]
        raise ConfigError(f"unknown schedule {head!r}{nearest(head, known)} Known: {', '.join(known)}.")
    for part in rest:
        name, _, value = part.partition("=")
        if name not in space.names:
            raise ConfigError(
                f"schedule {text!r}: no knob {name!r}{nearest(name, space.names)} Knobs: {', '.join(space.names)}."
            )
        table[:, space.names.index(name)] = torch.tensor(_values(part, value, steps), dtype=torch.float64)
    for column, knob in enumerate(space.knobs):
        if knob.neutral is None and bool(table[:, column].isnan().any()):
            raise ConfigError(f"schedule {text!r} says nothing of {knob.name!r}, which has no neutral value; add it.")
        knob.check(table[:, column])
    return table


def _neutral(knob: Knob) -> float:
    return math.nan if knob.neutral is None else knob.neutral


def _values(part: str, value: str, steps: int) -> list[float]:
    """What ``KNOB=VALUE`` says of each step; ``part`` is all of it, for errors."""

    def number(text: str) -> float:
        read = float(text)
        if not math.isfinite(read):
            raise ConfigError(f"{part!r} has the value {text.strip()}; write finite numbers.")
        return read

    try:
        if ":" in value:
            ends, *powers = value.split("^")
            first, last = map(number, ends.split(":"))
            if not powers:
                return linear(first, last, steps)
            (power,) = map(number, powers)
            if power <= 0:
                raise ConfigError(f"{part!r} has the power {power:g}; it must be above 0, and 1 is linear.")
            return powered(first, last, power, steps)
        values = [number(v) for v in value.split("/")]
    except ValueError:
        raise ConfigError(
            f"cannot read {part!r}; write a number, FIRST:LAST, FIRST:LAST^POWER, or one value a step as A/B/C."
        ) from None
    if len(values) == 1:
        return values * steps
    if len(values) != steps:
        raise ConfigError(f"{part!r} lists {len(values)} values for {steps} steps; give one value a step.")
    return values
