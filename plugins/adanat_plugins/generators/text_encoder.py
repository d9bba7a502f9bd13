"""The text tower of an open_clip ``CLIP``: prompts to the token states that text-conditional generators read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..prompt_rows import CutPrompts, open_clip_ids, prompt_rows
from ..weights import build, read_state


@dataclass(frozen=True)
class TextConfig:
    """open_clip's ``text_cfg`` and ``embed_dim``.

    Attributes:
        context_length: L, tokens a prompt is cut or padded to. width: C. embed_dim: of the projection, P.
    """

    context_length: int
    vocab_size: int
    width: int
    heads: int
    layers: int
    embed_dim: int

    @classmethod
    def from_open_clip(cls, config: Mapping[str, Any]) -> TextConfig:
        """From an open_clip model config (``clip.json``, or ``open_clip.get_model_config(name)``)."""
        return cls(**config["text_cfg"], embed_dim=config["embed_dim"])


KEPT_PROMPTS = 2**16
"""Prompts whose token ids are kept."""

BIGG = TextConfig(context_length=77, vocab_size=49408, width=1280, heads=20, layers=32, embed_dim=1280)
"""ViT-bigG-14 in open_clip's configs."""


class TextEncoder(nn.Module):
    """Token states after the final layer norm, causal mask on, and the projected end-of-text state.

    Args:
        tower: an open_clip ``TextTransformer`` that returns (pooled, states).
        tokenizer: prompts -> (B, L) int64 ids.
        device, dtype: where and in what it runs; outputs are float32.
    """

    def __init__(
        self, tower: nn.Module, tokenizer: Any, config: TextConfig, device: torch.device, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.width = config.width
        self.tower = tower.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.device, self.dtype = device, dtype
        self._known: dict[str, Tensor] = {}
        self._cut = CutPrompts("the generator's text encoder", config.context_length)

    @classmethod
    def load(
        cls, path: Path, config: TextConfig, *, device: torch.device, dtype: torch.dtype, bpe: Path | None = None
    ) -> TextEncoder:
        """From a CLIP's weights; the image tower in the file is not read.

        Args:
            bpe: the merges of the byte-pair tokenizer; None means CLIP's own.

        Raises:
            WeightsError: the file is missing or does not fit ``config``.
        """
        from open_clip.tokenizer import SimpleTokenizer

        state = {
            name: value
            for name, value in read_state(path).items()
            if not name.startswith("visual.") and name not in ("logit_scale", "logit_bias")
        }
        tower = build(lambda: _tower(config), state, source=f"{path} (text tower)", dtype=dtype)
        arguments: dict[str, Any] = {} if bpe is None else {"bpe_path": str(bpe)}
        tokenizer = SimpleTokenizer(context_length=config.context_length, **arguments)
        return cls(tower, tokenizer, config, device, dtype)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """B prompts -> states (B, L, C) and pooled (B, P), float32. Equal prompts are encoded once."""
        distinct = list(dict.fromkeys(prompts)) or [""]  # of no prompts, for the shapes
        row = {prompt: i for i, prompt in enumerate(distinct)}
        ids = self._ids(distinct).to(self.device)

        def run(batch: Tensor) -> tuple[Tensor, Tensor]:
            pooled, states = self.tower(batch)
            return states.float(), pooled.float()

        states, pooled = in_chunks(run, ids, minimum=minimum_batch(self.dtype, self.device, rows=True))
        index = torch.tensor([row[prompt] for prompt in prompts], dtype=torch.int64, device=self.device)
        return states[index], pooled[index]

    def _ids(self, prompts: list[str]) -> Tensor:
        """(B, L) int64 ids, kept because cleaning and merging text takes longer than a small encoder."""

        def ids(missing: list[str]) -> Tensor:
            return open_clip_ids(self.tokenizer, missing, self._cut)

        return prompt_rows(prompts, self._known, ids, limit=KEPT_PROMPTS)


def _tower(config: TextConfig) -> nn.Module:
    from open_clip.transformer import TextTransformer

    tower = TextTransformer(
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        width=config.width,
        heads=config.heads,
        layers=config.layers,
        output_dim=config.embed_dim,
        output_tokens=True,
    )
    with torch.device("cpu"):  # the mask is no weight: it has to exist where everything else is still without memory
        tower.attn_mask = tower.build_causal_mask()
    return tower
