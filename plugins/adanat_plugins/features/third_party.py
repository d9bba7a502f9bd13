"""What the protocols with published weights share: where the file is, and the resize to the network's input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import PluginOptions, Source

from ..weights import Asset, resolve

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class WeightsOptions(PluginOptions):
    """Options of a protocol with one weights file."""

    weights: Source = None
    """A file, a folder that holds it, or a hub id; None looks in the weights folder, then fetches the published file
    unless offline."""


@dataclass(frozen=True)
class FeatureAsset(Asset):
    """Weights of a feature protocol."""

    def missing(self, where: Path | None = None) -> WeightsError:
        return WeightsError(
            f"feature protocol {self.variants[0]} needs {self.role}, and {where or self.path} does not exist.\n"
            f"  published: {self.source}\n  licence: {self.licence}\n  obtain: {self.obtain}\n"
            f"Put the file at {self.path}, name it with the option weights=PATH, or leave offline mode to fetch it."
        )


def locate(weights: str | None, wanted: FeatureAsset, *, offline: bool) -> Path:
    """The weights file: named, in the weights folder, in the hub's cache, or fetched from the hub unless offline.

    Raises:
        WeightsError: it is nowhere.
    """
    if weights is None and not wanted.present() and wanted.hub is not None:
        weights = wanted.hub
    return resolve(weights, wanted, offline=offline)


def to_8_bit(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> the same, rounded as a saved image is."""
    return (images.float().clamp(0, 1) * 255).round() / 255


def bicubic_square(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, side, side), both sides resized, antialiased, clamped to [0, 1]."""
    if images.shape[-2:] == (side, side):
        return images
    size = (side, side)
    return F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
