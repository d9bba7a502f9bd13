"""The transformer of VAR (Tian et al. 2024, arXiv:2404.02905), with a key-value cache.

Parameter names follow the released ``var_d16.pth``, so that it loads by name. Written from what the published
implementation computes; ``tests/golden`` compares the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import Shapes

MAX_SCALE = math.log(100)
"""Upper limit of the logarithm of what a head's unit queries are multiplied by."""
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
PARTS = 6
"""Vectors a block takes from the class, in the published order: two gates, two scales, two shifts."""


@dataclass(frozen=True)
class VARConfig:
    """Sizes of the transformer.

    Attributes:
        scales: sides of the token maps. code_width: channels of the tokenizer's latent.
        width, depth, heads, mlp_width: of the blocks.
        num_classes: without the null class. vocabulary: number of codes.
    """

    scales: tuple[int, ...]
    code_width: int
    width: int
    depth: int
    heads: int
    mlp_width: int
    num_classes: int
    vocabulary: int

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], *, source: str) -> VARConfig:
        """The sizes of a checkpoint, read from its tensors' shapes and from the scale of every position (``lvl_1L``).

        Raises:
            WeightsError: the tensors are not those of VAR, some scale is no square, or there is only one.
        """
        expected = "the layout of var_d16.pth (blocks.N.attn.mat_qkv.weight, word_embed.weight, lvl_1L)"
        shapes = Shapes(state, f"{source} is no VAR transformer", expected)
        _, length = shapes.of("lvl_1L", 2)
        width, code_width = shapes.of("word_embed.weight", 2)
        depth = shapes.blocks("blocks.")
        _, heads, _, _ = shapes.of("blocks.0.attn.scale_mul_1H11", 4)
        mlp_width = shapes.of("blocks.0.ffn.fc1.weight", 2)[0]
        classes, vocabulary = shapes.of("class_emb.weight", 2, least=2)[0], shapes.of("head.weight", 2)[0]
        shapes.check_heads(width, heads)
        level = state["lvl_1L"][0]
        if level.dtype not in INTEGERS:
            raise shapes.wrong(f"'lvl_1L' is of {level.dtype}; the scale of each token must be a whole number")
        if not 0 <= int(level.min()) <= int(level.max()) < length:  # before anything is as long as a number in the file
            raise shapes.wrong(f"'lvl_1L' names scales below 0 or beyond {length - 1} for its {length} tokens")
        counts = torch.bincount(level.long()).tolist()
        scales = tuple(math.isqrt(count) for count in counts)
        rising = all(before < after for before, after in itertools.pairwise((0, *scales)))
        if [side * side for side in scales] != counts or not rising:
            raise shapes.wrong(
                f"'lvl_1L' counts {counts} tokens a scale; these must be squares, and each larger than the last"
            )
        if len(scales) < 2:  # guidance and the shared convolutions go by a scale's place between the first and the last
            raise shapes.wrong(f"it has a single scale of {scales[0]}x{scales[0]} tokens; next-scale generation needs two")
        return cls(scales, code_width, width, depth, heads, mlp_width, classes - 1, vocabulary)


class Attention(nn.Module):
    """Attention over the new tokens and all cached ones, on unit queries and keys."""

    zero_k_bias: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4)))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, keys: Tensor | None, values: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, C), cached keys and values (B, heads, L, d) or None -> output, keys and values of all L + n."""
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        q, k, v = F.linear(x, self.mat_qkv.weight, bias).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE).exp()
        k = F.normalize(k, dim=-1)
        if keys is not None and values is not None:
            k, v = torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(mixed.transpose(1, 2).flatten(2)), k, v


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def modulation(width: int, vectors: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, vectors * width))


def normalise(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class Block(nn.Module):
    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads)
        self.ffn = FeedForward(config.width, config.mlp_width)
        self.ada_lin = modulation(config.width, PARTS)

    def forward(
        self, x: Tensor, condition: Tensor, keys: Tensor | None, values: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``condition``: (B, 6, C)."""
        gate1, gate2, scale1, scale2, shift1, shift2 = condition.unsqueeze(2).unbind(1)
        mixed, keys, values = self.attn(normalise(x) * (1 + scale1) + shift1, keys, values, mask)
        x = x + gate1 * mixed
        return x + gate2 * self.ffn(normalise(x) * (1 + scale2) + shift2), keys, values


