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
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import CheckpointError, InUseError, OutputError, ReplacedError
from .documents import (
    MIB,
    Line,
    card_digest,
    check_value,
    read_bytes,
    read_document,
    read_lines,
    shortened,
    was_missing,
)
from .replace import again_if_replaced, gave_way, replace_folder
from .tensors import TensorFacts, read_header

FORMAT = 2
OLD_FORMAT = 1
"""Without a digest: whatever the card says is checked for sense alone."""
MOST_METRICS = 4096 * MIB
"""Bytes of a metrics.jsonl whose rows are held all at once: 300,000 iterations at T = 32, which log 13 kB each. A run writes
and resumes without a bound."""


class Card(BaseModel):
    """What every card beside tensors has."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    digest: str | None = Field(None, pattern="^[0-9a-f]{64}$")


class MetricsRecord(BaseModel):
    """What metrics.jsonl held: its rows, and SHA-256 of their bytes."""

    rows: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class CheckpointCard(Card):
    """What a checkpoint says of itself."""

    iteration: int = Field(ge=0)
    seed: int = Field(ge=0)
    generator: str
    real_images: str | None
    metrics: MetricsRecord | None = None
    """What of the metrics it counts; None: made by a version that did not record it."""
    dtype: str | None = None
    adam_epsilon: float | None = Field(None, gt=0)
    """What the run was computed with; None: made by a version that did not record it."""
    course: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None
    """What its settings came to (see ``training.checkpoint.made_with``); None: made by a version that did not record it."""
    sources: dict[str, str] = {}
    """Hashes of what the options of reward and policy name (files, folders), by the setting."""


LONGEST_NAME = 200
"""Bytes of a folder's name. File systems take 255, and temporary names are longer."""


def folder_name(text: str) -> str:
    """A text as a folder's name: letters, digits, ``-``, ``_`` and ``.``; a long one is cut and ends with its hash."""
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in text)
    if len(name.encode()) <= LONGEST_NAME:
        return name
    kept = name.encode()[: LONGEST_NAME - 13].decode(errors="ignore")
    return f"{kept}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


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
    except (OSError, ValueError) as error:  # a name with a zero byte is a ValueError
        why = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot write to {path}: {why}. Choose another --out, or free space / change permissions."
        ) from None
    return path


def prepare_file(path: Path) -> Path:
    """Prove that a file can be written, before any long work starts; its folder is made where there is none.

    Raises:
        OutputError: it is a folder, its name cannot be one, or its folder cannot be written.
    """
    prepare_folder(path.parent)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give --out the name of a file, such as {path / path.name}.")
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp.safetensors")  # as long as a name that is written aside
    try:
        probe.unlink(missing_ok=True)  # a link is not followed
        probe.touch()
        probe.unlink()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {path}: {why}. Choose another --out.") from None
    return path


def refuse_links(*paths: Path) -> None:
    """Before a folder that anyone may have made is written to: what is written must not land elsewhere.

    Raises:
        OutputError: a path is a link, to whatever.
    """
    for path in paths:
        if path.is_symlink():
            raise OutputError(
                f"{path} is a link, and what it leads to would be written to. Remove it, or choose another --out. Nothing was "
                "changed."
            )


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Keep other processes that hold the same folder or file (made where it is not there) out of the block.

    The system lets go of it when the process ends, however it ends. Where the system or the file system has no such locks
    (Windows, some network disks), nobody is kept out.

    Raises:
        InUseError: another process holds it. OutputError: the file cannot be made, or is a link.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    is_folder = path.is_dir()
    if not is_folder:
        refuse_links(path)
    try:
        flags = os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o666)
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


def write_file(path: Path, data: bytes | str | Iterable[bytes], *, parents: bool = True) -> None:
    """Write beside and rename; the old file stays whole until the new one is.

    Args:
        data: parts are written one after the other, and may be read from the old file.
        parents: make the folder it belongs in where there is none.

    Raises:
        OutputError: the disk is full or the folder cannot be written.
    """
    # A path on the command line may have bytes that are no text; they are shown as such.
    whole = data.encode(errors="backslashreplace") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # of a killed process, or a link to elsewhere
        with open(temporary, "xb") as handle:
            handle.writelines((whole,) if isinstance(whole, bytes) else whole)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}. Nothing was lost; free space and run again."
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=2) + "\n")


