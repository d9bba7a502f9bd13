"""Discriminator heads on frozen features: spectral-norm convolutions over the positions, projected on the context.

The form follows Projected GAN (Sauer et al. 2021) and StyleGAN-T (Sauer et al. 2023, section 3.2) as described in the
AdaNAT paper; the projection on the context is that of Miyato & Koyama (2018).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.interfaces import Context

Norm = Literal["none", "group", "local"]


class SpectralWeight(nn.Module):
    """A convolution's bias and kernel; the kernel is divided by its largest singular value (Miyato et al. 2018).

    The two singular vectors advance by one power iteration every time the kernel is asked for in training mode and rest
    in evaluation.

    Args:
        shape: of the kernel, output channels first. eps: lower bound of the vectors' norms.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, shape: tuple[int, ...], eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        self.bias = nn.Parameter(torch.empty(shape[0]))
        self.weight_orig = nn.Parameter(torch.empty(shape))
        self.register_buffer("weight_u", torch.empty(shape[0]))
        self.register_buffer("weight_v", torch.empty(math.prod(shape[1:])))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Uniform weights of standard deviation 1/sqrt(3 fan-in), singular vectors after 50 power iterations."""
        bound = 1 / math.sqrt(self.weight_orig[0].numel())
        self.weight_orig.uniform_(-bound, bound, generator=generator)
        self.bias.uniform_(-bound, bound, generator=generator)
        self.weight_u.normal_(generator=generator)
        self.weight_v.normal_(generator=generator)
        for _ in range(50):
            self._power_iteration()

    def _power_iteration(self) -> None:
        # New tensors: those of the pass before may be needed for its gradient.
        matrix = self.weight_orig.flatten(1)
        self.weight_v = self._unit(matrix.T @ self.weight_u)
        self.weight_u = self._unit(matrix @ self.weight_v)

    def _unit(self, image: Tensor) -> Tensor:
        return image / torch.linalg.vector_norm(image).clamp_min(self.eps)

    def weight(self) -> Tensor:
        """The normalised kernel."""
        if self.training:
            with torch.no_grad():
                self._power_iteration()
        sigma = self.weight_u @ (self.weight_orig.flatten(1) @ self.weight_v)
        return self.weight_orig / sigma


@lru_cache(64)
def _around(kernel: int, positions: int, device: torch.device) -> Tensor:
    """(positions + kernel - 1,) where a convolution of positions that wrap around reads. ``F.pad`` wraps at most once, and a
    small map may be shorter than half a kernel."""
    half = kernel // 2
    with torch.inference_mode(False):  # others keep it for their gradients
        return torch.arange(-half, positions + kernel - 1 - half, device=device) % positions


class SpectralConv1d(SpectralWeight):
    """A spectral-norm convolution over positions, which wrap around: every kernel size keeps their number."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1) -> None:
        super().__init__((outputs, inputs, kernel))
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, P) -> (B, outputs, P)."""
        if self.kernel > 1:
            x = x[:, :, _around(self.kernel, x.shape[2], x.device)]
        return F.conv1d(x, self.weight(), self.bias)


class SpectralConv2d(SpectralWeight):
    """A spectral-norm convolution that halves an image's sides (4x4), or keeps them (3x3)."""

    def __init__(self, inputs: int, outputs: int, *, halve: bool = True) -> None:
        super().__init__((outputs, inputs, 4, 4) if halve else (outputs, inputs, 3, 3))
        self.stride = 2 if halve else 1

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / 2, W / 2) or (B, outputs, H, W)."""
        return F.conv2d(x, self.weight(), self.bias, stride=self.stride, padding=1)


class LocalBatchNorm(nn.Module):
    """Batch norm over consecutive groups of at most ``group`` images, without running statistics, also in evaluation.

    As in the paper's discriminator. A sample's output depends on the other images of its group. Unlike in
    the published code any batch size works: the batch is cut into ceil(B / group) groups whose sizes differ by one at
    most.
    """

    def __init__(self, channels: int, group: int = 8, eps: float = 1e-5) -> None:
        super().__init__()
        self.group, self.eps = group, eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, P) -> (B, C, P)."""
        number = max(1, math.ceil(x.shape[0] / self.group))
        if x.shape[0] % number == 0:  # equal groups in one go: a loop over them is slower than the work in them
            normed = self._normed(x.unflatten(0, (number, -1))).flatten(0, 1)
        else:
            normed = torch.cat([self._normed(part) for part in x.tensor_split(number)])
        return normed * self.weight[:, None] + self.bias[:, None]

    def _normed(self, x: Tensor) -> Tensor:
        """(..., B, C, P): every batch of the last three axes on its own."""
        variance, mean = torch.var_mean(x, dim=(-3, -1), correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps)


def make_norm(kind: Norm, channels: int) -> nn.Module:
    """A normalisation layer over (B, C, P)."""
    if kind == "local":
        return LocalBatchNorm(channels)
    return nn.GroupNorm(8, channels) if kind == "group" else nn.Identity()


