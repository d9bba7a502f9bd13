"""Files of ours, changed as chance or an attacker would; and a check that whoever reads one reads it or says what is wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import strategies as st

from adanat_toolkit.errors import AdaNATError

EXAMPLES = int(os.environ.get("ADANAT_EXAMPLES", "30"))
"""Inputs of each reader. 30 take seconds; a thorough look is ADANAT_EXAMPLES=2000."""
settings = hypothesis.settings(
    max_examples=EXAMPLES,
    suppress_health_check=list(hypothesis.HealthCheck),
    deadline=None,
    derandomize=True,
    database=None,
)
SECONDS, BYTES = 20, 2**30
"""Processor time and memory of one reading: far above what any takes, far below what hurts."""
tried: Counter[tuple[str, str]] = Counter()
"""(reader, ``read`` or ``refused``) -> how many inputs."""


@contextmanager
def bounded() -> Iterator[None]:
    """Processor time and address space of the block are bounded; what goes beyond fails."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of processor time")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else None
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        if pages is not None:
            resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def survives(reader: str, call: Callable[[], Any]) -> str | None:
    """The message where the call refuses its input; None where it returns. Any other ending fails the test."""
    with bounded():
        try:
            call()
        except AdaNATError as error:
            message = str(error)
        else:
            tried[reader, "read"] += 1
            return None
    tried[reader, "refused"] += 1
    assert message and len(message) < 2500 and message.isprintable(), f"no clear message: {message[:3000]!r}"
    return message


# --- JSON -------------------------------------------------------------------------------------------------------------

ODD = (
    "null", "true", "false", "0", "-1", "1", "2.5", "NaN", "Infinity", "-Infinity", "1e400", "1e300", "-1e300", str(2**63),
    str(2**40),
    "9" * 5000, "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[]", "{}", '""', '"x"', '"5"',
    '"\\ud800"', '"\\u0000"', '"a\\nb\\u2028c"', '"$\\\\frac{$"', '"<script>"', '"' + "x" * 100_000 + '"', "[[1]]", "[null]",
    '[1, "a"]', '{"name": null}', '{"frechet": 0}',
)  # fmt: skip
"""Values in place of those that are there, and keys' values beside them."""
_HOLE = "\x01hole\x01"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inside for place in places(part, (*path, key)))]


@st.composite
def changed_json(draw: st.DrawFn, text: str) -> str:
    """The text of a JSON document with one value replaced, taken away, doubled or added."""
    value = json.loads(text)
    place = draw(st.sampled_from(places(value)))
    what = draw(st.sampled_from(("replace", "replace", "replace", "remove", "add", "twice")))
    odd = draw(st.sampled_from(ODD))
    holder: Any = {"": value}
    where: Any = holder
    steps = ("", *place)
    for step in steps[:-1]:
        where = where[step]
    last = steps[-1]
    if what == "remove" and place:
        del where[last]
    elif what == "add" and isinstance(where[last], dict):
        where[last]["surplus"] = _HOLE
    elif what == "add" and isinstance(where[last], list):
        where[last].append(_HOLE)
    elif what == "twice" and isinstance(where[last], list):
        where[last] += where[last]
    else:
        where[last] = _HOLE
    return json.dumps(holder[""]).replace(json.dumps(_HOLE), odd)


@st.composite
def changed_lines(draw: st.DrawFn, text: str) -> str:
    """JSON lines with one of them changed, taken away, doubled or moved."""
    lines = text.splitlines()
    at = draw(st.integers(0, len(lines) - 1))
    what = draw(st.sampled_from(("change", "change", "change", "remove", "double", "last")))
    line = lines.pop(at)
    if what == "change":
        lines.insert(at, draw(changed_json(line)))
    elif what == "double":
        lines[at:at] = [line, line]
    elif what == "last":
        lines.append(line)
    return "\n".join(lines) + "\n"


# --- bytes ------------------------------------------------------------------------------------------------------------


@st.composite
def changed_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """One bit flipped, a stretch taken away, doubled or overwritten, the end cut off, or something else altogether."""
    what = draw(st.sampled_from(("flip", "flip", "flip", "cut", "remove", "zeros", "insert", "other")))
    if what == "other" or not data:
        return draw(
            st.sampled_from((b"", b"\n", b"\xff\xfe\x00x", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"null", bytes(64)))
        )
    at = draw(st.integers(0, len(data) - 1))
    length = draw(st.integers(1, 16))
    if what == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) + data[at + 1 :]
    if what == "cut":
        return data[:at]
    if what == "remove":
        return data[:at] + data[at + length :]
    if what == "zeros":
        return data[:at] + bytes(len(data[at : at + length])) + data[at + length :]
    return data[:at] + draw(st.binary(min_size=1, max_size=16)) + data[at:]


@st.composite
def changed_safetensors(draw: st.DrawFn, data: bytes) -> bytes:
    """Another header over the same bytes: types, shapes, offsets, lengths, metadata."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    what = draw(st.sampled_from(("dtype", "shape", "offsets", "json", "metadata", "length", "name")))
    name = draw(st.sampled_from(sorted(key for key in header if key != "__metadata__")))
    entry = header[name]
    if what == "dtype":
        entry["dtype"] = draw(st.sampled_from(("F4", "F6_E2M3", "F8_E8M0", "BOOL", "I8", "F16", "C64", "F32", "x", "")))
    elif what == "shape":
        big = 2**40
        shapes = ([0, big, big], [big], [-1], [], [1] * 100, [2**64], entry["shape"][::-1], [1.5])
        entry["shape"] = draw(st.sampled_from(shapes))
    elif what == "offsets":
        entry["data_offsets"] = draw(
            st.sampled_from(([0, 0], [8, 0], [0, 2**62], [-8, 8], [0], [1, 2, 3], [2**64, 2**64]))
        )
    elif what == "name":
        header[draw(st.sampled_from(("", "a" * 10_000, "../x", "\x00")))] = header.pop(name)
    text = json.dumps(header)
    if what == "json":
        text = draw(changed_json(text))
    if what == "metadata" and "__metadata__" in header:
        key = draw(st.sampled_from(sorted(header["__metadata__"])))
        header["__metadata__"][key] = draw(changed_json(header["__metadata__"][key]))
        text = json.dumps(header)
    size = len(text.encode())
    if what == "length":
        size = draw(st.sampled_from((0, 1, size + 1, 2**31, 2**63, 2**64 - 1)))
    return struct.pack("<Q", size) + text.encode() + body


def png_with(data: bytes, text: str, *, compressed: bool = False) -> bytes:
    """A PNG whose text chunk ``adanat`` holds another text."""
    payload = text.encode("utf-8", "surrogatepass")
    body = b"adanat\0" + bytes([compressed, 0]) + b"\0\0" + (zlib.compress(payload) if compressed else payload)
    start = data.index(b"iTXt") - 4
    size = int.from_bytes(data[start : start + 4], "big") + 12
    chunk = struct.pack(">I", len(body)) + b"iTXt" + body + struct.pack(">I", zlib.crc32(b"iTXt" + body))
    return data[:start] + chunk + data[start + size :]


def text_of_png(data: bytes) -> str:
    """The JSON in the text chunk of a PNG of ours."""
    start = data.index(b"iTXt")
    size = int.from_bytes(data[start - 4 : start], "big")
    found = re.fullmatch(rb"adanat\0\0\0\0\0(.*)", data[start + 4 : start + 4 + size], re.DOTALL)
    assert found is not None
    return found[1].decode()
