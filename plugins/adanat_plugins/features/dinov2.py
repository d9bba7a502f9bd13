"""``dinov2``: class-token features of DINOv2 (Stein et al. 2023, "Exposing flaws of generative model evaluation
metrics", use ViT-L/14 at 224 pixels for their Frechet distance)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import FeatureExtractor
from adanat_toolkit.runtime import in_chunks

from ..fingerprints import fingerprint_state
from ..weights import load_timm_vit, read_state
from .third_party import IMAGENET_MEAN, IMAGENET_STD, FeatureAsset, WeightsOptions, bicubic_square, locate, to_8_bit

SIDE = 224
GPU_CHUNK = 64


DEFAULT = "vit_large_patch14_dinov2.lvd142m"


class DINOv2Options(WeightsOptions):
    """``model``: timm's name of a DINOv2 vision transformer."""

    model: str = DEFAULT


def dinov2_asset(model: str = DEFAULT) -> FeatureAsset:
    """Where the weights are published and looked for."""
    hub = f"timm/{model}"
    return FeatureAsset(
        ("dinov2",), f"{model} weights", f"{hub}/model.safetensors", f"https://huggingface.co/{hub}",
        "Apache-2.0", f"download model.safetensors of {hub}", hub=hub,
    )  # fmt: skip


class DINOv2Features(FeatureExtractor):
    """The class token after the final norm (1,024 features of ViT-L)."""

    Options = DINOv2Options

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> DINOv2Features:
        """See :class:`DINOv2Options`.

        Raises:
            ConfigError: unknown model. WeightsError: the file is missing or of another network.
        """
        network = _network(options.model)
        path = locate(options.weights, dinov2_asset(options.model), offline=offline)
        return cls(options.model, read_state(path), device=device, source=str(path), network=network)

    def __init__(
        self,
        model: str,
        state: dict[str, Tensor],
        *,
        device: torch.device | str = "cpu",
        source: str = "weights",
        network: Any = None,
    ) -> None:
        self.device = torch.device(device)
        network = network or _network(model)
        digest = fingerprint_state(state)
        load_timm_vit(network, state, source=source)
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.feature_dim = network.num_features
        self.protocol = f"dinov2-{model.split('.')[0]}-{digest[:8]}"
        self.card = {
            "network": f"{model} (timm), class token after the final norm, {self.feature_dim} features",
            "weights": f"fingerprint {digest}",
            "resize": "torch bicubic, antialiased, both sides to 224 pixels; position embedding resampled by timm",
            "rounding": "to 8 bit, before the resize",
            "range": "ImageNet mean and standard deviation",
            "licence": "Apache-2.0",
            "source": f"https://huggingface.co/timm/{model}",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        chunk = None if self.device.type == "cpu" else GPU_CHUNK
        return in_chunks(self._features, images.to(self.device), chunk=chunk)[0]

    def _features(self, images: Tensor) -> Tensor:
        x = bicubic_square(to_8_bit(images), SIDE)
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
        tokens: Tensor = self.network.forward_features((x - mean) / std)
        return tokens[:, 0].float()


def _network(model: str) -> Any:
    import timm

    try:
        with torch.device("meta"):  # the weights come from the file
            network = timm.create_model(model, pretrained=False, num_classes=0, img_size=SIDE)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model {model!r}: {error}. Use one of timm's vision transformers with dinov2 in its name."
        ) from None
    if not all(hasattr(network, part) for part in ("pos_embed", "patch_embed", "num_prefix_tokens")):
        raise ConfigError(f"model {model!r} is no plain vision transformer; use one with dinov2 in its name.")
    return network
