"""``--tracker wandb``: Weights & Biases. Project, entity and mode come from its own environment variables and login."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from adanat_toolkit.errors import PluginError
from adanat_toolkit.interfaces import Tracker
from adanat_toolkit.storage import write_file


class WandbTracker(Tracker):
    """Every figure over trajectories; a resumed run goes on under the same id. ``--offline`` keeps all of it in the run
    folder, for ``wandb sync``."""

    def __init__(self, run: Any) -> None:
        self.run = run

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> WandbTracker:
        """Open the run.

        Raises:
            PluginError: wandb is not installed, or refuses (no login, no network).
        """
        try:
            import wandb
        except ImportError as error:
            raise PluginError(
                f"tracker 'wandb' needs Weights & Biases, which cannot be imported ({error}). "
                "Install it: pip install 'adanat-toolkit[wandb]'."
            ) from None
        stored = folder / "wandb" / "id"
        if not stored.is_file():
            write_file(stored, uuid.uuid4().hex[:12])
        try:
            run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "adanat"),
                name=folder.name,
                id=stored.read_text().strip(),
                resume="allow",
                dir=str(folder),
                config=config,
                mode="offline" if config.get("offline") else None,
            )
        except Exception as error:  # wandb.errors has a dozen kinds
            raise PluginError(
                f"tracker 'wandb' cannot start: {error}. Log in (wandb login), set WANDB_MODE=offline, or leave it out."
            ) from error
        run.define_metric("*", step_metric="trajectories")
        return cls(run)

    def log(self, figures: dict[str, float], trajectories: int) -> None:
        # As the step, of which wandb keeps the first edition: rows after a checkpoint are made again, and are the same.
        self.run.log({**figures, "trajectories": trajectories}, step=trajectories)

    def close(self) -> None:
        self.run.finish()
