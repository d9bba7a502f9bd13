"""The best of many hand-made schedules: the baseline that had as many generated images as a learned policy.

Successive halving over candidates of one :data:`SEARCHES`: whole schedules drawn at random from :class:`SearchSpace`, or
the guidance alone, constant or in an interval. The candidates are scored on the yardstick itself, which a learned policy
never sees; what is reported afterwards is scored anew, on fresh seeds (see ``compare``).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ..core import RATIO_CURVES, Generator, parse_schedule
from ..errors import ConfigError, nearest
from ..evaluation import Yardstick
from ..limits import MOST_IMAGES
from ..metrics import FeatureStatistics, frechet_distance
from ..policies import load_policy
from ..sampling import seed_range

ROUNDS, KEPT = 3, 4
"""Rounds, among which the images are split evenly; one candidate in so many goes on to the next round."""
MINIMUM = 16
"""Fewer images than this rank no candidates."""
SEARCH_SEED = 2**41
"""First seed of the images of a search: neither those of training, nor of the held-out readings, nor of the table."""

Progress = Callable[[int, int], None]
SEARCHES = {"schedule": "search", "constant": "search-constant", "interval": "search-interval"}
"""Kinds of search, and the policy that each is called in a table."""


@dataclass(frozen=True)
class SearchSpace:
    """What is searched; every choice uniform and independent. Knobs that the generator does not have are left out.

    Attributes:
        curves: of the mask ratio (``schedules.RATIO_CURVES``).
        guidance_start, guidance_end: at the first and at the last step, linear in between.
        mask_temperature_start: at the first step, falling linearly to 0 at the last, as every published schedule does.
        token_temperature: the same at all steps.
        time_from_start, time_from_end: how far the first time lies from the noise, and the last one from the image.
        time_power: of the way between them (see ``schedules.powered``).
        top_k: share of the vocabulary. top_p: share of the probability. Both the same at all steps.
        time_shift, eta: the same at all steps.
        guidance: of the kinds ``constant`` and ``interval``.
    """

    curves: tuple[str, ...] = tuple(RATIO_CURVES)
    guidance_start: tuple[float, float] = (0.0, 4.0)
    guidance_end: tuple[float, float] = (0.0, 8.0)
    mask_temperature_start: tuple[float, float] = (0.0, 12.0)
    token_temperature: tuple[float, float] = (0.7, 1.3)
    time_from_start: tuple[float, float] = (0.0, 0.3)
    time_from_end: tuple[float, float] = (0.005, 0.1)
    time_power: tuple[float, float] = (0.5, 2.0)
    top_k: tuple[float, float] = (0.05, 1.0)
    top_p: tuple[float, float] = (0.7, 1.0)
    time_shift: tuple[float, float] = (0.35, 0.65)
    eta: tuple[float, float] = (0.0, 1.0)
    guidance: tuple[float, float] = (0.0, 6.0)

    def candidates(self, kind: str, generator: Generator, steps: int, count: int, dice: random.Random) -> list[str]:
        """``count`` schedule texts, the generator's best known one first. The kinds leave all its knobs but the guidance as
        it has them:

        ``constant``: guidance evenly spaced, the same at all steps. ``interval``: one guidance on the steps from a to b, and
        none at the others (Kynkaanniemi et al. 2024); guidance, and a and b together, uniform.

        Raises:
            ConfigError: unknown kind, or one of the guidance for a generator that has none.
        """
        check_kind(kind, generator)
        own = generator.default_schedule
        if kind == "schedule":
            return [own, *(self.draw(generator, dice) for _ in range(count - 1))]
        rest = [part for part in own.split(",") if not part.strip().startswith("guidance=")]
        low, high = self.guidance
        if kind == "constant":
            shares = [i / max(count - 2, 1) for i in range(count - 1)]
            found = [f"{low + (high - low) * share:.3g}" for share in shares]
        else:
            decisions = generator.decisions(steps)
            pairs = [(a, b) for a in range(decisions) for b in range(a, decisions)]
            found = []
            for _ in range(count - 1):
                (first, last), value = dice.choice(pairs), f"{dice.uniform(low, high):.3g}"
                found.append("/".join(value if first <= i <= last else "0" for i in range(decisions)))
        return [own, *(",".join([*rest, f"guidance={values}"]) for values in found)]

    def draw(self, generator: Generator, dice: random.Random) -> str:
        """One schedule text."""
        names = generator.action_space.names
        curve = dice.choice(self.curves)
        guidance = dice.uniform(*self.guidance_start), dice.uniform(*self.guidance_end)
        mask = dice.uniform(*self.mask_temperature_start)
        token = dice.uniform(*self.token_temperature)
        parts = [curve] if "mask_ratio" in names else []
        if "time" in names:
            parts.append(self._times(generator, dice))
        if "guidance" in names:
            parts.append(f"guidance={guidance[0]:.2f}:{guidance[1]:.2f}")
        if "mask_temperature" in names:
            parts.append(f"mask_temperature={mask:.2f}:0")
        if "token_temperature" in names:
            parts.append(f"token_temperature={token:.2f}")
        if "top_k" in names:
            most = generator.action_space.knobs[names.index("top_k")].high
            parts.append(f"top_k={dice.uniform(*self.top_k) * most:.0f}")
        if "top_p" in names:
            parts.append(f"top_p={dice.uniform(*self.top_p):.3f}")
        for name in ("time_shift", "eta"):
            if name in names:
                parts.append(f"{name}={dice.uniform(*getattr(self, name)):.3f}")
        return ",".join(parts)

    def _times(self, generator: Generator, dice: random.Random) -> str:
        column = generator.action_space.names.index("time")
        own = parse_schedule(generator.default_schedule, generator.action_space, 2)[:, column]
        after, before = dice.uniform(*self.time_from_start), dice.uniform(*self.time_from_end)
        first, last = (after, 1 - before) if own[0] < own[1] else (1 - after, before)
        return f"time={first:.3f}:{last:.3f}^{dice.uniform(*self.time_power):.2f}"


@dataclass(frozen=True)
class SearchResult:
    """Attributes:
    schedule: the best one's text. images: generated in all. tried: every candidate with its distance after each round
        that it took part in, in the order they were drawn. space: what was searched.
    """

    schedule: str
    images: int
    tried: list[dict[str, Any]] = field(repr=False)
    space: SearchSpace

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def check_search(budget: int, candidates: int) -> None:
    """Refuse a search that would rank its candidates by too few images, or by more than can be made.

    Raises:
        ConfigError: the budget gives too few images a candidate.
    """
    share = budget // ROUNDS
    last = share // max(_sizes(max(candidates, 1))[-1], 1)
    if last > MOST_IMAGES:
        raise ConfigError(
            f"a search over {candidates} schedules with {budget} images gives {last} images to each in the last round, more "
            f"images than one call makes ({MOST_IMAGES}); use more candidates or fewer trajectories."
        )
    if candidates < 2 or share // candidates < MINIMUM:
        most, least = share // MINIMUM, ROUNDS * MINIMUM * 2
        remedy = f"Use between 2 and {most} candidates, or more trajectories" if most >= 2 else (
            f"Use at least {least} trajectories, or no search (0 candidates)"
        )
        raise ConfigError(
            f"a search over {candidates} schedules with {budget} images gives {share // max(candidates, 1)} images to each in "
            f"the first of {ROUNDS} rounds; it needs at least 2 schedules and {MINIMUM} images each. {remedy}."
        )


def check_kind(kind: str, generator: Generator | None = None) -> None:
    """Refuse a search that there is not, or that is nothing for this generator.

    Raises:
        ConfigError: naming the kinds.
    """
    if kind not in SEARCHES:
        raise ConfigError(f"no search is called {kind!r}{nearest(kind, SEARCHES)} There are {', '.join(SEARCHES)}.")
    if kind != "schedule" and generator is not None and "guidance" not in generator.action_space.names:
        raise ConfigError(
            f"a search of the kind {kind!r} is one of guidance, which {generator.name} does not have; use the kind schedule."
        )
    if generator is not None and not SearchSpace().draw(generator, random.Random(0)):
        raise ConfigError(
            f"a search varies none of the knobs of {generator.name} ({', '.join(generator.action_space.names)}): leave it out "
            "(--candidates 0)."
        )


def search_schedule(
    yardstick: Yardstick,
    steps: int,
    *,
    budget: int,
    candidates: int = 32,
    kind: str = "schedule",
    seed: int = 0,
    space: SearchSpace | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Search for the schedule of least Frechet distance.

    The generator's best known schedule is the first candidate. All candidates of a round make images of the same seeds, and
    keep those of earlier rounds, so that the last ones are ranked by about ``budget / 3`` images each.

    Args:
        steps: T. budget: images in all; no more are generated. candidates: schedules of the first round.
        kind: a key of :data:`SEARCHES`, what is searched.
        seed: of the candidates and of the images. batch: images in flight at once.
        progress: called with the images done and those of the whole search.

    Raises:
        ConfigError: the budget gives too few images a candidate, or the generator has no such schedules.
    """
    check_search(budget, candidates)
    share = budget // ROUNDS
    generator, chosen = yardstick.generator, space or SearchSpace()
    dice = random.Random(seed)
    texts = chosen.candidates(kind, generator, steps, candidates, dice)
    tried: list[dict[str, Any]] = [{"schedule": text, "frechet": []} for text in texts]
    features = [torch.empty(0, yardstick.extractor.feature_dim)] * candidates
    alive, numbers = list(range(candidates)), _sizes(candidates)
    total = sum(number * (share // number) for number in numbers)
    first, done = SEARCH_SEED + seed * budget, 0
    for number in numbers:
        alive, each = alive[:number], share // number
        for i in alive:
            policy = load_policy(f"fixed:{texts[i]}", generator, steps)
            images = yardstick.make(policy, seed_range(first, each), batch=batch)
            features[i] = torch.cat([features[i], images.features.values])
            statistics = FeatureStatistics.of(features[i], yardstick.extractor.protocol)
            tried[i]["frechet"].append(frechet_distance(statistics, yardstick.reference.statistics))
            done += each
            if progress is not None:
                progress(done, total)
        alive.sort(key=lambda i: tried[i]["frechet"][-1])
        first += each
    return SearchResult(texts[alive[0]], done, tried, chosen)


def _sizes(candidates: int) -> list[int]:
    """Candidates of each round: a quarter goes on, at least one."""
    sizes = [candidates]
    while len(sizes) < ROUNDS:
        sizes.append(-(-sizes[-1] // KEPT))
    return sizes
