"""Options of the ``adversarial`` reward."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from adanat_toolkit.interfaces import PluginOptions, Source
from adanat_toolkit.limits import MOST_IMAGES

from .adversarial_losses import Loss
from .augment import Augmentation
from .discriminator import Norm

NO_BACKBONE = ("none", "latents")
"""What the discriminator may read in place of frozen features."""
PAPER = {"norm": "local", "learning_rate": 1e-4, "crop": 0.5}
"""Defaults under ``architecture: paper``, from the published checkpoints and code's description."""


class AdversarialOptions(PluginOptions):
    """Options of the adversarial reward."""

    architecture: Literal["small", "paper"] = "small"
    """``small``: narrow heads whose scores do not depend on a sample's neighbours. ``paper``: the published
    discriminator (DINO ViT-S/16, full-width heads with local batch norm, class mapping network, crops)."""

    backbone: str = "auto"
    """Frozen features: ``emoji64-clip`` (embedded), ``dino``, ``dinov2`` (timm), ``clip`` (open_clip), ``none`` (the
    discriminator reads pixels), ``latents`` (it reads the tokenizer's code vectors: nothing is decoded while training, but
    the real images of every update are encoded); ``auto`` is the embedded one for emoji64, else DINO."""
    backbone_model: str | None = None
    """timm's or open_clip's name of another network of the same kind."""
    backbone_weights: Source = None
    """Its weights: a file or a hub id; None looks in the weights folder."""
    backbone_size: int | None = Field(None, ge=16, le=4096)
    """Image side that a timm backbone works on (a multiple of its patch); None: 224. Smaller is faster."""
    published: Source = None
    """A published AdaNAT training checkpoint: backbone and heads start from its discriminator (``paper`` only)."""
    pool: int = Field(1, ge=1, le=64)
    """Average pooling of the features' map before the heads (must divide its side)."""
    crop: float = Field(0.0, ge=0, le=1)
    """Probability, drawn once an iteration, that images larger than the backbone's input are cropped (all at the same
    place) and not resized."""

    width: int = Field(64, ge=8, le=4096, multiple_of=8)
    """Channels inside a small head."""
    kernel: int = Field(9, ge=1, le=255)
    """Kernel of a small head's residual convolution over positions."""
    outputs: int = Field(64, ge=1, le=65_536)
    """Channels that a small head weighs with the context."""
    norm: Norm = "none"
    """Normalisation in the heads: ``none``, ``group`` (of channels), ``local`` (batch norm over groups of up to 8
    images as in the paper: then a score depends on the sample's neighbours in its process, and a run on the number of
    processes)."""
    output: Literal["sigmoid", "logit"] = "sigmoid"
    """The reward: sigmoid of the mean logit (the paper's), or the mean logit."""

    loss: Loss = "bce"
    """``bce`` (the paper's), ``hinge``, ``relativistic``."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Target of real images is 1 minus this (``bce`` only)."""
    r1: float = Field(0.0, ge=0)
    """Weight of the gradient penalty on real inputs (features, or pixels where these are embedded)."""
    r1_every: int = Field(1, ge=1)
    """Steps between penalties; the weight is multiplied by it ("lazy regularisation", Karras et al. 2020)."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation while training: any of ``color``, ``translation``, ``cutout``. Features of augmented
    images cannot be kept, so the backbone runs in every step."""

    learning_rate: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.5, 0.999)
    updates: int = Field(2, ge=1, le=10_000)
    """Adam steps an iteration."""
    batch: int = Field(128, ge=1, le=MOST_IMAGES)
    """Real images in one step, and about as many generated ones, of all processes together."""
    every: int = Field(1, ge=1)
    """Iterations between updates ("lazy updates": a discriminator that lags behind is harder to saturate)."""
    replay: int = Field(0, ge=0, le=MOST_IMAGES)
    """Earlier generated images that are kept (0: none). They are part of checkpoints."""
    replay_share: float = Field(0.25, gt=0, le=1)
    """Share of a step's generated images that comes from them."""

    @model_validator(mode="before")
    @classmethod
    def _paper_defaults(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("architecture") == "paper":
            return {**PAPER, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> AdversarialOptions:
        if self.label_smoothing and self.loss != "bce":
            raise ValueError(f"label_smoothing applies to loss bce, not {self.loss}; leave one of them out")
        if self.architecture == "paper":
            fixed = [name for name in ("width", "kernel", "outputs") if name in self.model_fields_set]
            if fixed or self.norm != "local":
                raise ValueError(f"architecture paper fixes {', '.join(fixed) or 'norm'}; leave it out or use small")
            if self.backbone in NO_BACKBONE:
                raise ValueError(f"architecture paper needs a backbone; use architecture small with {self.backbone}")
        elif self.published is not None:
            raise ValueError("published applies to architecture paper; add architecture=paper")
        about = {"backbone_model", "backbone_weights", "backbone_size"} & self.model_fields_set
        if self.published is not None and (about or "backbone" in self.model_fields_set):
            raise ValueError("published holds the backbone too; leave backbone and all backbone_... out")
        if self.backbone in NO_BACKBONE and about:
            raise ValueError(
                f"{', '.join(sorted(about))} would not be used with backbone {self.backbone}; leave it out"
            )
        if self.backbone == "none" and self.crop:
            raise ValueError("crop applies to what a backbone reads; leave it out with backbone none")
        if "replay_share" in self.model_fields_set and not self.replay:
            raise ValueError("replay_share needs replay, the number of images that are kept")
        if "r1_every" in self.model_fields_set and not self.r1:
            raise ValueError("r1_every needs r1, the weight of the penalty")
        if self.backbone in NO_BACKBONE and self.pool > 1:
            raise ValueError(f"pool applies to a backbone's features; leave it out with backbone {self.backbone}")
        if self.backbone == "latents" and (self.augment or self.crop):
            raise ValueError("augment and crop change images, and backbone latents reads none; leave them out")
        return self
