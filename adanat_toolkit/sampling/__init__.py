"""Trajectories, and images from seeds."""

from .editing import Edit, edit, read_edit
from .rollout import Rollout, begin, collect, embed, gaussian_log_prob, mean_action
from .sample import Samples, default_batch, sample, seed_range

__all__ = [
    "Edit",
    "Rollout",
    "Samples",
    "begin",
    "collect",
    "default_batch",
    "edit",
    "embed",
    "gaussian_log_prob",
    "mean_action",
    "read_edit",
    "sample",
    "seed_range",
]
