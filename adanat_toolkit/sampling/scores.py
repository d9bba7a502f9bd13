"""What a reward plug-in returns, checked in one place."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..core import Context, RewardModel, unchanged
from ..errors import AdaNATError, PluginError
from ..runtime import is_out_of_memory


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
    try:
        with unchanged(embedded, f"reward {name!r}"):
            scores, terms = reward.score_embedded(embedded, context), reward.terms()
    except SystemExit as error:
        raise PluginError(
            f"reward {name!r} tried to end the program (SystemExit: {error}); a plug-in must raise an error instead."
        ) from error
    except (Exception, GeneratorExit) as error:
        if isinstance(error, AdaNATError) or is_out_of_memory(error):
            raise
        raise PluginError(
            f"reward {name!r} failed: {type(error).__name__}: {str(error)[:500]}. A reward is called with (images, context) "
            "and returns one score an image; mend the plug-in. ADANAT_DEBUG=1 shows where."
        ) from error
    _check(f"the scores of reward {name!r}", scores, len(context))
    if not isinstance(terms, Mapping):
        raise PluginError(f"terms() of reward {name!r} must return a dict of tensors, not {type(terms).__name__}.")
    for term, values in terms.items():
        _check(f"the term {term!r} of reward {name!r}", values, len(context))
    where = embedded.device
    own = {term: values.detach().to(where, copy=True) for term, values in terms.items()}
    return scores.detach().to(where, torch.float32, copy=True), own


def _check(what: str, values: object, count: int) -> None:
    wanted = f"it must be a tensor of floating point numbers of shape ({count},), one an image"
    if not isinstance(values, Tensor):
        raise PluginError(f"{what}: {wanted}, not {type(values).__name__}. Mend the plug-in.")
    if values.shape != (count,) or not values.is_floating_point():
        raise PluginError(f"{what}: {wanted}, not {values.dtype} of shape {tuple(values.shape)}. Mend the plug-in.")
    if values.is_meta or values.layout is not torch.strided:
        raise PluginError(f"{what}: {wanted}, not one on the device {values.device} with {values.layout}. Mend the plug-in.")
