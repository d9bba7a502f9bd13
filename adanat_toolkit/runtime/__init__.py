"""Where things run: devices and compute types, micro-batches, processes."""

from .adam import Adam, clip_gradients, total_norm
from .devices import (
    COMPILED,
    CPU_CHUNK,
    DTYPES,
    dtype_name,
    fastest_dtype,
    float32_by_default,
    image_chunk,
    in_chunks,
    minimum_batch,
    minimum_rows,
    padded,
    resolve_device,
    resolve_dtype,
)
from .distributed import gather, is_main, rank, world_size
from .launcher import LAUNCHED, ProcessError, check_devices, environment, join, launch, leave, local_size, record_failure
from .micro_batch import MemoryShortage, MicroBatch, free_host_memory, is_out_of_memory, measured_size, whole
from .threads import Aside, ThreadSafe, may_go_side_by_side, together

__all__ = [
    "COMPILED",
    "CPU_CHUNK",
    "DTYPES",
    "LAUNCHED",
    "Adam",
    "Aside",
    "MemoryShortage",
    "MicroBatch",
    "ProcessError",
    "ThreadSafe",
    "check_devices",
    "clip_gradients",
    "dtype_name",
    "environment",
    "fastest_dtype",
    "float32_by_default",
    "free_host_memory",
    "gather",
    "image_chunk",
    "in_chunks",
    "is_main",
    "is_out_of_memory",
    "join",
    "launch",
    "leave",
    "local_size",
    "may_go_side_by_side",
    "measured_size",
    "minimum_batch",
    "minimum_rows",
    "padded",
    "rank",
    "record_failure",
    "resolve_device",
    "resolve_dtype",
    "together",
    "total_norm",
    "whole",
    "world_size",
]
