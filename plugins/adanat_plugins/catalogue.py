"""Every file of third parties that the plug-ins can load."""

from __future__ import annotations

from .weights.assets import ASSETS, Asset


def list_assets() -> list[Asset]:
    """Every file of every generator and of the rewards that read text or images with a network of their own.

    ``row()`` of each says what ``adanat weights`` prints, with what is present.
    """
    from .rewards.backbones import DINO
    from .rewards.imagereward import SCORER, VOCABULARY

    return [*ASSETS, SCORER, VOCABULARY, DINO]
