"""``--tracker tensorboard``: event files in ``RUN/tensorboard``; ``tensorboard --logdir RUN`` shows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adanat_toolkit.errors import PluginError
from adanat_toolkit.interfaces import Tracker
from adanat_toolkit.storage import RunFolder


class TensorBoardTracker(Tracker):
    """Every figure is a scalar over trajectories; the configuration is a text."""

    def __init__(self, writer: Any) -> None:
        self.writer = writer

    @classmethod
    def create(cls, folder: Path, config: dict[str, Any]) -> TensorBoardTracker:
        """Open the event files.

        Raises:
            PluginError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise PluginError(
                f"tracker 'tensorboard' needs TensorBoard, which cannot be imported ({error}). "
                "Install it: pip install 'adanat-toolkit[tensorboard]'."
            ) from None
        rows = RunFolder(folder).metrics()
        # Rows after the checkpoint that a run resumes from are made again, all of them where there is none: hide the first
        # edition.
        after = int(rows[-1].get("trajectories", 0)) + 1 if rows else 0
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=after)
        writer.add_text("config", f"```json\n{json.dumps(config, indent=2)}\n```", 0)
        return cls(writer)

    def log(self, figures: dict[str, float], trajectories: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, trajectories)

    def close(self) -> None:
        self.writer.close()
