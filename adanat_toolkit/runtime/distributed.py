"""One process or many: the few collectives the toolkit needs. Without torch.distributed every call is a no-op.

``launching`` starts the processes. The unit is global: a batch of B trajectories is cut into one contiguous slice a rank,
losses are sums over local samples divided by global counts, and gradients are summed. One rank and many ranks therefore
compute the same update.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """True in the one process that writes files and prints."""
    return rank() == 0


def local_slice(total: int, block: int = 1) -> tuple[int, int]:
    """(start, stop) of this rank's share of ``total`` items; shares differ by at most one block of ``block`` items.

    With ``block`` every share begins at a multiple of it, so that the items are cut into the same blocks by any number of
    ranks; the last block may be short, and with fewer blocks than ranks some ranks have none.
    """
    r, n = rank(), world_size()
    blocks = -(-total // block)
    return min(blocks * r // n * block, total), min(blocks * (r + 1) // n * block, total)


def barrier() -> None:
    """Wait until every rank is here: what rank 0 wrote before it, all may read after it."""
    if world_size() > 1:
        # Not dist.barrier: it asks for a device, and what ranks wait for here is on the CPU.
        dist.all_reduce(torch.zeros(1))


def from_main(value: T) -> T:
    """Rank 0's ``value`` (anything that can be pickled) on every rank, on the CPU; the others' is ignored."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def gather_on_main(value: T) -> list[T]:
    """On rank 0 every rank's ``value`` (anything that can be pickled), in rank order; elsewhere the own one alone."""
    if world_size() == 1:
        return [value]
    parts: list[T] | None = [value] * world_size() if is_main() else None
    dist.gather_object(value, parts, dst=0)
    return [value] if parts is None else parts


def position(count: int, device: torch.device | str = "cpu") -> tuple[int, int]:
    """(start, total): where this rank's ``count`` items begin in the order of ranks, and how many there are in all."""
    if world_size() == 1:
        return 0, count
    counts = gather(torch.tensor([count], device=device)).tolist()
    return sum(counts[: rank()]), sum(counts)


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of ``value`` over all ranks (in place where distributed)."""
    if world_size() > 1:
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Sum gradients over ranks, in one flat transfer; a missing gradient counts as zero."""
    if world_size() == 1:
        return
    chosen = [p for p in parameters if p.requires_grad]
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in chosen])
    dist.all_reduce(flat)
    offset = 0
    for p in chosen:
        p.grad = flat[offset : offset + p.numel()].view_as(p).clone()
        offset += p.numel()


def mean_and_std(values: Tensor, *, over_samples: bool = False) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation over all elements of all ranks (float64 sums); std 0 for a single element.

    ``over_samples``: over the first axis alone, so that both have the shape of one sample.
    """
    v = values.double() if over_samples else values.double().flatten()
    total = v.sum(0)
    count, total = sum_over_ranks(torch.stack([torch.full_like(total, len(v)), total]))
    mean = total / count
    deviation = sum_over_ranks(((v - mean) ** 2).sum(0))  # a second pass: exact for large means
    return mean.to(values.dtype), (deviation / (count - 1).clamp_min(1)).sqrt().to(values.dtype)


def gather(value: Tensor) -> Tensor:
    """Concatenate (n_r, ...) tensors of all ranks along the first axis, in rank order; sizes may differ."""
    if world_size() == 1:
        return value
    counts = [torch.zeros(1, dtype=torch.int64, device=value.device) for _ in range(world_size())]
    dist.all_gather(counts, torch.tensor([value.shape[0]], device=value.device))
    largest = max(int(c) for c in counts)
    padded = value.new_zeros(largest, *value.shape[1:])
    padded[: value.shape[0]] = value
    parts = [torch.zeros_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded)
    return torch.cat([p[: int(c)] for p, c in zip(parts, counts, strict=True)])


def gather_with_gradient(value: Tensor) -> Tensor:
    """As :func:`gather`; this rank's own part keeps its gradient.

    When every rank computes the same loss of the result, the gradients of all ranks add up to that of one process.
    """
    if world_size() == 1:
        return value
    start, _ = position(value.shape[0], value.device)
    everyone = gather(value.detach())
    return torch.cat([everyone[:start], value, everyone[start + value.shape[0] :]])
