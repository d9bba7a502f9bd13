"""What is made of prompts, a row each, kept within bounds: runs see the same captions again and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def prompt_rows(
    prompts: Sequence[str], kept: dict[str, Tensor], make: Callable[[list[str]], Tensor], *, limit: int
) -> Tensor:
    """The rows of B prompts (at least one), (B, ...).

    Args:
        kept: rows of earlier prompts, to which new ones are added; it is emptied before it holds more than ``limit``.
        make: distinct prompts -> their rows. Which it is asked for depends on the batches before, so that a row must not
            depend on the others it is made with.
    """
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in kept]
    if missing:
        if len(kept) + len(missing) > limit:
            kept.clear()
            missing = list(dict.fromkeys(prompts))
        kept.update(zip(missing, make(missing), strict=True))
    return torch.stack([kept[prompt] for prompt in prompts])
