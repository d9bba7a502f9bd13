"""Refinement at inference: several candidates an image, of which the one is kept that a reward prefers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..core import CANDIDATE, ActionSpace, Context, Generator, Noise, RewardModel, as_seeds, derive, mix
from ..decoding import SamplingPolicy
from ..errors import ConfigError, NotFiniteError
from ..limits import MOST_IMAGES
from .sample import Samples, default_batch, sample
from .scores import checked_embedding, checked_scores


def forwards_of_an_image(generator: Generator, space: ActionSpace) -> int:
    """Generator forwards of one image, conditional and unconditional."""
    return (2 if "guidance" in generator.action_space.names else 1) * (space.decisions - generator.free_actions)


def candidate_seeds(seeds: Tensor, number: int) -> Tensor:
    """Seeds of the images' candidate ``number``: (n,) int64. Candidate 0 is the image itself."""
    return seeds if number == 0 else mix(seeds ^ derive(CANDIDATE, number)) & (2**63 - 1)


@dataclass(frozen=True)
class Refinement:
    """Best of ``candidates`` images of one context, by the score of ``reward``.

    Candidates differ in their seeds alone. An image depends on its own seed, and with one candidate is the image without
    refinement.

    Attributes:
        judge: what the reward is, for the record.

    Raises:
        ConfigError: fewer than 1 candidate, or a reward whose scores depend on the other images.
    """

    reward: RewardModel
    candidates: int
    judge: str

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= MOST_IMAGES:
            raise ConfigError(f"{self.candidates} candidates cannot be made; give 1 to {MOST_IMAGES:,}.")
        if self.reward.set_level:
            raise ConfigError(
                f"the reward of {self.judge} scores images by the others beside them, so it cannot choose between candidates; "
                "give a run with a per-sample reward, such as adversarial."
            )
        if self.reward.reads_latents:
            raise ConfigError(
                f"the reward of {self.judge} reads latents, and candidates are finished images; give a run whose reward "
                "reads images."
            )

    def facts(self, generator: Generator, space: ActionSpace) -> dict[str, Any]:
        """JSON-able: candidates, judge, and forwards of an image, of which ``extra_forwards`` are refinement's."""
        own = forwards_of_an_image(generator, space)
        return {
            "candidates": self.candidates,
            "judge": self.judge,
            "forwards": self.candidates * own,
            "extra_forwards": (self.candidates - 1) * own,
        }

    def sample(
        self,
        generator: Generator,
        policy: SamplingPolicy,
        seeds: Tensor | Sequence[int],
        context: Context | Callable[[Noise], Context] | None = None,
        *,
        batch: int | None = None,
    ) -> Iterator[Samples]:
        """As :func:`sampling.sample`; ``Samples.kept`` says which candidate each image is, its seed and score."""
        seeds = as_seeds(seeds).to(generator.device)
        draw = generator.sample_contexts if context is None else context
        size = batch or default_batch(generator.device)
        for rows in (slice(start, start + size) for start in range(0, len(seeds), size)):
            own = draw.select(rows) if isinstance(draw, Context) else draw(Noise(seeds[rows]))
            yield self._best(generator, policy, seeds[rows], own, size)

    def _best(
        self, generator: Generator, policy: SamplingPolicy, seeds: Tensor, context: Context, size: int
    ) -> Samples:
        best: Samples | None = None
        scores = torch.full((len(seeds),), -torch.inf, device=generator.device)
        chosen = torch.zeros(len(seeds), dtype=torch.int64, device=generator.device)
        for number in range(self.candidates):
            (made,) = sample(generator, policy, candidate_seeds(seeds, number), context, batch=size)
            with torch.no_grad():
                images = made.images.to(scores.device)
                embedded = checked_embedding(self.reward, self.judge, images, context)
                score, _ = checked_scores(self.reward, self.judge, embedded, context)
            wrong = int((~score.isfinite()).sum())
            if wrong:
                raise NotFiniteError(
                    f"{wrong} of {len(score)} scores of the reward of {self.judge} are not finite (NaN or infinite), so it "
                    "cannot choose between candidates. Mend the reward, or leave out --refine."
                )
            better = score > scores
            scores, chosen = torch.where(better, score, scores), torch.where(better, number, chosen)
            best = made if best is None else _replaced(best, made, better)
        assert best is not None
        kept = [
            {"candidate": number, "seed": int(candidate_seeds(seeds[i : i + 1], number)[0]), "score": score}
            for i, (number, score) in enumerate(zip(chosen.tolist(), scores.tolist(), strict=True))
        ]
        return Samples(seeds.cpu(), context, best.images, best.knobs, best.actions, kept)


def _replaced(best: Samples, made: Samples, better: Tensor) -> Samples:
    """The candidates so far, with those that are better."""

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(better.view(-1, *[1] * (new.dim() - 1)), new, old)

    assert best.actions is not None and made.actions is not None
    return Samples(
        best.seeds,
        best.context,
        pick(made.images, best.images),
        pick(made.knobs, best.knobs),
        pick(made.actions, best.actions),
    )
