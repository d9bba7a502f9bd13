"""What files hold that are not what their names say: nothing, a web page, a git-lfs pointer; and folders that look empty."""

from __future__ import annotations

import hashlib
from pathlib import Path

HEAD = 512
"""Bytes that tell it."""


def not_the_file(head: bytes) -> str | None:
    """What was stored in place of a file, in words that go on with "it is"; None where nothing is known.

    Args:
        head: the first bytes of the file, :data:`HEAD` or more; all of a shorter file.
    """
    if not head:
        return "empty: fetch it again, or write it anew"
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()[:HEAD].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page: the download was answered with a form or an error, fetch it again in a browser"
    if start.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer, not the file itself: run `git lfs pull` where it comes from"
    return None


def holds_files(folder: Path) -> bool:
    """Whether anything lies in a folder beside what file browsers leave there."""
    clutter = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")
    return any(path.name not in clutter and not path.name.startswith("._") for path in folder.iterdir())


def content_hash(source: str) -> str:
    """SHA-256 of what a source names: a file's bytes; a folder's files with their names; of anything else (a hub id, an
    address) its text."""
    path, digest = Path(source).expanduser(), hashlib.sha256()
    try:
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] * path.is_file()
    except OSError:  # no name of a file
        files = []
    for file in files:
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode(errors="backslashreplace"))
        with file.open("rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    if not files:
        digest.update(source.encode(errors="backslashreplace"))
    return digest.hexdigest()
