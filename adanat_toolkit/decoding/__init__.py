"""How tokens are drawn, how a masked sequence is decoded, the released samplers, and what a policy is bundled with."""

from .distilled import DecoderCard, DistilledDecoder, load_decoder, read_decoder, widths_for
from .draws import draw_tokens, guide, keep_likely
from .masked_decoding import StepKnobs, StepNoise, StepResult, masked_decoding_step
from .released_samplers import PUBLISHED_SAMPLERS, parse_sampler
from .sampling_policy import ReadsPolicies, SamplingPolicy
from .statistics import RANGES, prediction_statistics, statistic_names
from .token_generator import DecodingRule, TokenGenerator, TokenState

__all__ = [
    "PUBLISHED_SAMPLERS",
    "RANGES",
    "DecoderCard",
    "DecodingRule",
    "DistilledDecoder",
    "ReadsPolicies",
    "SamplingPolicy",
    "StepKnobs",
    "StepNoise",
    "StepResult",
    "TokenGenerator",
    "TokenState",
    "draw_tokens",
    "guide",
    "keep_likely",
    "load_decoder",
    "masked_decoding_step",
    "parse_sampler",
    "prediction_statistics",
    "read_decoder",
    "statistic_names",
    "widths_for",
]
