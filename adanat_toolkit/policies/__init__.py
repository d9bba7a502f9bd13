"""Policies: networks, folders, and which generator one belongs to."""

from ..decoding import SamplingPolicy
from .blend import BlendPolicy, blend_policies
from .folder import export_policy, load_policy, local_spec, policy_card, policy_class, policy_folder
from .made_for import open_generator
from .networks import (
    SIZES,
    AdaptiveNetwork,
    AdaptiveOptions,
    AdaptivePolicy,
    ContextOptions,
    ContextPolicy,
    FixedPolicy,
    LeanOptions,
    LeanPolicy,
    LinearPolicy,
    ResidualOptions,
    ResidualPolicy,
    SharedOptions,
    SharedPolicy,
    StatisticsCritic,
    StepEmbedding,
    build_policy,
)

__all__ = [
    "SIZES",
    "AdaptiveNetwork",
    "AdaptiveOptions",
    "AdaptivePolicy",
    "BlendPolicy",
    "ContextOptions",
    "ContextPolicy",
    "FixedPolicy",
    "LeanOptions",
    "LeanPolicy",
    "LinearPolicy",
    "ResidualOptions",
    "ResidualPolicy",
    "SamplingPolicy",
    "SharedOptions",
    "SharedPolicy",
    "StatisticsCritic",
    "StepEmbedding",
    "blend_policies",
    "build_policy",
    "export_policy",
    "load_policy",
    "local_spec",
    "open_generator",
    "policy_card",
    "policy_class",
    "policy_folder",
]
