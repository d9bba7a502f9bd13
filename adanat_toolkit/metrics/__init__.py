"""Figures of generated images: statistics in float64 over a named feature protocol, streaming and in chunks."""

from .evaluation import Evaluation, evaluate_features, require_comparable, resampled_frechets, resamples_of
from .extract import BATCH, Features, Reference, extract_features, reference_of, statistics_of
from .figures import FIGURES, TABLE, direction, flattered, title
from .frechet import FeatureStatistics, frechet_distance
from .intervals import bootstrap_interval, deciles, mean_interval, resampled_interval
from .kid import kernel_distance
from .prdc import FEWEST, neighbourhoods
from .scores import clip_scores, inception_score, within_class_diversity
from .shared import shared_reference, shared_statistics
from .variance_shares import (
    Share,
    Slopes,
    VarianceShares,
    batch_shares,
    least_samples,
    trajectories_to_move,
    variance_shares,
)

__all__ = [
    "BATCH",
    "FEWEST",
    "FIGURES",
    "TABLE",
    "Evaluation",
    "FeatureStatistics",
    "Features",
    "Reference",
    "Share",
    "Slopes",
    "VarianceShares",
    "batch_shares",
    "bootstrap_interval",
    "clip_scores",
    "deciles",
    "direction",
    "evaluate_features",
    "extract_features",
    "flattered",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "least_samples",
    "mean_interval",
    "neighbourhoods",
    "reference_of",
    "require_comparable",
    "resampled_frechets",
    "resampled_interval",
    "resamples_of",
    "shared_reference",
    "shared_statistics",
    "statistics_of",
    "title",
    "trajectories_to_move",
    "variance_shares",
    "within_class_diversity",
]
