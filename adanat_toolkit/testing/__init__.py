"""Contract tests of plug-ins, for their authors: ``adanat plugins check NAME``, or called from a test of one's own.

    from adanat_toolkit import testing

    def test_contract():
        testing.check_generator(MyGenerator.create(None, {}, device=cpu, dtype=torch.float32, offline=True))

Every ``check_...`` runs all checks of its kind and raises the first failure; ``GENERATOR_CHECKS``, ``REWARD_CHECKS``, ... hold
them one by one, each a function of the kind's case. A failure is an AssertionError whose sentence says what the contract
wants and what was found.
"""

from __future__ import annotations

from .control import Control, ControlOptions, control_reward
from .generators import GENERATOR_CHECKS, GeneratorCase, check_generator
from .others import POLICY_CHECKS, POLICY_GRIDS, PolicyCase, check_engine, check_features, check_policy, check_tracker
from .rewards import REWARD_CHECKS, RewardCase, check_reward

__all__ = [
    "GENERATOR_CHECKS",
    "POLICY_CHECKS",
    "POLICY_GRIDS",
    "REWARD_CHECKS",
    "Control",
    "ControlOptions",
    "GeneratorCase",
    "PolicyCase",
    "RewardCase",
    "check_engine",
    "check_features",
    "check_generator",
    "check_policy",
    "check_reward",
    "check_tracker",
    "control_reward",
]
