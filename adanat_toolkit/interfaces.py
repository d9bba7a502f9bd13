"""Everything that the author of a plug-in imports, in one place. The toolkit itself imports it nowhere.

Shapes: B samples, N = h * w cells of the generator's grid, D feature channels, A acted knobs, K knobs, T steps.
"""

from __future__ import annotations

from .core import (
    Context,
    ContextKind,
    Engine,
    FeatureExtractor,
    Generator,
    ImageSource,
    LearnedReward,
    PluginOptions,
    Policy,
    RewardModel,
    Source,
    Tracker,
)
from .decoding import DecodingRule, SamplingPolicy, TokenGenerator, TokenState

__all__ = [
    "Context",
    "ContextKind",
    "DecodingRule",
    "Engine",
    "FeatureExtractor",
    "Generator",
    "ImageSource",
    "LearnedReward",
    "PluginOptions",
    "Policy",
    "RewardModel",
    "SamplingPolicy",
    "Source",
    "TokenGenerator",
    "TokenState",
    "Tracker",
]
