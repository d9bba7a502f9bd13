"""The diffusion transformer of DiT and SiT (Peebles and Xie 2023, section 3; Ma et al. 2024 use the same network).

Parameter names follow the published files, so that they load by name. DiT reads its output as noise, SiT as velocity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.policies import StepEmbedding
from adanat_toolkit.runtime import minimum_rows, padded

from ..weights import Shapes
from .uvit import Attention

HEADS = {192: 6, 384: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads by width: the embedded networks, then DiT's S, B, L and XL (table 1). Weights do not tell them."""


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without affine (eps 1e-6), then x (1 + scale) + shift: (B, N, D) by (B, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class MLP(nn.Module):
    """Two layers with GELU by its tanh approximation."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear map that starts at zero, so that fresh blocks are the identity (adaLN-Zero, section 3.2)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """Attention and MLP, each with shift, scale and gate from the condition (section 3.2, adaLN-Zero)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads, qkv_bias=True)
        self.mlp = MLP(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 6 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, D) by what ``adaLN_modulation`` makes of the condition, (B, 6 D)."""
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = modulation.chunk(6, dim=1)
        x = x + gate[:, None] * self.attn(modulate(x, shift, scale))
        return x + mlp_gate[:, None] * self.mlp(modulate(x, mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = zero_linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), zero_linear(width, 2 * width))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """(B, N, D) by (B, 2 D)."""
        shift, scale = modulation.chunk(2, dim=1)
        return self.linear(modulate(x, shift, scale))


class PatchEmbedding(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, N, width), row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class ClassEmbedding(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, classes: Tensor) -> Tensor:
        return self.embedding_table(classes)


def position_table(width: int, side: int) -> Tensor:
    """(1, side * side, width) float32: the column in the first half of the channels, the row in the second, each as sines,
    then cosines, with frequencies 10000^(-k / (width / 4))."""
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    angles = torch.arange(side, dtype=torch.float64, device="cpu")[:, None] * frequency
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    column, row = axis[None].expand(side, -1, -1), axis[:, None].expand(-1, side, -1)
    return torch.cat([column, row], dim=2).reshape(1, side * side, width).float()


class DiT(nn.Module):
    """What a noisy latent, its time and its class predict.

    Args:
        side: of the square latent in cells; ``patch`` divides it. channels: of the latent; ``outputs`` of the prediction
            (the published networks have twice as many: DiT's variance, which sampling does not use; SiT drops them).
        classes: rows of the class table less one; row ``classes`` is the null class of guidance.
    """

    def __init__(
        self,
        *,
        side: int,
        patch: int,
        channels: int,
        outputs: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.side, self.patch, self.channels, self.outputs, self.classes = side, patch, channels, outputs, classes
        self.x_embedder = PatchEmbedding(channels, width, patch)
        self.t_embedder = StepEmbedding(width)
        self.y_embedder = ClassEmbedding(classes + 1, width)
        table = torch.empty(1, (side // patch) ** 2, width, dtype=torch.float32)
        if not table.is_meta:  # else a file's own table comes in its place: nothing is computed for what a file claims
            table.copy_(position_table(width, side // patch))
        self.pos_embed = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * outputs)
        self._widths = [6 * width] * depth + [2 * width]

    def forward(self, x: Tensor, time: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, channels, side, side), time (B,) as the network was trained on it, classes (B,) int64.

        Returns:
            prediction (B, outputs, side, side) and features (B, N, width): the last block's output, not normalised.
        """
        # One row a sample: a few are filled up, so that a sample does not depend on how many there are.
        *modulations, last = padded(self.modulations, minimum_rows(x.device), time, classes).split(self._widths, dim=1)
        features = self.x_embedder(x) + self.pos_embed
        for block, modulation in zip(self.blocks, modulations, strict=True):
            features = block(features, modulation)
        patches = self.final_layer(features, last)
        cells = self.side // self.patch
        grid = patches.view(len(x), cells, cells, self.patch, self.patch, self.outputs)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(x), self.outputs, self.side, self.side), features

    def modulations(self, time: Tensor, classes: Tensor) -> Tensor:
        """What time and class do to each block and to the final layer, side by side: (B, (6 depth + 2) D)."""
        condition = self.t_embedder(time) + self.y_embedder(classes)
        return torch.cat([layer.adaLN_modulation(condition) for layer in (*self.blocks, self.final_layer)], dim=1)


def dit_sizes(state: Mapping[str, Tensor], *, heads: int | None = None, source: str = "the file") -> dict[str, Any]:
    """The arguments of :class:`DiT` that fit a checkpoint's tensors.

    Raises:
        WeightsError: the tensors are not those of a DiT or SiT.
        ConfigError: ``heads`` is needed, or does not divide the width.
    """
    expected = "the published names (x_embedder.proj..., blocks.N..., final_layer...)"
    shapes = Shapes(state, f"{source} is no DiT or SiT", expected)
    width, channels, patch, _ = shapes.of("x_embedder.proj.weight", 4)
    _, cells, positions = shapes.of("pos_embed", 3)
    depth = shapes.blocks("blocks.")
    hidden = shapes.of("blocks.0.mlp.fc1.weight", 2)[0]
    rows = shapes.of("y_embedder.embedding_table.weight", 2, least=2)[0]
    outputs = shapes.of("final_layer.linear.weight", 2)[0] // patch**2
    if positions != width:
        raise shapes.wrong(f"'pos_embed' has {positions} channels a position and the network {width}")
    if outputs < channels:
        raise shapes.wrong(f"it predicts {outputs} channels of latents that have {channels}")
    number = heads or HEADS.get(width)
    if number is None or width % number:
        what = "unknown for" if number is None else f"{number}, which does not divide"
        raise ConfigError(f"the number of attention heads is {what} width {width}; give the option heads.")
    side = math.isqrt(cells)
    if side * side != cells:
        raise WeightsError(f"{source}: the checkpoint has {cells} positions, which form no square grid.")
    return {
        "side": side * patch,
        "patch": patch,
        "channels": channels,
        "outputs": outputs,
        "width": width,
        "depth": depth,
        "heads": number,
        "hidden": hidden,
        "classes": rows - 1,
    }
