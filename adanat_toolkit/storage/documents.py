"""JSON documents from files that anyone may have made: the right values, or one error that names file and field.

Read are regular files of a bounded size only. What is refused: text that is not UTF-8, nesting deeper than
:data:`MAX_DEPTH`, integers beyond 64 bits, NaN and infinity, a key given twice, text that cannot be written again, and
what the schema does not allow.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, NoReturn, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from ..errors import AdaNATError

T = TypeVar("T")

MIB = 2**20
MAX_DOCUMENT = 16 * MIB
"""Bytes of a document unless the caller says otherwise."""

MAX_FILE = 2**46
"""Bytes of a file that is not read whole: no bound of ours."""

MAX_DEPTH = 64
"""Objects and lists inside each other; ours have at most 8."""

MAX_INTEGER = 2**64
REMEDY = "Restore the file, or give another."


class _Unreadable(Exception):
    """Why a document cannot be read: part of a sentence."""


def shortened(value: object, length: int = 60) -> str:
    """``repr`` of a value for a message, cut to about ``length`` characters and without control characters."""
    if isinstance(value, dict | list):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)}" if value else f"an empty {'object' if isinstance(value, dict) else 'list'}"
    if isinstance(value, str | bytes) and len(value) > length:
        return ascii(value[:length]) + "..."
    text = ascii(value)
    return text if len(text) <= length else text[:length] + "..."


@contextlib.contextmanager
def regular_file(
    path: str | os.PathLike[str], *, error: type[AdaNATError], limit: int, remedy: str = REMEDY
) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file (or a link to one) of at most ``limit`` bytes, open for reading, and its size.

    Nothing is waited for: a pipe or a device is refused without reading it. What fails while the block reads is an error too.

    Args:
        error: the class of the error. remedy: a sentence that says what to do.

    Raises:
        error: there is no such file, it cannot be read, is something else than a file, or is larger.
    """
    descriptor = -1
    try:
        _refuse_special(os.stat(path))
        # non-blocking: between the two looks the file may have become a pipe
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        descriptor = os.open(path, flags)
        facts = os.fstat(descriptor)
        _refuse_special(facts)
        if facts.st_size > limit:
            raise _Unreadable(f"is too large: {facts.st_size:,} bytes, at most {limit:,} are read")
        with os.fdopen(descriptor, "rb") as handle:
            descriptor = -1
            yield handle, facts.st_size
    except (OSError, ValueError) as problem:  # a name with a zero byte is a ValueError
        raise error(f"cannot read {_name(path)}: {getattr(problem, 'strerror', None) or problem}. {remedy}") from None
    except MemoryError:  # what a file says of its size takes nothing on a disk
        raise error(f"{_name(path)} does not fit into this machine's memory. {remedy}") from None
    except _Unreadable as problem:
        raise error(f"{_name(path)} {problem}. {remedy}") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def was_missing(error: AdaNATError) -> bool:
    """Whether an error of these readers says that there is no such file."""
    return isinstance(error.__context__, FileNotFoundError)


def read_bytes(
    path: str | os.PathLike[str], *, error: type[AdaNATError], limit: int = MAX_DOCUMENT, remedy: str = REMEDY
) -> bytes:
    """The bytes of a :func:`regular_file`.

    Raises:
        error: as there, or the file grows beyond ``limit`` while it is read.
    """
    with regular_file(path, error=error, limit=limit, remedy=remedy) as (handle, _):
        data = handle.read(limit + 1)
        if len(data) > limit:
            raise _Unreadable(f"is too large: more than {limit:,} bytes")
        return data


def read_head(
    path: str | os.PathLike[str], length: int, *, error: type[AdaNATError], remedy: str = REMEDY
) -> bytes:
    """At most the first ``length`` bytes of a :func:`regular_file` of any size.

    Raises:
        error: as there.
    """
    with regular_file(path, error=error, limit=MAX_FILE, remedy=remedy) as (handle, _):
        return handle.read(length)


