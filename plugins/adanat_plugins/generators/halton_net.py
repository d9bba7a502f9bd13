"""The class-conditional transformer of Halton-MaskGIT (Besnier et al., ICLR 2025, arXiv:2503.17076).

Parameter names follow the released checkpoints, so that they load by name. Written from the paper and from what the
published implementation computes; ``tests/golden`` compares the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.runtime import attend

from ..weights import Shapes

EPSILON = 1e-5
PUBLISHED_HEADS = {384: 6, 512: 6, 768: 12, 1024: 16, 1152: 16}
"""Attention heads of the published sizes by width: weights do not tell them (tiny, small, base, large, extra large)."""


@dataclass(frozen=True)
class HaltonConfig:
    """Sizes of the network.

    Attributes:
        grid: cells along one side; the sequence has ``grid**2`` cells.
        width, depth, heads, mlp_width: of the transformer; ``mlp_width`` is the nominal one, see :func:`swiglu_width`.
        codebook_size: codes; the mask is the id after the last one.
        num_classes: classes; the null class of guidance is the id after the last one.
        registers: extra tokens behind the cells that only attention sees.
    """

    grid: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    codebook_size: int
    num_classes: int
    registers: int = 1

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], heads: int | None = None) -> HaltonConfig:
        """The sizes of a checkpoint, read from its tensors' shapes.

        Args:
            heads: attention heads; None takes the published number for the width.

        Raises:
            WeightsError: a tensor that the sizes are read from is missing or has another form, or the number of heads is not
                known or does not divide the width.
        """
        shapes = Shapes(
            state,
            "not a Halton-MaskGIT class-to-image checkpoint",
            "the published layout (tok_emb, pos_emb, cls_emb, transformer.layers.N...), such as ImageNet_256_base.pth",
        )
        vocabulary, width = shapes.of("tok_emb.weight", 2, least=2)
        cells = shapes.of("pos_emb.weight", 2)[0]
        grid = round(cells**0.5)
        if grid * grid != cells:
            raise WeightsError(f"pos_emb.weight has {cells} rows, which is no square; Halton-MaskGIT grids are square.")
        heads = heads or PUBLISHED_HEADS.get(width)
        if heads is None:
            known = ", ".join(f"{w} ({h} heads)" for w, h in PUBLISHED_HEADS.items())
            raise WeightsError(
                f"the checkpoint is {width} wide, which is none of the published sizes: {known}. Weights do not tell "
                "the number of attention heads; set the generator's option heads."
            )
        shapes.check_heads(width, heads)
        depth = shapes.blocks("transformer.layers.")
        registers = shapes.of("reg_tokens.weight", 2)[0] if "reg_tokens.weight" in state else 0
        # Only the rounded inner width is stored; three halves of it round back to it.
        inner = shapes.of("transformer.layers.0.ff.w1.weight", 2)[0]
        classes = shapes.of("cls_emb.weight", 2, least=2)[0] - 1
        return cls(grid, width, depth, heads, -(-3 * inner // 2), vocabulary - 1, classes, registers)


def swiglu_width(nominal: int) -> int:
    """Inner width of the SwiGLU MLP: two thirds of the nominal one, rounded up to a multiple of 256."""
    return -(-(2 * nominal // 3) // 256) * 256


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, with one (B, D) pair a sample for x (B, N, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + 1e-5) with a gain and, on request, a bias."""

    def __init__(self, width: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.rms_norm(x, self.weight.shape, self.weight, EPSILON)
        return x if self.bias is None else x + self.bias


class Attention(nn.Module):
    """Self-attention without biases; queries and keys are RMS-normalised over all heads together."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * (width // heads)  # The published small size has 6 heads for 512 channels, hence 510.
        self.wq = nn.Linear(width, inner, bias=False)
        self.wk = nn.Linear(width, inner, bias=False)
        self.wv = nn.Linear(width, inner, bias=False)
        self.wo = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.wq(x), self.wk(x), self.wv(x)
        query, key = (F.rms_norm(t, t.shape[-1:], eps=EPSILON) for t in (query, key))
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return self.wo(attend(query, key, value).transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, inner, bias=False)
        self.w2 = nn.Linear(inner, width, bias=False)
        self.w3 = nn.Linear(width, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Attention and MLP, each normalised, modulated by the class and gated by it (as in DiT)."""

    def __init__(self, width: int, heads: int, mlp_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.ln1 = RMSNorm(width)
        self.attn = Attention(width, heads)
        self.ln2 = RMSNorm(width)
        self.ff = SwiGLU(width, swiglu_width(mlp_width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.mlp(condition).chunk(6, dim=1)
        x = x + gate1[:, None] * self.attn(modulate(self.ln1(x), shift1, scale1))
        return x + gate2[:, None] * self.ff(modulate(self.ln2(x), shift2, scale2))


class Blocks(nn.Module):
    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config.width, config.heads, config.mlp_width) for _ in range(config.depth))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.layers:
            x = block(x, condition)
        return x


class FinalNorm(nn.Module):
    """RMS norm with gain and bias, then shift and scale from the class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_final = RMSNorm(width, bias=True)
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.mlp(condition).chunk(2, dim=1)
        return modulate(self.norm_final(x), shift, scale)


class HaltonTransformer(nn.Module):
    """Masked codes and a class -> logits over the codes and the mask.

    The output table is the token embedding (``head.weight`` is ``tok_emb.weight``) with a bias of its own.
    """

    def __init__(self, config: HaltonConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cls_emb = nn.Embedding(config.num_classes + 1, width)
        self.tok_emb = nn.Embedding(config.codebook_size + 1, width)
        self.pos_emb = nn.Embedding(config.grid**2, width)
        if config.registers:
            self.reg_tokens = nn.Embedding(config.registers, width)
        self.transformer = Blocks(config)
        self.last_norm = FinalNorm(width)
        self.head = nn.Linear(width, config.codebook_size + 1)
        self.head.weight = self.tok_emb.weight

    def tie_weights(self) -> None:
        """Share the token table with the output layer again, after parameters were replaced (loading by assignment)."""
        self.head.weight = self.tok_emb.weight

    def forward(self, tokens: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of a partly masked grid.

        Args:
            tokens: (B, N) int64 in 0..codebook_size, which is the mask; N = grid**2, row by row.
            classes: (B,) int64 in 0..num_classes, which is the null class.

        Returns:
            logits (B, N, codebook_size + 1), the mask's column last, and features (B, N, width): what the output
            layer reads.
        """
        condition = self.cls_emb(classes)
        x = self.tok_emb(tokens) + self.pos_emb.weight
        if self.config.registers:
            x = torch.cat([x, self.reg_tokens.weight.expand(x.shape[0], -1, -1)], dim=1)
        x = self.transformer(x, condition)
        features = self.last_norm(x[:, : tokens.shape[1]], condition)
        return self.head(features), features
