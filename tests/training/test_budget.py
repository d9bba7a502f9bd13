"""What an iteration may cost, in counts that are the same on every machine: numbers that may only fall.

The limits are what was counted on 2026-11-28 (torch 2.14.1), a little rounded up since versions of torch differ by a few calls.
The commit before the first of them (2026-11-27) made 29,552 calls for maskgit.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adanat_toolkit.decoding import TokenGenerator
from adanat_toolkit.training import create_trainer, resolve

BATCH = 128
CALLS = {"maskgit": 13_800, "muse": 17_450}
"""Operator calls of an iteration, by generator."""
BYTES = {"maskgit": 125_000_000, "muse": 161_000_000}
"""Bytes of new tensors a trajectory."""
WAITS = {"maskgit": 12, "muse": 12}
"""Operators by which the host asks for numbers, and so waits for a GPU; what is on the CPU anyway is counted too."""
FORWARDS = 2 * 3
"""Samples that go through the generator a trajectory of 4 steps: first states are kept."""


ASKING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select", "aten::equal"}


class Counted(TorchDispatchMode):
    """Counts operator calls, those of them that ask for numbers, and bytes of results that are not views of what went in."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.waits, self.bytes = 0, 0, 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.calls += 1
        masks = args[1] if func._schema.name == "aten::index" else ()
        masked = any(isinstance(mask, Tensor) and mask.dtype == torch.bool for mask in masks)
        self.waits += func._schema.name in ASKING or masked
        if not func.is_view and not func._schema.is_mutable:
            results = out if isinstance(out, tuple | list) else (out,)
            self.bytes += sum(result.nbytes for result in results if isinstance(result, Tensor))
        return out


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:.*prompts are longer")
@pytest.mark.parametrize("name", ["maskgit", "muse"])
def test_an_iteration_costs_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"generator": {"name": name}, "batch": BATCH, "dtype": "float32", "device": "cpu"}
    flags["policy"] = {"name": "adaptive"}
    trainer = create_trainer(resolve(preset="demo", flags=flags))
    generator, backbone = trainer.generator, trainer.reward.backbone  # type: ignore[attr-defined]
    assert isinstance(generator, TokenGenerator)
    contexts = generator.encode_classes(list(range(98))) if name == "maskgit" else None
    if contexts is not None:  # first states are computed once a run, not once an iteration
        generator._kept_first(contexts)
    generator.decode_tokens(torch.zeros(2, generator.cells, dtype=torch.int64))  # its sums of weights, likewise
    rows: Counter[str] = Counter()

    def noted(what: str, owner: Any, method: str) -> None:
        own = getattr(owner, method)

        def counting(first: Tensor, *others: Any) -> Any:
            rows[what] += len(first)
            return own(first, *others)

        monkeypatch.setattr(owner, method, counting)

    noted("forwards", generator, "predict")
    noted("decoded", generator, "decode_tokens")
    noted("features", backbone, "features")
    with Counted() as counted:
        trainer.step()
    assert counted.calls <= CALLS[name]
    assert counted.waits <= WAITS[name], counted.waits
    assert counted.bytes / BATCH <= BYTES[name]
    once = rows["forwards"] - FORWARDS * BATCH  # first states of captions, and that of no context
    assert 0 <= once <= (1 if name == "maskgit" else BATCH + 1)
    assert rows["decoded"] == BATCH
    # Features of an image are computed once: for its score, the diversity that alarms watch, and the reward's update.
    assert rows["features"] == BATCH + trainer.reward.real_per_update
