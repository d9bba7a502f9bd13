"""Policies on the Hugging Face hub. What is fetched is two files without code: safetensors and JSON."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import ConfigError, OutputError

_HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w.-]+))?")
POLICY_FILES = ("policy.safetensors", "policy.json")


def is_hub_id(text: str | os.PathLike[str]) -> bool:
    """Whether a text reads ``owner/name[@revision]`` and no file or folder has that name."""
    return _HUB_ID.fullmatch(os.fspath(text)) is not None and not os.path.exists(text)


@contextlib.contextmanager
def downloads_refused(offline: bool) -> Iterator[None]:
    """While ``offline``, the hub's client takes what is in its cache or fails, and so does what downloads from an address.

    The client does not always listen to its argument ``local_files_only`` (it looks up what program calls it), its variable
    HF_HUB_OFFLINE is read when it is imported, and libraries that call it (open_clip, transformers) pass neither on.
    """
    if not offline:
        yield
        return
    import urllib.request

    from huggingface_hub import constants

    def refuse(request: Any, *_: Any, **__: Any) -> Any:
        address = request.full_url if isinstance(request, urllib.request.Request) else request
        raise OSError(f"--offline forbids fetching {address}")

    places: tuple[tuple[Any, str, Any], ...] = (
        (constants, "HF_HUB_OFFLINE", True),
        (urllib.request, "urlopen", refuse),
    )
    before = [getattr(place, name) for place, name, _ in places]
    try:
        for place, name, value in places:
            setattr(place, name, value)
        yield
    finally:
        for (place, name, _), value in zip(places, before, strict=True):
            setattr(place, name, value)


def local_policy(spec: str | os.PathLike[str], *, offline: bool = False) -> str:
    """A policy spec that needs no network: a hub id becomes the folder that its files were fetched to.

    Args:
        spec: anything that ``load_policy`` takes, or ``owner/name[@revision]``. offline: take it from the hub's cache only;
            the environment variable HF_HUB_OFFLINE=1 does the same.

    Raises:
        ConfigError: there is neither such a folder nor such a repository, or it cannot be fetched.
    """
    spec = os.fspath(spec)
    match = _HUB_ID.fullmatch(spec)
    if match is None or spec.startswith("fixed:") or os.path.exists(spec):
        return spec
    from huggingface_hub import snapshot_download

    try:
        with downloads_refused(offline):
            folder = Path(
                snapshot_download(
                    match["repo"],
                    revision=match["revision"],
                    allow_patterns=list(POLICY_FILES),
                    local_files_only=offline,
                )
            )
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such repository, gated, no cache
        why = "--offline forbids fetching it, and it is not in the hub's cache"
        raise ConfigError(
            f"no policy at {spec!r}: there is no such folder, and as a hub repository: "
            f"{why if offline else why_not_fetched(error)}. Give a run folder, a policy folder or a hub id that exists."
        ) from None
    if not all((folder / name).is_file() for name in POLICY_FILES):
        raise ConfigError(f"the hub repository {spec} holds no policy ({' and '.join(POLICY_FILES)}).")
    return str(folder)


def upload_folder(folder: Path, repository: str, *, public: bool) -> str:
    """Create the repository where it does not exist, and upload a folder as one commit; gives its address.

    Raises:
        OutputError: no login, no network, or no right to write there.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(folder_path=str(folder), repo_id=repository, commit_message="Publish policy")
    except Exception as error:  # as above
        raise OutputError(
            f"cannot publish to the hub repository {repository}: {_first_line(error)}. Log in with `hf auth login`, or "
            f"give a folder (./{repository})."
        ) from None
    return f"https://huggingface.co/{repository}"


def why_not_fetched(error: Exception) -> str:
    """What an error of the hub's client means to who named the repository: what is wrong, and what can be done."""
    from huggingface_hub import errors

    log_in = "run `hf auth login`"
    known: tuple[tuple[type[Exception], str], ...] = (  # the special ones before what they are cases of
        (errors.GatedRepoError, f"its owner asks for an agreement: accept it on the repository's page and {log_in}"),
        (errors.RepositoryNotFoundError, f"no such repository, or it is private: look at the name, or {log_in}"),
        (errors.RevisionNotFoundError, "it has no such revision: leave @REVISION out, or name a branch, tag or commit"),
        (
            errors.LocalEntryNotFoundError,
            "the hub cannot be reached and its cache has no copy: look at the connection (and at HF_HUB_OFFLINE)",
        ),
        (errors.EntryNotFoundError, "the repository has no such file"),
    )
    meaning = next((text for kind, text in known if isinstance(error, kind)), None)
    if meaning is None and isinstance(error, OSError) and not isinstance(error, errors.HfHubHTTPError):
        meaning = f"it could not be fetched or written ({_first_line(error)}): look at the connection and at the free space"
    return meaning or _first_line(error)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
