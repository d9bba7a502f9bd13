"""What a training run is watched by: a held-out yardstick, and the alarms."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

from ..core import FeatureExtractor, Generator, ImageSource
from ..decoding import SamplingPolicy
from ..errors import DataError
from ..evaluation import Yardstick, choose_features, require_enough
from ..images import OwnContexts
from ..metrics import TABLE
from ..registry import create_features
from ..runtime import distributed
from ..sampling import seed_range
from . import alarms
from .callbacks import Callback
from .config import RunConfig

HELD_OUT_SEED = 2**40
"""First seed of the images that a run is watched by; training derives its seeds by hashing, evaluation counts from 0."""
HELD_OUT_FIGURES = tuple(name for name, figure in TABLE.items() if figure.reads == "features")


class Readings(Callback):
    """Adds a reading of the yardstick to the row of the first iteration, of every ``every``-th, and of the last. All
    processes make its images, the main one judges.

    Args:
        policy: gives the policy to read, as it would be exported now.
    """

    everywhere = True

    def __init__(self, held_out: HeldOut, policy: Callable[[], SamplingPolicy], *, every: int, last: int) -> None:
        self.held_out, self.policy, self.every, self.last = held_out, policy, every, last

    def on_iteration(self, row: dict[str, Any]) -> None:
        iteration = row["iteration"]
        if iteration in (1, self.last) or iteration % self.every == 0:
            row |= self.held_out.read(self.policy())


class AlarmWatch(Callback):
    """Adds ``alarms`` to the row, where any is raised.

    Args:
        rows: those of the run so far, before a resume.
    """

    def __init__(self, rows: Iterable[dict[str, Any]]) -> None:
        self.watch = alarms.Watch(rows)

    def on_iteration(self, row: dict[str, Any]) -> None:
        self.watch.see(row)
        if self.watch.now:
            row["alarms"] = [alarm.to_json() for alarm in self.watch.now]


def held_out_of(
    config: RunConfig, generator: Generator, real: ImageSource | None, contexts_from: OwnContexts | None
) -> HeldOut | None:
    """The yardstick that a configuration asks for.

    Raises:
        DataError: there are no real images. PluginError, WeightsError: of its features.
    """
    if not config.evaluate_every:
        return None
    if real is None:
        raise DataError(
            f"evaluate_every = {config.evaluate_every} needs real images, and {generator.name} ships none. Give --data "
            "FOLDER or FILE.zip, or set it to 0."
        )
    name = choose_features(generator, config.evaluate_features)
    extractor = create_features(name, device=generator.device, offline=config.offline)
    return HeldOut(generator, extractor, real, config.evaluate_images, contexts_from=contexts_from)


class HeldOut:
    """The yardstick of a training run: always the same few seeds, which the reward never sees.

    Args:
        count: number of images of a reading. Frechet distances of so few are biased upwards, each reading alike, so that
            the readings of a run can be compared with each other, and with nothing else.
    """

    def __init__(
        self,
        generator: Generator,
        extractor: FeatureExtractor,
        real: ImageSource,
        count: int,
        *,
        contexts_from: OwnContexts | None = None,
    ) -> None:
        require_enough(real)
        self.generator, self.extractor, self.real, self.count = generator, extractor, real, count
        self.contexts_from = contexts_from

    @cached_property
    def yardstick(self) -> Yardstick:
        return Yardstick(self.generator, self.extractor, self.real, contexts_from=self.contexts_from)

    def read(self, policy: SamplingPolicy) -> dict[str, float]:
        """``yardstick/FIGURE`` of the policy's means, and ``seconds_yardstick``; empty but in the main process."""
        started = time.perf_counter()
        images = self.yardstick.make(policy, seed_range(HELD_OUT_SEED, self.count))
        if not distributed.is_main():
            return {}
        found = self.yardstick.judge(images, bootstrap=0).figures
        row = {f"yardstick/{name}": found[name] for name in HELD_OUT_FIGURES if name in found}
        return {**row, "seconds_yardstick": time.perf_counter() - started}
