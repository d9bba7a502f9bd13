"""A policy's images under the yardstick: made from given seeds, turned into features, held against the real images.

With several processes each makes a share of the images, in whole batches of the extractor, and the main one has them all: the
features are those of one process, bit for bit where the extractor is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..core import Context, FeatureExtractor, Generator, ImageSource, Noise, PromptScorer, RewardModel
from ..decoding import SamplingPolicy
from ..errors import DataError
from ..images import OwnContexts, draw_contexts, to_bytes
from ..metrics import (
    BATCH,
    FEWEST,
    Evaluation,
    Features,
    Reference,
    evaluate_features,
    extract_features,
    shared_reference,
)
from ..runtime import distributed, plugin_call, require_each
from ..sampling import Refinement, Samples, checked_embedding, checked_scores, sample

Progress = Callable[[int, int], None]
"""Called with the number of images done and of all."""


@dataclass(frozen=True)
class Images:
    """What is kept of a set of generated images.

    Attributes:
        features: (N, D), in the order of the seeds. labels: (N,) int64 class ids, None without classes.
        knobs: (N, T, K) float32 physical values. shown: the first images, (n, 3, H, W) uint8.
        clip: (N,) CLIP scores of image and prompt, None without prompts or without a network for them.
        actions: (N, T, A) float32, the raw actions that the knobs came from.
        scores: of each reward that was asked, (N,) float32.
    """

    features: Features = field(repr=False)
    labels: Tensor | None = field(repr=False)
    knobs: Tensor = field(repr=False)
    shown: Tensor = field(repr=False)
    clip: Tensor | None = field(default=None, repr=False)
    actions: Tensor | None = field(default=None, repr=False)
    scores: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.features)


def require_enough(real: ImageSource | Reference) -> None:
    """Refuse, before any image is made, real images that are too few for the figures.

    Raises:
        DataError: fewer than 6 images (precision, recall, density and coverage look at 5 neighbours of each), or statistics
            of fewer than 2, which have no covariance.
    """
    count: int | None
    if not isinstance(real, Reference):
        count, needed = len(real), FEWEST
    elif real.features is not None:
        count, needed = len(real.features), FEWEST
    else:
        count, needed = real.statistics.count, 2
    if count is not None and count < needed:
        raise DataError(
            f"there {'is 1 real image' if count == 1 else f'are {count} real images'}, and the figures need at least {needed} "
            "(thousands to mean much); give --data with more."
        )


class Yardstick:
    """A feature protocol with the real images' side of it, computed once."""

    def __init__(
        self,
        generator: Generator,
        extractor: FeatureExtractor,
        real: ImageSource | Reference,
        *,
        scorer: PromptScorer | None = None,
        contexts_from: OwnContexts | None = None,
        progress: Progress | None = None,
    ) -> None:
        """
        Args:
            real: images, whose features are computed now (``progress`` counts them), or a Reference, which has them.
            scorer: gives the CLIP scores of generators with prompts (``selection.choose_scorer``); None: there are none.
            contexts_from: see ``images.draw_contexts``.
        """
        require_enough(real)
        self.generator, self.extractor, self.scorer, self.contexts_from = generator, extractor, scorer, contexts_from
        self._reference = real if isinstance(real, Reference) else shared_reference(extractor, real, progress=progress)

    @property
    def reference(self) -> Reference:
        """The real images' side; in the main process alone."""
        assert self._reference is not None, "only the main process judges"
        return self._reference

    def make(
        self,
        policy: SamplingPolicy,
        seeds: Tensor,
        *,
        keep: int = 0,
        batch: int | None = None,
        actions: Tensor | None = None,
        refinement: Refinement | None = None,
        rewards: Mapping[str, RewardModel] | None = None,
        progress: Progress | None = None,
    ) -> Images:
        """Images of a policy, one a seed. All processes call it; all images are in the main one, elsewhere a share.

        Args:
            seeds: (N,) int64. keep: how many of the first images to keep. batch: images in flight at once.
            actions: (N, T, A) raw actions to take in place of the policy's. refinement: makes several candidates an image
            and keeps the best. rewards: score the images too, by name; none may be ``set_level``.
        """
        generator, everything = self.generator, len(seeds)
        first, last = distributed.local_slice(everything, BATCH)
        seeds, total = seeds[first:last], last - first
        given = None if actions is None else actions[first:last]
        keep = max(0, keep - first)
        values: list[Tensor] = []
        chances: list[Tensor] = []
        classes: list[Tensor] = []
        knobs: list[Tensor] = []
        taken: list[Tensor] = []
        waiting: list[Tensor] = []
        prompts: list[str] = []
        clip: list[Tensor] = []
        scores: dict[str, list[Tensor]] = {name: [] for name in rewards or ()}
        shown = torch.empty(0, 3, *generator.image_size, dtype=torch.uint8)
        done = 0

        def contexts(noise: Noise) -> Context:
            return draw_contexts(generator, noise, self.contexts_from)

        made: Iterable[Samples] = ()
        if total and refinement is not None:
            made = refinement.sample(generator, policy, seeds, contexts, batch=batch)
        elif total:
            made = sample(generator, policy, seeds, contexts, batch=batch, actions=given)
        for samples in made:
            pixels = to_bytes(samples.images)
            for name, reward in (rewards or {}).items():
                scores[name].append(_scored(reward, name, samples, generator.device).cpu())
            shown = torch.cat([shown, pixels[: keep - len(shown)]]) if len(shown) < keep else shown
            knobs.append(samples.knobs.cpu())
            assert samples.actions is not None
            taken.append(samples.actions.cpu())
            if samples.context.classes is not None:
                classes.append(samples.context.classes.cpu())
            if self.scorer is not None:
                prompts += samples.context.prompts or ()
            waiting.append(pixels)
            done += len(pixels)
            # Whole extractor batches only: the last bits of features depend on the batch, and seeds must not.
            if sum(map(len, waiting)) >= BATCH or done == total:
                pixels = torch.cat(waiting)
                whole = total if done == total else len(pixels) // BATCH * BATCH
                part = extract_features(self.extractor, pixels[:whole])
                if self.scorer is not None and prompts:
                    with plugin_call(f"features {self.scorer.protocol!r}", "scores"):
                        found = self.scorer.scores(pixels[:whole].float() / 255, prompts[:whole])
                    require_each(f"the scores of features {self.scorer.protocol!r}", found, whole)
                    clip.append(found.cpu())
                    prompts = prompts[whole:]
                waiting = [pixels[whole:]]
                values.append(part.values)
                if part.probabilities is not None:
                    chances.append(part.probabilities)
            if progress is not None:
                progress(done * everything // total, everything)  # the other processes are about as far
        columns = [torch.cat(c) if c else None for c in (values, chances, classes, knobs, clip, taken)]
        given_scores = {name: torch.cat(found) for name, found in scores.items() if found}
        parts = distributed.gather_on_main((columns, shown, given_scores))
        chance, label, score, raw = (_joined([part[0][i] for part in parts]) for i in (1, 2, 4, 5))
        feature, knob = (_joined([part[0][i] for part in parts]) for i in (0, 3))
        if feature is None or knob is None:  # another process, without a share
            feature, knob = torch.empty(0, self.extractor.feature_dim), torch.empty(0)
        features = Features(feature, chance, self.extractor.protocol)
        joined = {name: _joined([part[2].get(name) for part in parts]) for name in scores}
        by_reward = {name: values for name, values in joined.items() if values is not None}
        return Images(features, label, knob, torch.cat([part[1] for part in parts]), score, raw, by_reward)

    def judge(
        self, images: Images, *, seed: int = 0, bootstrap: int | None = None, frechets: Tensor | None = None
    ) -> Evaluation:
        """All figures that the inputs allow (see ``metrics.evaluate_features``)."""
        found = evaluate_features(
            images.features,
            self.reference,
            labels=images.labels,
            clip=images.clip,
            bootstrap=bootstrap,
            frechets=frechets,
            seed=seed,
        )
        if images.clip is None or self.scorer is None:
            return found
        return replace(found, settings={**found.settings, "clip": self.scorer.protocol})


@torch.no_grad()
def _scored(reward: RewardModel, name: str, samples: Samples, device: torch.device) -> Tensor:
    """(B,) scores of images as a training has them, before they are rounded to bytes."""
    scores = []
    for rows in (slice(start, start + BATCH) for start in range(0, len(samples.images), BATCH)):
        context, images = samples.context.select(rows).to(device), samples.images[rows].to(device)
        embedded = checked_embedding(reward, name, images, context)
        scores.append(checked_scores(reward, name, embedded, context)[0])
    return torch.cat(scores)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    if len(present) == 1:
        return present[0]  # a copy of 50,000 features would be another 0.4 GB
    return torch.cat(present) if present else None
