"""The run folder: config, metrics, checkpoints, policy. Nothing is ever half written: files are made aside and renamed.

config.json            the whole resolved configuration
metrics.jsonl          one JSON object an iteration
checkpoints/NNNNNN/    state.safetensors + state.json after iteration NNNNNN
policy/                policy.safetensors + policy.json, all that ``adanat sample`` needs
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import CheckpointError, InUseError, OutputError

FORMAT = 1


def prepare_folder(path: Path) -> Path:
    """Create a folder and prove that it can be written, before any long work starts.

    Raises:
        OutputError: it is a file, read-only, or the disk is full.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-") as probe:
            probe.write(b"\0" * 65536)
            probe.flush()
    except OSError as error:
        raise OutputError(
            f"cannot write to {path}: {error.strerror or error}. Choose another --out, or free space / change permissions."
        ) from None
    return path


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes that hold the same folder or file (made where it is not there) out of the block.

    The system lets go of it when the process ends, however it ends. Where the system or the file system has no such locks
    (Windows, some network disks), nobody is kept out.

    Raises:
        InUseError: another process holds it. OutputError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    try:
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}. Choose another --out, or change permissions."
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"another process is writing to {path}. Wait until it has ended, stop it, or choose another --out."
            ) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def write_file(path: Path, data: bytes | str) -> None:
    """Write beside and rename; the old file stays whole until the new one is.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    payload = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as handle:
            handle.write(payload)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was lost; free space and run again."
        ) from None


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=2) + "\n")


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """``folder/name.safetensors`` and ``folder/name.json``; the whole folder appears at once or not at all.

    Raises:
        OutputError: it cannot be written; an existing folder of that name is kept.
    """
    payload = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
    card = {"format": FORMAT, **facts, "sha256": hashlib.sha256(payload).hexdigest()}
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write_file(aside / f"{name}.safetensors", payload)
        write_json(aside / f"{name}.json", card)
        if folder.exists():
            previous = folder.with_name(f".{folder.name}.old")  # see RunFolder.recover
            shutil.rmtree(previous, ignore_errors=True)
            os.replace(folder, previous)
            os.replace(aside, folder)
            shutil.rmtree(previous, ignore_errors=True)
        else:
            os.replace(aside, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Nothing was lost; free space and run again."
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def load_tensors(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`save_tensors`.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or of another format.
    """
    remedy = "It was left untouched; remove it to fall back to an older one, or choose another folder."
    card_path, tensor_path = folder / f"{name}.json", folder / f"{name}.safetensors"
    try:
        card = json.loads(card_path.read_text())
        payload = tensor_path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}. {remedy}") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise CheckpointError(f"{card_path} is damaged (not valid JSON). {remedy}") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        found = card.get("format") if isinstance(card, dict) else None
        raise CheckpointError(f"{card_path} has format {found!r}; this version reads format {FORMAT}. {remedy}")
    if hashlib.sha256(payload).hexdigest() != card.get("sha256"):
        raise CheckpointError(
            f"{tensor_path} is damaged or truncated ({len(payload)} bytes, checksum differs). {remedy}"
        )
    try:
        return load(payload), card
    except SafetensorError as error:
        raise CheckpointError(f"{tensor_path} is damaged: {error}. {remedy}") from None


def read_rows(file: Path) -> list[Any]:
    """The values of a file of JSON lines, none where there is no file; a last line cut off by a kill is ignored.

    Raises:
        CheckpointError: an earlier line is damaged, or the file cannot be read.
    """
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror}.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            if number < len(lines):
                raise CheckpointError(
                    f"line {number} of {len(lines)} in {file} is damaged: line {number} is no JSON. Nothing was changed; "
                    "restore the file, or remove the line."
                ) from None
    return rows
