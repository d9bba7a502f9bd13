"""A small random token generator of any context kind, for tests of what the core does around a network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import CONTEXT, TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.interfaces import (
    Context,
    ContextKind,
    Generator,
    ImageSource,
    PluginOptions,
    RewardModel,
    TokenGenerator,
)

CLASSES = 5
STATES = (3, 6)
"""Tokens and channels of the text states."""
PROMPTS = ("a cat", "a dog", "two red squares", "rain over the sea")


class TinyGenerator(TokenGenerator):
    """Every cell sees every other cell and the context; ``forwards`` lists (rows, rows with the null context)."""

    def __init__(
        self,
        kind: ContextKind = "class",
        *,
        grid: tuple[int, int] = (3, 5),
        codebook_size: int = 24,
        width: int = 8,
        knobs: Sequence[str] = tuple(knob.name for knob in TOKEN_KNOBS),
    ) -> None:
        self.name, self.fingerprint, self.context_kind = f"tiny:{kind}", f"tiny-{kind}", kind
        self.action_space = ActionSpace(tuple(knob for knob in TOKEN_KNOBS if knob.name in knobs))
        self.grid = self.image_size = grid
        self.feature_dim, self.codebook_size, self.mask_id = width, codebook_size, codebook_size
        self.num_classes = CLASSES if kind == "class" else None
        self.default_schedule = "cosine"
        self.device, self.dtype = torch.device("cpu"), torch.float32
        draw = torch.Generator().manual_seed(5)
        self.words = torch.randn(codebook_size + 1, width, generator=draw)
        self.classes = torch.randn(CLASSES + 1, width, generator=draw)
        self.text = torch.randn(STATES[1], width, generator=draw)
        self.mixing = torch.randn(self.cells, self.cells, generator=draw) / self.cells**0.5
        self.head = torch.randn(width, codebook_size, generator=draw)
        self.forwards: list[tuple[int, int]] = []

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> TinyGenerator:
        return cls(**options)

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("tiny",)

    def sample_contexts(self, noise: Noise) -> Context:
        u = noise.uniform(CONTEXT, 0, (1,))[:, 0]
        if self.context_kind == "class":
            return Context(len(noise), classes=(u * CLASSES).long())
        if self.context_kind == "text":
            return self.encode_prompts([PROMPTS[i] for i in (u * len(PROMPTS)).long().tolist()])
        return Context(len(noise))

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        if self.context_kind != "text":
            return super().encode_prompts(prompts)
        states = [torch.randn(STATES, generator=torch.Generator().manual_seed(zlib.crc32(p.encode()))) for p in prompts]
        stacked = torch.stack(states)
        return Context(len(prompts), states=stacked, pooled=stacked.mean(1), prompts=tuple(prompts))

    def null_context(self, size: int) -> Context:
        if self.context_kind == "text":
            return self.encode_prompts([""] * size)
        return Context(size, classes=torch.full((size,), CLASSES) if self.context_kind == "class" else None)

    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        x = self.words[tokens]
        nulls = 0
        if self.context_kind == "class":
            assert context.classes is not None
            x = x + self.classes[context.classes][:, None]
            nulls = int((context.classes == CLASSES).sum())
        elif self.context_kind == "text":
            assert context.states is not None and context.prompts is not None
            x = x + (context.states.mean(1) @ self.text)[:, None]
            nulls = context.prompts.count("")
        self.forwards.append((len(tokens), nulls))
        features = x + torch.tanh(torch.einsum("mn,bnd->bmd", self.mixing, x))
        return features @ self.head, features

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return (tokens.float() / self.codebook_size).view(-1, 1, *self.grid).expand(-1, 3, -1, -1).contiguous()


class Dark(RewardModel):
    """Rewards dark images, that is small codes."""

    def __init__(
        self, options: PluginOptions, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        pass

    def score(self, images: Tensor, context: Context) -> Tensor:
        return 1 - images.mean((1, 2, 3))


def install_tiny(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Register both as plug-ins of a distribution of their own: generator ``tiny``, reward ``dark``."""
    info = site / "tiny_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(
        f"[adanat.generators]\ntiny = {__name__}:TinyGenerator\n[adanat.rewards]\ndark = {__name__}:Dark\n"
    )
    monkeypatch.syspath_prepend(str(site))
