"""Trajectories, and images from seeds."""

from .editing import Edit, edit, read_edit, start_of_edit
from .refine import Refinement, candidate_seeds, forwards_of_an_image
from .rollout import Rollout, Start, begin, collect, embed, explored_by, gaussian_log_prob
from .sample import Samples, default_batch, sample, seed_range
from .scores import checked_embedding, checked_scores
from .whole_step import WholeStep, mean_action, value_of

__all__ = [
    "Edit",
    "Refinement",
    "Rollout",
    "Samples",
    "Start",
    "WholeStep",
    "begin",
    "candidate_seeds",
    "checked_embedding",
    "checked_scores",
    "collect",
    "default_batch",
    "edit",
    "embed",
    "explored_by",
    "forwards_of_an_image",
    "gaussian_log_prob",
    "mean_action",
    "read_edit",
    "sample",
    "seed_range",
    "start_of_edit",
    "value_of",
]
