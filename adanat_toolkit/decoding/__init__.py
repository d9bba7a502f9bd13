"""How a masked sequence is decoded: the step, the loop, and the released samplers."""

from .masked_decoding import StepKnobs, StepNoise, StepResult, masked_decoding_step
from .released_samplers import PUBLISHED_SAMPLERS, parse_sampler
from .token_generator import DecodingRule, TokenGenerator, TokenState

__all__ = [
    "PUBLISHED_SAMPLERS",
    "DecodingRule",
    "StepKnobs",
    "StepNoise",
    "StepResult",
    "TokenGenerator",
    "TokenState",
    "masked_decoding_step",
    "parse_sampler",
]
