"""Published AdaNAT training checkpoints: written as their script writes them, then loaded by name into our policy and heads."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from adanat_plugins.released_policy import load_published_policy, published_policy
from adanat_plugins.rewards.paper_discriminator import PaperDiscriminator, load_heads, published_state, read_published
from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, adanat_heuristic
from adanat_toolkit.policies.networks import SIZES, AdaptiveNetwork

from .checks_discriminator import build
from .harness import Fixture, Report

DISCRIMINATOR = "discriminator/module."
_STEPS = 8


def optimizer_state(layout: dict[str, Any]) -> dict[str, Any]:
    """An Adam state of the published form (one tensor an entry is enough to have its types in the file)."""
    entry = {"step": torch.tensor(5.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    groups = [
        {**{k: v for k, v in group.items() if k != "n_params"}, "params": list(range(group["n_params"]))}
        for group in layout["param_groups"]
    ]
    return {"state": {i: dict(entry) for i in layout["state_indices_present"]}, "param_groups": groups}


def write(fixture: Fixture, state: dict[str, torch.Tensor], file: Path, residual: bool) -> None:
    layout = fixture.manifest["layout"]
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in state.items():
        part, name = key.split("/", 1)
        parts.setdefault(part, {})[name] = value
    torch.save(
        {
            **parts,
            "optimizer": optimizer_state(layout["optimizer"]),
            "d_optimizer": optimizer_state(layout["d_optimizer"]),
            "args": argparse.Namespace(heu=int(residual), gen_steps=_STEPS, lr=1e-5, beta=(0.5, 0.999), output=None),
            "global_step": 7,
            "num_trajectories": 7 * 4096,
            "num_agent_updates": 35,
            "num_discriminator_updates": 7,
            "scaler": dict.fromkeys(layout.get("scaler_keys", ()), 1.0),
        },
        file,
    )


def policy_shapes(fixture: Fixture) -> dict[str, torch.Tensor]:
    """All tensors under model/ from our own policy and critic, on the meta device."""
    hidden, pointwise, mlp = SIZES["paper"]
    own = {}
    with torch.device("meta"):
        for kind, outputs in (("actor", fixture.config["action_dim"]), ("critic", 1)):
            network = AdaptiveNetwork(fixture.config["feat_dim"], outputs, (16, 16), hidden, pointwise, mlp)
            for copy in ("policy", "policy_old"):
                own |= {f"model/{copy}.{kind}.{name}": value for name, value in network.state_dict().items()}
    return own


def discriminator_config(fixture: Fixture) -> dict[str, Any]:
    """The sizes that ``checks_discriminator`` builds from; the number of classes stands in the checkpoint's own shapes."""
    config = fixture.config
    table = fixture.specs.get(f"{DISCRIMINATOR}mapping.embed.weight")
    return {"class_conditional": config["cin"], "c_dim": config["c_dim"], "n_classes": table[0][1] if table else None}


def check_heads(fixture: Fixture, report: Report, file: Path, state: dict[str, torch.Tensor]) -> None:
    """The discriminator's heads through the loader of ``reward.options.start``."""
    layers = len([k for k in fixture.specs if k.startswith(DISCRIMINATOR) and k.endswith(".cmapper.bias")])
    config = discriminator_config(fixture)
    width = fixture.specs[f"{DISCRIMINATOR}heads.0.cls.weight_orig"][0][1]
    heads = PaperDiscriminator(
        layers,
        width,
        classes=config["n_classes"],
        text_dim=None if config["class_conditional"] else config["c_dim"],
        class_width=config["c_dim"],
    )
    load_heads(heads, read_published(file))
    for name, value in heads.state_dict().items():
        report.close(f"discriminator {name}", value, state[DISCRIMINATOR + name], 0.0)


def check(fixture: Fixture, report: Report) -> None:
    expected = fixture.specs
    backbone, heads = build(discriminator_config(fixture))
    own = policy_shapes(fixture)
    own |= {DISCRIMINATOR + name: value for name, value in published_state(backbone, heads).items()}
    report.names_and_shapes(own, fixture)

    state = fixture.state([key for key in expected if not key.startswith("discriminator/module.dino")])
    residual = not fixture.config["cin"]
    space = ActionSpace(TOKEN_KNOBS[: fixture.config["action_dim"]])
    space = space.bind(adanat_heuristic(space.knobs, _STEPS), residual=residual)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "ckpt_7.pth"
        write(fixture, state, file, residual)
        actor, facts = load_published_policy(file)
        policy, _ = published_policy(file, space=space, grid=(16, 16), feature_dim=fixture.config["feat_dim"])
        prefix = "model/policy.actor."
        wanted = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        report.holds("actor names", actor.keys() == wanted.keys())
        loaded = policy.actor.network.state_dict()
        for name, value in wanted.items():
            report.close(f"actor {name}", loaded[name], value, 0.0)
        check_heads(fixture, report, file, state)
    report.holds("facts", (facts.residual, facts.steps, facts.counters["global_step"]) == (residual, _STEPS, 7))
    wanted_sizes = (fixture.config["feat_dim"], space.size, 64)
    report.holds("sizes", (facts.feature_dim, facts.outputs, facts.cells) == wanted_sizes)


CHECKS = {"adanat_checkpoint": check}
