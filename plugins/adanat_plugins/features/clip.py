"""``clip``: image embeddings of a CLIP through open_clip, with its text side for the CLIP score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from adanat_toolkit.interfaces import FeatureExtractor, PluginOptions
from adanat_toolkit.metrics import clip_scores

from ..clip_models import EMBEDDED, ClipModel, ClipOptions, load_clip
from .third_party import FeatureAsset, locate

DEFAULT = "ViT-B-32-quickgelu"
_HUB = "timm/vit_base_patch32_clip_224.openai"


class ClipFeatureOptions(ClipOptions):
    """``model``: an open_clip name, a folder, or ``emoji64`` (embedded)."""

    model: str = DEFAULT


def clip_asset() -> FeatureAsset:
    """Where the default weights, OpenAI's ViT-B/32, are published and looked for."""
    return FeatureAsset(
        ("clip",), "OpenAI's CLIP ViT-B/32 weights", f"{_HUB}/open_clip_model.safetensors",
        f"https://huggingface.co/{_HUB}", "MIT", f"download open_clip_model.safetensors of {_HUB}", hub=_HUB,
    )  # fmt: skip


class ClipFeatures(FeatureExtractor):
    """Projected image embeddings, not normalised (512 features of ViT-B/32)."""

    Options: ClassVar[type[PluginOptions]] = ClipFeatureOptions

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> ClipFeatures:
        """See :class:`ClipFeatureOptions`.

        Raises:
            ConfigError: unknown model. WeightsError: the weights are missing or of another network.
        """
        if options.model == DEFAULT and options.weights is None:
            path = locate(None, clip_asset(), offline=offline)
            options = options.model_copy(update={"weights": str(path)})
        return cls(load_clip("clip features", options, "", device, offline=offline))

    def __init__(self, model: ClipModel) -> None:
        self.model = model
        self.feature_dim = model.dim
        self.protocol = model.protocol
        embedded = model.name == EMBEDDED
        self.card = {
            "network": f"open_clip {model.name}, projected image embedding before normalisation, {model.dim} features",
            "weights": f"fingerprint {model.digest}",
            "resize": "the model's own (open_clip's preprocessing), antialiased",
            "rounding": "to 8 bit, before and after the resize",
            "range": "the model's own mean and standard deviation",
            "licence": "Apache-2.0; images: see emoji64/NOTICE.md" if embedded else "see the model card (OpenAI: MIT)",
            "source": "embedded" if embedded else "https://github.com/mlfoundations/open_clip",
        }

    def __call__(self, images: Tensor) -> Tensor:
        return self.model.raw_images(images)

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B,) float64 CLIP scores of (B, 3, H, W) images in [0, 1] and their prompts: 100 max(cos, 0)."""
        return clip_scores(self(images).cpu(), self.model.texts(prompts).cpu())


class EmbeddedClipFeatures(ClipFeatures):
    """``clip-emoji64``: the same of the embedded CLIP, which the embedded Muse is conditioned on."""

    Options = PluginOptions

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> EmbeddedClipFeatures:
        """The weights are embedded; there are no options."""
        return cls(load_clip("clip features", ClipOptions(model=EMBEDDED), "", device))
