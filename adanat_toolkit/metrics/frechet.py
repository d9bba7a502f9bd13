"""Frechet distance of Gaussians fitted to two sets of features, with streaming float64 statistics.

FID is this distance in the features of InceptionV3 (Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule",
section 2). Its value depends on the number of samples: never compare figures of unlike counts.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from ..core import Generator
from ..errors import DataError
from ..storage import HEAD, not_the_file, read_head, shortened

INDEFINITE = 1e-3
"""Share of a covariance's largest eigenvalue below which a negative one is rounding, also of published float32 files."""
IMAGE_SIZE = "image_size"
"""Entry of a card: the pixels of the images, ``HxW``."""
CHUNK = 16_384
"""Samples that are in float64 at once: 0.27 GB for the 2,048 features of InceptionV3 (docs/results/metrics_memory.md)."""


@dataclass(frozen=True)
class FeatureStatistics:
    """Mean and scatter of a set of features; immutable, so that partial sums can be shared and merged in any order.

    Attributes:
        count: number of samples; None where a published file does not tell.
        mean: (D,) float64.
        scatter: (D, D) float64, sum over samples of (x - mean)(x - mean)^T.
        protocol: the feature protocol. data: fingerprint of the images. card: what else is known, in words.
    """

    count: int | None
    mean: Tensor
    scatter: Tensor
    protocol: str = ""
    data: str = ""
    card: dict[str, str] = field(default_factory=dict)

    @classmethod
    def empty(
        cls, dim: int, protocol: str = "", data: str = "", card: dict[str, str] | None = None
    ) -> FeatureStatistics:
        """Statistics of no samples, to be updated."""
        zeros = torch.zeros(dim, dtype=torch.float64)
        return cls(0, zeros, torch.zeros(dim, dim, dtype=torch.float64), protocol, data, card or {})

    @classmethod
    def of(cls, features: Tensor, protocol: str = "", data: str = "") -> FeatureStatistics:
        """Statistics of (N, D) features, chunk by chunk."""
        out = cls.empty(features.shape[1], protocol, data)
        for chunk in features.split(CHUNK):
            out = out.update(chunk)
        return out

    def update(self, features: Tensor) -> FeatureStatistics:
        """With the samples of (B, D) ``features`` added (float64 from here on, on the features' device, then the
        CPU)."""
        if features.dim() != 2 or features.shape[1] != len(self.mean):
            raise DataError(f"features must be (B, {len(self.mean)}), got {tuple(features.shape)}.")
        if not torch.isfinite(features).all():
            wrong = int((~torch.isfinite(features)).any(1).sum())
            of = f" of protocol {self.protocol!r}" if self.protocol else ""
            raise DataError(
                f"features{of} have values that are not finite, in {wrong} of {len(features)} images; look at these images, "
                "and at the plug-in that computes the features."
            )
        values = features.detach()
        values = (values.cpu() if values.device.type == "mps" else values).double()  # Apple's GPUs have no float64
        mean = values.mean(0)
        centred = values - mean
        part = replace(self, count=len(features), mean=mean.cpu(), scatter=(centred.T @ centred).cpu())
        return self.merge(part) if len(features) else self

    def merge(self, other: FeatureStatistics) -> FeatureStatistics:
        """Statistics of both sets together (Chan, Golub and LeVeque 1979: no cancellation of large sums)."""
        if self.count is None or other.count is None:
            raise DataError(
                "statistics of an unknown number of samples cannot be merged; compute them from the images."
            )
        if self.protocol != other.protocol:
            raise DataError(
                f"statistics of {self.protocol!r} and {other.protocol!r} cannot be merged; use one protocol."
            )
        total = self.count + other.count
        if total == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / total)
        scatter = self.scatter + other.scatter + torch.outer(delta, delta) * (self.count * other.count / total)
        return replace(self, count=total, mean=mean, scatter=scatter)

    @cached_property
    def covariance(self) -> Tensor:
        """(D, D) float64, unbiased (divided by count - 1)."""
        if self.count is None:
            return self.scatter
        if self.count < 2:
            raise DataError(f"a covariance needs at least 2 samples, got {self.count}; give more images.")
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> Tensor:
        """(D, D) float64, symmetric square root of the covariance. Tiny negative eigenvalues (rounding) count as 0."""
        try:
            values, vectors = torch.linalg.eigh(self.covariance)
        except torch.linalg.LinAlgError as error:
            raise DataError(f"this covariance has no square root ({error}); make the statistics again.") from None
        if values[0] < -INDEFINITE * values.abs().max():
            raise DataError(
                f"this is no covariance (a variance of {float(values[0]):.3g} along one direction, the largest is "
                f"{float(values[-1]):.3g}); make the statistics again."
            )
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

    def taken_at(self, size: tuple[int, int]) -> FeatureStatistics:
        """The same, with the images' (H, W) in pixels on the card."""
        return replace(self, card={**self.card, IMAGE_SIZE: _shown(size)})

    def require_size(self, generator: Generator, file: str | Path) -> None:
        """Nothing is said of files that do not name the size: older ones, and published ones.

        Raises:
            DataError: the statistics are of images of another size than the generator makes.
        """
        found, own = self.card.get(IMAGE_SIZE), _shown(generator.image_size)
        if found is not None and found != own:
            raise DataError(
                f"{file} holds statistics of images of {shortened(found)[1:-1]} pixels, and {generator.name} makes images of "
                f"{own}: a resize changes the features. Make them again with `adanat stats --generator {generator.name}`."
            )

    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file whose metadata hold count, protocol, data fingerprint, card and digest."""
        from safetensors.torch import save_file

        from .stored import statistics_digest

        about: dict[str, object] = {"count": self.count, "protocol": self.protocol, "data": self.data, "card": self.card}
        about["digest"] = statistics_digest(about, self.mean, self.scatter)
        tensors = {"mean": self.mean.contiguous(), "scatter": self.scatter.contiguous()}
        save_file(tensors, str(path), metadata={"adanat_statistics": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path, protocol: str = "") -> FeatureStatistics:
        """Read what :meth:`save` wrote, or a published ``.npz`` with ``mu`` (D,) and ``sigma`` (D, D).

        Args:
            protocol: what to record for an ``.npz``, which does not name its own.

        Raises:
            DataError: missing, damaged, or not statistics.
        """
        from .stored import read_npz, read_statistics

        path = Path(path)
        if not path.exists():
            raise DataError(f"{path} does not exist; make statistics of your images with `adanat stats --data DIR`.")
        if path.is_file():
            instead = not_the_file(read_head(path, HEAD, error=DataError))
            if instead is not None:
                raise DataError(f"{path} holds no statistics, it is {instead}.")
        if path.suffix == ".npz":
            mean, covariance = read_npz(path)
            return cls(None, mean, covariance, protocol, path.name, {"source": path.name})
        about, mean, scatter = read_statistics(path)
        return cls(about.count, mean, scatter, about.protocol, about.data, about.card)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet (2-Wasserstein) distance |m_a - m_b|^2 + tr(A + B - 2 (A B)^1/2) of two Gaussians.

    tr (A B)^1/2 is the sum of the square roots of the eigenvalues of the symmetric matrix B^1/2 A B^1/2, which stays
    real and stable for covariances without full rank. ``b``'s root is cached: pass the real images as ``b``.

    Raises:
        DataError: unlike protocols or dimensions.
    """
    if len(a.mean) != len(b.mean) or (a.protocol and b.protocol and a.protocol != b.protocol):
        raise DataError(
            f"statistics of {a.protocol or 'an unnamed protocol'} ({len(a.mean)} features) and "
            f"{b.protocol or 'an unnamed protocol'} ({len(b.mean)}) cannot be compared; use one protocol for both."
        )
    product = b.root @ a.covariance @ b.root
    try:
        cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    except torch.linalg.LinAlgError as error:
        raise DataError(f"these statistics have no Frechet distance ({error}); make them again from images.") from None
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))
