"""Figures of generated images: statistics in float64 over a named feature protocol, streaming and in chunks."""

from .evaluation import LOWER_IS_BETTER, Evaluation, direction, evaluate_features, require_comparable
from .extract import Features, Reference, extract_features, reference_of, statistics_of
from .frechet import FeatureStatistics, frechet_distance
from .intervals import bootstrap_interval, mean_interval
from .kid import kernel_distance
from .prdc import neighbourhoods
from .scores import clip_scores, inception_score, within_class_diversity

__all__ = [
    "LOWER_IS_BETTER",
    "Evaluation",
    "FeatureStatistics",
    "Features",
    "Reference",
    "bootstrap_interval",
    "clip_scores",
    "direction",
    "evaluate_features",
    "extract_features",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "mean_interval",
    "neighbourhoods",
    "reference_of",
    "require_comparable",
    "statistics_of",
    "within_class_diversity",
]
