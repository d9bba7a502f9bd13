"""``aesthetic``: a small head on CLIP image features, such as the LAION aesthetic predictors, from a local file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.interfaces import Context, Generator, ImageSource, RewardModel, Source

from ..clip_models import ClipOptions, load_clip
from ..weights import read_state
from .frozen import FrozenReward

_ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": F.gelu}


class AestheticOptions(ClipOptions):
    """Options of the aesthetic reward; ``model`` and ``weights`` name the CLIP that the head was trained on."""

    head: Source = None
    """File of the head's linear layers: torch (read without running pickled code) or safetensors."""
    activation: Literal["none", "relu", "gelu"] = "none"
    """Between the layers. The published heads have none."""
    normalise: bool = True
    """Scale the features to length 1 before the head, as the published heads expect."""


class AestheticReward(FrozenReward):
    """The head's output on the image's CLIP features, in the head's own units (the published ones: about 1 to 10).

    It reads no prompt and no class, so it goes with every generator. Published heads (LAION's
    ``sac+logos+ava1-l14-linearMSE.pth`` and ``sa_0_4_vit_l_14_linear.pth``) want
    ``model=ViT-L-14-quickgelu`` with the ``openai`` weights.
    """

    Options = AestheticOptions

    @classmethod
    def create(cls, options: Any, **made_for: Any) -> RewardModel:
        return cls(options, **made_for)

    def __init__(
        self,
        options: AestheticOptions,
        *,
        generator: Generator,
        real: ImageSource | None,
        device: torch.device,
        seed: int,
        offline: bool = False,
    ) -> None:
        if options.head is None:
            raise ConfigError("reward 'aesthetic' needs a head; name its file: --set reward.options.head=FILE.")
        self.clip = load_clip("aesthetic", options, generator.name, device, offline=offline)
        self.head = LinearHead.load(Path(options.head).expanduser(), self.clip.dim, options.activation).to(device)
        self.normalise = options.normalise

    @torch.no_grad()
    def score(self, images: Tensor, context: Context) -> Tensor:
        features = self.clip.images(images) if self.normalise else self.clip.raw_images(images)
        return self.head(features)[:, 0]

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.clip.protocol})

    def parameters_count(self) -> dict[str, int]:
        head = sum(p.numel() for p in self.head.parameters())
        return {f"CLIP {self.clip.name} (frozen)": self.clip.parameters_count(), "aesthetic head (frozen)": head}


class LinearHead(nn.Module):
    """Linear layers in a row: (B, E) -> (B, 1)."""

    def __init__(self, layers: list[nn.Linear], activation: str) -> None:
        super().__init__()
        self.layers, self.activation = nn.ModuleList(layers), activation
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = layer(x if i == 0 else _ACTIVATIONS[self.activation](x))
        return x

    @classmethod
    def load(cls, path: Path, inputs: int, activation: str) -> LinearHead:
        """Every two-dimensional ``*weight`` with its ``*bias``, in the order of the numbers in their names.

        Args:
            inputs: width of the CLIP's embeddings.

        Raises:
            WeightsError: the file is missing or damaged, or its layers do not lead from ``inputs`` numbers to one.
        """
        state = read_state(path)
        names = [name for name, value in state.items() if value.dim() == 2 and name.endswith("weight")]
        names.sort(key=lambda name: [int(part) for part in re.findall(r"\d+", name)])
        widths = [inputs, *(state[name].shape[0] for name in names)]
        fits = all(state[name].shape[1] == width for name, width in zip(names, widths[:-1], strict=True))
        if not names or not fits or widths[-1] != 1:
            found = ", ".join(f"{name} {list(state[name].shape)}" for name in names) or "no linear layer"
            raise WeightsError(
                f"{path} is no head for this CLIP: its layers must lead from {inputs} features to 1 number, found "
                f"{found}. Give the head and the CLIP it was trained on."
            )
        layers = []
        for name in names:
            weight, bias = state[name].float(), state.get(name.removesuffix("weight") + "bias")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
            layer.load_state_dict({"weight": weight} if bias is None else {"weight": weight, "bias": bias.float()})
            layers.append(layer)
        return cls(layers, activation)
