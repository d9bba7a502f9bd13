"""The picture of docs/policies-and-actions.md: the knobs of the policy that ships, step by step.

    python recipes/pictures.py

Needs nothing but the package; half a minute on one CPU core.
"""

from __future__ import annotations

import os
from pathlib import Path

# Before torch starts its threads: on busy cores, waiting threads that spin make everything several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from adanat_plugins.pretrained import pretrained_policy
from adanat_toolkit.policies import load_policy, open_generator
from adanat_toolkit.sampling import sample, seed_range

IMAGES, FIRST, SHOWN = 512, 50_000, 12
TARGET = Path(__file__).parents[1] / "docs" / "images" / "knobs.png"
TITLES = {
    "mask_ratio": "mask_ratio (share masked again)",
    "mask_temperature": "mask_temperature",
    "token_temperature": "token_temperature",
    "guidance": "guidance (0: none)",
}


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    generator = open_generator("maskgit", device="cpu")
    folder = pretrained_policy(generator)
    assert folder is not None
    policy = load_policy(folder, generator)
    space = policy.space
    assert space.schedule is not None
    knobs = torch.cat([part.knobs for part in sample(generator, policy, seed_range(FIRST, IMAGES))])
    steps = range(1, space.steps + 1)
    figure, axes = plt.subplots(1, len(space.names), figsize=(11, 2.9), layout="constrained")
    for k, (axis, name) in enumerate(zip(axes, space.names, strict=True)):
        low, middle, high = knobs[:, :, k].quantile(torch.tensor([0.1, 0.5, 0.9]), dim=0)
        for one in knobs[:SHOWN, :, k]:
            axis.plot(steps, one, color="#c8701f", linewidth=0.6, alpha=0.45)
        axis.fill_between(steps, low, high, color="#f3b27a", alpha=0.5, linewidth=0)
        axis.plot(steps, middle, color="#c8701f", marker="o", linewidth=2, label="learned")
        axis.plot(steps, space.schedule[:, k], color="#3b6fb0", marker="s", linestyle="--", label="hand-made")
        axis.set_title(TITLES.get(name, name), fontsize=10)
        axis.set_xticks(list(steps))
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(TARGET, dpi=110)
    print(f"{TARGET}: {TARGET.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
