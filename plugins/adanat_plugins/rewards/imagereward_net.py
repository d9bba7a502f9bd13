"""The network behind ImageReward (Xu et al., NeurIPS 2023, section 3.1), in the tensor names of the published file.

A BLIP image encoder (ViT), whose states every layer of a BERT text encoder reads by cross-attention, and an MLP on the
first text state. Written from the papers (ViT, BERT, BLIP section 3.1) and checked against reference numbers; it needs
neither the published package nor any particular version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..weights import Shapes

SCORE_MEAN, SCORE_STD = 0.16717362830052426, 1.0333394966054072
"""Mean and standard deviation of the raw output on the authors' validation set; published scores are standardised."""
TEXT_LENGTH = 35
"""Tokens a prompt is padded or cut to."""
MLP_WIDTHS = (1024, 128, 64, 16, 1)
_MLP_POSITIONS = (0, 2, 4, 6, 7)
"""Names of the linear layers in the published file; dropout stood between them, and no activation."""


@dataclass(frozen=True)
class ImageRewardConfig:
    """Sizes; the defaults are those of the published weights."""

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 1024
    vision_depth: int = 24
    vision_heads: int = 16
    text_hidden: int = 768
    text_layers: int = 12
    text_heads: int = 12
    text_intermediate: int = 3072
    vocab: int = 30524
    max_positions: int = 512
    proj_dim: int = 256
    vision_norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor], source: str) -> ImageRewardConfig:
        """Sizes read off a file's tensors; attention heads have 64 channels, as in ViT-L and BERT.

        Raises:
            WeightsError: the tensors are not those of an ImageReward.
        """
        text, vision = "blip.text_encoder.", "blip.visual_encoder."
        shapes = Shapes(state, f"{source} is not an ImageReward file", "the published ImageReward.pt")
        width, _, patch, _ = shapes.of(f"{vision}patch_embed.proj.weight", 4)
        cells = shapes.of(f"{vision}pos_embed", 3)[1] - 1
        vocab, hidden = shapes.of(f"{text}embeddings.word_embeddings.weight", 2)
        config = cls(
            image_size=patch * round(cells**0.5),
            patch_size=patch,
            vision_width=width,
            vision_depth=shapes.blocks(f"{vision}blocks."),
            vision_heads=max(1, width // 64),
            text_hidden=hidden,
            text_layers=shapes.blocks(f"{text}encoder.layer."),
            text_heads=max(1, hidden // 64),
            text_intermediate=shapes.of(f"{text}encoder.layer.0.intermediate.dense.weight", 2)[0],
            vocab=vocab,
            max_positions=shapes.of(f"{text}embeddings.position_embeddings.weight", 2)[0],
            proj_dim=shapes.of("blip.vision_proj.weight", 2)[0],
        )
        shapes.check_heads(width, config.vision_heads)
        shapes.check_heads(hidden, config.text_heads)
        return config


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, C) -> (B, heads, L, C / heads)."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax attention; ``mask`` is added to the scores and broadcasts to (B, heads, Lq, Lk)."""
    out = F.scaled_dot_product_attention(
        _split_heads(q, heads), _split_heads(k, heads), _split_heads(v, heads), attn_mask=mask
    )
    return out.transpose(1, 2).flatten(2)


# --- image ----------------------------------------------------------------------------------------------------------


class _VisionAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.proj(_attend(q, k, v, self.heads))


class _VisionMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps), _VisionAttention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps), _VisionMLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class VisionEncoder(nn.Module):
    """ViT with a class token: (B, 3, S, S) normalised -> (B, 1 + patches, vision_width)."""

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.patch_embed = _PatchEmbed(width, config.patch_size)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, (config.image_size // config.patch_size) ** 2 + 1, width))
        self.blocks = nn.ModuleList(
            _VisionBlock(width, config.vision_heads, config.vision_norm_eps) for _ in range(config.vision_depth)
        )
        self.norm = nn.LayerNorm(width, config.vision_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# --- text -----------------------------------------------------------------------------------------------------------


class _Projections(nn.Module):
    def __init__(self, hidden: int, source: int) -> None:
        super().__init__()
        self.query = nn.Linear(hidden, hidden)
        self.key, self.value = nn.Linear(source, hidden), nn.Linear(source, hidden)


class _AddNorm(nn.Module):
    """LayerNorm(residual + Linear(x)): BERT normalises after the sum."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width, hidden), nn.LayerNorm(hidden, eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(residual + self.dense(x))


class _TextAttention(nn.Module):
    def __init__(self, config: ImageRewardConfig, source: int) -> None:
        super().__init__()
        self.heads = config.text_heads
        self.self = _Projections(config.text_hidden, source)
        self.output = _AddNorm(config.text_hidden, config.text_hidden, config.text_norm_eps)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor | None) -> Tensor:
        p = cast(_Projections, self.self)
        return self.output(_attend(p.query(x), p.key(source), p.value(source), self.heads, mask), x)


class _Dense(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)


class _TextLayer(nn.Module):
    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        hidden, wide = config.text_hidden, config.text_intermediate
        self.attention = _TextAttention(config, hidden)
        self.crossattention = _TextAttention(config, config.vision_width)
        self.intermediate = _Dense(hidden, wide)
        self.output = _AddNorm(wide, hidden, config.text_norm_eps)

    def forward(self, x: Tensor, mask: Tensor, image_states: Tensor) -> Tensor:
        x = self.attention(x, x, mask)
        x = self.crossattention(x, image_states, None)
        return self.output(F.gelu(self.intermediate(x)), x)


class _TextEmbeddings(nn.Module):
    position_ids: Tensor

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.text_hidden)
        self.position_embeddings = nn.Embedding(config.max_positions, config.text_hidden)
        self.LayerNorm = nn.LayerNorm(config.text_hidden, config.text_norm_eps)
        self.register_buffer("position_ids", torch.arange(config.max_positions)[None])

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings(self.position_ids[:, : ids.shape[1]])
        return self.LayerNorm(self.word_embeddings(ids) + positions)


class _TextStack(nn.Module):
    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_TextLayer(config) for _ in range(config.text_layers))


class TextEncoder(nn.Module):
    """BERT whose layers also attend to the image: (B, L) ids -> (B, L, text_hidden)."""

    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.embeddings, self.encoder = _TextEmbeddings(config), _TextStack(config)

    def forward(self, ids: Tensor, attention_mask: Tensor, image_states: Tensor) -> Tensor:
        x = self.embeddings(ids)
        mask = (1 - attention_mask[:, None, None].to(x.dtype)) * -10000.0
        for layer in self.encoder.layer:
            x = layer(x, mask, image_states)
        return x


# --- the whole ------------------------------------------------------------------------------------------------------


class _Blip(nn.Module):
    def __init__(self, config: ImageRewardConfig) -> None:
        super().__init__()
        self.visual_encoder, self.text_encoder = VisionEncoder(config), TextEncoder(config)
        # Of BLIP's contrastive loss; stored in the published file and not used by the score.
        self.vision_proj = nn.Linear(config.vision_width, config.proj_dim)
        self.text_proj = nn.Linear(config.text_hidden, config.proj_dim)


class _Head(nn.Module):
    """Five linear maps with nothing between them (in evaluation), as published."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        widths = (hidden, *MLP_WIDTHS)
        self.layers = nn.ModuleDict(
            {str(at): nn.Linear(widths[i], widths[i + 1]) for i, at in enumerate(_MLP_POSITIONS)}
        )

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x)
        return x


class ImageRewardNet(nn.Module):
    """Scores image-text pairs. Its state dict is the published ``ImageReward.pt``."""

    def __init__(self, config: ImageRewardConfig | None = None) -> None:
        super().__init__()
        self.config = config or ImageRewardConfig()
        self.blip, self.mlp = _Blip(self.config), _Head(self.config.text_hidden)

    def image_states(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) float, CLIP-normalised -> (B, 1 + patches, vision_width)."""
        return self.blip.visual_encoder(images)

    def text_feature(self, image_states: Tensor, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """First text state after it has read the image.

        Args:
            image_states: from :meth:`image_states`. ids: (B, L) int64. attention_mask: (B, L), 0 at padding, else 1.

        Returns:
            (B, text_hidden).
        """
        return self.blip.text_encoder(ids, attention_mask, image_states)[:, 0]

    def forward(self, images: Tensor, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Standardised score, (B, 1) float32: about 0 on average over the authors' images, higher is better."""
        raw = self.mlp(self.text_feature(self.image_states(images), ids, attention_mask))
        return (raw.float() - SCORE_MEAN) / SCORE_STD
