"""Flax's msgpack serialisation, read without JAX (format: ``flax.serialization``).

A tree of maps with string keys; arrays are extension type 1, whose payload is itself msgpack: (shape, dtype name, bytes
in C order). Arrays beyond about 1 GB are stored in flat chunks under a marker key.
"""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.errors import WeightsError

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"


def read_flax(path: Path) -> dict[str, Any]:
    """The tree of a Flax checkpoint with tensors as leaves; the file is streamed, so that it is held in memory once.

    Raises:
        WeightsError: not a msgpack map, or an array has an unknown dtype or the wrong number of bytes.
    """
    import msgpack

    limit = os.path.getsize(path) + 2**20
    with path.open("rb") as file:
        unpacker = msgpack.Unpacker(
            file, ext_hook=_extension, raw=False, strict_map_key=False, read_size=2**20, max_buffer_size=limit
        )
        try:
            tree = unpacker.unpack()
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except (msgpack.UnpackException, ValueError, UnicodeDecodeError) as error:
            raise WeightsError(f"{path} is no complete Flax (msgpack) checkpoint: {error}. Fetch it again.") from None
    if not isinstance(tree, dict):
        raise WeightsError(f"{path} holds a {type(tree).__name__}, not a tree of named arrays; it is no checkpoint.")
    return _join_chunks(tree)


def _extension(code: int, payload: bytes) -> Any:
    import msgpack

    if code == _COMPLEX:
        return complex(*msgpack.unpackb(payload))
    if code not in (_NDARRAY, _SCALAR):
        raise WeightsError(f"unknown msgpack extension type {code}; Flax writes 1, 2 and 3.")
    shape, dtype, raw = msgpack.unpackb(payload, raw=True)
    return _tensor([int(n) for n in shape], dtype.decode(), raw)


def _tensor(shape: list[int], dtype_name: str, raw: bytes) -> Tensor:
    dtype = getattr(torch, {"bool_": "bool"}.get(dtype_name, dtype_name), None)
    if not isinstance(dtype, torch.dtype):
        raise WeightsError(f"an array has the dtype {dtype_name!r}, which torch does not have.")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"an array {shape} of {dtype_name} has {len(raw)} bytes; the file is damaged.")
    if not raw:
        return torch.zeros(shape, dtype=dtype)
    with warnings.catch_warnings():
        # The bytes are owned by the tensor from here on, and nothing else refers to them: no copy is needed.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.frombuffer(raw, dtype=dtype).reshape(shape)


def _join_chunks(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    if _CHUNKED not in tree:
        return {key: _join_chunks(value) for key, value in tree.items()}
    shape, chunks = (_as_list(tree[name]) for name in ("shape", "chunks"))
    return torch.cat([chunk.reshape(-1) for chunk in chunks]).reshape([int(n) for n in shape])


def _as_list(value: Any) -> list[Any]:
    """Flax writes tuples as maps ``{"0": ..., "1": ...}``."""
    return [value[str(i)] for i in range(len(value))] if isinstance(value, dict) else list(value)
