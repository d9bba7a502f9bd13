"""What the class-conditional generators share, and where the files of third-party weights are."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch

from adanat_toolkit.core import CONTEXT, Noise
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import Context, ContextKind, Generator, ImageSource, PluginOptions, Source

from ..weights import Asset, asset, resolve
from .tokenized import TokenizedGenerator, TokenizedOptions


class PublishedOptions(TokenizedOptions):
    """Where the files are."""

    weights: Source = None
    """Weights file of the generator, a folder that holds it, or a hub id; None means the weights folder."""
    tokenizer: Source = None
    """The same for the tokenizer's file; None takes it from the folder ``weights`` where it is there."""


class ClassConditional(TokenizedGenerator):
    """A generator of classes 0..num_classes - 1, drawn uniformly: published weights do not tell label frequencies."""

    released_sampler = "maskgit"

    context_kind: ContextKind = "class"
    Options: ClassVar[type[PluginOptions]] = PublishedOptions
    num_classes: int

    def sample_contexts(self, noise: Noise) -> Context:
        return uniform_classes(noise, self.num_classes, self.device)


class Emoji64Classes(Generator):
    """The embedded 98 classes of 64x64 emoji, drawn with the data's own frequencies. It stands before the base class."""

    def sample_contexts(self, noise: Noise) -> Context:
        from ..emoji64.data import sample_labels

        return Context(len(noise), classes=sample_labels(noise).to(self.device))

    def real_images(self) -> ImageSource:
        from ..emoji64.data import emoji_images

        return emoji_images()


def emoji64_file(name: str, options: PublishedOptions, *, offline: bool) -> Path:
    """The network's file of an embedded generator: the one in the package, or what ``weights`` names.

    Raises:
        ConfigError: a tokenizer is named, which belongs to the package. WeightsError: see ``weights.resolve``.
    """
    if options.tokenizer is not None:
        raise ConfigError(f"{name} ships with its tokenizer; leave the option tokenizer out.")
    return _file(options.weights, asset(name, "generator"), offline)


def uniform_classes(noise: Noise, count: int, device: torch.device) -> Context:
    """Contexts of classes 0..count - 1, each as likely as any other."""
    drawn = (noise.uniform(CONTEXT, 0, (1,))[:, 0] * count).long()
    return Context(len(noise), classes=drawn.to(device))


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
