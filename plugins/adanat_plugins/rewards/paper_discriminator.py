"""The heads of the published AdaNAT discriminator, parameter by parameter (``--preset paper``).

Full-width heads with local batch norm on DINO's features; a class becomes a condition through a mapping network of
layers with equalised learning rate (Karras et al. 2018, 2019). Names are those of the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import Context

from ..weights import flatten, load_into, read_tree, without
from .backbones import TimmViT
from .discriminator import LocalBatchNorm, SpectralConv1d

DINO_PREFIX = "dino.model.model."


class EqualisedLinear(nn.Module):
    """A linear layer with equalised learning rate: weights are stored at unit variance and scaled when used.

    Args:
        multiplier: relative learning rate; it scales weight and bias when used, and initial weights are larger by its
        inverse. gain: of the leaky ReLU (0.2) that follows, or None for a linear layer.
    """

    def __init__(self, inputs: int, outputs: int, multiplier: float = 1.0, gain: float | None = None) -> None:
        super().__init__()
        self.multiplier, self.gain = multiplier, gain
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        self.weight.normal_(std=1 / self.multiplier, generator=generator)
        self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs) -> (B, outputs)."""
        weight = self.weight * (self.multiplier / math.sqrt(self.weight.shape[1]))
        y = F.linear(x, weight, self.bias * self.multiplier)
        return y if self.gain is None else F.leaky_relu(y, 0.2) * self.gain


class ClassMapping(nn.Module):
    """Class id -> condition: a linear map of the one-hot class, scaled to unit mean square, then eight layers."""

    def __init__(self, classes: int, width: int, layers: int = 8) -> None:
        super().__init__()
        self.classes, self.depth = classes, layers
        self.embed = EqualisedLinear(classes, width)
        for index in range(layers):
            setattr(self, f"fc{index}", EqualisedLinear(width, width, multiplier=0.01, gain=math.sqrt(2)))

    def forward(self, classes: Tensor) -> Tensor:
        """(B,) int64 -> (B, width)."""
        x = self.embed(F.one_hot(classes, self.classes).to(self.embed.weight.dtype))
        x = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)
        for index in range(self.depth):
            x = getattr(self, f"fc{index}")(x)
        return x


class _Block(nn.Sequential):
    """Spectral-norm convolution, local batch norm, leaky ReLU."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(SpectralConv1d(channels, channels, kernel), LocalBatchNorm(channels), nn.LeakyReLU(0.2))


class _Residual(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return (self.fn(x) + x) / math.sqrt(2)


class PaperHead(nn.Module):
    """Judges one layer of the features. ``condition`` 0: without a condition."""

    def __init__(self, channels: int, condition: int, outputs: int = 64) -> None:
        super().__init__()
        self.main = nn.Sequential(_Block(channels, 1), _Residual(_Block(channels, 9)))
        self.cmapper = EqualisedLinear(condition, outputs) if condition else None
        self.cls = SpectralConv1d(channels, outputs if condition else 1)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        """(B, C, P) -> logits (B, P)."""
        x = self.cls(self.main(x))
        if self.cmapper is None or condition is None:
            return x[:, 0]
        return (x * self.cmapper(condition)[:, :, None]).sum(1) / math.sqrt(x.shape[1])


class PaperDiscriminator(nn.Module):
    """Mapping network and heads: everything of the published discriminator that is trained.

    Args:
        layers, channels: of the backbone. classes: number of classes, or None. text_dim: width of the pooled text, or
        None. class_width: width of the class condition. seed: of the initial weights.
    """

    def __init__(
        self,
        layers: int,
        channels: int,
        *,
        classes: int | None,
        text_dim: int | None,
        class_width: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.mapping = None if classes is None else ClassMapping(classes, class_width)
        condition = class_width if classes is not None else text_dim or 0
        self.heads = nn.ModuleList(PaperHead(channels, condition) for _ in range(layers))
        generator = torch.Generator().manual_seed(seed)
        for module in self.modules():
            if isinstance(module, SpectralConv1d | EqualisedLinear):
                module.initialise(generator)

    def condition(self, context: Context) -> Tensor | None:
        """(B, condition): the mapped class, or the L2-normalised pooled text; None without a context."""
        if self.mapping is not None:
            assert context.classes is not None
            return self.mapping(context.classes)
        return None if context.pooled is None else F.normalize(context.pooled.float(), dim=1)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Features (B, K, P, C) of any float dtype -> logits (B, K * P) float32."""
        condition = self.condition(context)
        maps = features.float().transpose(2, 3).unbind(1)
        return torch.cat([head(x, condition) for head, x in zip(self.heads, maps, strict=True)], dim=1)


def published_state(backbone: TimmViT, discriminator: PaperDiscriminator) -> dict[str, Tensor]:
    """All tensors under the names of a published checkpoint's ``discriminator`` (without its ``module.`` prefix)."""
    frozen = {DINO_PREFIX + key: value for key, value in backbone.model.state_dict().items()}
    return {**discriminator.state_dict(), **frozen}


def read_published(path: Path | str) -> dict[str, Tensor]:
    """The discriminator's tensors in a published training checkpoint, without the ``module.`` prefix.

    Raises:
        WeightsError: the file cannot be read or holds no discriminator.
    """
    tree = read_tree(path)
    state = dict(flatten(tree.get("discriminator"))) if isinstance(tree, Mapping) else {}
    if not any(key.startswith("module.heads.") for key in state):
        raise WeightsError(
            f"{path} is no published AdaNAT training checkpoint: it holds no discriminator/module.heads.* tensors. Give "
            "the ckpt_N.pth that the training script wrote."
        )
    return {key.removeprefix("module."): value for key, value in state.items()}


def load_heads(discriminator: PaperDiscriminator, state: Mapping[str, Tensor]) -> None:
    """Start from a published discriminator's trained part (:func:`read_published`); the backbone's tensors are left out.

    Raises:
        WeightsError: names or shapes differ, for instance because the condition is another one.
    """
    load_into(discriminator, without(state, DINO_PREFIX), source="the published discriminator")
