"""The yardstick's network: a small ResNet for 64x64 images, written as a timm ``ByobNet``."""

from __future__ import annotations

from torch import nn

FEATURE_DIM = 192
CHANNELS = (32, 64, 128, FEATURE_DIM)


def build_network(num_classes: int) -> nn.Module:
    """3x3 stem of stride 2, four basic residual blocks (32, 64, 128, 192 channels at 32, 16, 8, 4 pixels), mean pool,
    linear classifier ``head.fc``.
    """
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    blocks = tuple(
        ByoBlockCfg(type="basic", d=1, c=channels, s=1 if i == 0 else 2, gs=0) for i, channels in enumerate(CHANNELS)
    )
    return ByobNet(ByoModelCfg(blocks=blocks, stem_chs=CHANNELS[0], stem_type="3x3", stem_pool=""), num_classes)


def backbone(network: nn.Module) -> nn.Module:
    """The network up to the feature maps: (B, 3, 64, 64) in [-1, 1] -> (B, 192, 4, 4)."""
    return nn.Sequential(*(network.get_submodule(name) for name in ("stem", "stages", "final_conv")))
