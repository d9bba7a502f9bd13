"""``clip-score``: how well an image fits its prompt (Hessel et al., EMNLP 2021)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adanat_toolkit.interfaces import Context, Generator, ImageSource, RewardModel

from ..clip_models import ClipOptions, load_clip
from .frozen import FrozenReward, PromptOptions, Prompts

SCALE = 100.0


class ClipScoreOptions(ClipOptions, PromptOptions):
    """Options of the CLIP score."""

    captions: int = Field(64, ge=0)
    """With a class-conditional generator whose images have captions, and no ``template``: up to so many captions of the
    class, spread evenly over its images, are averaged to the class's text embedding. 0 uses the template, and so does a
    class without images."""


class ClipScoreReward(FrozenReward):
    """100 times the cosine similarity of image and text embedding: -100..100, in practice 15..40 for natural images.

    Hessel et al. scale by 2.5 and cut off below 0; others by 100 and cut off below 0. Nothing is cut off here, because
    a negative similarity must still be able to rise.

    A class has no prompt of its own. Its text embedding is the mean of the embeddings of many captions of the class
    (prompt ensembling, Radford et al. 2021, section 3.1.4) where the real images have captions, and that of a template
    otherwise. The embedded CLIP has only seen captions and does not know the names of emoji's classes: it finds an
    image's class among 98 in 22 % of cases by captions and in 2 % by "a photo of a {name}".
    """

    Options = ClipScoreOptions

    @classmethod
    def create(cls, options: Any, **made_for: Any) -> RewardModel:
        return cls(options, **made_for)

    def __init__(
        self,
        options: ClipScoreOptions,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool = False,
    ) -> None:
        self.clip = load_clip("clip-score", options, generator.name, device, offline=offline)
        self._by_class = _caption_embeddings(self, generator, real, options)
        self.prompts = None if self._by_class is not None else Prompts("clip-score", generator, options)

    def text_embeddings(self, context: Context) -> Tensor:
        """(B, E) float32 of length 1, what the images of ``context`` are compared with."""
        if self.prompts is not None:
            return self.clip.texts(self.prompts(context))
        assert self._by_class is not None and context.classes is not None
        return self._by_class[context.classes.to(self._by_class.device)]

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        return SCALE * (self.clip.images(images) * self.text_embeddings(context)).sum(1)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.clip.protocol})

    def parameters_count(self) -> dict[str, int]:
        return {f"CLIP {self.clip.name} (frozen)": self.clip.parameters_count()}


def _caption_embeddings(
    reward: ClipScoreReward, generator: Generator, real: ImageSource | None, options: ClipScoreOptions
) -> Tensor | None:
    """(classes, E) unit-length means of caption embeddings, or None where they do not apply."""
    labels, captions = getattr(real, "labels", None), getattr(real, "captions", None)
    asked = options.captions > 0 and options.template is None and options.class_names is None
    if not asked or generator.context_kind != "class" or labels is None or captions is None:
        return None

    def template_of(number: int) -> list[str]:
        by_class = Prompts("clip-score", generator, options).by_class
        assert by_class is not None
        return [by_class[number]]

    rows = []
    for number in range(generator.num_classes or 0):
        index = (labels == number).nonzero()[:, 0]
        chosen = torch.linspace(0, len(index) - 1, min(options.captions, len(index))).round().long()
        texts = [captions[i] for i in index[chosen].tolist()] if len(index) else template_of(number)
        rows.append(reward.clip.texts(texts).mean(0))
    return F.normalize(torch.stack(rows), dim=1)