class ContextProjection(nn.Module):
    """What a head's output channels are weighed with: a bias, plus a class's row or a linear map of the pooled text.

    Args:
        channels: output channels. classes: number of classes, or None. text_dim: width of the pooled text, or None.
    """

    def __init__(self, channels: int, classes: int | None, text_dim: int | None) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(channels))
        self.classes = None if classes is None else nn.Parameter(torch.empty(classes, channels))
        self.text = None if text_dim is None else nn.Parameter(torch.empty(channels, text_dim))

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Bias 1; random codes of unit variance, so that the heads can tell contexts apart from the first update on."""
        self.bias.fill_(1)
        for table in (self.classes, self.text):
            if table is not None:
                table.normal_(generator=generator)

    def forward(self, context: Context) -> Tensor:
        """(B, channels), or (1, channels) without a context."""
        if self.classes is not None:
            assert context.classes is not None
            return self.bias + F.embedding(context.classes, self.classes)
        if self.text is not None:
            assert context.pooled is not None
            return self.bias + F.linear(F.normalize(context.pooled.float(), dim=1), self.text)
        return self.bias[None]


class Head(nn.Module):
    """Judges one layer of the features at every position.

    Args:
        channels: of the features. width: of the hidden layers. kernel: of the residual convolution.
        outputs: channels that are weighed with the context.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        kernel: int,
        outputs: int,
        norm: Norm,
        classes: int | None,
        text_dim: int | None,
    ) -> None:
        super().__init__()
        self.reduce, self.reduce_norm = SpectralConv1d(channels, width), make_norm(norm, width)
        self.mix, self.mix_norm = SpectralConv1d(width, width, kernel), make_norm(norm, width)
        self.out = SpectralConv1d(width, outputs)
        self.projection = ContextProjection(outputs, classes, text_dim)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """(B, C, P) -> logits (B, P)."""
        x = F.leaky_relu(self.reduce_norm(self.reduce(x)), 0.2)
        x = (x + F.leaky_relu(self.mix_norm(self.mix(x)), 0.2)) / math.sqrt(2)
        x = self.out(x)
        return (x * self.projection(context)[:, :, None]).sum(1) / math.sqrt(x.shape[1])


class Discriminator(nn.Module):
    """One head per layer of the backbone.

    Args:
        layers, channels: of the backbone. head: makes a head for a number of channels. seed: of the initial weights.
    """

    def __init__(self, layers: int, channels: int, head: Callable[[int], Head], seed: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(head(channels) for _ in range(layers))
        initialise(self, seed)

    def forward(self, features: Tensor, context: Context) -> Tensor:
        """Features (B, K, P, C) of any float dtype -> logits (B, K * P) float32."""
        return torch.cat([part() for part in self.parts(features, context)], dim=1)

    def parts(self, features: Tensor, context: Context) -> list[Callable[[], Tensor]]:
        """K functions that do not depend on each other, one a head: their logits (B, P)."""
        maps = features.float().transpose(2, 3).unbind(1)
        return [partial(head, x, context) for head, x in zip(self.heads, maps, strict=True)]


class PixelDiscriminator(nn.Module):
    """One head on a small trained stack of strided convolutions: no backbone, everything is learned.

    Args:
        image_size: (H, W); the stack halves it until the shorter side is 8. width: channels after the first halving,
        doubled
            by each further one up to four times that.
    """

    def __init__(self, image_size: tuple[int, int], width: int, head: Callable[[int], Head], seed: int) -> None:
        super().__init__()
        halvings = max(1, int(math.log2(min(image_size) / 8)))
        channels = [3, *(min(width * 2**i, 4 * width) for i in range(halvings))]
        self.stem = nn.ModuleList(SpectralConv2d(a, b) for a, b in pairwise(channels))
        self.heads = nn.ModuleList([head(channels[-1])])
        initialise(self, seed)

    def forward(self, images: Tensor, context: Context) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] -> logits (B, P) float32."""
        x = 2 * images.float() - 1
        for layer in self.stem:
            x = F.leaky_relu(layer(x), 0.2)
        return self.heads[0](x.flatten(2), context)


class LatentDiscriminator(nn.Module):
    """One head on two trained convolutions over a tokenizer's code vectors (or other latents).

    Args:
        mean, std: (C,) of the latents' channels, which are brought to zero mean and unit variance.
        width: channels after the first convolution; twice as many after the second.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor, width: int, head: Callable[[int], Head], seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean[:, None, None].clone())
        self.register_buffer("std", std[:, None, None].clamp(min=1e-6))
        channels = [len(mean), width, 2 * width]
        self.stem = nn.ModuleList(SpectralConv2d(a, b, halve=False) for a, b in pairwise(channels))
        self.heads = nn.ModuleList([head(channels[-1])])
        initialise(self, seed)

    def forward(self, latents: Tensor, context: Context) -> Tensor:
        """Latents (B, C, h, w) -> logits (B, h * w) float32."""
        x = (latents.float() - self.mean) / self.std
        for layer in self.stem:
            x = F.leaky_relu(layer(x), 0.2)
        return self.heads[0](x.flatten(2), context)


def initialise(module: nn.Module, seed: int) -> None:
    """Fill every layer of this file from one seed, in order."""
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, SpectralWeight | ContextProjection):
            layer.initialise(generator)
