"""Earlier generated images, shown to the discriminator again so that it does not forget what the policy used to do."""

from __future__ import annotations

import torch
from torch import Tensor

from adanat_toolkit.errors import CheckpointError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.runtime import distributed

HISTORY = 8
"""At most 1/HISTORY of the buffer is replaced an iteration, so that it spans at least so many iterations."""


class ReplayBuffer:
    """A ring of embedded images with their contexts (Shrivastava et al. 2017, section 2.3).

    Every process holds the same buffer. It keeps what ``AdversarialReward.embed`` returns, in its dtype.

    Args:
        capacity: number of images.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.items: Tensor | None = None
        self.labels: Tensor | None = None
        """Class ids (capacity,) or pooled text (capacity, P); None without a context."""
        self.inserted = 0

    def __len__(self) -> int:
        return min(self.inserted, self.capacity)

    def insert(self, items: Tensor, context: Context, generator: torch.Generator) -> None:
        """Take a random share of the newest images of all processes, in place of the oldest ones.

        Args:
            items: this process's images. generator: in the same state in every process.
        """
        start, total = distributed.position(len(items), items.device)
        chosen = torch.randperm(total, generator=generator)[: min(max(1, self.capacity // HISTORY), self.capacity)]
        own = chosen[(chosen >= start) & (chosen < start + len(items))]
        # Gathered in the order of processes, kept in the order they were chosen in: any number of processes keeps the same.
        place = torch.empty(total, dtype=torch.int64)
        found = distributed.gather(own.to(items.device)).cpu()
        place[found] = torch.arange(len(found))
        order = place[chosen].to(items.device)
        rows = (own - start).to(items.device)
        labels = context.classes if context.classes is not None else context.pooled
        fresh = distributed.gather(items[rows].contiguous())[order]
        fresh_labels = None if labels is None else distributed.gather(labels[rows].contiguous())[order]
        if self.items is None:
            self.items = fresh.new_zeros(self.capacity, *fresh.shape[1:])
            if fresh_labels is not None:
                self.labels = fresh_labels.new_zeros(self.capacity, *fresh_labels.shape[1:])
        places = (torch.arange(len(fresh), device=fresh.device) + self.inserted) % self.capacity
        self.items[places] = fresh
        if self.labels is not None and fresh_labels is not None:
            self.labels[places] = fresh_labels
        self.inserted += len(fresh)

    def draw(
        self, count: int, like: Context, generator: torch.Generator, rows: slice = slice(None)
    ) -> tuple[Tensor, Context]:
        """``count`` images, with repetition, and their contexts (of the kind of ``like``); of these, ``rows``."""
        assert self.items is not None
        index = torch.randint(len(self), (count,), generator=generator)[rows].to(self.items.device)
        labels = None if self.labels is None else self.labels[index]
        is_class = like.classes is not None
        context = Context(len(index), classes=labels if is_class else None, pooled=None if is_class else labels)
        return self.items[index], context

    def state(self) -> dict[str, Tensor]:
        """Tensors of the filled part of the buffer."""
        out = {"inserted": torch.tensor(self.inserted)}
        if self.items is not None:
            out["items"] = self.items[: len(self)].clone()
        if self.labels is not None:
            out["labels"] = self.labels[: len(self)].clone()
        return out

    def load_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Inverse of :meth:`state`.

        Raises:
            CheckpointError: the tensors are not those of a buffer of this capacity.
        """
        inserted = int(state["inserted"]) if "inserted" in state else -1
        filled = min(inserted, self.capacity)
        sizes = {len(state[name]) for name in ("items", "labels") if name in state}
        if inserted < 0 or (filled > 0) != ("items" in state) or sizes - {filled}:
            raise CheckpointError(
                f"the checkpoint's replay buffer does not fit reward.options.replay = {self.capacity}; resume with the "
                "options that the run was started with."
            )

        def whole(value: Tensor) -> Tensor:
            out = torch.zeros(self.capacity, *value.shape[1:], dtype=value.dtype, device=device)
            out[:filled] = value.to(device)
            return out

        self.inserted = inserted
        self.items = whole(state["items"]) if "items" in state else None
        self.labels = whole(state["labels"]) if "labels" in state else None
