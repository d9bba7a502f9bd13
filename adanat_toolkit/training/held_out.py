"""What a training run is watched by: a held-out yardstick, the diversity of its images, and the alarms."""

from __future__ import annotations

import copy
import time
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..core import FeatureExtractor, Generator, ImageSource
from ..decoding import SamplingPolicy
from ..errors import DataError
from ..evaluation import Yardstick, choose_features, require_enough
from ..images import OwnContexts
from ..registry import create_features
from ..runtime import distributed
from ..sampling import seed_range
from . import alarms

if TYPE_CHECKING:
    from .trainer import Trainer

HELD_OUT_SEED = 2**40
"""First seed of the images that a run is watched by; training derives its seeds by hashing, evaluation counts from 0."""
HELD_OUT_FIGURES = ("frechet", "kid", "precision", "recall", "density", "coverage", "diversity")


class Watch:
    """Looks at the trainer after each iteration. All processes make the images of a reading, the main one judges.

    Raises:
        DataError: the yardstick is wanted, and there are no real images. PluginError, WeightsError: of its features.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.rows: list[dict[str, Any]] = []
        """All rows of the run so far, those before a resume included."""
        config, generator = trainer.config, trainer.generator
        self.held_out: HeldOut | None = None
        if not config.evaluate_every:
            return
        if trainer.real is None:
            raise DataError(
                f"evaluate_every = {config.evaluate_every} needs real images, and {generator.name} ships none. Give --data "
                "FOLDER or FILE.zip, or set it to 0."
            )
        name = choose_features(generator, config.evaluate_features)
        extractor = create_features(name, device=trainer.device, offline=config.offline)
        self.held_out = HeldOut(generator, extractor, trainer.real, config.evaluate_images, captions=trainer.captions)

    def look(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with a reading of the yardstick, where one is due (the first iteration, every ``evaluate_every``-th, the
        last), and with ``alarms``, where any is raised; both in the main process. All processes call it."""
        trainer, config, iteration = self.trainer, self.trainer.config, row["iteration"]
        due = iteration in (1, config.iterations) or iteration % max(config.evaluate_every, 1) == 0
        if self.held_out is not None and due:
            policy = trainer.policy
            if config.policy.average:  # what is exported
                policy = copy.deepcopy(policy)
                policy.load_state_dict(trainer.average)
            row = {**row, **self.held_out.read(SamplingPolicy(policy, trainer.space))}
        if not distributed.is_main():
            return row
        self.rows.append(row)
        found = alarms.check(self.rows)
        return {**row, "alarms": [alarm.to_json() for alarm in found]} if found else row


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
        captions: OwnContexts | None = None,
    ) -> None:
        require_enough(real)
        self.generator, self.extractor, self.real, self.count = generator, extractor, real, count
        self.captions = captions

    @cached_property
    def yardstick(self) -> Yardstick:
        return Yardstick(self.generator, self.extractor, self.real, captions=self.captions)

    def read(self, policy: SamplingPolicy) -> dict[str, float]:
        """``yardstick/FIGURE`` of the policy's means, and ``seconds_yardstick``; empty but in the main process."""
        started = time.perf_counter()
        images = self.yardstick.make(policy, seed_range(HELD_OUT_SEED, self.count))
        if not distributed.is_main():
            return {}
        found = self.yardstick.judge(images, bootstrap=0).figures
        row = {f"yardstick/{name}": found[name] for name in HELD_OUT_FIGURES if name in found}
        return {**row, "seconds_yardstick": time.perf_counter() - started}
