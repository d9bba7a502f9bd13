"""What a policy is held against: the denoiser of a pipeline, or, where only that is there, what the policy says of its own."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch

from adanat_plugins.diffusion.families import Family
from adanat_plugins.diffusion.features import FeatureHook
from adanat_plugins.diffusion.samplers import ETA, TIME_SHIFT
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline

from ...core import GUIDANCE, ActionSpace, Knob
from ...decoding import SamplingPolicy
from ...errors import ConfigError
from ...policies import load_policy, policy_card, policy_folder
from ...registry import load
from ...storage import POLICY_FILES, shortened
from .calls import family_of_denoiser
from .target import require_readable

KNOBS: dict[str, Knob] = {knob.name: knob for knob in (GUIDANCE, TIME_SHIFT, ETA)}
GENERATOR = "diffusers"


class PipelineNetwork(DiffusersPipeline):
    """A pipeline as the toolkit's generator of it sees it, without taking it over: nothing of it is moved or changed."""

    def __init__(self, pipe: Any, family: Family, size: tuple[int, int] | None) -> None:
        self._look_at(pipe, family, size or (None, None))
        self.hook.remove()
        self.device, self.dtype = self.denoiser.device, self.denoiser.dtype
        self.fingerprint = self._fingerprint()


class _Stored(DiffusersPipeline):
    """The pipeline that a stored policy was trained for, as far as the policy tells."""

    def __init__(self, made_for: dict[str, Any], knobs: tuple[Knob, ...], decisions: int) -> None:
        self.name, self.fingerprint = made_for["name"], made_for["fingerprint"]
        self.grid, self.feature_dim = tuple(made_for["grid"]), made_for["feature_dim"]
        self.action_space = ActionSpace(knobs)
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self._decisions = decisions

    def decisions(self, steps: int) -> int:
        """What the policy says: its scheduler is not there."""
        return self._decisions


def stored_policy(spec: str | os.PathLike[str]) -> tuple[SamplingPolicy, str]:
    """A policy of the generator ``diffusers`` and the SHA-256 of its files.

    Args:
        spec: a run or policy folder, or a hub id.

    Raises:
        ConfigError: there is none, or it was trained for another generator. CheckpointError: damaged files.
    """
    folder = policy_folder(spec)
    if folder is None:
        raise ConfigError(
            f"no policy at {os.fspath(spec)!r}: give a run folder, a folder with policy.json, or a hub id."
        )
    card = policy_card(folder)
    assert card is not None
    made_for = card["generator"]
    names = [knob["name"] for knob in card["action_space"]["knobs"]]
    if made_for["name"].partition(":")[0] != GENERATOR or not set(names) <= set(KNOBS):
        raise ConfigError(
            f"the policy at {folder} was trained for {shortened(made_for['name'])[1:-1]} (knobs {shortened(names)}), and a "
            f"guider needs one of the generator {GENERATOR!r}; adanat.apply(pipe, policy) takes those of aMUSEd."
        )
    require_readable(load("policy", card["kind"]))
    stored = _Stored(made_for, tuple(KNOBS[name] for name in names), len(card["action_space"]["schedule"]))
    policy = load_policy(folder, stored)  # refuses what is no file of ours
    digest = hashlib.sha256()
    for name in POLICY_FILES:
        digest.update((folder / name).read_bytes())
    return policy, digest.hexdigest()


def require_denoiser(denoiser: Any, policy: SamplingPolicy) -> None:
    """
    Raises:
        ConfigError: the denoiser is of another family than the policy's pipeline.
    """
    made_for = policy.card["generator"]["name"]
    pipelines = family_of_denoiser(denoiser).pipelines
    if made_for.partition(":")[2] not in pipelines:
        raise ConfigError(
            f"the policy was trained for {shortened(made_for)[1:-1]}, and this pipeline's {type(denoiser).__name__} is that "
            f"of {', '.join(pipelines)}; give the pipeline that the policy was trained for."
        )


def require_features(hook: FeatureHook, policy: SamplingPolicy) -> None:
    """
    Raises:
        ConfigError: the denoiser's hidden state, pooled, is not of the policy's width or grid.
    """
    made_for = policy.card["generator"]
    if made_for["feature_dim"] != hook.dim:
        raise ConfigError(
            f"the policy reads {made_for['feature_dim']} features a cell ({shortened(made_for['name'])[1:-1]}), and this "
            f"pipeline has {hook.dim}; give the pipeline that the policy was trained for."
        )
    require_grid(hook.grid, made_for["grid"])


def require_grid(found: tuple[int, int], trained: Any) -> None:
    """
    Raises:
        ConfigError: images of another size than the policy's.
    """
    if list(found) != list(trained):
        here, there = ("x".join(map(str, grid)) for grid in (found, trained))
        raise ConfigError(
            f"the policy reads a grid of {there} cells, and images of this size have {here}; call the pipeline with the "
            "height and width that the policy was trained with."
        )
