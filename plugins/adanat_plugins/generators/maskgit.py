"""``maskgit``: class-conditional masked-token generators."""

from __future__ import annotations

import importlib
import json
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace
from adanat_toolkit.errors import ConfigError, nearest
from adanat_toolkit.interfaces import Context, SamplingPolicy, TokenGenerator
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..emoji64 import FOLDER
from ..fingerprints import fingerprint_state
from ..tokenizers.vqmodel import VQModelTokenizer
from ..weights import asset, build, place, read_state
from .class_conditional import ClassConditional, Emoji64Classes, PublishedOptions, emoji64_file
from .tokenized import Emoji64Tokens
from .uvit import TokenEmbedding, UViT

HAND_MADE = "cosine,guidance=0:3,mask_temperature=4.5:0"
"""The best hand-made schedule of the embedded generator (docs/results/quality.md)."""


class UViTClassGenerator(ClassConditional):
    """A class-conditional U-ViT with its tokenizer.

    Args:
        network: in float32, its class table's last row is the null class of guidance.
        tokenizer: has ``decode(codes, grid)`` and ``encode(images)``.
    """

    def __init__(
        self,
        name: str,
        network: UViT,
        tokenizer: Any,
        *,
        grid: tuple[int, int],
        image_size: tuple[int, int],
        class_names: tuple[str, ...] | None,
        device: torch.device,
        dtype: torch.dtype,
        default_schedule: str = HAND_MADE,
    ) -> None:
        self.name = name
        self.action_space = ActionSpace(TOKEN_KNOBS)
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.grid, self.image_size = grid, image_size
        self.mask_id = self.codebook_size = network.codebook_size
        self.feature_dim = network.norm.weight.shape[0]
        assert isinstance(network.context_embed, TokenEmbedding)
        self.num_classes = self.null_class = network.context_embed.word_embeddings.num_embeddings - 1
        self.class_names = class_names
        self.default_schedule = default_schedule
        self.device, self.dtype = device, dtype

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> TokenGenerator:
        return MaskGIT.create(variant, options, device=device, dtype=dtype, offline=offline)

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return MaskGIT.variants()

    def null_context(self, size: int) -> Context:
        return Context(size, classes=torch.full((size,), self.null_class, dtype=torch.int64, device=self.device))

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.classes is not None

        def run(ids: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.network(ids, classes)
            return logits.float(), features.float()

        minimum = minimum_batch(self.dtype, self.device)
        logits, features = in_chunks(run, tokens, context.classes[:, None], minimum=minimum)
        return logits, features

    def read_policy(self, path: Path, steps: int | None, changes: str = "") -> SamplingPolicy:
        """A policy published with AdaNAT or AdaGen (see ``released_policy.read_policy``)."""
        from ..released_policy import read_policy

        return read_policy(path, self, steps, changes)


class Emoji64MaskGIT(Emoji64Classes, Emoji64Tokens, UViTClassGenerator):
    """The embedded generator."""


class MaskGITOptions(PublishedOptions):
    heads: int | None = Field(None, ge=1, le=1024)
    """Attention heads of a checkpoint of an unpublished size (weights do not tell them)."""


PUBLISHED = {
    "adanat-imagenet-l": "adanat:AdaNATImageNet.create",
    "adanat-imagenet-s": "adanat:AdaNATImageNet.create",
    "halton-256": "halton:HaltonMaskGIT.create",
    "halton-384": "halton:HaltonMaskGIT.create",
    "google-256": "google:GoogleMaskGIT.create",
    "google-512": "google:GoogleMaskGIT.create",
}
"""Variants with third-party weights: what builds them (arguments of ``MaskGIT.create``), imported when asked for."""


class MaskGIT(TokenGenerator):
    """The plug-in: builds the variant asked for, whose class is another one."""

    Options = MaskGITOptions

    @classmethod
    def preset_settings(cls, preset: str, variant: str | None) -> dict[str, Any]:
        from ..released_policy import adagen_settings

        return adagen_settings(f"maskgit:{variant or cls.variants()[0]}") if preset == "adagen" else {}

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64", *PUBLISHED)

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> TokenGenerator:
        """See ``interfaces.Generator.create``."""
        name = variant or "emoji64"
        if name == "emoji64":
            chosen = parse_options("generator 'maskgit'", MaskGITOptions, options)
            return chosen.applied(_emoji64(chosen, device, dtype, offline))
        if name in PUBLISHED:
            module, function = PUBLISHED[name].split(":")
            create = attrgetter(function)(importlib.import_module(f".{module}", __package__))
            return create(name, options, device=device, dtype=dtype, offline=offline)
        raise ConfigError(
            f"maskgit has no variant {name!r}{nearest(name, cls.variants())} Variants: {', '.join(cls.variants())}."
        )


def embedded_tokenizer(device: torch.device, dtype: torch.dtype) -> VQModelTokenizer:
    """The tokenizer shared by all embedded generators: 64x64 pixels <-> 8x8 codes of 1,024."""
    config = json.loads((FOLDER / "tokenizer.json").read_text())
    return VQModelTokenizer.from_state(config, load_file(FOLDER / "tokenizer.safetensors"), device, dtype)


def _emoji64(options: MaskGITOptions, device: torch.device, dtype: torch.dtype, offline: bool) -> UViTClassGenerator:
    file = emoji64_file("maskgit:emoji64", options, offline=offline)
    with safe_open(asset("maskgit:emoji64", "generator").path, "pt") as handle:
        meta = handle.metadata()
    sizes: dict[str, Any] = {
        name: int(meta[name]) for name in ("tokens", "codebook_size", "embed_dim", "depth", "num_heads")
    }
    sizes |= {"num_classes": int(meta["num_classes"]) + 1, "num_heads": options.heads or sizes["num_heads"]}
    network = build(lambda: UViT(**sizes), read_state(file), source=str(file))
    names = tuple(json.loads((FOLDER / "classes.json").read_text()))
    return Emoji64MaskGIT(
        "maskgit:emoji64",
        network,
        embedded_tokenizer(device, dtype),
        grid=(8, 8),
        image_size=(64, 64),
        class_names=names,
        device=device,
        dtype=dtype,
    )
