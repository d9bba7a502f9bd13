"""Images from seeds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import sampling
from ..commands.inputs import choose_contexts, choose_refinement, context_of, refuse_lone_judge
from ..commands.sample_folder import folder_settings, save_samples
from ..core import Context, Generator, as_seeds
from ..decoding import SamplingPolicy
from ..errors import ConfigError
from ..images import GRID_LIMIT
from ..limits import MOST_IMAGES
from ..runtime import float32_by_default
from .arguments import checked, require_generator, wrong
from .pages import pictures
from .policies import Spec, as_policy


class Samples:
    """Images with what made them; a notebook shows them as small pictures.

    Attributes:
        images: (B, 3, H, W) float32 in [0, 1] on the CPU.
        seeds: the B seeds. contexts: of each image its ``class`` or ``prompt``.
        refined: of images made with ``refine`` which ``candidate`` each is (from 0), its ``seed`` and ``score``; else None.
        knobs: one row a sample and step: ``seed``, ``step`` (from 0), and every knob of the generator by its name.
    """

    def __init__(self, made: sampling.Samples, names: Sequence[str], settings: dict[str, Any]) -> None:
        self._made, self._names, self._settings = made, tuple(names), settings
        self.images: Tensor = made.images
        self.seeds: list[int] = made.seeds.tolist()
        self.contexts: list[dict[str, Any]] = [made.context.describe(i) for i in range(len(made.seeds))]
        self.refined: list[dict[str, Any]] | None = made.kept

    def __len__(self) -> int:
        return len(self.seeds)

    def __repr__(self) -> str:
        size = "x".join(str(length) for length in self.images.shape[2:])
        return f"Samples({len(self)} images of {size}, {self._settings['generator']['name']}, T={self._settings['steps']})"

    @property
    def knobs(self) -> list[dict[str, Any]]:
        """See the class; ``pandas.DataFrame(samples.knobs)`` makes a data frame of it."""
        return [
            {"seed": seed, "step": step, **dict(zip(self._names, values, strict=True))}
            for seed, steps in zip(self.seeds, self._made.knobs.tolist(), strict=True)
            for step, values in enumerate(steps)
        ]

    @checked
    def save(self, folder: str | os.PathLike[str]) -> dict[str, Any]:
        """Write a PNG a seed, ``grid.png`` and ``samples.json``, as ``adanat sample --out`` does.

        Returns:
            ``out``, ``images``, ``made``, ``kept``, ``grid`` and ``list``.

        Raises:
            OutputError: the folder cannot be written, is not empty and not ours, or holds images made otherwise.
        """
        return save_samples(self._made, self._names, self._settings, Path(folder))

    def _repr_html_(self) -> str:
        titles = [
            ", ".join([f"seed {seed}", *(f"{key} {value}" for key, value in context.items())])
            for seed, context in zip(self.seeds[:GRID_LIMIT], self.contexts, strict=False)
        ]
        return pictures(self.images[:GRID_LIMIT], titles, left_out=len(self) - len(titles))


@checked
@float32_by_default()
def sample(
    generator: Generator,
    policy: SamplingPolicy | Spec | None = None,
    *,
    steps: int | None = None,
    seeds: Sequence[int] | Tensor = range(16),
    classes: Sequence[int | str] | None = None,
    prompts: Sequence[str] | None = None,
    batch: int | None = None,
    refine: int | None = None,
    judge: str | os.PathLike[str] | None = None,
) -> Samples:
    """Make images. An image depends on its seed, its class or prompt and the policy alone.

    Args:
        policy: what :func:`load_policy` returns or takes; None: the policy that ships, else the hand-made schedule.
        steps: T of a hand-made schedule, or of the policy that ships; a learned policy has its own, which this must equal.
        seeds: one an image.
        classes: ids or names, taken in turn, for class-conditional generators. prompts: texts, taken in turn, for those that
            read text. Without them each seed draws its own.
        batch: images in flight at once; it does not change the images. None: chosen by the device.
        refine: make so many candidates an image, and keep the best. judge: the run whose reward says which that is; None:
            ``policy``, where it is a run.

    Raises:
        ConfigError: an argument is of the wrong type or does not fit the generator. CheckpointError: a damaged policy or
            judge.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> generator = adanat.load_generator("maskgit", device="cpu")
        >>> samples = adanat.sample(generator, "fixed", steps=4, seeds=[0, 1], classes=[3])
        >>> samples.images.shape, samples.contexts
        (torch.Size([2, 3, 64, 64]), [{'class': 3}, {'class': 3}])
        >>> list(samples.knobs[0])[:3]
        ['seed', 'step', 'mask_ratio']
    """
    generator = require_generator(generator)
    if not isinstance(seeds, Sequence | Tensor) or isinstance(seeds, str | bytes):
        raise wrong("seeds", seeds, "a list, a range or a tensor of whole numbers")
    numbers = as_seeds(seeds).cpu()
    if not 1 <= len(numbers) <= MOST_IMAGES:
        raise ConfigError(f"seeds holds {len(numbers)} seeds; give at least 1 and at most {MOST_IMAGES}.")
    refuse_lone_judge(refine, judge)
    chosen = as_policy(policy, generator, steps=steps)
    settings = folder_settings(generator, chosen)
    refinement = choose_refinement(generator, refine, judge or policy)
    if refinement is not None:
        settings["refine"] = refinement.facts(generator, chosen.space)
    context = _context(generator, classes, prompts, len(numbers))
    make = sampling.sample if refinement is None else refinement.sample
    parts = [
        sampling.Samples(part.seeds, part.context.to("cpu"), part.images.cpu(), part.knobs.cpu(), kept=part.kept)
        for part in make(generator, chosen, numbers, context, batch=batch)
    ]
    made = sampling.Samples(
        torch.cat([part.seeds for part in parts]),
        Context.cat([part.context for part in parts]),
        torch.cat([part.images for part in parts]),
        torch.cat([part.knobs for part in parts]),
        kept=None if refinement is None else [row for part in parts for row in part.kept or ()],
    )
    return Samples(made, chosen.space.names, settings)


def _context(
    generator: Generator, classes: Sequence[int | str] | None, prompts: Sequence[str] | None, count: int
) -> Context | None:
    """The contexts asked for, taken in turn; None where each image draws its own."""
    wanted = None if classes is None else _listed("classes", classes, "class ids or names")
    texts = None if prompts is None else _listed("prompts", prompts, "texts")
    for text in texts or ():
        if not isinstance(text, str):
            raise wrong("every entry of prompts", text, "a text")
    chosen = choose_contexts(generator, wanted, texts, count, source=f"the number of seeds, {count},")
    return context_of(generator, chosen, count)


def _listed(argument: str, values: Any, of: str) -> list[Any]:
    if isinstance(values, Tensor):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise wrong(argument, values, f"a list of {of}")
    if not values:
        raise ConfigError(f"{argument} is empty; name at least one, or leave it out.")
    return list(values)