class HeadNorm(nn.Module):
    """Holds ``head_nm.ada_lin``: a scale and a shift, in this order."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = modulation(width, 2)


class VAR(nn.Module):
    """Predicts the tokens of a scale from those of the scales before."""

    attn_bias_for_masking: Tensor
    lvl_1L: Tensor

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.config = config
        width, sizes = config.width, [side * side for side in config.scales]
        length = sum(sizes)
        self.word_embed = nn.Linear(config.code_width, width)
        self.class_emb = nn.Embedding(config.num_classes + 1, width)
        self.pos_start = nn.Parameter(torch.zeros(1, sizes[0], width))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, width))
        self.lvl_embed = nn.Embedding(len(sizes), width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm, self.head = HeadNorm(width), nn.Linear(width, config.vocabulary)
        level = torch.cat([torch.full((size,), i) for i, size in enumerate(sizes)])[None]
        self.register_buffer("lvl_1L", level)
        # In the published file too. Nothing reads it: see block_mask.
        self.register_buffer("attn_bias_for_masking", torch.zeros(1, 1, length, length))

    def conditions(self, classes: Tensor) -> Tensor:
        """(B,) int64, ``num_classes`` for the null class -> every block's six vectors and the head's two, (B, 6 depth + 2, C).

        They are the same at every scale, so an image needs them once.
        """
        embedded = self.class_emb(classes)
        parts = [*(block.get_submodule("ada_lin") for block in self.blocks), self.head_nm.ada_lin]
        return torch.cat([part(embedded).unflatten(1, (-1, self.config.width)) for part in parts], dim=1)

    def embed(self, latent: Tensor, scale: int, classes: Tensor) -> Tensor:
        """Inputs of a scale (B, p * p, C): the latent so far, resized to it (B, code_width, p, p); the class at scale 0."""
        start = sum(side * side for side in self.config.scales[:scale])
        count = self.config.scales[scale] ** 2
        if scale == 0:
            x = self.class_emb(classes)[:, None] + self.pos_start
        else:
            x = self.word_embed(latent.flatten(2).transpose(1, 2).to(self.word_embed.weight.dtype))
        return x + self.pos_1LC[:, start : start + count] + self.lvl_embed.weight[scale]

    def forward(
        self, x: Tensor, conditions: Tensor, *cache: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """The tokens of a scale.

        Args:
            x: (B, n, C) from :meth:`embed`. conditions: from :meth:`conditions`.
            cache: keys and values of the scales before, as returned; none before the first.
            mask: (n, n) from :meth:`block_mask`, for several scales at once; without a cache.

        Returns:
            (hidden, logits, *cache): the last block's output (B, n, C), logits (B, n, vocabulary), and the cache with the
            new tokens: keys and values of each block, (B, heads, L + n, C / heads).
        """
        grown: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            keys, values = (cache[2 * i], cache[2 * i + 1]) if cache else (None, None)
            x, *pair = block(x, conditions[:, PARTS * i : PARTS * (i + 1)], keys, values, mask)
            grown += pair
        scale, shift = conditions[:, -2:].unsqueeze(2).unbind(1)
        return x, self.head(normalise(x) * (1 + scale) + shift), *grown

    def block_mask(self, chosen: Sequence[int]) -> Tensor:
        """(n, n) bool for the tokens of some scales, one after the other: each sees its own scale and those before."""
        sizes = [self.config.scales[scale] ** 2 for scale in chosen]
        level = torch.cat([torch.full((size,), i, device=self.lvl_1L.device) for i, size in enumerate(sizes)])
        return level[:, None] >= level[None]
