"""Write weights the way their authors published them, so that checks and tests go through the real loading path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
import torch
from torch import Tensor


def save_halton(path: Path, state: Mapping[str, Tensor]) -> None:
    """As valeoai/Halton-MaskGIT's training saves: weights of a compiled, data-parallel model beside its progress."""
    named = {f"module._orig_mod.{name}": value for name, value in state.items()}
    optimizer = {"state": {}, "param_groups": [{"lr": 1e-4}]}
    torch.save(
        {"model_state_dict": named, "iter": 1_500_000, "global_epoch": 299, "optimizer_state_dict": optimizer}, path
    )


def save_llamagen(path: Path, state: Mapping[str, Tensor]) -> None:
    """As FoundationVision/LlamaGen publishes its tokenizer."""
    torch.save({"model": dict(state)}, path)


def save_flax(path: Path, flat: Mapping[str, Tensor]) -> None:
    """As ``flax.serialization.to_bytes`` writes a tree, given by its "/" paths."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *folders, leaf = name.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        array = value.numpy()
        payload = msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True)
        node[leaf] = msgpack.ExtType(1, payload)
    path.write_bytes(msgpack.packb(tree, strict_types=True))
