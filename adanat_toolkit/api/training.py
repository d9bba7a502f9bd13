"""Training a policy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import torch

from ..commands.inputs import begin_run
from ..core import Generator, ImageSource, RewardModel
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..report import Settings, make_report
from ..runtime import dtype_name
from ..storage import RunFolder, shortened
from ..training import merge, resolve
from ..training.objects import RewardFunction, as_reward
from .arguments import NEEDS_GENERATOR, checked, wrong
from .pages import curve
from .policies import load_policy

CURVE = "reward/mean"


class Run:
    """A training run; a notebook shows its reward as a curve.

    Attributes:
        path: the run folder. generator: what it was trained on.
    """

    def __init__(self, path: Path, generator: Generator) -> None:
        self.path, self.generator = path, generator

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {len(self.metrics)} iterations)"

    def __fspath__(self) -> str:
        return str(self.path)

    @cached_property
    def policy(self) -> SamplingPolicy:
        """What it learned."""
        return load_policy(self.path, self.generator)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One row an iteration; docs/logged-names.md explains every name."""
        return RunFolder(self.path).metrics()

    @checked
    def report(self, file: str | os.PathLike[str] | None = None, *, pictures: bool = True) -> Path:
        """Write the report of ``adanat report``, one HTML file; default ``report.html`` in the run folder.

        Args:
            pictures: False leaves out all that makes images, and takes a second.

        Raises:
            ConfigError: no finished iteration. OutputError: the file cannot be written, or is something else than a report.
        """
        target = None if file is None else Path(file)
        return Path(make_report([self.path], target, Settings(pictures=pictures), generator=self.generator)["report"])

    def _repr_html_(self) -> str:
        rows = self.metrics
        points = [(float(row["trajectories"]), float(row[CURVE])) for row in rows if row.get(CURVE) is not None]
        drawn = curve(CURVE, points) if points else ""
        return f"<p>{escape(str(self.path))}: {len(rows)} iterations</p>{drawn}"


@checked
def train(
    *,
    generator: Generator | str | None = None,
    reward: RewardModel | RewardFunction | str | None = None,
    policy: str | None = None,
    steps: int | None = None,
    trajectories: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
    seed: int | None = None,
    data: ImageSource | str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    preset: str = "default",
    settings: Mapping[str, Any] | None = None,
    out: str | os.PathLike[str] | None = None,
    on_iteration: Callable[[dict[str, Any]], None] | None = None,
) -> Run:
    """Train a policy. The same call continues an interrupted run.

    Args:
        generator: ``NAME[:VARIANT]``, or what :func:`load_generator` returns.
        reward: a name, a mixture such as ``adversarial:1,clip-score:0.3``, a RewardModel, or a function
            ``(images, context) -> scores``: (B, 3, H, W) in [0, 1] to (B,), higher is better. A run knows an object or a
            function by its name alone: when the run goes on, what it computes is not compared.
        policy: ``adaptive``, ``residual``, ``lean``, ``context`` or ``shared``.
        steps: T of an image. trajectories: images to generate for training. batch: trajectories of one iteration.
            micro_batch: images in flight at once.
        data: real images, a folder, a zip file or an ImageSource; None: those that ship with the generator.
        preset: settings to start from, such as ``demo``, ``gpu``, ``paper`` or ``adagen``.
        settings: any further setting (docs/settings.md), nested: ``{"ppo": {"epochs": 2}}``. They win over the others.
        out: the run folder; None: a folder under ``runs`` that is named by the settings.
        on_iteration: called with every row of metrics.

    Raises:
        ConfigError, PluginError, WeightsError, DataError: before any work starts. OutputError: the folder cannot be written.
        CheckpointError: what is in it is damaged, or belongs to a run with other settings.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> quick = {"reward": {"options": {"batch": 8, "updates": 1}}, "ppo": {"epochs": 1}}
        >>> run = adanat.train(steps=2, trajectories=16, batch=8, device="cpu", settings=quick, out="runs/quick")
        >>> run
        Run('runs/quick', 2 iterations)
        >>> run.policy.steps
        2
        >>> bright = lambda images, context: images.mean((1, 2, 3))
        >>> run = adanat.train(generator=run.generator, reward=bright, trajectories=16, batch=8, out="runs/bright")
        >>> len(run.metrics)
        2
    """
    if settings is not None and not isinstance(settings, Mapping):
        raise wrong("settings", settings, 'a dictionary of settings, such as {"ppo": {"epochs": 2}}')
    if generator is not None and not isinstance(generator, str | Generator):
        raise wrong("generator", generator, f"{NEEDS_GENERATOR}, or a registered name")
    reward = as_reward(reward)
    for name, given_as in (("generator", generator), ("reward", reward)):
        if settings and name in settings and isinstance(given_as, Generator | RewardModel):
            raise ConfigError(
                f"settings say something of the {name} ({shortened(settings[name])}), and it is given as an object, which "
                "has its own; leave one of the two out."
            )
    named, path = reward if isinstance(reward, str) else None, None
    if isinstance(data, str | os.PathLike):
        path, data = os.fspath(data), None
    flags: dict[str, Any] = {
        "steps": steps,
        "trajectories": trajectories,
        "batch": batch,
        "micro_batch": micro_batch,
        "seed": seed,
        "device": str(device) if isinstance(device, torch.device) else device,
        "dtype": dtype_name(dtype) if isinstance(dtype, torch.dtype) else dtype,
        "generator": {"name": generator} if isinstance(generator, str) else None,
        "reward": None if named is None else {"name": named},
        "policy": None if policy is None else {"name": policy},
        "data": None if path is None else {"path": path},
    }
    given = {key: value for key, value in flags.items() if value is not None}
    own = generator.name if isinstance(generator, Generator) else None
    config = resolve(preset=preset, flags=merge(given, settings or {}), generator=own)
    folder, _, trainer = begin_run(
        config,
        out,
        generator if isinstance(generator, Generator) else None,
        reward if isinstance(reward, RewardModel) else None,
        data,
    )
    trainer.run(folder, on_iteration=on_iteration)
    return Run(folder, trainer.generator)
