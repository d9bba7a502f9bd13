"""Lines of text files that people write: captions, prompts, names of classes."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Iterator

from ..errors import ConfigError, DataError
from .documents import read_bytes

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_ENDS = re.compile(r"\r\n|\r|\n")
"""A line ends where an editor ends it: U+2028, U+0085 and other separators of Unicode may stand inside a caption."""


def text_lines(data: bytes, source: str) -> Iterator[str]:
    """The lines of a text, without their ends, the first one first.

    Args:
        data: UTF-8, with or without a byte-order mark; or UTF-16 with one.
        source: what it is, for messages.

    Raises:
        DataError: it is in another encoding; the line is named.
    """
    mark, encoding = next(((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", "utf-8"))
    body = data[len(mark) :]
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError as error:
        number = len(_ENDS.findall(body[: error.start].decode(encoding, "replace"))) + 1
        raise DataError(f"line {number} of {source} is not {encoding.upper()} text; save it as UTF-8.") from None
    zero = text.find("\0")
    if zero >= 0:
        number = sum(1 for _ in _ENDS.finditer(text, 0, zero)) + 1
        raise DataError(
            f"line {number} of {source} holds a zero byte, as UTF-16 without a byte-order mark does; save it as UTF-8."
        )
    return _split(text)


def _split(text: str) -> Iterator[str]:
    """One line at a time: a text of line breaks alone would be a list of as many."""
    start = 0
    for end in _ENDS.finditer(text):
        yield text[start : end.start()]
        start = end.end()
    yield text[start:]


def read_prompts(path: str | os.PathLike[str], *, what: str = "prompt") -> tuple[str, ...]:
    """The prompts of a text file, one a line, empty lines left out.

    Args:
        what: a line holds, where it is no prompt, for messages.

    Raises:
        ConfigError: it cannot be read or holds none. DataError: its encoding is neither UTF-8 nor UTF-16 with a mark.
    """
    data = read_bytes(path, error=ConfigError, remedy=f"Give a text file with one {what} a line.")
    prompts = tuple(line.strip() for line in text_lines(data, str(path)) if line.strip())
    if not prompts:
        raise ConfigError(f"{path} holds no {what}; write one a line.")
    return prompts
