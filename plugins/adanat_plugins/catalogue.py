"""The files of weights that the plug-ins look for by themselves."""

from __future__ import annotations

from .weights.assets import ASSETS, Asset


def list_assets() -> list[Asset]:
    """Every file of every generator, and of what rewards and feature protocols read by default. Not listed are the CLIPs,
    backbones and heads that users name themselves.

    ``row()`` of each says what ``adanat weights`` prints, with what is present.
    """
    from .features.clip import clip_asset
    from .features.dinov2 import dinov2_asset
    from .features.inception import inception_asset
    from .rewards.backbones import DINO
    from .rewards.imagereward import SCORER, VOCABULARY

    inception = inception_asset("inception-fidelity", "inception-adanat", "fid", "fid:influence")
    return [*ASSETS, SCORER, VOCABULARY, DINO, inception, dinov2_asset(), clip_asset()]
