"""The U-ViT of the embedded MaskGIT in Flax, with the parameter names of its file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def norm(epsilon: float = 1e-5) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon, use_fast_variance=False)  # E[x^2] - E[x]^2 would lose the digits that parity needs


class TokenEmbedding(nn.Module):
    words: int
    positions: int
    width: int

    def setup(self) -> None:
        self.word_embeddings = nn.Embed(self.words, self.width)
        self.position_embeddings = nn.Embed(self.positions, self.width)
        self.LayerNorm = norm(1e-6)

    def __call__(self, ids: jax.Array) -> jax.Array:
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.embedding)


class Attention(nn.Module):
    width: int
    heads: int

    def setup(self) -> None:
        self.qkv = nn.Dense(3 * self.width, use_bias=False)
        self.proj = nn.Dense(self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        q, k, v = jnp.moveaxis(self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1), 2, 0)
        return self.proj(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLP(nn.Module):
    width: int

    def setup(self) -> None:
        self.fc1, self.fc2 = nn.Dense(4 * self.width), nn.Dense(self.width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(nn.gelu(self.fc1(x), approximate=False))


class Block(nn.Module):
    width: int
    heads: int
    skip: bool = False

    def setup(self) -> None:
        self.norm1, self.norm2 = norm(), norm()
        self.attn, self.mlp = Attention(self.width, self.heads), MLP(self.width)
        if self.skip:
            self.skip_linear = nn.Dense(self.width)

    def __call__(self, x: jax.Array, skip: jax.Array | None = None) -> jax.Array:
        if skip is not None:
            x = self.skip_linear(jnp.concatenate([x, skip], -1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenHead(nn.Module):
    width: int
    words: int

    def setup(self) -> None:
        self.fc, self.ln = nn.Dense(self.width), norm()
        self.bias = self.param("bias", nn.initializers.zeros, (1, 1, self.words))

    def __call__(self, x: jax.Array, table: jax.Array) -> jax.Array:
        return (self.ln(nn.gelu(self.fc(x), approximate=False)) @ table.T + self.bias)[..., :-1]  # without the mask


class UViT(nn.Module):
    """(B, N) int32 ids and (B,) int32 classes -> logits (B, N, V) and features (B, N, width), float32."""

    tokens: int
    codebook_size: int
    embed_dim: int
    depth: int
    num_heads: int
    num_classes: int

    def setup(self) -> None:
        size, half = (self.embed_dim, self.num_heads), self.depth // 2
        self.token_emb = TokenEmbedding(self.codebook_size + 1, self.tokens, self.embed_dim)
        self.context_embed = TokenEmbedding(self.num_classes + 1, 1, self.embed_dim)
        self.in_blocks = [Block(*size) for _ in range(half)]
        self.mid_block = Block(*size)
        self.out_blocks = [Block(*size, skip=True) for _ in range(half)]
        self.norm = norm()
        self.mlm_layer = TokenHead(self.embed_dim, self.codebook_size + 1)

    def __call__(self, ids: jax.Array, classes: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = jnp.concatenate([self.context_embed(classes[:, None]), self.token_emb(ids)], 1)
        skips = []
        for block in self.in_blocks:
            x = block(x)
            skips.append(x)
        x = self.mid_block(x)
        for block in self.out_blocks:
            x = block(x, skips.pop())
        features = self.norm(x[:, -self.tokens :])
        return self.mlm_layer(features, self.token_emb.word_embeddings.embedding), features


@cache
def compiled(**sizes: int) -> Callable[..., Any]:
    """``UViT(**sizes).apply`` as XLA compiles it, once a process and shape: generators of one size share it."""
    return jax.jit(UViT(**sizes).apply)


def to_flax(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """Parameters named as PyTorch names them -> Flax's tree: lists are ``name_0``, matrices are transposed."""
    tree: dict[str, Any] = {}
    for key, value in state.items():
        *path, last = key.split(".")
        names: list[str] = []
        for part in path:
            if part.isdigit():
                names[-1] += f"_{part}"
            else:
                names.append(part)
        if last == "weight":
            if "embeddings" in names[-1]:
                last = "embedding"
            elif value.ndim == 1:
                last = "scale"
            else:
                last, value = "kernel", value.T
        branch = tree
        for name in names:
            branch = branch.setdefault(name, {})
        branch[last] = jnp.asarray(value, jnp.float32)
    return {"params": tree}
