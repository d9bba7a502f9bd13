"""What a reward plug-in returns, checked in one place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Context, RewardModel, unchanged
from ..runtime import plugin_call, require_each, require_rows, require_tensors


def checked_scores(
    reward: RewardModel, name: str, embedded: Tensor, context: Context
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scores of embedded images, (B,) float32 on their device, and their terms, each (B,). They are the caller's own: a
    reward may fill the same tensor at every call.

    Args:
        name: the reward's, for errors.

    Raises:
        PluginError: the reward failed, ended the program, returned something else, or changed the images.
    """
    plugin = f"reward {name!r}"
    with plugin_call(plugin, "score"), unchanged(embedded, plugin):
        scores = reward.score_embedded(embedded, context)
    with plugin_call(plugin, "terms"):
        terms = reward.terms()
    require_each(f"the scores of {plugin}", scores, len(context))
    require_tensors(f"terms() of {plugin}", terms)
    for term, values in terms.items():
        require_each(f"the term {term!r} of {plugin}", values, len(context))
    where = embedded.device
    own = {term: values.detach().to(where, copy=True) for term, values in terms.items()}
    return scores.detach().to(where, torch.float32, copy=True), own


def checked_embedding(
    reward: RewardModel, name: str, images: Tensor, context: Context, method: str = "embed"
) -> Tensor:
    """(B, ...) of what a reward keeps of B images.

    Args:
        name: the reward's, for errors. method: ``embed``, ``embed_real``, or ``embed_latents`` of what was not decoded.

    Raises:
        PluginError: the reward failed, ended the program, returned something else, or changed the images.
    """
    plugin = f"reward {name!r}"
    with plugin_call(plugin, method), unchanged(images, plugin):
        embedded: Tensor = getattr(reward, method)(images, context)
    require_rows(f"{method} of {plugin}", embedded, len(context))
    return embedded
