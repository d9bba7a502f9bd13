"""What the documentation shows: fenced blocks with their marks, the commands in them, and commands inside sentences."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
SHELL = ("bash", "sh", "shell", "console")
NEEDS = {
    "weights": "third-party weights",
    "gpu": "a GPU, or several processes",
    "network": "a network",
    "long": "many minutes, or a whole set-up of its own",
    "yours": "files or packages of the reader's own",
}
"""Marks of blocks that are not run: ``<!-- needs: weights -->`` on the line before. They are still parsed."""

_BLOCK = re.compile(
    r"^(?P<indent> *)(?:<!-- needs: (?P<needs>[^\n]*?) -->\n+ *)?(?P<fence>```+)(?P<language>[\w-]*)[^\n]*\n"
    r"(?P<text>.*?)^ *(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
_INLINE = re.compile(r"`(adanat [^`]+)`")


@dataclass(frozen=True)
class Block:
    """A fenced block. ``needs``: its mark, empty where it has none; ``line``: where its text starts, from 1."""

    page: str
    line: int
    language: str
    text: str
    needs: tuple[str, ...]

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of every command: comments and, in a console, output left out, continued lines joined."""
        text = self.text
        if self.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


@cache
def pages() -> tuple[str, ...]:
    """Every page, relative to the repository's root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return tuple(page.relative_to(ROOT).as_posix() for page in found)


@cache
def documents() -> tuple[str, ...]:
    """Every Markdown file of the repository, relative to its root."""
    folders = ("docs", "examples", "recipes", "benchmarks", "plugins", "adanat_toolkit", "cli", "tests")
    found = [*ROOT.glob("*.md"), *(file for folder in folders for file in (ROOT / folder).rglob("*.md"))]
    return tuple(sorted(file.relative_to(ROOT).as_posix() for file in found))


@cache
def blocks(page: str) -> tuple[Block, ...]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return tuple(
        Block(
            page,
            text.count("\n", 0, found.start("text")) + 1,
            found["language"],
            re.sub(f"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            tuple(found["needs"].split(", ")) if found["needs"] else (),
        )
        for found in _BLOCK.finditer(text)
    )


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _BLOCK.sub("", (ROOT / page).read_text(encoding="utf-8"))


def inline_commands(page: str) -> Iterator[list[str]]:
    """Commands inside sentences, such as "`adanat weights` says ..."."""
    for text in _INLINE.findall(prose(page)):
        yield shlex.split(text)


@cache
def hooks() -> ModuleType:
    """What the site is built with."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
