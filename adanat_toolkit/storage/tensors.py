"""What a safetensors file says it holds, before any of it is read into memory."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from ..errors import AdaNATError
from .documents import MAX_FILE, MIB, REMEDY, check_value, parse_document, regular_file, shortened

MAX_HEADER = 32 * MIB
MOST_TENSORS = 2**15
"""Of a file; large networks have some thousands."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
}
"""The element types that torch has too; F4, F6 and E8M0 have no whole bytes or no torch type."""


@dataclass(frozen=True)
class TensorFacts:
    """Shape and type of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {list(self.shape)}"


def facts_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, TensorFacts]:
    """Shapes and types of tensors that are there."""
    return {name: TensorFacts(tuple(value.shape), value.dtype) for name, value in tensors.items()}


_Size = Annotated[int, Field(ge=0)]


class _Entry(BaseModel):
    dtype: str
    shape: list[_Size] = Field(max_length=16)
    data_offsets: list[_Size] = Field(min_length=2, max_length=2)


def read_header(
    path: str | os.PathLike[str], *, error: type[AdaNATError], remedy: str = REMEDY
) -> tuple[dict[str, TensorFacts], int]:
    """The tensors of a safetensors file by name, and the file's size in bytes.

    Only the header is read. It must promise what the file has: every byte belongs to one tensor of a known type.

    Raises:
        error: it is no regular file, no safetensors file, cut short, or holds types or shapes that torch does not have.
    """
    where = str(path)
    with regular_file(path, error=error, limit=MAX_FILE, remedy=remedy) as (file, size):
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MAX_HEADER):
            raise error(f"{where} is damaged or truncated ({size:,} bytes): it is no safetensors file. {remedy}")
        text = file.read(length)
    header: dict[str, Any] = parse_document(
        text, dict[str, dict[str, Any]], where=f"the header of {where}", error=error, remedy=remedy
    )
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise error(f"{where} names {len(header):,} tensors; at most {MOST_TENSORS:,} are read. {remedy}")
    entries: dict[str, _Entry] = check_value(
        header, dict[str, _Entry], where=f"the header of {where}", error=error, remedy=remedy
    )
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        dtype = DTYPES.get(entry.dtype)
        if dtype is None:
            raise error(
                f"{where}: the tensor {shortened(name)} is of the type {shortened(entry.dtype)}, which torch does not have. "
                f"{remedy}"
            )
        # an empty tensor may have sides whose product no 64-bit number holds
        if math.prod(max(side, 1) for side in entry.shape) * dtype.itemsize >= 2**62:
            raise error(f"{where}: the tensor {shortened(name)} has the impossible shape {entry.shape}. {remedy}")
        first, last = entry.data_offsets
        if first != end or last - first != math.prod(entry.shape) * dtype.itemsize:
            raise error(
                f"{where} is damaged: the tensor {shortened(name)} of shape {entry.shape} has bytes {first} to {last}. {remedy}"
            )
        tensors[name], end = TensorFacts(tuple(entry.shape), dtype), last
    if size != 8 + length + end:
        raise error(
            f"{where} is damaged or truncated ({size:,} bytes, its header promises {8 + length + end:,}). {remedy}"
        )
    return tensors, size
