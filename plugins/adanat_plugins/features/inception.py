"""InceptionV3 of FID under two recipes, ``inception-fidelity`` and ``inception-adanat``.

Both use the network of torch-fidelity (the TensorFlow graph of 2015-12-05 that FID was defined with; its building
blocks are imported from there). They differ in what happens to the image before it, which alone moves FID; so they
are two protocols, and their figures do not compare.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import FeatureExtractor
from adanat_toolkit.runtime import in_chunks

from ..weights import load_into, read_state
from .third_party import FeatureAsset, WeightsOptions, locate, to_8_bit

FILE = "weights-inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SIDE, FEATURES, CLASSES = 299, 2048, 1008
GPU_CHUNK = 128


def inception_asset(*users: str) -> FeatureAsset:
    """Where the weights of the protocols (or rewards) that are named are published and looked for: one file for all."""
    return FeatureAsset(
        users, "InceptionV3 weights", f"inception/{FILE}", URL, "Apache-2.0 (tensorflow/models)",
        f"download {URL}", 23_850_960, sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    )  # fmt: skip


class InceptionV3(nn.Module):
    """The network from 299x299 images in about [-1, 1] to 2,048 pooled features; names as in torch-fidelity's file."""

    def __init__(self) -> None:
        super().__init__()
        from torch_fidelity import feature_extractor_inceptionv3 as blocks

        conv = blocks.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(3, 2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.MaxPool_2 = nn.MaxPool2d(3, 2)
        self.Mixed_5b = blocks.InceptionA(192, pool_features=32)
        self.Mixed_5c = blocks.InceptionA(256, pool_features=64)
        self.Mixed_5d = blocks.InceptionA(288, pool_features=64)
        self.Mixed_6a = blocks.InceptionB(288)
        self.Mixed_6b = blocks.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = blocks.InceptionC(768, channels_7x7=160)
        self.Mixed_6e = blocks.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = blocks.InceptionD(768)
        self.Mixed_7b = blocks.InceptionE_1(1280)
        self.Mixed_7c = blocks.InceptionE_2(2048)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299) -> (B, 2048)."""
        for name, layer in self.named_children():
            if name != "fc":
                x = layer(x)
        return x.mean((2, 3))


class _Inception(FeatureExtractor):
    """What both recipes share: weights, classifier, chunks."""

    Options = WeightsOptions
    feature_dim = FEATURES
    name: ClassVar[str]
    recipe: ClassVar[dict[str, str]]

    @classmethod
    def create(cls, options: Any, *, device: torch.device, offline: bool) -> FeatureExtractor:
        """Options: ``weights``, a file with torch-fidelity's names (by default the published one: from the weights
        folder or torch hub's cache, else downloaded unless ``offline``).

        Raises:
            WeightsError: the file is missing, damaged, or of another network.
        """
        path = _locate(options.weights, inception_asset(cls.name), offline=offline)
        state = read_state(path)  # refuses what is no file of weights
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return cls(state, digest, device=device, source=str(path))

    def __init__(
        self, state: dict[str, Tensor], digest: str, *, device: torch.device | str = "cpu", source: str = "weights"
    ) -> None:
        self.device = torch.device(device)
        network = InceptionV3().eval().requires_grad_(False)
        load_into(network, state, source=source)
        self.network = network.to(self.device)
        self.protocol = f"{self.name}-{digest[:8]}"
        self.card = {
            "network": "InceptionV3 of torch-fidelity (TensorFlow graph 2015-12-05), 2,048 pooled features",
            "weights": f"sha256 {digest}",
            **self.recipe,
            "probabilities": "softmax of the 1,008 logits without bias, as torch-fidelity's Inception Score",
            "licence": "Apache-2.0",
            "source": URL,
        }

    def prepare(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, 3, 299, 299) as the recipe says."""
        raise NotImplementedError

    @torch.no_grad()
    def joint(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, 2048) and probabilities (B, 1008) from one forward."""
        chunk = None if self.device.type == "cpu" else GPU_CHUNK
        run = lambda part: self.network(self.prepare(part))  # noqa: E731
        (features,) = in_chunks(run, images.to(self.device), chunk=chunk)
        return features, F.linear(features, self.network.fc.weight).softmax(1)

    def __call__(self, images: Tensor) -> Tensor:
        return self.joint(images)[0]

    def probabilities(self, images: Tensor) -> Tensor:
        return self.joint(images)[1]


class InceptionFidelity(_Inception):
    """torch-fidelity's FID and Inception Score: 8-bit images, TensorFlow 1's bilinear resize, (x - 128) / 128."""

    name = "inception-fidelity"
    recipe: ClassVar[dict[str, str]] = {
        "resize": "TensorFlow 1's bilinear without aligned corners (torch-fidelity's), to 299x299",
        "rounding": "to 8 bit, before the resize",
        "range": "(x - 128) / 128 of 0..255",
    }

    def prepare(self, images: Tensor) -> Tensor:
        from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

        x = (to_8_bit(images) * 255).round()
        x = interpolate_bilinear_2d_like_tensorflow1x(x, size=(SIDE, SIDE), align_corners=False)
        return (x - 128) / 128


class InceptionAdaNAT(_Inception):
    """The recipe of AdaNAT's and AutoNAT's evaluation: no rounding, torch's bilinear resize, 2x - 1."""

    name = "inception-adanat"
    recipe: ClassVar[dict[str, str]] = {
        "resize": "torch bilinear, not antialiased, corners not aligned, to 299x299",
        "rounding": "none",
        "range": "2x - 1 of 0..1",
    }

    def prepare(self, images: Tensor) -> Tensor:
        x = images.float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False)
        return 2 * x - 1


def _locate(weights: str | None, wanted: FeatureAsset, *, offline: bool) -> Path:
    if weights is not None or wanted.present():
        return locate(weights, wanted, offline=offline)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if not cached.is_file():
        if offline:
            raise wanted.missing()
        cached.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL, str(cached), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise WeightsError(f"cannot download {URL}: {error}.\n{wanted.missing()}") from None
    return cached
