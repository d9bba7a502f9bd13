"""``apply`` and ``remove``: a policy inside a classic diffusers pipeline."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from adanat_plugins.diffusion.families import FAMILIES, family_of
from adanat_plugins.diffusion.features import is_compiled

from ...errors import ConfigError
from .amused import AmusedNetwork, AmusedPilot
from .denoisers import DenoiserPilot
from .following import Pilot, checked_seeds, following
from .networks import PipelineNetwork
from .target import PolicyOrSpec, policy_for

P = TypeVar("P")


@dataclass(frozen=True)
class _Applied:
    """What :func:`remove` needs: the hooks' handles and the scheduler that was there."""

    handles: tuple[Any, ...]
    scheduler: Any


_applied: weakref.WeakKeyDictionary[Any, _Applied] = weakref.WeakKeyDictionary()


def apply(
    pipe: P, policy: PolicyOrSpec, *, seeds: Sequence[int] | Tensor | None = None, size: tuple[int, int] | None = None
) -> P:
    """Make a diffusers pipeline follow a policy, until :func:`remove`.

    The pipeline's scheduler is replaced by one of the same class that asks the policy, and hooks on its denoiser keep what
    the policy reads; no weight changes. The pipeline is then called as before, with the policy's number of steps and a
    ``guidance_scale`` above 1, whose value does not matter where the policy sets the guidance. A pipeline that is saved
    meanwhile is saved as it was before; applying again replaces the policy.

    Args:
        pipe: an ``AmusedPipeline``, or a text-to-image pipeline that the generator ``diffusers`` knows (Stable Diffusion 1,
            2, XL and 3, Z-Image).
        policy: a run or policy folder, a hub id, ``fixed[:SCHEDULE]``, or what ``load_policy`` returns.
        seeds: one an image, for every call: the images are then those of ``adanat sample`` with these seeds, to rounding.
            None: they follow the pipeline's argument ``generator``: of a list, each sample takes the seed that its
            ``torch.Generator`` was made with; of a single one, or without any, they are drawn from it. Diffusion pipelines
            then start from their own latents.
        size: (height, width) in pixels that a policy of a diffusion pipeline was trained with; None: the pipeline's own.

    Returns:
        ``pipe`` itself.

    Raises:
        ConfigError: a pipeline of another class, or a policy that was trained for another one, with both named; while the
            pipeline runs, another number of steps, another image size, or no guidance. CheckpointError: damaged files.

    Examples:
        >>> import adanat_toolkit as adanat
        >>> pipe = adanat.apply(pipe, "runs/first", seeds=range(4))  # doctest: +SKIP
        >>> images = pipe(prompts, num_inference_steps=8).images  # doctest: +SKIP
        >>> pipe = adanat.remove(pipe)  # doctest: +SKIP
    """
    attach = _kind_of(pipe)
    numbers = checked_seeds(seeds)
    remove(pipe)
    pilot, handles = attach(pipe, policy, numbers, size)
    subject: Any = pipe
    _applied[pipe] = _Applied(tuple(handles), subject.scheduler)
    subject.scheduler = following(subject.scheduler, pilot)
    return pipe


def remove(pipe: P) -> P:
    """Take a policy out of a pipeline: it is what it was before :func:`apply`, bit for bit.

    Args:
        pipe: what :func:`apply` takes; nothing happens where no policy is applied to it.

    Returns:
        ``pipe`` itself.

    Raises:
        ConfigError: it is something else.
    """
    _kind_of(pipe)
    found = _applied.pop(pipe, None)
    if found is not None:
        for handle in found.handles:
            handle.remove()
        subject: Any = pipe
        subject.scheduler = found.scheduler
    return pipe


_Size = tuple[int, int] | None
_Attach = Callable[[Any, PolicyOrSpec, Tensor | None, _Size], tuple[Pilot, list[Any]]]


def _kind_of(pipe: Any) -> _Attach:
    """How a policy gets into a pipeline of this class.

    Raises:
        ConfigError: it does not.
    """
    attach = _KINDS.get(type(pipe).__name__)
    if attach is None:
        name = type(pipe).__name__
        modular = " Modular pipelines take an AdanatGuider (docs/diffusers.md)." if name.endswith("ModularPipeline") else ""
        raise ConfigError(f"policies apply to {', '.join(_KINDS)}; this is of the class {name}.{modular}")
    return attach


def _amused(pipe: Any, policy: PolicyOrSpec, seeds: Tensor | None, size: _Size) -> tuple[Pilot, list[Any]]:
    _refuse_compiled(pipe.transformer)
    if size is not None:
        raise ConfigError(f"size = {size}: an {type(pipe).__name__} has one size; leave it out.")
    network = AmusedNetwork(pipe)
    pilot = AmusedPilot(network, policy_for(pipe, network, policy, exact=(torch.float32,)), seeds)
    return pilot, pilot.attach(pipe)


def _refuse_compiled(denoiser: nn.Module) -> None:
    """
    Raises:
        ConfigError: hooks on a compiled network may never be called.
    """
    if is_compiled(denoiser):
        raise ConfigError(
            f"the pipeline's {type(denoiser).__name__} is compiled, so what the policy reads cannot be taken from it; "
            "apply the policy to a pipeline that is not compiled."
        )


def _denoiser(pipe: Any, policy: PolicyOrSpec, seeds: Tensor | None, size: _Size) -> tuple[Pilot, list[Any]]:
    network = PipelineNetwork(pipe, family_of(type(pipe).__name__), size)
    exact = (torch.float32, torch.bfloat16)
    pilot = DenoiserPilot(network, policy_for(pipe, network, policy, exact=exact), seeds)
    return pilot, pilot.attach(pipe)


_KINDS: dict[str, _Attach] = {
    "AmusedPipeline": _amused,
    **{name: _denoiser for family in FAMILIES for name in family.pipelines},
}