def save_tensors(folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """``folder/name.safetensors`` and ``folder/name.json``; the whole folder appears at once or not at all.

    The folder that it lies in must be there: one that was deleted or moved away is not made again.

    Raises:
        OutputError: it cannot be written; an existing folder of that name is kept.
    """
    payload = save({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()})
    card = {"format": FORMAT, **facts, "sha256": hashlib.sha256(payload).hexdigest()}
    card["digest"] = card_digest(card)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        write_file(aside / f"{name}.safetensors", payload, parents=False)
        write_file(aside / f"{name}.json", json.dumps(card, indent=2) + "\n", parents=False)
        replace_folder(aside, folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}. Nothing was lost; free space and run again."
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_card(folder: Path, name: str, schema: type[Card] = Card) -> dict[str, Any]:
    """``folder/name.json``, its digest and what ``schema`` says about its values checked.

    Raises:
        CheckpointError: it is missing, damaged, changed since it was written, or of another format. ReplacedError: it is
            missing because a newer folder takes its place.
    """
    path = folder / f"{name}.json"
    try:
        card: dict[str, Any] = read_document(path, dict[str, Any], error=CheckpointError, remedy=_REMEDY)
    except CheckpointError as error:
        if was_missing(error) and gave_way(folder, path):
            raise ReplacedError(f"{folder} was replaced while it was read ({error})") from None
        raise
    if card.get("format") not in (FORMAT, OLD_FORMAT):
        raise CheckpointError(
            f"{path} has format {shortened(card.get('format'))}; this version reads {OLD_FORMAT} and {FORMAT}. {_REMEDY}"
        )
    check_value(card, schema, where=str(path), error=CheckpointError, remedy=_REMEDY)
    expected = card_digest(card) if card["format"] == FORMAT else None
    if card.get("digest") != expected:
        raise CheckpointError(
            f"{path} was changed or damaged since it was written: its checksum (digest) differs, so what it says may not be "
            f"what the tensors were made with. {_REMEDY}"
        )
    return card


def read_tensors(
    folder: Path, name: str, card: Mapping[str, Any], expected: Mapping[str, TensorFacts] | None = None
) -> dict[str, Tensor]:
    """``folder/name.safetensors``, whose hash the card has.

    Args:
        expected: the tensors that fit, all of them; the file's header is held against it before anything else is read.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or holds other tensors. ReplacedError: it does not belong
            to the card because a newer pair took their place.
    """
    try:
        return _read_tensors(folder, name, card, expected)
    except CheckpointError as error:
        try:
            same = read_card(folder, name)["sha256"] == card["sha256"]
        except CheckpointError:
            same = False
        if same:
            raise
        raise ReplacedError(f"{folder} was replaced or removed while it was read ({error})") from None


def _read_tensors(
    folder: Path, name: str, card: Mapping[str, Any], expected: Mapping[str, TensorFacts] | None
) -> dict[str, Tensor]:
    path = folder / f"{name}.safetensors"
    found, size = read_header(path, error=CheckpointError, remedy=_REMEDY)
    if expected is not None and found != expected:
        wrong = next(key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key))
        raise CheckpointError(
            f"{path} does not hold the tensors it should: {shortened(wrong)} is {found.get(wrong, 'missing')}, expected "
            f"{expected.get(wrong, 'no such tensor')}. {_REMEDY}"
        )
    payload = read_bytes(path, error=CheckpointError, limit=size, remedy=_REMEDY)
    if hashlib.sha256(payload).hexdigest() != card["sha256"]:
        raise CheckpointError(f"{path} is damaged or truncated ({len(payload)} bytes, checksum differs). {_REMEDY}")
    try:
        return load(payload)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}. {_REMEDY}") from None


@again_if_replaced
def load_tensors(folder: Path, name: str, schema: type[Card] = Card) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Inverse of :func:`save_tensors`.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or of another format.
    """
    card = read_card(folder, name, schema)
    return read_tensors(folder, name, card), card


def load_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a checkpoint, a folder that is named by its iteration.

    Raises:
        CheckpointError: as :func:`load_tensors`; or it is of another iteration than its name says.
    """
    tensors, facts = load_tensors(folder, "state", CheckpointCard)
    if facts["iteration"] != int(folder.name):
        raise CheckpointError(
            f"{folder / 'state.json'} is of iteration {facts['iteration']}, its folder of {int(folder.name)}. {_REMEDY}"
        )
    return tensors, facts


_REMEDY = "It was left untouched; remove it to fall back to an older one, or choose another folder."


def _row(row: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(row.get("iteration"), int) or row["iteration"] < 1:
        raise ValueError("it has no whole number 'iteration' from 1 on")
    for key, value in row.items():
        if key == "alarms" and not isinstance(value, list):
            raise ValueError("'alarms' is no list")
        if key != "alarms" and (isinstance(value, bool) or not isinstance(value, int | float | None)):
            raise ValueError(f"{shortened(key)} is no number")
    return row


Row = Annotated[dict[str, Any], AfterValidator(_row)]
"""What a line of metrics.jsonl holds: numbers by name (a run that diverged has NaN among them), and ``alarms``."""


def each_row(file: Path, *, rising: bool = True) -> Iterator[Line[dict[str, Any]]]:
    """The lines of a metrics.jsonl, one at a time, none where there is no file; a last one cut off by a kill is left out.

    Args:
        rising: refuse rows that stand twice or out of order.

    Raises:
        CheckpointError: an earlier line is damaged or no row of a run, or out of its place; or the file cannot be read.
    """
    if not os.path.lexists(file):
        return
    remedy, last = "Nothing was changed; restore the file, or remove the line.", 0
    lines: Iterator[Line[dict[str, Any]]] = read_lines(
        file, Row, error=CheckpointError, remedy=remedy, cut_end=True, finite=False
    )
    for line in lines:
        if rising and line.value["iteration"] <= last:
            raise CheckpointError(
                f"line {line.number} of {file} is not usable: iteration {line.value['iteration']} comes after iteration "
                f"{last}, so that a row stands twice or out of order. {remedy}"
            )
        last = line.value["iteration"]
        yield line


def read_rows(file: Path) -> list[dict[str, Any]]:
    """All rows of a metrics.jsonl (see :func:`each_row`).

    Raises:
        CheckpointError: as there; or the file is larger than :data:`MOST_METRICS`.
    """
    rows, size = [], 0
    for line in each_row(file):
        size += len(line.data)
        if size > MOST_METRICS:
            raise CheckpointError(
                f"{file} is too large to hold all its rows: at most {MOST_METRICS:,} bytes are read. Nothing was changed, and "
                "the run itself can go on; read the file row by row."
            )
        rows.append(line.value)
    return rows
