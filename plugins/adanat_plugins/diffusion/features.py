"""What a policy sees of a denoiser: its last hidden state, pooled to a grid."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError

from .families import Family

LARGEST_GRID = 16
"""Cells on a side: a policy keeps the features of every step of an iteration, and needs no more to judge an image."""


class FeatureHook:
    """Keeps the last hidden state of a denoiser's newest call.

    It is taken before the denoiser's output layer, after the norm, as in the toolkit's own generators. A call costs one
    pooling of it.

    Args:
        denoiser: as the pipeline has it. cells: (h, w) of its hidden state. largest: cells on a side of the grid, at most.

    Raises:
        ConfigError: the denoiser is compiled, quantised, or has no such layer.
    """

    def __init__(self, family: Family, denoiser: Any, cells: tuple[int, int], *, largest: int = LARGEST_GRID) -> None:
        check_denoiser(family, denoiser)
        self.tokens, self.cells = family.tokens, cells
        self.grid = (min(cells[0], largest), min(cells[1], largest))
        layer = denoiser.get_submodule(family.last_hidden)
        self.dim = int(layer.in_features if family.tokens else layer.in_channels)
        self._newest: Tensor | None = None
        self._handle = layer.register_forward_pre_hook(self._keep)

    def take(self) -> Tensor:
        """(B, N, D) float32 of the newest call, N the cells of ``grid``, and forget them."""
        newest, self._newest = self._newest, None
        assert newest is not None, "the denoiser was not called"
        return newest

    def remove(self) -> None:
        """Leave the denoiser as it was."""
        self._handle.remove()

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        state = inputs[0]
        if self.tokens:
            height, width = self.cells
            state = state[:, : height * width].transpose(1, 2).unflatten(2, self.cells)
        self._newest = F.adaptive_avg_pool2d(state.float(), self.grid).flatten(2).transpose(1, 2)


def is_compiled(network: nn.Module) -> bool:
    """Whether ``torch.compile`` was called on it: hooks inside it may then never run."""
    return hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None


def check_denoiser(family: Family, denoiser: Any) -> None:
    """Refuse a denoiser whose hidden state cannot be read, or whose weights are not plain numbers.

    Raises:
        ConfigError: it is compiled, quantised, or lacks the layer.
    """
    if is_compiled(denoiser):
        raise ConfigError(
            f"the pipeline's {family.denoiser} is compiled, so its hidden state cannot be read; give the pipeline as it was "
            "before torch.compile."
        )
    quantised = getattr(denoiser, "hf_quantizer", None) or getattr(denoiser, "is_quantized", False)
    if quantised or getattr(denoiser.config, "quantization_config", None):
        raise ConfigError(
            f"the pipeline's {family.denoiser} is quantised, which training on it does not support; give the pipeline in "
            "bfloat16 (--dtype bfloat16 halves the memory of float32)."
        )
    try:
        denoiser.get_submodule(family.last_hidden)
    except AttributeError:
        raise ConfigError(
            f"the pipeline's {family.denoiser} ({type(denoiser).__name__}) has no layer {family.last_hidden!r}, before which "
            f"pipelines of {family.name} have their last hidden state."
        ) from None
