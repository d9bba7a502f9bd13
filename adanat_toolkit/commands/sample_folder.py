"""Images of a policy in a folder: one PNG a seed, a grid, and ``samples.json`` with each image's knobs.

Every PNG carries its own row of ``samples.json``, so that an interrupted call loses nothing: the same command makes the
images that are missing and writes the list anew from the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..core import Context, Generator, Noise, as_seeds
from ..decoding import SamplingPolicy
from ..errors import ConfigError, OutputError
from ..images import GRID_LIMIT, grid, read_facts, read_png, to_bytes, write_png
from ..registry import toolkit_version
from ..runtime import distributed, dtype_name, float32_by_default
from ..sampling import Edit, Refinement, Samples, Start, begin, edit, sample, start_of_edit
from ..storage import (
    MAX_DOCUMENT,
    MIB,
    card_digest,
    holds_files,
    parse_document,
    prepare_folder,
    read_document,
    read_head,
    write_file,
    write_json,
)
from ..training import differences

LIST = "samples.json"
GRID = "grid.png"
IMAGES = b'\n  "images": ['
"""Where the rows of a list begin. What is before is all that is read: a row an image and a number a step know no bound."""
MOST_LIST = 256 * MIB
"""Bytes of a list that something else wrote anew, so that it is read whole."""


class Row(BaseModel):
    """A row of the list, which its image carries too."""

    model_config = ConfigDict(extra="allow")

    file: str
    seed: int = Field(ge=0, lt=2**63)
    knobs: dict[str, list[float]]
    settings: str | None = None
    pixels: str | None = None
    """See :func:`marks`; None: made by a version without them."""


def image_name(seed: int) -> str:
    """``000123.png`` for seed 123."""
    return f"{seed:06d}.png"


def marks(settings: Mapping[str, Any], image: Tensor) -> dict[str, str]:
    """What tells images of another policy, and changed ones, from a folder's own: hashes of the settings and of the pixels.

    Args:
        settings: of :func:`folder_settings`. image: (3, H, W), float in [0, 1] or uint8.
    """
    pixels = to_bytes(image).contiguous().numpy().tobytes()
    return {"settings": card_digest(settings)[:16], "pixels": hashlib.sha256(pixels).hexdigest()[:16]}


@float32_by_default()
def sample_to_folder(
    generator: Generator,
    policy: SamplingPolicy,
    folder: Path,
    *,
    seeds: Tensor | Sequence[int],
    context: Context | None = None,
    batch: int | None = None,
    editing: Edit | None = None,
    refinement: Refinement | None = None,
    on_image: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Make the images that ``folder`` does not hold yet, then its grid and list.

    With several processes each makes a share of the images and writes them; all call this. The folder must be the same for
    all of them, also on several machines.

    Args:
        seeds: (n,) int64 or a list. context: n contexts; None draws each by its seed.
        editing: an image of which each one is a variant (see ``editing.edit``).
        refinement: makes several candidates an image and keeps the best; not with ``editing``.
        on_image: called with the number of images that are there, after every batch.

    Returns:
        ``out``, ``images`` (asked for), ``made``, ``kept``, ``grid`` and ``list``.

    Raises:
        ConfigError: a seed is given twice, or what is asked for does not apply to the generator; nothing is written then.
        OutputError: the folder cannot be written, is not empty and not ours, or holds images made otherwise. Nothing in it
            is changed then.
    """
    seeds = as_seeds(seeds)
    settings = folder_settings(generator, policy)
    if editing is not None:
        settings["edit"] = editing.facts()
    if refinement is not None:
        settings["refine"] = refinement.facts(generator, policy.space)
    noise = Noise(seeds.to(generator.device))
    chosen = generator.sample_contexts(noise) if context is None else context
    start = None if editing is None else start_of_edit(generator, editing.image, editing.mask)
    first = slice(0, 1)
    begin(generator, policy, chosen.select(first), noise.select(first), start)  # what it refuses leaves no folder behind
    missing: list[int] = []
    is_new = not os.path.lexists(folder)
    if distributed.is_main():
        missing = _begin(folder, settings, seeds, chosen)
    missing = distributed.from_main(missing)
    try:
        _make(generator, policy, settings, folder, seeds, chosen, missing, batch, editing, start, refinement, on_image)
    except BaseException:
        if distributed.is_main():
            _take_back(folder, is_new)
        raise
    distributed.barrier()  # all images are there
    if distributed.is_main():
        _finish(folder, settings, seeds, generator.image_size)
    return _result(folder, len(seeds), len(missing))


