"""What a batch of images is conditioned on: classes, text states, or nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import ConfigError

ContextKind = Literal["class", "text", "none"]


@dataclass(frozen=True)
class Context:
    """What a batch of images is conditioned on. Only the fields of the generator's kind are set.

    Attributes:
        size: B.
        classes: (B,) int64 class ids, for ``class`` generators.
        states: (B, L, C) float, the text encoder's token states, for ``text`` generators.
        pooled: (B, P) float, the text encoder's projected embedding (before normalisation); discriminators and CLIP scores
            read it.
        prompts: the B prompts.
    """

    size: int
    classes: Tensor | None = None
    states: Tensor | None = None
    pooled: Tensor | None = None
    prompts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return self.size

    @property
    def embeds(self) -> bool:
        """Whether :meth:`embedding` has something to give: a generator may know prompts as words alone."""
        return self.pooled is not None or self.states is not None

    def embedding(self) -> Tensor:
        """(B, P) of texts: the pooled embedding, or the token states' mean where there is none.

        Raises:
            ConfigError: there is neither.
        """
        if self.pooled is not None:
            return self.pooled
        if self.states is None:
            raise ConfigError(
                "these contexts have no embedding of their texts; let the generator's encode_prompts give pooled or states, or "
                "use what does not read the context."
            )
        return self.states.mean(1)

    def select(self, index: Tensor | slice) -> Context:
        """Some of the samples, in the order of ``index``."""

        def pick(value: Tensor | None) -> Tensor | None:
            return None if value is None else value[index]

        size: int
        prompts = None
        if isinstance(index, Tensor) and index.dtype != torch.bool and self.prompts is None:
            size = len(index)  # known without waiting for the device
        else:
            positions = torch.arange(self.size)[index.cpu() if isinstance(index, Tensor) else index]
            size = len(positions)
            if self.prompts is not None:
                prompts = tuple(self.prompts[i] for i in positions.tolist())
        return Context(size, pick(self.classes), pick(self.states), pick(self.pooled), prompts)

    def to(self, device: torch.device | str) -> Context:
        def move(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return replace(self, classes=move(self.classes), states=move(self.states), pooled=move(self.pooled))

    @staticmethod
    def cat(parts: Sequence[Context]) -> Context:
        """One context from several of the same kind."""

        def join(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            return None if values[0] is None else torch.cat(values)

        prompts = None if parts[0].prompts is None else tuple(x for p in parts for x in p.prompts or ())
        return Context(sum(map(len, parts)), join("classes"), join("states"), join("pooled"), prompts)

    def keys(self, start: int = 0) -> list[int] | list[str]:
        """What tells the samples' contexts apart: class ids or prompts; where nothing says whether two are the same,
        positions from ``start`` on; all alike where there is no context."""
        if self.classes is not None:
            ids: list[int] = self.classes.tolist()
            return ids
        if self.prompts is not None:
            return list(self.prompts)
        return [0] * self.size if self.states is None else list(range(start, start + self.size))

    def distinct(self) -> tuple[Tensor, Tensor]:
        """(first, inverse): indices of the first sample of each distinct context, and for each sample which one is its own."""
        order: dict[Any, int] = {}
        first, inverse = [], []
        for position, key in enumerate(self.keys()):
            if key not in order:
                order[key] = len(order)
                first.append(position)
            inverse.append(order[key])
        return torch.tensor(first), torch.tensor(inverse)

    def describe(self, index: int) -> dict[str, Any]:
        """JSON-able context of one sample."""
        out: dict[str, Any] = {}
        if self.classes is not None:
            out["class"] = int(self.classes[index])
        if self.prompts is not None:
            out["prompt"] = self.prompts[index]
        return out