def parse_document(
    data: bytes | str,
    schema: type[T] | Any,
    *,
    where: str,
    error: type[AdaNATError],
    remedy: str = REMEDY,
    finite: bool = True,
) -> T:
    """One JSON value of a text, checked strictly: ``"8"`` is no number, ``true`` is no integer, ``8`` is a float too.

    Args:
        schema: a pydantic model, or any type that pydantic checks (``dict[str, Any]``, ``list[float]``, a TypedDict).
        where: how messages call the text, a file's name for instance.
        finite: refuse NaN and infinity. False for what a run logged: one that diverged is to be looked at.

    Raises:
        error: it is no such value; the message names ``where``, the field, what was expected and what was found.
    """
    try:
        text = _decoded(data)
        _check(_loaded(text), finite)
        return cast(T, _adapter(cast(Hashable, schema)).validate_json(text, strict=True))
    except _Unreadable as problem:
        raise error(f"{where} {problem}. {remedy}") from None
    except ValidationError as problem:
        raise error(f"{where} {_first_problem(problem)}. {remedy}") from None


def check_value(value: Any, schema: type[T] | Any, *, where: str, error: type[AdaNATError], remedy: str = REMEDY) -> T:
    """A part of a document that was read already, checked as :func:`parse_document` does."""
    try:
        return cast(T, _adapter(cast(Hashable, schema)).validate_python(value, strict=True))
    except ValidationError as problem:
        raise error(f"{where} {_first_problem(problem)}. {remedy}") from None


def read_document(
    path: str | os.PathLike[str],
    schema: type[T] | Any,
    *,
    error: type[AdaNATError],
    limit: int = MAX_DOCUMENT,
    remedy: str = REMEDY,
) -> T:
    """The JSON document in a file: :func:`read_bytes`, then :func:`parse_document`."""
    data = read_bytes(path, error=error, limit=limit, remedy=remedy)
    return cast(T, parse_document(data, schema, where=_name(path), error=error, remedy=remedy))


