"""The contracts: generator, reward, policy, features, with shapes and units; knobs, schedules and noise."""

from .actions import (
    GUIDANCE,
    MASK_RATIO,
    MASK_TEMPERATURE,
    TIME,
    TOKEN_KNOBS,
    TOKEN_TEMPERATURE,
    ActionSpace,
    Knob,
    next_scale_knobs,
)
from .context import Context, ContextKind
from .engine import Engine
from .features import FeatureExtractor, JointExtractor, PrecomputedExtractor, PromptScorer, Tracker
from .generator import Generator, ImageSource, Labelled
from .noise import (
    ACTION,
    CANDIDATE,
    CONTEXT,
    DATA,
    INITIAL,
    REMASK,
    REWARD,
    SHUFFLE,
    STEP,
    TOKEN,
    Noise,
    as_seeds,
    derive,
    mix,
    sample_seeds,
    to_gumbel,
)
from .observation import see, see_statistics, seen_shape, statistic_units
from .options import PluginOptions, Source
from .policy import Policy
from .policy_spec import PolicySpec, PolicyTerm
from .reward import LearnedReward, RewardModel, called, unchanged
from .reward_spec import RewardSpec, RewardTerm
from .schedules import RATIO_CURVES, adanat_heuristic, linear, parse_schedule

__all__ = [
    "ACTION",
    "CANDIDATE",
    "CONTEXT",
    "DATA",
    "GUIDANCE",
    "INITIAL",
    "MASK_RATIO",
    "MASK_TEMPERATURE",
    "RATIO_CURVES",
    "REMASK",
    "REWARD",
    "SHUFFLE",
    "STEP",
    "TIME",
    "TOKEN",
    "TOKEN_KNOBS",
    "TOKEN_TEMPERATURE",
    "ActionSpace",
    "Context",
    "ContextKind",
    "Engine",
    "FeatureExtractor",
    "Generator",
    "ImageSource",
    "JointExtractor",
    "Knob",
    "Labelled",
    "LearnedReward",
    "Noise",
    "PluginOptions",
    "Policy",
    "PolicySpec",
    "PolicyTerm",
    "PrecomputedExtractor",
    "PromptScorer",
    "RewardModel",
    "RewardSpec",
    "RewardTerm",
    "Source",
    "Tracker",
    "adanat_heuristic",
    "as_seeds",
    "called",
    "derive",
    "linear",
    "mix",
    "next_scale_knobs",
    "parse_schedule",
    "sample_seeds",
    "see",
    "see_statistics",
    "seen_shape",
    "statistic_units",
    "to_gumbel",
    "unchanged",
]
