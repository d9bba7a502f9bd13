"""Files of statistics, read back: those of ``adanat stats`` and published ``.npz`` files, which may come from anybody."""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..errors import DataError
from ..storage import TensorFacts, card_digest, parse_document, read_header, regular_file

KEY = "adanat_statistics"
"""Entry of the metadata of a safetensors file."""
MOST_FEATURES = 2**13
"""D of statistics; InceptionV3 has 2,048. Their scatter takes half a GB."""
LARGEST = 1e30
"""Numbers beyond have no square in a Frechet distance that means anything."""
MOST_BYTES = 8 * MOST_FEATURES * (MOST_FEATURES + 1) + 2**20
LONGEST_HEADER = 10_000
"""Bytes of an array's header; numpy takes no longer one."""
REMEDY = "Make it again with `adanat stats --data DIR`."
REMEDY_NPZ = "Give a published FID .npz, with mu (D,) and sigma (D, D)."


class About(BaseModel):
    """What a file says beside its numbers."""

    model_config = ConfigDict(extra="forbid")

    count: int | None = Field(ge=0, lt=2**53)
    protocol: str = Field(max_length=1000)
    data: str = Field(max_length=1000)
    card: dict[str, str]
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """None: made by a version without one."""


def statistics_digest(about: Mapping[str, Any], mean: Tensor, scatter: Tensor) -> str:
    """SHA-256 of the numbers and of what is said of them."""
    digest = hashlib.sha256(card_digest(about).encode())
    for values in (mean, scatter):
        digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_statistics(path: Path) -> tuple[About, Tensor, Tensor]:
    """Facts, mean (D,) and scatter (D, D), both float64 and finite, of a safetensors file.

    Raises:
        DataError: it cannot be read, is damaged, was changed since it was written, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    found, _ = read_header(path, error=DataError, remedy=REMEDY)
    mean = found.get("mean", TensorFacts((), torch.float64)).shape
    size = mean[0] if len(mean) == 1 else 0
    expected = {
        name: TensorFacts(shape, torch.float64) for name, shape in (("mean", (size,)), ("scatter", (size, size)))
    }
    if found != expected or not 1 <= size <= MOST_FEATURES:
        shown = ", ".join(f"{name[:40]!r}: {facts}" for name, facts in list(found.items())[:4]) or "nothing"
        raise DataError(
            f"{path} holds no statistics of 1 to {MOST_FEATURES:,} features ({shown}; expected mean float64 [D] and scatter "
            f"float64 [D, D]). {REMEDY}"
        )
    try:
        with safe_open(str(path), "pt") as file:
            text = (file.metadata() or {}).get(KEY)
            values = file.get_tensor("mean"), file.get_tensor("scatter")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is damaged ({error}). {REMEDY}") from None
    if text is None:
        raise DataError(f"{path} does not say what it is statistics of (no metadata {KEY!r}). {REMEDY}")
    about: About = parse_document(text, About, where=f"the metadata of {path}", error=DataError, remedy=REMEDY)
    for name, value in zip(expected, values, strict=True):
        _check(path, name, value, REMEDY)
    if about.digest not in (None, statistics_digest(about.model_dump(), *values)):
        raise DataError(f"{path} was changed or damaged since it was written: its checksum (digest) differs. {REMEDY}")
    return about, *values


def read_npz(path: Path) -> tuple[Tensor, Tensor]:
    """``mu`` (D,) and ``sigma`` (D, D) as float64.

    Raises:
        DataError: it cannot be read, is damaged, or holds something else.
    """
    with regular_file(path, error=DataError, limit=MOST_BYTES, remedy=REMEDY_NPZ) as (handle, _):
        try:
            with zipfile.ZipFile(handle) as archive:
                mean, covariance = (_member(archive, name) for name in ("mu", "sigma"))
        except DataError as error:
            raise DataError(f"{path} {error}. {REMEDY_NPZ}") from None
        # Damaged archives and headers end in errors of many kinds: of zipfile, of its four decompressors, of numpy.
        except Exception as error:
            raise DataError(f"{path} is damaged ({type(error).__name__}: {str(error)[:200]}). {REMEDY_NPZ}") from None
    if mean.dim() != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise DataError(f"{path} holds mu {tuple(mean.shape)} and sigma {tuple(covariance.shape)}. {REMEDY_NPZ}")
    for name, value in (("mu", mean), ("sigma", covariance)):
        _check(path, name, value, REMEDY_NPZ)
    return mean, covariance


def _member(archive: zipfile.ZipFile, name: str) -> Tensor:
    """An array of an archive; its header is held against the bytes that there are before any memory is taken."""
    import numpy as np
    from numpy.lib import format as npy

    file = f"{name}.npy"
    if file not in archive.namelist():
        raise DataError(f"does not hold {name!r}")
    info = archive.getinfo(file)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the others unpack more than is asked for
        raise DataError(f"holds {name!r} packed as numpy does not pack it")
    if info.file_size > MOST_BYTES:
        raise DataError(f"holds {name!r} of {info.file_size:,} bytes, at most {MOST_BYTES:,} are read")
    with archive.open(file) as handle:
        version = npy.read_magic(handle)
        if version not in ((1, 0), (2, 0)):
            raise DataError(f"holds {name!r} in the unknown version {version} of the format")
        length = handle.read(2 if version == (1, 0) else 4)
        promised = int.from_bytes(length, "little")
        if promised > LONGEST_HEADER:  # numpy reads all of it before it looks
            raise DataError(f"holds {name!r} with a header of {promised:,} bytes, at most {LONGEST_HEADER:,} are read")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(io.BytesIO(length + handle.read(promised)))
        if dtype.kind not in "fiu" or len(shape) > 2 or any(not 0 <= side <= MOST_FEATURES for side in shape):
            raise DataError(f"holds {name!r} as {dtype} {shape}, at most {MOST_FEATURES:,} numbers a side are read")
        count = math.prod(shape)
        data = handle.read(count * dtype.itemsize + 1)
        if len(data) != count * dtype.itemsize:
            raise DataError(f"is damaged: {name!r} of shape {shape} has other bytes than it needs")
    values: Any = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(values, dtype=np.float64, order="C"))


def _check(path: Path, name: str, values: Tensor, remedy: str) -> None:
    if not bool((values.abs() <= LARGEST).all()):  # false for NaN
        raise DataError(f"{path} holds numbers in {name!r} that are not finite or beyond {LARGEST:g}. {remedy}")
    if values.dim() == 2 and bool((values.diagonal() < 0).any()):
        raise DataError(f"{path} holds variances below 0 in {name!r}, so it is no covariance. {remedy}")
