"""The embedded yardstick of emoji64: features of a small classifier of (class, style), made by
recipes/train_yardstick.py.

It shares neither weights nor architecture with the discriminators, so that a reward cannot be its own judge.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import FeatureExtractor, ImageSource

from .network import FEATURE_DIM, backbone, build_network

NAME = "emoji64_yardstick"
SIZE = 64


def prepare(images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> (B, 3, 64, 64) in [-1, 1]: rounded to 8 bit as a saved image would be, antialiased
    bilinear resize where the size is another, scaled."""
    images = (images.float().clamp(0, 1) * 255).round() / 255
    if images.shape[-2:] != (SIZE, SIZE):
        images = torch.nn.functional.interpolate(images, (SIZE, SIZE), mode="bilinear", antialias=True)
    return images * 2 - 1


@cache
def about() -> dict[str, Any]:
    """What the recipe wrote beside the weights: classes, accuracies, noise floor, training."""
    found: dict[str, Any] = json.loads((files(__package__) / f"{NAME}.json").read_text(encoding="utf-8"))
    return found


def weights_hash() -> str:
    """sha256 of the embedded weights file."""
    return hashlib.sha256((files(__package__) / f"{NAME}.safetensors").read_bytes()).hexdigest()


class EmojiYardstick(FeatureExtractor):
    """192 features of 64x64 images, and probabilities of 293 (class, style) pairs."""

    feature_dim = FEATURE_DIM

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> EmojiYardstick:
        """The weights are embedded, so ``offline`` makes no difference; there are no options.

        Raises:
            WeightsError: the embedded files are missing or damaged.
        """
        return cls(device)

    def __init__(self, device: torch.device | str = "cpu") -> None:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.device = torch.device(device)
        try:
            details = about()
            digest = weights_hash()
            with as_file(files(__package__) / f"{NAME}.safetensors") as path:
                state = load_file(str(path))
            network = build_network(len(details["classes"]))
            network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
        except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
            raise WeightsError(
                f"the embedded {NAME} weights cannot be read ({error}); reinstall adanat-toolkit."
            ) from error
        if digest != details["weights_sha256"]:
            raise WeightsError(
                f"the embedded {NAME} weights have hash {digest[:8]}, not {details['weights_sha256'][:8]}; reinstall "
                "adanat-toolkit."
            )
        network = network.eval().requires_grad_(False).to(self.device).to(memory_format=torch.channels_last)
        self.backbone, self.classifier = backbone(network), network.get_submodule("head.fc")
        self.protocol = f"emoji64-v1-{digest[:8]}"
        accuracy = details["held_out_accuracy"]
        self.card = {
            "network": f"timm ByobNet, {details['parameters']:,} parameters, {FEATURE_DIM} mean-pooled features",
            "weights": f"{NAME}.safetensors, sha256 {digest}",
            "resize": "none at 64x64; else torch bilinear, antialiased, to 64x64",
            "rounding": "to 8 bit",
            "range": "[-1, 1]",
            "trained on": details["trained_on"],
            "held-out accuracy": ", ".join(f"{k} {v:.3f}" for k, v in accuracy.items()),
            "noise floor": f"Frechet distance of two random halves of the real images: {details['noise_floor']:.4f}",
            "licence": "Apache-2.0; images: see emoji64/NOTICE.md",
            "source": "recipes/train_yardstick.py",
        }

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        return self.joint(images)[0]

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        return self.joint(images)[1]

    @torch.no_grad()
    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 192) and probabilities (B, 293) from one forward."""
        batch = prepare(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.backbone(batch)
        features = maps.mean((2, 3)).contiguous()
        return features, self.classifier(features).softmax(1)

    def precomputed(self, source: ImageSource) -> Tensor | None:
        """(10934, 192) float32 features of the embedded images (stored in float16), or None if ``source`` is another
        set."""
        from safetensors import safe_open

        with as_file(files(__package__) / f"{NAME}_real.safetensors") as path, safe_open(str(path), "pt") as file:
            meta = file.metadata() or {}
            if meta.get("data") != source.fingerprint or meta.get("protocol") != self.protocol:
                return None
            features: Tensor = file.get_tensor("features")
        return features.float()
