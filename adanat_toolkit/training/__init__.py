"""Training: configuration, PPO, the loop, checkpoints."""

from .callbacks import Callback
from .checkpoint import as_begun
from .config import BY_POLICY, PRESETS, DataConfig, PPOConfig, RunConfig, differences, merge, resolve, validate
from .describe import describe, describe_shares, describe_statistics
from .engines import create_trainer
from .judge import load_judge
from .objects import FunctionReward, with_objects
from .ppo import targets
from .reward_update import prepared_update
from .same_run import IGNORED_ON_RESUME, is_source
from .scoring import require_finite_update
from .trainer import Trainer

__all__ = [
    "BY_POLICY",
    "IGNORED_ON_RESUME",
    "PRESETS",
    "Callback",
    "DataConfig",
    "FunctionReward",
    "PPOConfig",
    "RunConfig",
    "Trainer",
    "as_begun",
    "create_trainer",
    "describe",
    "describe_shares",
    "describe_statistics",
    "differences",
    "is_source",
    "load_judge",
    "merge",
    "prepared_update",
    "require_finite_update",
    "resolve",
    "targets",
    "validate",
    "with_objects",
]
