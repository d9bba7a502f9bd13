"""A generator, rewards and features of a few numbers, registered as a third party's plug-ins would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.interfaces import Context, FeatureExtractor, Generator, ImageSource, PluginOptions, RewardModel
from adanat_toolkit.sampling import sample, seed_range

from .tiny import TinyGenerator

ENTRY_POINTS = """
[adanat.generators]
tiny = tests.helpers.tiny_plugins:TinyWithData
[adanat.rewards]
brightness = tests.helpers.tiny_plugins:Brightness
contrast = tests.helpers.tiny_plugins:Contrast
constant = tests.helpers.tiny_plugins:Constant
prompts-only = tests.helpers.tiny_plugins:PromptsOnly
[adanat.features]
pixels = tests.helpers.tiny_plugins:Pixels
"""


@pytest.fixture
def tiny_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs the plug-ins of this module for one test."""
    info = tmp_path / "site" / "tiny_plugins-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-plugins\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(info.parent))


class TinyImages:
    """Images of the generator at twelve steps: what fewer steps fall short of."""

    fingerprint = "tiny-images"

    def __init__(self) -> None:
        from adanat_toolkit.policies import load_policy

        generator = TinyGenerator()
        policy = load_policy("fixed:cosine", generator, 12)
        made = list(sample(generator, policy, seed_range(10**6, 300)))
        self.pixels = torch.cat([s.images for s in made])
        classes = [s.context.classes for s in made]
        self.labels = torch.cat([c for c in classes if c is not None])

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, index: Tensor) -> Tensor:
        return self.pixels[index]

    def contexts(self, index: Tensor) -> Context:
        return Context(len(index), classes=self.labels[index])


class TinyWithData(TinyGenerator):
    """``tiny:pixels``, which ships real images."""

    def __init__(self) -> None:
        super().__init__()
        self.name = "tiny:pixels"
        self.default_schedule = "cosine,mask_temperature=1:0"

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> TinyWithData:
        return cls()

    def real_images(self) -> ImageSource:
        return TinyImages()


class _Reward(RewardModel):
    def __init__(
        self, options: PluginOptions, *, generator: Generator, real: ImageSource | None, device: torch.device, seed: int
    ) -> None:
        pass


class Brightness(_Reward):
    """Mean of the pixels."""

    def score(self, images: Tensor, context: Context) -> Tensor:
        return images.mean((1, 2, 3))


class Contrast(_Reward):
    """Images of black and white: not what the real ones look like."""

    def score(self, images: Tensor, context: Context) -> Tensor:
        return images[:, 0].flatten(1).std(1)


class Constant(_Reward):
    """The same for every image."""

    def score(self, images: Tensor, context: Context) -> Tensor:
        return torch.full((len(images),), 0.25)


class PromptsOnly(_Reward):
    """A reward that fits no class-conditional generator."""

    def __init__(self, options: PluginOptions, *, generator: Generator, **_: Any) -> None:
        from adanat_toolkit.errors import ConfigError

        raise ConfigError(f"prompts-only reads prompts, and {generator.name} has none.")

    def score(self, images: Tensor, context: Context) -> Tensor:
        raise NotImplementedError


class Pixels(FeatureExtractor):
    """The grey values themselves."""

    protocol = "pixels-v1"
    feature_dim = 15

    def __init__(self) -> None:
        self.card = {"network": "none"}

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> Pixels:
        return cls()

    def __call__(self, images: Tensor) -> Tensor:
        return images[:, 0].flatten(1)
