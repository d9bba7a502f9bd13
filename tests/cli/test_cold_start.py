"""What a first image and a first iteration do not wait for: packages that take seconds to import and are not needed.

What is imported is counted, not timed: machines differ.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("diffusers", "transformers", "torchvision", "open_clip", "timm", "torch._dynamo", "sympy", "scipy", "matplotlib")
"""Packages that make no image of the embedded generators: each takes a second or more."""


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "--num", "1", "--policy", "fixed"],
        ["train", "--trajectories", "8", "--batch", "8", "--steps", "2", "--set", "ppo.epochs=1"],
    ],
    ids=["sample", "train"],
)
def test_nothing_heavy_is_imported(command: list[str], tmp_path: Path) -> None:
    code = (
        "import sys; from adanat_cli.main import app; app(sys.argv[1:], standalone_mode=False);"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    arguments = [*command, "--device", "cpu", "--quiet", "--offline", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
