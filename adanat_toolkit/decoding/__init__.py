"""How tokens are drawn, and how a masked sequence is decoded: the step, the loop, and the released samplers."""

from .draws import draw_tokens, guide, keep_likely
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
    "draw_tokens",
    "guide",
    "keep_likely",
    "masked_decoding_step",
    "parse_sampler",
]
