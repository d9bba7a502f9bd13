"""The public Python API, which ``adanat_toolkit`` re-exports: load, sample, train, evaluate, list, apply."""

from ..decoding import SamplingPolicy
from ..integrations.diffusers import apply, remove
from .distilling import Distilled, distill
from .evaluating import Scores, evaluate
from .gaining import Headroom, headroom
from .generators import list_features, list_generators, list_policies, list_rewards, load_generator
from .policies import load_policy
from .sampling import Samples, sample
from .training import Run, train

__all__ = [
    "Distilled",
    "Headroom",
    "Run",
    "Samples",
    "SamplingPolicy",
    "Scores",
    "apply",
    "distill",
    "evaluate",
    "headroom",
    "list_features",
    "list_generators",
    "list_policies",
    "list_rewards",
    "load_generator",
    "load_policy",
    "remove",
    "sample",
    "train",
]
