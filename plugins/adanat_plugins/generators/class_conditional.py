"""What the class-conditional generators with third-party weights share."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from adanat_toolkit.interfaces import Context, ContextKind, PluginOptions, TokenGenerator
from adanat_toolkit.noise import CONTEXT, Noise

from ..weights import Asset, resolve


class Tokenizer(Protocol):
    """Codes <-> images in [0, 1]; see the classes in ``tokenizers``."""

    @property
    def downsampling(self) -> int: ...

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...


class PublishedOptions(PluginOptions):
    """Where the files are."""

    weights: str | None = None
    """Weights file of the generator, a folder that holds it, or a hub id; None means the weights folder."""
    tokenizer: str | None = None
    """The same for the tokenizer's file; None takes it from the folder ``weights`` where it is there."""


class ClassConditional(TokenGenerator):
    """A generator of classes 0..num_classes - 1, drawn uniformly: published weights do not tell label frequencies."""

    context_kind: ContextKind = "class"
    Options: ClassVar[type[PublishedOptions]] = PublishedOptions
    network: nn.Module
    tokenizer: Tokenizer
    num_classes: int

    def parameters_count(self) -> dict[str, int]:
        count = {"generator": sum(p.numel() for p in self.network.parameters())}
        if isinstance(self.tokenizer, nn.Module):
            count["tokenizer"] = sum(p.numel() for p in self.tokenizer.parameters())
        return count

    def sample_contexts(self, noise: Noise) -> Context:
        drawn = (noise.uniform(CONTEXT, 0, (1,))[:, 0] * self.num_classes).long()
        return Context(len(noise), classes=drawn.to(self.device))

    @torch.no_grad()
    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens, self.grid)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)


def published_files(
    options: PublishedOptions, generator: Asset, tokenizer: Asset, *, offline: bool
) -> tuple[Path, Path]:
    """The generator's and the tokenizer's file.

    Raises:
        WeightsError: one is missing, see ``weights.resolve``.
    """
    spec = options.tokenizer
    if spec is None and options.weights is not None and Path(options.weights).expanduser().is_dir():
        folder = Path(options.weights).expanduser()
        beside = [folder / tokenizer.file, folder / Path(tokenizer.file).name]
        spec = next((str(path) for path in beside if path.exists()), None)
    return _file(options.weights, generator, offline), _file(spec, tokenizer, offline)


def _file(spec: str | None, wanted: Asset, offline: bool) -> Path:
    path = resolve(spec, wanted, offline=offline)
    if path.is_dir():
        raise wanted.missing(path / Path(wanted.file).name)
    return path
