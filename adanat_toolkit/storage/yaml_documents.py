"""YAML that anyone may have written: the values that JSON knows too, or one error.

A value goes through the reader of JSON documents, so that both have the same bounds. What YAML has beyond is refused or
read as text: tags (``!!python/...``, ``!!binary``), dates (``2021-12-31`` is text), NaN, and aliases that unfold to more
than :data:`MOST_NODES` values.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

import yaml

from ..errors import AdaNATError
from .documents import MAX_DEPTH, REMEDY, parse_document, read_bytes, shortened

MAX_YAML = 2**16
"""Bytes of a file of settings. The largest of ours have 4,000."""
MOST_NODES = 10_000
"""Values of a document, those of an alias counted each time it is used."""

_PLAIN = ("null", "bool", "int", "float", "str", "seq", "map", "merge")


class _Loader(yaml.SafeLoader):
    """Knows the types of JSON alone; with these, YAML 1.1 reads numbers and words as it always did."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= MAX_DEPTH:  # at once: the scanner's time grows with the square of the depth
            raise yaml.YAMLError(f"it is nested deeper than {MAX_DEPTH} levels")
        super().fetch_flow_collection_start(token)


_Loader.yaml_constructors = {
    tag: make
    for tag, make in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in _PLAIN
}
_NUMBERS = {
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}
"""YAML 1.1 also reads 010 as 8 and 1:30 as 90, which nobody who writes settings means; here they are text."""
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, _NUMBERS.get(kind, pattern))
        for tag, pattern in known
        if (kind := tag.rpartition(":")[2]) in _PLAIN
    ]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, *, where: str, error: type[AdaNATError], remedy: str = REMEDY) -> Any:
    """One YAML document as None, bool, int, float, str, list and dict with str keys; None for an empty text.

    Args:
        where: how messages call the text.

    Raises:
        error: it is no YAML, or holds what JSON cannot.
    """
    try:
        value = _constructed(text)
        plain = json.dumps(value)
    except yaml.YAMLError as problem:
        raise error(f"{where} is not valid YAML: {_told(problem)}. {remedy}") from None
    except RecursionError:
        raise error(f"{where} is nested too deeply. {remedy}") from None
    except (ValueError, TypeError, LookupError, OverflowError) as problem:  # a tag that does not fit its value
        raise error(f"{where} is not valid YAML: {shortened(str(problem), 100)}. {remedy}") from None
    return parse_document(plain, Any, where=where, error=error, remedy=remedy)


def read_yaml_document(path: str | os.PathLike[str], *, error: type[AdaNATError], remedy: str = REMEDY) -> Any:
    """The YAML document of a file: ``documents.read_bytes``, then :func:`parse_yaml`."""
    data = read_bytes(path, error=error, limit=MAX_YAML, remedy=remedy)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not valid YAML: byte {problem.start} is not UTF-8 text. {remedy}") from None
    return parse_yaml(text, where=str(path), error=error, remedy=remedy)


def _constructed(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _bound(node)  # before the values are made: merge keys unfold aliases while they are
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _bound(node: yaml.Node) -> None:
    todo, count = [node], 0
    while todo:
        count += 1
        if count > MOST_NODES:
            raise yaml.YAMLError(f"it holds more than {MOST_NODES:,} values, or an alias that holds itself")
        found = todo.pop()
        if isinstance(found, yaml.SequenceNode):
            todo += found.value
        elif isinstance(found, yaml.MappingNode):
            todo += [part for pair in found.value for part in pair]
            keys = Counter(key.value for key, _ in found.value if isinstance(key, yaml.ScalarNode))
            twice, times = keys.most_common(1)[0] if keys else ("", 1)
            if times > 1:
                raise yaml.YAMLError(f"it gives the key {shortened(twice)} twice")


def _told(problem: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    said = getattr(problem, "problem", None) or str(problem)
    mark = getattr(problem, "problem_mark", None)
    place = "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
    said = " ".join(said.split())
    return (said if len(said) <= 120 else f"{said[:120]}...") + place
