"""What is made of prompts, a row each, kept within bounds: runs see the same captions again and again. And what is not made
of them, since every text encoder has a length beyond which it cuts."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.runtime import distributed


def prompt_rows(
    prompts: Sequence[str], kept: dict[str, Tensor], make: Callable[[list[str]], Tensor], *, limit: int
) -> Tensor:
    """The rows of B prompts (at least one), (B, ...).

    Args:
        kept: rows of earlier prompts, to which new ones are added; it is emptied before it holds more than ``limit``.
        make: distinct prompts -> their rows. Which it is asked for depends on the batches before, so that a row must not
            depend on the others it is made with.
    """
    rows = {prompt: kept.get(prompt) for prompt in prompts}  # once: another thread may empty what is kept
    missing = [prompt for prompt, row in rows.items() if row is None]
    if missing:
        if len(kept) + len(missing) > limit:
            kept.clear()
            missing = list(rows)
        made = dict(zip(missing, make(missing), strict=True))
        kept.update(made)
        rows.update(made)
    return torch.stack([row for prompt in prompts if (row := rows[prompt]) is not None])


class CutPrompts:
    """Says that prompts are longer than a text encoder reads: once, at the first ones.

    Args:
        reader: what reads them, in words. limit: tokens that it reads, those at the start and end included.
    """

    def __init__(self, reader: str, limit: int) -> None:
        self.reader, self.limit = reader, limit
        self._said = False

    def count(self, cut: int, prompts: int) -> None:
        """``cut`` of so many prompts, which were given together, are too long."""
        if cut and not self._said and distributed.is_main():
            self._said = True
            warnings.warn(
                f"{cut} of {prompts} prompts are longer than the {self.limit} tokens that {self.reader} reads, and are cut: "
                "prompts that differ only behind that are the same to it. Shorten them. Later ones are cut without a word.",
                stacklevel=2,
            )


@contextmanager
def library_cuts() -> Iterator[list[str]]:
    """Collects what diffusers and transformers say of prompts that they cut, in place of a line each on the terminal."""
    found: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if "truncated because" not in text and "longer than the specified maximum sequence length" not in text:
            return True
        found.append(text)
        return False

    handlers = [handler for name in ("diffusers", "transformers") for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(keep)
    try:
        yield found
    finally:
        for handler in handlers:
            handler.removeFilter(keep)


def open_clip_ids(tokenizer: Any, prompts: list[str], cut: CutPrompts) -> Tensor:
    """(B, L) int64 ids of B prompts by a tokenizer of open_clip, L being ``cut.limit``."""
    ids: Tensor = tokenizer(prompts)
    inner = getattr(tokenizer, "tokenizer", None)  # of transformers, in its wrapper; open_clip's own pads with 0
    padding = 0 if inner is None else inner.pad_token_id
    full = [prompt for prompt, last in zip(prompts, ids[:, -1].tolist(), strict=True) if last != padding]
    if full:  # those that end at the last place are not too long
        longer = tokenizer(full, context_length=ids.shape[1] + 1)
        cut.count(int((longer[:, -1] != padding).sum()), len(prompts))
    return ids