def _make(
    generator: Generator,
    policy: SamplingPolicy,
    settings: Mapping[str, Any],
    folder: Path,
    seeds: Tensor,
    chosen: Context,
    missing: Sequence[int],
    batch: int | None,
    editing: Edit | None,
    start: Start | None,
    refinement: Refinement | None,
    on_image: Callable[[int], None] | None,
) -> None:
    """This process's share of the images that are missing."""
    kept = len(seeds) - len(missing)
    first, last = distributed.local_slice(len(missing))
    index = torch.tensor(missing[first:last], dtype=torch.int64)
    if len(index):
        wanted = chosen.select(index.to(generator.device))
        done = 0
        if refinement is not None:
            parts = refinement.sample(generator, policy, seeds[index], wanted, batch=batch)
        elif editing is None:
            parts = sample(generator, policy, seeds[index], wanted, batch=batch)
        else:
            parts = edit(generator, policy, editing, seeds[index], wanted, batch=batch, one=start)
        for part in parts:
            for position in range(len(part.seeds)):
                _write_image(folder, part, position, policy.space.names, settings)
            done += len(part.seeds)
            if on_image is not None:
                on_image(kept + done * len(missing) // len(index))  # the other processes are about as far


def _take_back(folder: Path, is_new: bool) -> None:
    """Remove a list without images, whose settings would keep out the command that does better (the remedy for a shortage of
    memory may be another ``--dtype``), and the folder where this call made it."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [LIST]:
            (folder / LIST).unlink()
            if is_new:
                folder.rmdir()


def save_samples(samples: Samples, names: Sequence[str], settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write images that are made already, in the format of :func:`sample_to_folder`.

    Args:
        names: of the knobs. settings: of :func:`folder_settings`.

    Returns, raises: see :func:`sample_to_folder`.
    """
    missing = _begin(folder, settings, samples.seeds, samples.context)
    for position in missing:
        _write_image(folder, samples, position, names, settings)
    _finish(folder, settings, samples.seeds, (samples.images.shape[2], samples.images.shape[3]))
    return _result(folder, len(samples.seeds), len(missing))


def _begin(folder: Path, settings: dict[str, Any], seeds: Tensor, context: Context) -> list[int]:
    """Look at the folder, make it, and give the positions of the images that it lacks."""
    values, counts = seeds.unique(return_counts=True)
    if len(values) < len(seeds):
        seed = int(values[counts > 1][0])
        raise ConfigError(
            f"seed {seed} is given {int(counts[counts > 1][0])} times, and files are named by their seeds; give "
            "each image a seed of its own, or save them in folders of their own. Nothing was written."
        )
    _check_folder(folder, settings)
    missing = _missing(folder, seeds, context, settings)
    prepare_folder(folder)
    if not (folder / LIST).exists():
        write_json(folder / LIST, {**settings, "images": []})
    return missing


def _write_image(
    folder: Path, part: Samples, position: int, names: Sequence[str], settings: Mapping[str, Any]
) -> None:
    row = {**_row(part, position, names), **marks(settings, part.images[position])}
    write_png(folder / row["file"], part.images[position], row)


def _finish(folder: Path, settings: dict[str, Any], seeds: Tensor, size: tuple[int, int]) -> None:
    """The list and the grid, when all images are there."""
    write_file(folder / LIST, _list(folder, settings))
    shown = [read_png(folder / image_name(seed), size) for seed in seeds[:GRID_LIMIT].tolist()]
    write_png(folder / GRID, grid(torch.stack(shown)))


def _result(folder: Path, images: int, made: int) -> dict[str, Any]:
    return {
        "out": str(folder),
        "images": images,
        "made": made,
        "kept": images - made,
        "grid": str(folder / GRID),
        "list": str(folder / LIST),
    }


def folder_settings(generator: Generator, policy: SamplingPolicy) -> dict[str, Any]:
    """What all images of a folder share: the head of ``samples.json``."""
    return {
        "toolkit": toolkit_version(),
        "generator": {
            "name": generator.name,
            "fingerprint": generator.fingerprint,
            "dtype": dtype_name(generator.dtype),
        },
        "steps": policy.steps,
        "policy": policy.card,
    }


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """An empty folder, or one of the same settings; anything else is left as it is."""
    if not folder.is_dir() or not holds_files(folder):
        return
    listing = folder / LIST
    if not listing.exists():
        raise OutputError(f"{folder} is not empty and has no {LIST}; choose another --out. Nothing was changed.")
    stored = _stored_settings(listing)
    # JSON has no tuples: compare what would be written.
    changed = differences(stored, json.loads(json.dumps(settings)))
    if changed:
        shown = "; ".join(c if len(c) <= 120 else c.partition(":")[0] for c in changed)
        raise OutputError(
            f"{folder} holds images made with other settings ({shown}); choose another --out. Nothing was changed."
        )


def _stored_settings(listing: Path) -> dict[str, Any]:
    """The head of a list, see :func:`folder_settings`.

    Raises:
        OutputError: it cannot be read, or is no such list.
    """
    remedy = "Restore it, or choose another --out. The images beside it were left as they are."
    head, found, _ = read_head(listing, MAX_DOCUMENT, error=OutputError, remedy=remedy).partition(IMAGES)
    stored: dict[str, Any]
    if found:
        text = head + IMAGES + b"]}"
        stored = parse_document(text, dict[str, Any], where=str(listing), error=OutputError, remedy=remedy)
    else:
        stored = read_document(listing, dict[str, Any], error=OutputError, limit=MOST_LIST, remedy=remedy)
    if not isinstance(stored.pop("images", None), list):
        raise OutputError(f"{listing} is damaged: it lists no images. {remedy}")
    return stored


def _missing(folder: Path, seeds: Tensor, context: Context, settings: Mapping[str, Any]) -> list[int]:
    """Positions of the images that are not there; those that are must be of these settings, and unchanged."""
    out = []
    for position, seed in enumerate(seeds.tolist()):
        path = folder / image_name(seed)
        if not path.exists():
            out.append(position)
            continue
        row = _own_row(path)
        if row is None:
            raise OutputError(
                f"{path} was not made by this command, or is a copy of another image; choose another --out. Nothing was "
                "changed."
            )
        made, wanted = {k: row[k] for k in ("class", "prompt") if k in row}, context.describe(position)
        if made != wanted:
            raise OutputError(
                f"{path} was made for {_told(made)}, now {_told(wanted)} is asked for; choose another --out "
                "or another --seed. Nothing was changed."
            )
        if any(row.get(key) not in (None, own) for key, own in marks(settings, read_png(path)).items()):
            raise OutputError(
                f"{path} is of another folder (made with other settings), or was changed since it was made. Remove it, so that "
                "it is made again, or choose another --out. Nothing was changed."
            )
    return out


def _told(context: Mapping[Any, Any]) -> str:
    return textwrap.shorten(ascii(context), 300, placeholder="...") if context else "no context"


def _row(part: Samples, position: int, names: Sequence[str]) -> dict[str, Any]:
    seed = int(part.seeds[position])
    knobs = part.knobs[position].T.tolist()
    return {
        "file": image_name(seed),
        "seed": seed,
        **part.context.describe(position),
        **({} if part.kept is None else {"refined": part.kept[position]}),
        "knobs": {name: [float(f"{v:.6g}") for v in values] for name, values in zip(names, knobs, strict=True)},
    }


def _list(folder: Path, settings: dict[str, Any]) -> Iterator[bytes]:
    """The list in parts: the settings, then a line an image, by seed, of which one is in memory at a time."""
    yield json.dumps({**settings, "images": []}, indent=2).encode().removesuffix(b"]\n}")
    separator = "\n    "
    for seed in sorted({int(path.stem) for path in folder.glob("*.png") if re.fullmatch("[0-9]{6,19}", path.stem)}):
        row = _own_row(folder / image_name(seed))
        if row is not None and row.get("settings") in (None, card_digest(settings)[:16]):
            yield f"{separator}{json.dumps(row)}".encode()
            separator = ",\n    "
    yield b"\n  ]\n}\n"


def _own_row(path: Path) -> dict[str, Any] | None:
    """An image's row; None for what was made by something else, and for a copy, which holds the row of its original."""
    row = None if path.name == GRID else read_facts(path, Row)
    if row is None or not row["file"] == path.name == image_name(row["seed"]):
        return None
    return row