def card_digest(card: Mapping[str, Any]) -> str:
    """SHA-256 of all a card says, the tensors' own hash among it: two cards with one digest give the same results."""
    rest = {key: value for key, value in card.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document as JSON keeps it, with the digest by which :func:`read_sealed` sees that it was changed."""
    kept: dict[str, Any] = json.loads(json.dumps(document))
    return {**kept, "digest": card_digest(kept)}


def read_sealed(
    path: str | os.PathLike[str],
    schema: type[T] | Any,
    *,
    error: type[AdaNATError],
    remedy: str = REMEDY,
) -> T:
    """A document that was :func:`sealed`; one of a version that gave no digest is taken as it is.

    Raises:
        error: as :func:`read_document`, or it was changed since it was written.
    """
    data, where = read_bytes(path, error=error, limit=MAX_DOCUMENT, remedy=remedy), _name(path)
    value = cast(T, parse_document(data, schema, where=where, error=error, remedy=remedy))
    found: dict[str, Any] = parse_document(data, dict[str, Any], where=where, error=error, remedy=remedy)
    if found.get("digest") not in (None, card_digest(found)):
        raise error(f"{where} was changed or damaged since it was written: its checksum (digest) differs. {remedy}")
    return value


@dataclass(frozen=True)
class Line(Generic[T]):
    """A line of a file of JSON lines: its number, from 1; its bytes, with the line break where it has one; its value."""

    number: int
    data: bytes
    value: T


def read_lines(
    path: str | os.PathLike[str],
    schema: type[T] | Any,
    *,
    error: type[AdaNATError],
    longest: int = MAX_DOCUMENT,
    remedy: str = REMEDY,
    cut_end: bool = False,
    finite: bool = True,
) -> Iterator[Line[T]]:
    """The lines of a file of JSON lines, one in memory at a time; empty lines are left out.

    Args:
        longest: bytes of a line. The file itself has no bound: who keeps what the lines hold sets one.
        cut_end: leave out a last line that has no line break and is no JSON (the writer was killed while writing it).
        finite: see :func:`parse_document`.

    Raises:
        error: as :func:`read_document`, when the line is come to; the message names the line.
    """
    for number, line in enumerate(_bounded_lines(path, longest, error=error, remedy=remedy), 1):
        if not line.strip():
            continue
        if cut_end and not line.endswith(b"\n") and not _is_json(line):
            break
        where = f"line {number} of {_name(path)}"
        value = parse_document(line, schema, where=where, error=error, remedy=remedy, finite=finite)
        yield Line(number, line, cast(T, value))


def _bounded_lines(
    path: str | os.PathLike[str], longest: int, *, error: type[AdaNATError], remedy: str
) -> Iterator[bytes]:
    with regular_file(path, error=error, limit=MAX_FILE, remedy=remedy) as (handle, _):
        for number in itertools.count(1):
            line = handle.readline(longest + 1)
            if len(line) > longest:
                raise _Unreadable(f"is too large: line {number} has more than {longest:,} bytes")
            if not line:
                return
            yield line


def _name(path: str | os.PathLike[str]) -> str:
    text = str(Path(path))
    return text if text.isprintable() else ascii(text)


def _refuse_special(facts: os.stat_result) -> None:
    if stat.S_ISDIR(facts.st_mode):
        raise _Unreadable("is a folder, not a file")
    if not stat.S_ISREG(facts.st_mode):
        raise _Unreadable("is no regular file (a pipe, socket or device)")


def _is_json(line: bytes) -> bool:
    try:
        _loaded(_decoded(line))
    except _Unreadable:
        return False
    return True


def _decoded(data: bytes | str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")  # Windows editors write a byte-order mark
    except UnicodeDecodeError as problem:
        raise _Unreadable(f"is damaged: byte {problem.start} is not UTF-8 text") from None


def _loaded(text: str) -> Any:
    if not text.strip():
        raise _Unreadable("is empty")
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except json.JSONDecodeError as problem:
        raise _Unreadable(
            f"is damaged (not valid JSON): {problem.msg} at line {problem.lineno}, column {problem.colno}"
        ) from None
    except RecursionError:
        _too_deep()


def _too_deep() -> NoReturn:
    raise _Unreadable(f"is nested too deeply: at most {MAX_DEPTH} levels are read")


def _integer(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > MAX_INTEGER:
        raise _Unreadable(f"holds an integer of {len(digits)} digits ({shortened(digits)}); at most 64 bits are read")
    return int(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise _Unreadable(f"gives the key {shortened(twice)} twice")
    return found


def _check(value: Any, finite: bool = True) -> None:
    """Walks a value without recursion: depth, finite numbers, and text that can be written and used as a name."""
    todo: list[tuple[Any, str, int]] = [(value, "", 0)]
    while todo:
        found, field, depth = todo.pop()
        if depth > MAX_DEPTH:
            _too_deep()
        if isinstance(found, dict):
            for key, part in found.items():
                _check_text(key, f"a key of {field or 'the document'}")
                todo.append((part, f"{field}.{key}" if field else key, depth + 1))
        elif isinstance(found, list):
            todo.extend((part, f"{field}[{number}]", depth + 1) for number, part in enumerate(found))
        elif finite and isinstance(found, float) and not math.isfinite(found):
            raise _Unreadable(f"is not usable: {_field(field)}must be a finite number, found {found}")
        elif isinstance(found, str):
            _check_text(found, field)


def _check_text(text: str, field: str) -> None:
    if "\0" in text or not (text.isascii() or text.encode("utf-8", "replace").decode() == text):
        raise _Unreadable(
            f"is not usable: {_field(field)}must be text without zero bytes and half characters, found {shortened(text)}"
        )


def _field(field: str) -> str:
    return f"{ascii(field)[1:-1][:100]} " if field else "the value "


@functools.cache
def _adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def _first_problem(problem: ValidationError) -> str:
    errors = problem.errors(include_url=False)
    first = errors[0]
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    if first["type"] == "missing":
        text = f"lacks the field {_field(field).strip()}"
    elif first["type"] == "extra_forbidden":
        text = f"has the unknown field {_field(field).strip()}"
    else:
        message = first["msg"].removeprefix("Value error, ").rstrip(".")
        expected = message.removeprefix("Input should be")
        said = f"must be{expected}" if expected != message else f"is not usable: {message}"
        text = f"is not usable: {_field(field)}{said}, found {shortened(first['input'])}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")
