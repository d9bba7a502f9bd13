"""The MAGE network as used for generation (Li et al. 2023, arXiv:2211.09117, section 3).

Parameter names follow the released checkpoints, so that they load by name. What generation does not use (patch
embedding, fixed sin-cos positions, mask vector, pixel predictor) has no module here: :func:`unused_shapes` lists it, so
that a published file is checked in full and only what is used is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..weights import Shapes
from .uvit import MLP, Attention, TokenEmbedding, TokenHead

_EPS = 1e-6


@dataclass(frozen=True)
class MAGEConfig:
    """Sizes of the network.

    Attributes:
        tokens: N, cells of the grid. codebook_size: V, the codes that may be sampled.
        vocab_size: words of the embedding: codes, classes and the mask. mask_id, class_id: words of the mask and of the
            class token that stands in front of every sequence (a class that no image has: generation is unconditional).
        width, depth, heads: of the encoder. decoder_*: of the decoder. mlp_ratio: of both.
    """

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    tokens: int = 256
    codebook_size: int = 1024
    vocab_size: int = 2025
    mask_id: int = 2024
    class_id: int = 1100
    mlp_ratio: float = 4.0

    @classmethod
    def from_state(
        cls, state: Mapping[str, Tensor], *, heads: int, decoder_heads: int, source: str = "the file"
    ) -> MAGEConfig:
        """The sizes of a checkpoint, read from its tensors' shapes. Numbers of heads leave no trace in them.

        Raises:
            WeightsError: the tensors are not those of MAGE.
        """
        expected = "the layout of mage-vitb-1600.pth (token_emb..., blocks.N..., decoder_blocks.N..., mlm_layer...)"
        shapes = Shapes(state, f"{source} is no MAGE checkpoint", expected)
        vocab_size, width = shapes.of("token_emb.word_embeddings.weight", 2, least=cls.class_id + 2)
        tokens = shapes.of("token_emb.position_embeddings.weight", 2, least=2)[0] - 1
        decoder_width = shapes.of("decoder_embed.weight", 2)[0]
        mlp_ratio = shapes.of("blocks.0.mlp.fc1.bias", 1)[0] / width
        depth, decoder_depth = shapes.blocks("blocks."), shapes.blocks("decoder_blocks.")
        shapes.check_heads(width, heads)
        shapes.check_heads(decoder_width, decoder_heads)
        return cls(
            width, depth, heads, decoder_width, decoder_depth, decoder_heads, tokens,
            vocab_size=vocab_size, mask_id=vocab_size - 1, mlp_ratio=mlp_ratio,
        )


class Block(nn.Module):
    """Pre-norm transformer block with biased qkv and LayerNorm eps 1e-6."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = Attention(width, heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MAGENet(nn.Module):
    """Logits and features of a partly masked token grid."""

    def __init__(self, config: MAGEConfig) -> None:
        super().__init__()
        self.config = config
        length, width, decoder_width = config.tokens + 1, config.width, config.decoder_width
        self.token_emb = TokenEmbedding(config.vocab_size, length, width)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.decoder_embed = nn.Linear(width, decoder_width)
        self.decoder_pos_embed_learned = nn.Parameter(torch.zeros(1, length, decoder_width))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_width, config.decoder_heads, config.mlp_ratio) for _ in range(config.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(decoder_width, eps=_EPS)
        self.mlm_layer = TokenHead(width, config.vocab_size, inputs=decoder_width)

    def encode(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) int64 ids -> (B, 1 + N) ids with the class token in front, and the encoder's (B, 1 + N, width)."""
        sequence = torch.cat([ids.new_full((len(ids), 1), self.config.class_id), ids], dim=1)
        x = self.token_emb(sequence)
        for block in self.blocks:
            x = block(x)
        return sequence, self.norm(x)

    def decode(self, sequence: Tensor, encoded: Tensor) -> Tensor:
        """(B, 1 + N, decoder width), after the decoder's final norm."""
        x = self.decoder_embed(encoded)
        # As published: masked positions enter the decoder as the class token's vector, not as the learned mask vector.
        masked = (sequence == self.config.mask_id).unsqueeze(-1)
        x = torch.where(masked, x[:, :1], x) + self.decoder_pos_embed_learned
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_norm(x)

    def logits(self, decoded: Tensor) -> Tensor:
        """(B, L, decoder width) -> (B, L, V): logits of the codes only."""
        return self.mlm_layer(decoded, self.token_emb.word_embeddings.weight, self.config.codebook_size)

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N) int64 ids, ``mask_id`` at unknown cells.

        Returns:
            logits (B, N, V) and features (B, N, decoder width), the decoder's final norm at the image positions.
        """
        features = self.decode(*self.encode(ids))[:, 1:]
        return self.logits(features), features


def unused_shapes(config: MAGEConfig, *, patch_size: int = 16) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what a released checkpoint holds beside the network and that generation never reads.

    ``token_emb.position_ids`` is an int64 index buffer, everything else float32.
    """
    length, width, decoder_width = config.tokens + 1, config.width, config.decoder_width
    pixels = 3 * patch_size**2
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, length, width),
        "patch_embed.proj.weight": (width, 3, patch_size, patch_size),
        "patch_embed.proj.bias": (width,),
        "mask_token": (1, 1, decoder_width),
        "decoder_pos_embed": (1, length, decoder_width),
        "decoder_pred.weight": (pixels, decoder_width),
        "decoder_pred.bias": (pixels,),
        "token_emb.position_ids": (1, length),
    }
