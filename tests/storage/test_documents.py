"""The reader of JSON documents: the right values, or one error of ours that names file and field."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from adanat_toolkit.errors import CheckpointError, ConfigError, DataError
from adanat_toolkit.storage import parse_document, read_bytes, read_document
from adanat_toolkit.storage.documents import read_lines


class Card(BaseModel):
    model_config = ConfigDict(extra="forbid")
    iteration: int = Field(ge=0)
    schedule: list[list[float]]
    residual: bool = True


def parse(text: bytes | str, schema: Any = Any) -> Any:
    return parse_document(text, schema, where="card.json", error=CheckpointError, remedy="Do this.")


BAD = {
    "empty": (b" \n", "card.json is empty. Do this."),
    "cut": (b'{"a": 1', "card.json is damaged .not valid JSON.: .* line 1, column 8. Do this."),
    "latin": ('{"a": "é"}'.encode("latin-1"), "card.json is damaged: byte 7 is not UTF-8 text"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "not UTF-8 text"),
    "nested lists": (b"[" * 100_000 + b"]" * 100_000, "nested too deeply: at most 64 levels"),
    "nested unclosed": (b'{"a":' * 100_000, "nested too deeply"),
    "nested 65": (b"[" * 66 + b"]" * 66, "nested too deeply"),
    "long integer": (b'{"a": ' + b"9" * 5000 + b"}", "integer of 5000 digits .*at most 64 bits"),
    "not 64 bits": (b"[-36893488147419103232]", "integer of 21 digits"),
    "nan": (b'{"a": [1, NaN]}', r"a\[1\] must be a finite number, found nan"),
    "infinity": (b"-Infinity", "the value must be a finite number, found -inf"),
    "overflow": (b'{"a": {"b": 1e999}}', r"a\.b must be a finite number, found inf"),
    "key twice": (b'{"a": 1, "b": 2, "a": 3}', "gives the key 'a' twice"),
    "half a character": (b'{"a": "\\ud800"}', r"a must be text .* found '\\ud800'"),
    "zero byte": (b'{"a\\u0000": 1}', "a key of the document must be text without zero bytes"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_error_for_what_is_no_document(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(CheckpointError, match=message):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"iteration": "8", "schedule": []}', "iteration must be a valid integer, found '8'. Do this."),
        ('{"iteration": true, "schedule": []}', "iteration must be a valid integer, found True"),
        ('{"iteration": 8.0, "schedule": []}', "iteration must be a valid integer, found 8.0"),
        ('{"iteration": -4, "schedule": []}', "iteration must be greater than or equal to 0, found -4"),
        ('{"iteration": 4}', "card.json lacks the field schedule. Do this."),
        ('{"iteration": 4, "schedule": [[1], 2]}', r"schedule\[1\] must be a valid array, found 2"),
        ('{"iteration": 4, "schedule": [], "residual": null}', "residual must be a valid boolean, found None"),
        ('{"iteration": 4, "schedule": [], "more": 1}', "has the unknown field more"),
        ('{"iteration": {"a": 1}, "schedule": 1}', r"found an object of 1 \(and 1 more\)"),
        ('["' + "x" * 500 + '"]', r"^.{0,200}found a list of 1\. Do this\."),
        ('"' + "\\u001b" * 500 + '"', r"^[ -~]{0,600}$"),
    ],
)
def test_the_schema_names_field_expectation_and_finding(text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        parse(text, Card)


def test_right_values_of_a_model() -> None:
    card = parse('\ufeff{"iteration": 4, "schedule": [[1, 2.5]]}'.encode(), Card)
    assert (card.iteration, card.schedule, card.residual) == (4, [[1.0, 2.5]], True)


_finite = st.floats(allow_nan=False, allow_infinity=False)
_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64) | _finite | st.text(st.characters(codec="utf-8"))


@given(st.recursive(_scalars, lambda part: st.lists(part) | st.dictionaries(st.text(max_size=5), part), max_leaves=8))
def test_reads_what_python_writes(value: Any) -> None:
    text = json.dumps(value)
    if "\\u0000" not in text and not any("\ud800" <= c <= "\udfff" for c in str(json.loads(text))):
        found = parse(text.encode())
        assert found == value and json.dumps(found) == text


@given(st.binary(max_size=40) | st.text(alphabet='[]{}":,0123456789.eE-+ \\ntfaulsr', max_size=40))
def test_any_bytes_give_a_value_or_our_error(data: bytes | str) -> None:
    try:
        found = parse(data)
    except CheckpointError:
        return
    json.dumps(found, allow_nan=False).encode()


def test_only_regular_files_of_a_bounded_size(tmp_path: Path) -> None:
    pipe, link, folder, large = (tmp_path / name for name in ("pipe", "link", "folder", "large"))
    os.mkfifo(pipe)
    link.symlink_to("/dev/zero")
    folder.mkdir()
    large.write_bytes(b" " * 101)
    for path, message in (
        (pipe, "is no regular file"),
        (link, "is no regular file"),
        (folder, "is a folder"),
        (large, "is too large: 101 bytes, at most 100 are read"),
        (tmp_path / "none", "cannot read .*: No such file"),
        (tmp_path / "zero\0byte", "cannot read .*null"),
    ):
        with pytest.raises(DataError, match=f"{message}.*Look."):
            read_bytes(path, error=DataError, limit=100, remedy="Look.")
    link.unlink()
    link.symlink_to(large)
    assert len(read_bytes(link, error=DataError, limit=101)) == 101


def lines(file: Path, **options: Any) -> list[tuple[int, Any]]:
    return [(line.number, line.value) for line in read_lines(file, dict[str, Any], error=DataError, **options)]


def test_a_line_has_a_bound_and_the_file_has_none(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": 1}\n' * 1000)
    assert len(lines(file, longest=9)) == 1000
    with pytest.raises(DataError, match=r"rows\.jsonl is too large: line 1 has more than 8 bytes"):
        lines(file, longest=8)
    with open(file, "ab") as handle:
        handle.truncate(2**40)  # of holes
    tracemalloc.start()
    with pytest.raises(DataError, match="is too large: line 1001 has more than 1,000,000 bytes"):
        lines(file, longest=10**6)
    assert tracemalloc.get_traced_memory()[1] < 4 * 10**6
    tracemalloc.stop()


def test_documents_and_lines_of_files(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'{"a": "x\xe2\x80\xa8y"}\r\n\n{"a": 2}\n{"a": ')
    assert lines(file, cut_end=True) == [(1, {"a": "x\u2028y"}), (3, {"a": 2})]
    with pytest.raises(DataError, match=r"line 4 of .*rows.jsonl is damaged"):
        lines(file)
    file.write_text('{"a": 1}\n{"a": \n{"a": 2}\n')
    with pytest.raises(DataError, match=r"line 2 of .*rows.jsonl is damaged"):
        lines(file, cut_end=True)
    file.write_text('{"a": 1}\n[2]')
    with pytest.raises(DataError, match=r"line 2 of .*rows.jsonl is not usable: the value must be .*found a list of 1"):
        lines(file, cut_end=True)
    with pytest.raises(ConfigError, match=r"rows\.jsonl is damaged"):
        read_document(file, dict[str, Any], error=ConfigError)
