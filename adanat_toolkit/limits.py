"""The largest numbers that are taken, so that a slip of the hand is an error and not a machine without memory."""

from __future__ import annotations

from .errors import ConfigError

MOST_SEED = 2**63 - 1
"""Seeds are int64 (``noise``)."""
MOST_IMAGES = 10**7
"""Of one call: their seeds, contexts and rows are held in memory."""
MOST_STEPS = 1_024
"""T of an image. A schedule is a table of T rows; published samplers take at most 1,000 steps."""
MOST_TRAJECTORIES = 10**10
"""Of a training run; the published one took 4,096,000."""
MOST_WIDTH = 1_024
"""Channels of a distilled decoder."""
LARGEST_FIGURE = 1e100
"""Figures beyond count as infinite: their squares and sums would be."""


def check_steps(steps: int) -> None:
    """Refuse a T that no image takes.

    Raises:
        ConfigError: it is no whole number, less than 1, or more than :data:`MOST_STEPS`.
    """
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise ConfigError(f"steps is {steps!r}; give a whole number, at least 1.")
    if steps < 1:
        raise ConfigError(f"steps is {steps}; a schedule needs at least 1 step.")
    if steps > MOST_STEPS:
        raise ConfigError(f"steps is {steps}; an image takes at most {MOST_STEPS} steps, give fewer.")


def check_seeds(first: int, count: int) -> None:
    """Refuse seeds ``first .. first + count - 1`` that cannot be served.

    Raises:
        ConfigError: there are none or more than :data:`MOST_IMAGES`, or one is below 0 or above :data:`MOST_SEED`.
    """
    if not 1 <= count <= MOST_IMAGES:
        raise ConfigError(f"{count} images are asked for; give at least 1 and at most {MOST_IMAGES}.")
    if first < 0 or first + count - 1 > MOST_SEED:
        raise ConfigError(
            f"seeds {first} to {first + count - 1} are asked for; seeds are whole numbers from 0, below 2^63. Give a "
            "smaller first one (--seed)."
        )
