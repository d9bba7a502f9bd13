"""Frozen networks whose features a discriminator judges, by name.

A backbone maps images (B, 3, H, W) float32 in [0, 1] to features (B, K, P, C) of K of its layers at P positions, in its
compute dtype and without gradients to its weights. Its own resize and normalisation are part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adanat_toolkit.errors import ConfigError, WeightsError, nearest

from ..weights import Asset, load_timm_vit, read_state, resolve
from .backbone import Backbone

BACKBONES = ("emoji64-clip", "dino", "dinov2", "clip", "none")
"""``none``: no backbone, the discriminator reads pixels."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)




class TimmViT(Backbone):
    """Four evenly spaced blocks of a timm vision transformer, then its patch embedding with positions.

    As in AdaNAT's discriminator, where it is DINO's ViT-S/16 (blocks 3, 6, 9, 12 counted from 1): images are
    area-resized to the network's size, the class token of the same layer is added to every patch state, the final norm
    is not used.

    Args:
        name: timm's name of the model. size: image side, for models that take several.
    """

    model: Any
    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, size: int | None = None, pool: int = 1) -> None:
        super().__init__()
        import timm

        extra: dict[str, Any] = {} if size is None else {"img_size": size}
        try:
            self.model = timm.create_model(name, pretrained=False, num_classes=0, **extra)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ConfigError(f"backbone_model {name!r}: {error}. Use a vision transformer of timm.") from None
        parts = ("blocks", "patch_embed", "cls_token", "_pos_embed")
        if any(getattr(self.model, part, None) is None for part in parts):
            raise ConfigError(f"backbone_model {name!r} is no plain vision transformer with a class token.")
        self.size = self.model.patch_embed.img_size[0]
        self.side = self.model.patch_embed.grid_size[0]
        depth = len(self.model.blocks)
        self.read = tuple(depth * (i + 1) // 4 - 1 for i in range(4))
        self.layers, self.channels = len(self.read) + 1, self.model.num_features
        self.set_pool(pool)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD)[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        model, dtype = self.model, self.model.cls_token.dtype
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="area")
        x = model._pos_embed(model.patch_embed(((images - self.mean) / self.std).to(dtype)))
        embedding = self._read(x)
        x, kept = model.norm_pre(x), []
        for index, block in enumerate(model.blocks):
            x = block(x)
            if index in self.read:
                kept.append(self._read(x))
        return torch.stack([*kept, embedding], dim=1)

    def _read(self, x: Tensor) -> Tensor:
        return self.pooled(x[:, self.model.num_prefix_tokens :]) + x[:, :1]


def random_crop(image_size: tuple[int, int], size: int, probability: float, seed: int) -> tuple[int, int] | None:
    """(top, left) of one crop of side ``size`` for all images, or None: no crop by chance, or nothing larger to
    crop."""
    height, width = image_size
    if height < size or width < size or max(height, width) == size:
        return None
    generator = torch.Generator().manual_seed(seed)
    if float(torch.rand((), generator=generator)) >= probability:
        return None
    top = int(torch.randint(height - size + 1, (), generator=generator))
    return top, int(torch.randint(width - size + 1, (), generator=generator))


# --- by name ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BackboneAsset(Asset):
    """A backbone's weights file."""

    def missing(self, where: Path | None = None) -> WeightsError:
        return WeightsError(
            f"the adversarial reward's {self.role} needs weights, and {where or self.path} does not exist.\n"
            f"  published: {self.source}\n  licence: {self.licence}\n  obtain: {self.obtain}\n"
            f"Put the file at {self.path}, or name it with --set reward.options.backbone_weights=PATH"
            + (f", or fetch it with --set reward.options.backbone_weights={self.hub}." if self.hub else ".")
        )


_DEFAULT_MODELS = {
    "dino": "vit_small_patch16_224.dino",
    "dinov2": "vit_small_patch14_dinov2.lvd142m",
    "clip": "ViT-B-32",
}
_OPEN_CLIP_HUB = {
    "ViT-B-32": "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
    "ViT-L-14": "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
}


def _asset(name: str, model: str) -> BackboneAsset:
    """Where the weights of a model are published and looked for."""
    hub = _OPEN_CLIP_HUB.get(model) if name == "clip" else f"timm/{model}"
    file = "open_clip_model.safetensors" if name == "clip" else "model.safetensors"
    source = f"https://huggingface.co/{hub}" if hub else f"open_clip.list_pretrained() names the releases of {model}"
    return BackboneAsset(
        ("adversarial",), f"backbone {name} ({model})", f"{hub or model}/{file}", source,
        "see the model card (DINO and DINOv2: Apache-2.0; LAION's CLIP: MIT)", f"download {file} of {hub or model}",
        hub=hub,
    )  # fmt: skip


DINO = _asset("dino", _DEFAULT_MODELS["dino"])
"""What ``auto`` reads for every generator but the embedded ones."""


def create_backbone(
    name: str,
    *,
    model: str | None = None,
    weights: str | None = None,
    size: int | None = None,
    pool: int = 1,
    offline: bool = False,
) -> Backbone:
    """A backbone with its weights, in float32 on the CPU.

    Args:
        name: one of :data:`BACKBONES` but ``none``.
        model: timm's or open_clip's name of the network; None for the default.
        weights: a file, or a hub id to fetch it from; None looks in the weights folder.
        size: image side for timm's networks; None for 224.
        offline: nothing may be downloaded.

    Raises:
        ConfigError: unknown name, or an option that does not apply. WeightsError: the weights are missing or do not
        fit.
    """
    if name not in BACKBONES or name == "none":
        known = ("auto", *BACKBONES, "latents")
        raise ConfigError(f"backbone {name!r} is unknown{nearest(name, known)} Known: {', '.join(known)}.")
    if name == "emoji64-clip":
        from .clip_tower import emoji64_clip

        if (model, weights, size) != (None, None, None):
            raise ConfigError("backbone emoji64-clip is embedded: leave backbone_model, _weights and _size out.")
        return emoji64_clip(pool)
    model = model or _DEFAULT_MODELS[name]
    path = resolve(weights, _asset(name, model), offline=offline)
    if name == "clip":
        if size is not None:
            raise ConfigError(f"backbone_size = {size} applies to timm's backbones; leave it out with backbone clip.")
        from .clip_tower import open_clip_tower

        hub = weights or _OPEN_CLIP_HUB.get(model, "")
        return open_clip_tower(model, read_state(path), pool=pool, source=str(path), hub=hub.partition("@")[0])
    # timm's DINOv2 is configured for 518 px; 224 is the size of the other backbones and six times cheaper.
    backbone = TimmViT(model, size=size or 224, pool=pool)
    load_timm(backbone, read_state(path), source=str(path))
    return backbone


def published_backbone(state: dict[str, Tensor], pool: int) -> TimmViT:
    """DINO ViT-S/16 with the weights inside a published discriminator (``paper_discriminator.read_published``)."""
    backbone = TimmViT(_DEFAULT_MODELS["dino"], pool=pool)
    load_timm(backbone, state, source="the published discriminator's backbone")
    return backbone


def load_timm(backbone: TimmViT, state: dict[str, Tensor], *, source: str) -> None:
    """Load a vision transformer's weights from timm's file, DINO's own, or a published AdaNAT discriminator.

    Raises:
        WeightsError: the tensors do not fit.
    """
    inside = "dino.model.model."
    if any(inside in key for key in state):
        state = {key.split(inside)[1]: value for key, value in state.items() if inside in key}
    load_timm_vit(backbone.model, state, source=source)
