"""The scores of a whole iteration, and numbers that must be finite before anything is learned of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..core import Context, RewardModel
from ..errors import NotFiniteError
from ..runtime import MicroBatch, distributed, gather, whole, world_size
from ..sampling import checked_scores

REWARD_FIGURES = "reward_model/"
"""What the names of the figures of a reward's update begin with."""
LARGEST_SCORE = 1e18
"""Scores are standardised: float32 must hold the squares of their differences."""
_STOPPED = "The run was stopped before it learned from them; its last checkpoint is good."
_KEPT = "The run was stopped and is as it was before that iteration; its last checkpoint is good."


def score(
    reward: RewardModel, name: str, embedded: Tensor, context: Context, micro_batch: MicroBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """(B,) scores of this process's samples, and their terms; a set-level reward sees the samples of all processes.

    Args:
        embedded: (B, ...) of ``RewardModel.embed``. micro_batch: samples scored at once.

    Raises:
        PluginError: see :func:`checked_scores`.
    """

    def score_rows(rows: slice) -> tuple[Tensor, dict[str, Tensor]]:
        return checked_scores(reward, name, embedded[rows], context.select(rows))

    with torch.no_grad():
        if not reward.set_level:
            parts = micro_batch.map(score_rows, len(context))
            terms = {term: torch.cat([part[1][term] for part in parts]) for term in parts[0][1]}
            return torch.cat([part[0] for part in parts]), terms
        start, _ = distributed.position(len(context), embedded.device)
        own = slice(start, start + len(context))
        embedded, context = gather(embedded), gather_context(context)
        with whole("the score of a reward that judges the set", "use a smaller batch, or a per-sample reward"):
            scores, terms = score_rows(slice(0, len(context)))
        return scores[own], {term: values[own] for term, values in terms.items()}


def gather_context(context: Context) -> Context:
    """The contexts of all ranks, in rank order."""
    if world_size() == 1:
        return context
    prompts: list[tuple[str, ...] | None] = [None] * world_size()
    dist.all_gather_object(prompts, context.prompts)

    def join(value: Tensor | None) -> Tensor | None:
        return None if value is None else gather(value)

    sizes = gather(torch.tensor([context.size], device=None if context.classes is None else context.classes.device))
    return Context(
        int(sizes.sum()),
        join(context.classes),
        join(context.states),
        join(context.pooled),
        None if context.prompts is None else tuple(text for part in prompts for text in part or ()),
    )


def require_finite(
    iteration: int, remedy: str, reward: str, scores: Tensor, terms: Mapping[str, Tensor], others: Mapping[str, Tensor]
) -> None:
    """All processes call it together, and all raise together. One transfer from the device.

    Args:
        iteration: 1-based, for the error. reward: its name. scores: (B,) float32. terms: of a mixture, whose scores are not
            finite where one of its terms is not: the term is named. others: what else is learned from, by what it is.

    Raises:
        NotFiniteError: names the first that is not finite, and how many of its numbers are not; or the scores are so large
            that float32 does not hold their spread.
    """
    what = f"scores of reward {reward!r}"
    values = {f"values of the term {term!r} of reward {reward!r}": v for term, v in terms.items()}
    values |= {what: scores, **others}
    fits = [v.abs() <= LARGEST_SCORE if name == what else v.isfinite() for name, v in values.items()]
    wrongs = torch.stack([(~fit).sum() for fit in fits])
    totals = torch.tensor([v.numel() for v in values.values()], device=wrongs.device)
    found = distributed.sum_over_ranks(torch.stack([wrongs, totals], 1)).tolist()
    for name, (wrong, total) in zip(values, found, strict=True):
        if not wrong:
            continue
        if name == what:
            wrong = int(distributed.sum_over_ranks((~scores.isfinite()).sum()))
            if not wrong:
                largest = float(distributed.gather(scores.abs().max()[None]).max())
                raise NotFiniteError(
                    f"iteration {iteration}: the {what} are as large as {largest:.3g}; float32 holds the squares of their "
                    f"spread up to {LARGEST_SCORE:g}. {_STOPPED} Divide the reward's scores by a number: their unit makes no "
                    "difference."
                )
        raise NotFiniteError(
            f"iteration {iteration}: {wrong} of {total} {name} are not finite (NaN or infinite). {_STOPPED} {remedy}"
        )


def require_finite_update(
    iteration: int, row: Mapping[str, Any], state: Mapping[str, Tensor], reward: str = ""
) -> None:
    """Neither a gradient, nor a figure of the reward's update, nor what came of them may be NaN or infinite: such a state must
    not be kept.

    Args:
        iteration: 1-based, for the error. row: the iteration's figures, ``.../gradient_norm`` and ``reward_model/...`` among
            them. state: of the run. reward: its name, for the error.

    Raises:
        NotFiniteError: names the first that is.
    """
    for key, value in row.items():
        if key.startswith(REWARD_FIGURES) and not math.isfinite(value):
            raise NotFiniteError(
                f"iteration {iteration}: the figure {key.removeprefix(REWARD_FIGURES)!r} of the update of reward {reward!r} is "
                f"not finite ({value}). {_KEPT} Mend the reward, or lower its learning rate."
            )
    # A norm can be infinite where no tensor is: clipped to it, the gradient is zero and nothing would be learned.
    wrong = [
        f"{key} = {value}" for key, value in row.items() if key.endswith("gradient_norm") and not math.isfinite(value)
    ]
    by_device: dict[torch.device, dict[torch.dtype, list[str]]] = {}
    for key, value in state.items():
        if (value.is_floating_point() or value.is_complex()) and value.numel():
            by_device.setdefault(value.device, {}).setdefault(value.dtype, []).append(key)
    for by_type in by_device.values():  # one call a type, in which each norm fits, and one transfer a device
        finite = [_finite([state[key] for key in keys]) for keys in by_type.values()]
        fits = (finite[0] if len(finite) == 1 else torch.cat(finite)).tolist()
        keys = [key for some in by_type.values() for key in some]
        wrong += [key for key, fit in zip(keys, fits, strict=True) if not fit]
    if wrong:
        raise NotFiniteError(
            f"iteration {iteration}: {len(wrong)} tensors and norms of the update are not finite, first {wrong[0]}. {_KEPT} "
            "Lower ppo.learning_rate (or the reward's), or set ppo.max_gradient_norm."
        )


def _finite(tensors: list[Tensor]) -> Tensor:
    """Whether all numbers of each are finite; they are on one device and of one type."""
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    elif tensors[0].dtype.itemsize == 1:  # 8-bit floats, of which torch takes no norm
        tensors = [tensor.float() for tensor in tensors]
    return torch.stack(torch._foreach_norm(tensors, math.inf)).isfinite()
