"""``fid``: the Frechet distance of the generated set as a reward, for groups (the paper's) or credited to samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from adanat_toolkit.core import PrecomputedExtractor
from adanat_toolkit.errors import CheckpointError, ConfigError, DataError
from adanat_toolkit.interfaces import (
    Context,
    FeatureExtractor,
    Generator,
    ImageSource,
    PluginOptions,
    RewardModel,
    Source,
)
from adanat_toolkit.metrics import FeatureStatistics, statistics_of
from adanat_toolkit.registry import create_features, features_named_in
from adanat_toolkit.runtime import gather, in_chunks

from .frechet_influence import FrechetInfluence, Moments

FEATURE_BATCH = 128
LARGEST_GROUP, GROUPS = 64, 4
"""Default size of a group of ``shared``: so many samples, but at least so many groups a batch."""
HISTORY_PER_FEATURE = 4
"""Default length of the history in samples a feature (docs/results/fid-influence.md has the measurements behind it)."""


class FidOptions(PluginOptions):
    """Options of the Frechet rewards: ``group`` for ``fid``, ``history`` and ``shrinkage`` for ``fid:influence``."""

    variant: Literal["shared", "influence"] = "shared"
    features: str = "auto"
    """Feature protocol (``adanat plugins`` lists them). ``auto``: ``emoji64`` for the embedded generators, else
    ``inception-fidelity``. A yardstick with the features of the reward is no longer independent of it."""
    feature_options: dict[str, Any] = Field(default_factory=dict)
    reference: Source = None
    """Statistics of the real images: a file of ``adanat stats`` or a published ``.npz``. Default: computed."""
    group: int | None = Field(None, ge=2)
    """``fid``: samples that share one distance. Default: a quarter of the batch, but at most 64: a batch of one group
    would teach nothing."""
    history: int | None = Field(None, ge=0)
    """``fid:influence``: samples of earlier iterations that the batch is blended with; 0 for none. Default: 4 a feature."""
    shrinkage: float | None = Field(None, ge=1e-6, le=1)
    """``fid:influence``: variance of the isotropic noise added to both distributions, as a share of the real features' mean
    variance; default 0.001."""


class FidReward(RewardModel):
    """Negative Frechet distance to the real images, in the features of a named protocol.

    ``fid`` (the paper's): the batch is dealt into groups like cards, sample i to group i modulo their number, and all
    samples of a group get its negative distance. What tells samples apart is only the group they are in, so a batch of
    one group teaches nothing. Small groups have a large bias, which is the same for all groups.

    ``fid:influence``: a sample's score is its negative first-order influence on the distance of the whole set, in
    closed form (docs/fid-influence.md): about (N - 1) times what the distance would grow by without it. The scores of a
    batch average to 0 when there is no history.

    A covariance needs more samples than a batch may have, so with ``history`` the batch is blended with exponentially
    averaged moments of earlier batches (see :meth:`update`). The blend's moments and the influence on it are
    exact; that the earlier samples stand for the present policy is an approximation.
    """

    thread_safe = True
    Options: ClassVar[type[PluginOptions]] = FidOptions
    set_level = compares_sets = True

    @classmethod
    def create(cls, options: Any, **made_for: Any) -> RewardModel:
        return cls(options, **made_for)

    def __init__(
        self,
        options: FidOptions,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool = False,
    ) -> None:
        _check(options)
        self.options = options
        name = options.features
        if name == "auto":
            name = "emoji64" if "emoji64" in generator.name else "inception-fidelity"
        self.extractor = create_features(name, options.feature_options, device=device, offline=offline)
        self.device = device
        reference = self._reference(options.reference, real, generator)
        self.mean, self.covariance = (t.to(self.device) for t in (reference.mean, reference.covariance))
        self.group = options.group
        self.history = HISTORY_PER_FEATURE * len(self.mean) if options.history is None else options.history
        self.past: Moments | None = None
        self.learns = options.variant == "influence" and self.history != 0  # there is something to carry on
        if options.variant == "influence":
            self.influence = FrechetInfluence(self.mean, self.covariance, options.shrinkage or 1e-3)
        self._distances = torch.zeros(0)

    def _reference(self, file: str | None, real: ImageSource | None, generator: Generator) -> FeatureStatistics:
        extractor = self.extractor
        if file is not None:
            reference = FeatureStatistics.load(Path(file).expanduser(), extractor.protocol)
            if len(reference.mean) != extractor.feature_dim or reference.protocol not in ("", extractor.protocol):
                fitting = features_named_in(reference.protocol)
                remedy = f"set reward.options.features={fitting[0]}, which it fits, or " if fitting else ""
                raise DataError(
                    f"{file} holds {len(reference.mean)} features of protocol {reference.protocol or 'unknown'}, but "
                    f"the reward uses {extractor.feature_dim} of {extractor.protocol}; {remedy}make it again with "
                    f"`adanat stats --generator {generator.name}`."
                )
            reference.require_size(generator, file)
            return reference
        if real is None:
            raise DataError(
                f"reward 'fid' compares with real images, and {generator.name} ships none. Give --data "
                "FOLDER or FILE.zip, or their statistics: --set reward.options.reference=FILE."
            )
        return _statistics(extractor, real)

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.extractor.protocol})

    # --- scoring ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def embed(self, images: Tensor, context: Context) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, D) float32 features."""
        chunk = None if images.device.type == "cpu" else FEATURE_BATCH
        return in_chunks(self.extractor, images, chunk=chunk)[0].float()

    @torch.no_grad()
    def score_embedded(self, embedded: Tensor, context: Context) -> Tensor:
        features = embedded.to(self.device).double()
        if self.options.variant == "shared":
            scores = -self._group_distances(features)
            self._distances = -scores
        else:
            influence, distance = self.influence(features, self._blended(features))
            scores = -influence
            self._distances = torch.full_like(scores, distance)
        return scores.float().to(embedded.device)

    def score(self, images: Tensor, context: Context) -> Tensor:
        return self.score_embedded(self.embed(images, context), context)

    def terms(self) -> dict[str, Tensor]:
        """``frechet``: the distance of each sample's group (``shared``), or of the blended set."""
        return {"frechet": self._distances.float()}

    def _group_distances(self, features: Tensor) -> Tensor:
        size = self.group or min(LARGEST_GROUP, max(2, len(features) // GROUPS))
        number = -(-len(features) // size)
        member = torch.arange(len(features), device=features.device) % number
        distances = torch.stack(
            [frechet_distance_of_few(features[member == g], self.mean, self.covariance) for g in range(number)]
        )
        return distances[member]

    def _blended(self, features: Tensor) -> Moments:
        batch = Moments.of(features)
        return batch if self.past is None else self.past.blend(batch)

    # --- the memory of ``fid:influence`` --------------------------------------------------------------------------------

    @torch.no_grad()
    def update(
        self, real: Tensor, real_context: Context, fake: Tensor, fake_context: Context, *, seed: int
    ) -> dict[str, float]:
        """Fold the batch into the history; no real images are read.

        The history's weight W decays to W (1 - n / H) and the batch's n samples are added to it, up to H in all. Hence the H
        samples it settles at are an exponential average over the last H / n iterations. It is part of the state, and
        scoring does not change it.

        Returns:
            history: samples it stands for. distance: of the history's distribution, as the influence defines it.
        """
        batch = Moments.of(gather(fake).to(self.device))
        if self.past is None:
            self.past = batch
        else:
            self.past = self.past.scaled(max(0.0, 1 - batch.weight / self.history)).blend(batch)
        self.past = self.past.scaled(min(1.0, self.history / self.past.weight))
        return {"history": self.past.weight, "distance": self.influence.distance(self.past)}

    def state(self) -> dict[str, Tensor]:
        """The history's moments (float64), empty before the first update."""
        if self.past is None:
            return {}
        weight = torch.tensor(self.past.weight, dtype=torch.float64)
        return {"weight": weight, "mean": self.past.mean, "covariance": self.past.covariance}

    def load_state(self, state: dict[str, Tensor]) -> None:
        if not state:
            self.past = None
            return
        size = len(self.mean)
        expected = {"weight": (), "mean": (size,), "covariance": (size, size)}
        given = {name: tuple(value.shape) for name, value in state.items()}
        if given != expected:
            raise CheckpointError(
                f"the checkpoint does not fit reward 'fid:influence': it has {given}, expected "
                f"{expected}. Resume with the features that the run was started with."
            )
        mean, covariance = (state[name].to(self.device, torch.float64) for name in ("mean", "covariance"))
        self.past = Moments(float(state["weight"]), mean, covariance)


def frechet_distance_of_few(features: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Squared Frechet distance of a few samples to a Gaussian, as in ``metrics.frechet`` but for n < D in O(n^2 D).

    The nonzero eigenvalues of S R, with S = X^T X / (n - 1) for the centred samples X, are those of the n x n matrix
    X R X^T / (n - 1): a group's distance needs no D x D decomposition.

    Args:
        features: (n, D) float64; a single sample counts as a point. mean: (D,), covariance: (D, D), float64.

    Returns:
        () float64.
    """
    centre = features.mean(0)
    centred = (features - centre) / max(1, len(features) - 1) ** 0.5
    product = centred @ covariance @ centred.T
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return (centre - mean).square().sum() + centred.square().sum() + covariance.trace() - 2 * cross


def _statistics(extractor: FeatureExtractor, real: ImageSource) -> FeatureStatistics:
    features = extractor.precomputed(real) if isinstance(extractor, PrecomputedExtractor) else None
    if features is None:
        return statistics_of(extractor, real)
    return FeatureStatistics.of(features, extractor.protocol, real.fingerprint)


def _check(options: FidOptions) -> None:
    """An option of the other variant is a mistake, not something to ignore."""
    foreign = ("history", "shrinkage") if options.variant == "shared" else ("group",)
    given = [name for name in foreign if getattr(options, name) is not None]
    if given:
        other = "influence" if options.variant == "shared" else "shared"
        raise ConfigError(
            f"{' and '.join(given)} of reward 'fid' belong to variant {other!r}, but the variant is "
            f"{options.variant!r}; use --reward fid{':influence' if other == 'influence' else ''}."
        )
