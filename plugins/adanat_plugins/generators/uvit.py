"""The U-shaped ViT token generator of AutoNAT/AdaNAT (U-ViT, Bao et al. 2023, without a time input).

State-dict names are those of the published checkpoints, so that a published file loads without renaming.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.runtime import attend


class TokenEmbedding(nn.Module):
    """Word + position embedding, LayerNorm (eps 1e-6)."""

    def __init__(self, words: int, positions: int, width: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(words, width)
        self.position_embeddings = nn.Embedding(positions, width)
        self.LayerNorm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, L) int64 with L = positions -> (B, L, width)."""
        return self.LayerNorm(self.word_embeddings(ids) + self.position_embeddings.weight)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, batch: int | None = None) -> Tensor:
        """(B, L, width) -> (B, L, width); or with ``batch`` = B, (B * L, width) -> (B * L, width)."""
        rows, width = x.shape[0], x.shape[-1]
        q, k, v = self.qkv(x).view(batch or rows, -1, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(x.shape))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block (LayerNorm eps 1e-5); ``skip``: first maps [x, skip] from 2 * width to width."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, skip: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, int(width * mlp_ratio))
        self.skip_linear = nn.Linear(2 * width, width) if skip else None

    def forward(self, x: Tensor, batch: int, skip: Tensor | None = None) -> Tensor:
        """(B * L, width) -> (B * L, width), B being ``batch``."""
        if self.skip_linear is not None:
            assert skip is not None
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x), batch)
        return x + self.mlp(self.norm2(x))


class TokenHead(nn.Module):
    """Linear, GELU, LayerNorm (eps 1e-5), product with the word table, plus a bias per word."""

    def __init__(self, width: int, words: int, inputs: int | None = None) -> None:
        """``width`` of the word table; ``inputs``: width of what comes in, where it is another one."""
        super().__init__()
        self.fc = nn.Linear(inputs or width, width)
        self.ln = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(1, 1, words))

    def forward(self, x: Tensor, table: Tensor, columns: int) -> Tensor:
        """(B, L, inputs) -> (B, L, columns): logits of the first ``columns`` words only."""
        return F.linear(self.ln(F.gelu(self.fc(x))), table[:columns], self.bias[0, 0, :columns])


class UViT(nn.Module):
    """Logits and features of a partly masked token grid.

    Args:
        tokens: N, cells of the grid. codebook_size: V; the mask id is V.
        num_classes: rows of the class table, the last one being the null class; None for text.
        clip_dim, num_clip_token: width and length of the text states; None for classes.
        skip: whether out-blocks have the skip connection's linear map.
    """

    def __init__(
        self,
        *,
        tokens: int,
        codebook_size: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        skip: bool = True,
        num_classes: int | None = None,
        clip_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.codebook_size = codebook_size
        self.tokens = tokens
        self.token_emb = TokenEmbedding(codebook_size + 1, tokens, embed_dim)
        self.context_embed: nn.Module
        if num_classes is not None:
            self.context_embed = TokenEmbedding(num_classes, 1, embed_dim)
        elif clip_dim is not None:
            self.context_embed = nn.Linear(clip_dim, embed_dim)
        else:
            raise ValueError("give num_classes (class context) or clip_dim (text context)")
        arguments = (embed_dim, num_heads, mlp_ratio, qkv_bias)
        self.in_blocks = nn.ModuleList(Block(*arguments) for _ in range(depth // 2))
        self.mid_block = Block(*arguments)
        self.out_blocks = nn.ModuleList(Block(*arguments, skip=skip) for _ in range(depth // 2))
        self.norm = nn.LayerNorm(embed_dim)
        self.mlm_layer = TokenHead(embed_dim, codebook_size + 1)

    def forward(self, ids: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) int64 ids and the context, (B, 1) int64 class ids or (B, L, clip_dim) text states.

        Returns:
            logits (B, N, V), the mask column cut, and features (B, N, embed_dim), the final LayerNorm's output.
        """
        x = torch.cat([self.context_embed(context), self.token_emb(ids)], dim=1)
        batch, length = x.shape[:2]
        # Positions of all samples are rows of one matrix: a linear map of three axes would be folded and unfolded each time.
        x = x.flatten(0, 1)
        skips = []
        for block in self.in_blocks:
            x = block(x, batch)
            skips.append(x)
        x = self.mid_block(x, batch)
        for block in self.out_blocks:
            x = block(x, batch, skips.pop())
        features = self.norm(x.unflatten(0, (batch, length))[:, -self.tokens :])
        return self.mlm_layer(features, self.token_emb.word_embeddings.weight, self.codebook_size), features
