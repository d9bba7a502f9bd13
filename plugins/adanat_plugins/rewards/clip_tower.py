"""The image tower of an open_clip ``CLIP`` as a frozen backbone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.runtime import attend

from ..emoji64 import FOLDER as EMOJI64
from ..weights import Shapes, load_into, select
from .backbone import Backbone

OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

_LAYERS = {
    **{f"attn.in_proj_{part}": f"qkv.{part}" for part in ("weight", "bias")},
    **{f"attn.out_proj.{part}": f"out_proj.{part}" for part in ("weight", "bias")},
    **{f"mlp.{layer}.{part}": f"{layer}.{part}" for layer in ("c_fc", "c_proj") for part in ("weight", "bias")},
    **{f"{layer}.{part}": f"{layer}.{part}" for layer in ("ln_1", "ln_2") for part in ("weight", "bias")},
}
"""Names inside a block: open_clip's -> ours."""


class _Block(nn.Module):
    """A pre-norm transformer block; the three projections are one product."""

    def __init__(self, width: int, hidden: int, heads: int, quick_gelu: bool) -> None:
        super().__init__()
        self.heads, self.quick_gelu = heads, quick_gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.c_fc, self.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """(B * L, width) -> (B * L, width), B being ``batch``: rows of one matrix, as linear maps want them."""
        q, k, v = self.qkv(self.ln_1(x)).view(batch, -1, 3, self.heads, x.shape[1] // self.heads).permute(2, 0, 3, 1, 4)
        attended = attend(q, k, v).transpose(1, 2).reshape(x.shape)
        x = x + self.out_proj(attended)
        hidden = self.c_fc(self.ln_2(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden) if self.quick_gelu else F.gelu(hidden)
        return x + self.c_proj(hidden)


class ClipTower(Backbone):
    """A plain ViT tower, up to the last layer that is read.

    Same function as open_clip's ``VisionTransformer`` (checked in the tests); written out because nothing behind the
    last layer read has to run, and a patch embedding by a matrix product is faster than a strided convolution on a CPU.
    To every patch state the class token's state of the same layer is added: each position also sees the whole image.

    Args:
        state: tensors of the CLIP in open_clip's names.
        vision: ``vision_cfg`` of its configuration. quick_gelu: of its configuration.
        layers: transformer blocks (counted from 0) whose outputs are read.
        pool: average pooling of the map of positions, 1 for none.
        mean, std: the normalisation of images in [0, 1] that the weights expect.
        source: what the tensors come from, for messages.

    Raises:
        WeightsError: the tensors are not those of such a tower.
    """

    def __init__(
        self,
        state: Mapping[str, Tensor],
        vision: Mapping[str, Any],
        layers: tuple[int, ...],
        *,
        pool: int = 1,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.5, 0.5, 0.5),
        quick_gelu: bool = False,
        source: str = "CLIP weights",
    ) -> None:
        super().__init__()
        width, self.size, self.patch = vision["width"], vision["image_size"], vision["patch_size"]
        self.side, self.read, depth = self.size // self.patch, layers, max(layers) + 1
        self.layers, self.channels = len(layers), width
        self.set_pool(pool)
        heads, hidden = width // vision.get("head_width", 64), int(width * vision.get("mlp_ratio", 4.0))
        with torch.device("meta"):
            self.embed = nn.Linear(3 * self.patch**2, width)
            self.class_embedding = nn.Parameter(torch.empty(width))
            self.positional_embedding = nn.Parameter(torch.empty(self.side**2 + 1, width))
            self.ln_pre = nn.LayerNorm(width)
            self.blocks = nn.ModuleList(_Block(width, hidden, heads, quick_gelu) for _ in range(depth))
        load_into(self, _renamed(select(state, "visual."), depth, mean, std, source), source=source)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (self.size, self.size):
            images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False)
        batch, side, patch = images.shape[0], self.side, self.patch
        patches = images.reshape(batch, 3, side, patch, side, patch).permute(0, 2, 4, 1, 3, 5)
        x = self.embed(patches.reshape(batch, side**2, -1).to(self.class_embedding.dtype))
        x = torch.cat([self.class_embedding.expand(batch, 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x).flatten(0, 1)
        kept = []
        for index, block in enumerate(self.blocks):
            x = block(x, batch)
            if index in self.read:
                states = x.unflatten(0, (batch, -1))
                kept.append(self.pooled(states[:, 1:]) + states[:, :1])
        return torch.stack(kept, dim=1)


def _renamed(
    visual: Mapping[str, Tensor], depth: int, mean: tuple[float, ...], std: tuple[float, ...], source: str
) -> dict[str, Tensor]:
    """The tower's tensors in our names, float32, with the normalisation of images folded into the patch embedding."""
    blocks = {re.sub(r"^transformer\.resblocks\.\d+\.", "", key) for key in visual if "resblocks." in key}
    outer = {"conv1.weight", "class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias"}
    if not outer <= visual.keys() or blocks != _LAYERS.keys():
        raise WeightsError(
            f"{source} holds no plain CLIP image tower in open_clip's names; use weights of an open_clip ViT without "
            "extra layers (layer scale, attention pooling, timm or ResNet towers are not supported)."
        )
    shapes = Shapes(visual, f"{source} holds no plain CLIP image tower", "open_clip's tensors of a ViT for colour images")
    colours = shapes.of("conv1.weight", 4)[1]
    if colours != 3:
        raise shapes.wrong(f"'conv1.weight' reads {colours} channels")
    own = {key: visual[key] for key in ("class_embedding", "positional_embedding", "ln_pre.weight", "ln_pre.bias")}
    for index in range(depth):
        for theirs, ours in _LAYERS.items():
            key = f"transformer.resblocks.{index}.{theirs}"
            if key in visual:
                own[f"blocks.{index}.{ours}"] = visual[key]
    # W ((x - mean) / std) = (W / std) x - sum(W mean / std)
    kernel = visual["conv1.weight"].double() / torch.tensor(std, dtype=torch.float64)[:, None, None]
    own["embed.weight"] = kernel.flatten(1)
    own["embed.bias"] = -(kernel * torch.tensor(mean, dtype=torch.float64)[:, None, None]).sum((1, 2, 3))
    return {key: value.float() for key, value in own.items()}


def emoji64_clip(pool: int = 1) -> ClipTower:
    """Blocks 1, 3 and 5 of the embedded CLIP's image tower (64x64, images in [-1, 1], no further normalisation)."""
    config = json.loads((EMOJI64 / "clip.json").read_text())
    state = load_file(str(EMOJI64 / "clip.safetensors"))
    return ClipTower(state, config["vision_cfg"], (1, 3, 5), pool=pool, source="the embedded CLIP")


def open_clip_tower(model: str, state: Mapping[str, Tensor], *, pool: int, source: str, hub: str = "") -> ClipTower:
    """Four blocks, evenly spaced up to the last, of an open_clip model's image tower.

    Args:
        hub: id of the weights, where it is known: a few releases want images normalised unlike OpenAI's.

    Raises:
        WeightsError: open_clip does not know the model, its tower is no plain ViT, or the weights are another model's.
    """
    import open_clip

    config = open_clip.get_model_config(model)
    vision = (config or {}).get("vision_cfg", {})
    if "patch_size" not in vision or not isinstance(vision.get("layers"), int):
        known = [name for name in open_clip.list_models() if name.startswith("ViT-")]
        raise WeightsError(f"backbone_model {model!r} is no open_clip model with a plain ViT tower; known: {known}.")
    mean, std = OPENAI_MEAN, OPENAI_STD
    for tag in open_clip.list_pretrained_tags_by_model(model) if hub else ():
        release = open_clip.get_pretrained_cfg(model, tag)
        if str(release.get("hf_hub", "")).strip("/") == hub:
            mean, std = tuple(release.get("mean", mean)), tuple(release.get("std", std))
    depth = vision["layers"]
    layers = tuple(depth * (i + 1) // 4 - 1 for i in range(4)) if depth >= 4 else tuple(range(depth))
    return ClipTower(
        state, vision, layers, pool=pool, mean=mean, std=std,
        quick_gelu=bool(config.get("quick_gelu", False)), source=source,
    )  # fmt: skip
