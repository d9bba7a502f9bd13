"""Training: configuration, PPO, the loop, checkpoints."""

from .checkpoint import IGNORED_ON_RESUME
from .config import PRESETS, DataConfig, PPOConfig, RunConfig, differences, merge, resolve, validate
from .engines import create_trainer
from .ppo import targets
from .reward_update import update_reward
from .trainer import Trainer

__all__ = [
    "IGNORED_ON_RESUME",
    "PRESETS",
    "DataConfig",
    "PPOConfig",
    "RunConfig",
    "Trainer",
    "create_trainer",
    "differences",
    "merge",
    "resolve",
    "targets",
    "update_reward",
    "validate",
]
