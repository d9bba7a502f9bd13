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
from adanat_toolkit.storage import shortened

from .restricted import checked

_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_MOST = 1_000_000
"""Entries of a map or list; arrays are no lists."""


def read_flax(path: Path) -> dict[str, Any]:
    """The tree of a Flax checkpoint with tensors as leaves; the file is streamed, so that it is held in memory once.

    Raises:
        WeightsError: not a msgpack map, or an array has an unknown dtype or the wrong number of bytes.
    """
    import msgpack

    limit = os.path.getsize(path) + 2**20
    with path.open("rb") as file:
        try:
            unpacker = msgpack.Unpacker(
                file,
                ext_hook=_extension,
                object_pairs_hook=_named,
                raw=False,
                strict_map_key=False,
                read_size=2**20,
                max_buffer_size=limit,
                max_array_len=_MOST,
                max_map_len=_MOST,
            )
            tree = checked(unpacker.unpack())
            if not isinstance(tree, dict):
                raise WeightsError(f"it holds a {type(tree).__name__}, not a tree of named arrays; it is no checkpoint.")
            return {str(key): _join_chunks(value) for key, value in tree.items()}
        except WeightsError as error:
            raise WeightsError(f"{path}: {error}") from None
        except Exception as error:  # msgpack and torch raise a dozen kinds for a damaged file
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
            raise WeightsError(f"{path} is no complete Flax (msgpack) checkpoint: {reason}. Fetch it again.") from None


def _named(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    """A map whose keys are names or numbers."""
    if not all(isinstance(key, str | int) for key, _ in pairs):
        raise WeightsError("a map has a key that is no name; Flax writes names.")
    return dict(pairs)


def _extension(code: int, payload: bytes) -> Any:
    import msgpack

    if code == _COMPLEX:
        return complex(*msgpack.unpackb(payload))
    if code not in (_NDARRAY, _SCALAR):
        raise WeightsError(f"unknown msgpack extension type {code}; Flax writes 1, 2 and 3.")
    parts = msgpack.unpackb(payload, raw=True)
    if not (isinstance(parts, list) and len(parts) == 3 and isinstance(parts[1], bytes) and isinstance(parts[2], bytes)):
        raise WeightsError("an array is not written as shape, type and bytes; the file is damaged.")
    return _tensor(_shape(parts[0]), parts[1].decode(), parts[2])


def _shape(sizes: Any) -> list[int]:
    values = _as_list(sizes) if isinstance(sizes, dict | list) else None
    if values is None or len(values) > 16 or not all(type(n) is int and n >= 0 for n in values):
        raise WeightsError(f"an array has the shape {shortened(sizes)}; the file is damaged.")
    if math.prod(max(n, 1) for n in values) >= 2**58:
        raise WeightsError(f"an array has the impossible shape {values}; the file is damaged.")
    return values


def _tensor(shape: list[int], dtype_name: str, raw: bytes) -> Tensor:
    dtype = getattr(torch, {"bool_": "bool"}.get(dtype_name, dtype_name), None)
    if not isinstance(dtype, torch.dtype):
        raise WeightsError(f"an array has the dtype {shortened(dtype_name)}, which torch does not have.")
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
    shape, chunks = _shape(tree.get("shape")), _as_list(tree.get("chunks"))
    if not chunks or not all(isinstance(chunk, Tensor) for chunk in chunks):
        raise WeightsError("an array in chunks lacks some of them; the file is damaged.")
    flat = torch.cat([chunk.reshape(-1) for chunk in chunks])
    if flat.numel() != math.prod(shape):
        raise WeightsError(f"an array of the shape {shape} has {flat.numel()} numbers; the file is damaged.")
    return flat.reshape(shape)


def _as_list(value: Any) -> list[Any]:
    """Flax writes tuples as maps ``{"0": ..., "1": ...}``; what is neither is empty."""
    if isinstance(value, dict):
        return [value.get(str(i)) for i in range(len(value))]
    return value if isinstance(value, list) else []
