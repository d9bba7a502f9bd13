"""Which code takes the decoding step: the Triton kernels of ``kernels`` on a CUDA device, else plain PyTorch."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable

import torch
from torch import Tensor

from .masked_decoding import StepKnobs, StepNoise, StepResult, masked_decoding_step

log = logging.getLogger("adanat_toolkit")

Step = Callable[..., StepResult]

OFF = "TORCH_COMPILE_DISABLE"
"""Torch's own variable against compiling: where it is set to 1, nothing is compiled here either."""
_ROUNDING = 1e-3
_STRAYED = 0.01
"""Share of cells whose token may differ at the first call: draws at a boundary."""

_kernels: Step | None = None  # after the first call, if it was as it should be
_refused = False


def compiling_is_off() -> bool:
    """Whether the user has forbidden compiled code (:data:`OFF`)."""
    return os.environ.get(OFF) == "1"


def use_kernels(allowed: bool) -> None:
    """Forbid the kernels in this process, or allow them again: for measurements."""
    global _refused
    _refused = not allowed


def in_use() -> bool:
    """Whether the kernels have taken a step in this process, and may take the next one."""
    return _kernels is not None and not _refused


def decoding_step(
    tokens: Tensor,
    conditional: Tensor,
    unconditional: Tensor | None,
    knobs: StepKnobs,
    noise: StepNoise,
    mask_id: int,
    editable: Tensor | None = None,
) -> StepResult:
    """``masked_decoding_step``, by the kernels where they can run: its arguments and result.

    On a CUDA device the kernels' first call of a process is held against the reference. If it fails or differs by more than
    rounding, the reason is logged once, and PyTorch does it from then on. ``TORCH_COMPILE_DISABLE=1`` forces PyTorch, and
    so does code that torch compiles itself.
    """
    arguments = (tokens, conditional, unconditional, knobs, noise, mask_id, editable)
    if not conditional.is_cuda or torch.compiler.is_compiling() or _refused or compiling_is_off():
        return masked_decoding_step(*arguments)
    return _by_kernels(*arguments)


def _by_kernels(*arguments: object) -> StepResult:
    global _kernels, _refused
    try:
        if _kernels is not None:
            return _kernels(*arguments)
        step: Step = importlib.import_module(".kernels", __package__).decoding_step
        found, expected = step(*arguments), masked_decoding_step(*arguments)  # type: ignore[arg-type]
        if not agree(found, expected):
            raise ArithmeticError("its first result is not that of PyTorch")
        _kernels = step
        return found
    except torch.OutOfMemoryError:  # which a smaller micro-batch mends
        raise
    except Exception as error:  # no Triton, no C compiler, a driver too old, a vocabulary too large: whatever it is
        _refused = True
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("the fused decoding step cannot be used, PyTorch's is: %s", reason)
        return masked_decoding_step(*arguments)  # type: ignore[arg-type]


def agree(found: StepResult, expected: StepResult) -> bool:
    """Whether a result is the expected one, but for rounding: log-probabilities of equal proposals within 1e-3, and at most
    1 % of the cells (or two) with another token."""
    same = found.proposal == expected.proposal
    close = torch.isclose(found.log_prob, expected.log_prob, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True)
    strayed = max(int((~same).sum()), int((found.tokens != expected.tokens).sum()))
    return bool((close | ~same).all()) and strayed <= max(2, _STRAYED * same.numel())
