"""Training: configuration, PPO, the loop, checkpoints."""

from .checkpoint import IGNORED_ON_RESUME
from .config import PRESETS, DataConfig, PPOConfig, RunConfig, differences, merge, resolve, validate
from .engines import create_trainer
from .ppo import targets
from .reward_update import update_reward
from .scoring import checked_scores, require_finite_state
from .trainer import Trainer

__all__ = [
    "IGNORED_ON_RESUME",
    "PRESETS",
    "DataConfig",
    "PPOConfig",
    "RunConfig",
    "Trainer",
    "checked_scores",
    "create_trainer",
    "differences",
    "merge",
    "require_finite_state",
    "resolve",
    "targets",
    "update_reward",
    "validate",
]
