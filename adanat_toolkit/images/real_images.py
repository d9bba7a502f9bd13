"""Real images: in memory, from a folder, from a zip. All of them are :class:`~adanat_toolkit.core.generator.ImageSource`.

What ``--data PATH`` accepts, folder or ``.zip`` (``image_files`` says how an image is brought to the generator's size):

- class folders: every image below ``PATH/NAME/`` belongs to class ``NAME``. Names that are integers are class ids; others
  are names of the generator's classes, and may be some of them, where it has names. Where it has none, the sorted names
  are taken in the order of class ids.
- flat images directly below ``PATH``.
- either of them with a ``metadata.jsonl`` beside the images: one JSON object a line with ``file`` (or ``file_name``)
  and any of ``caption`` (or ``text``) and ``label`` (an integer). Then just the listed images are used, in that order.
- any of these inside a single folder, as zips are often made.

Linked folders are entered. What begins with a dot is not looked at. Without a ``metadata.jsonl``, tables of other forms
(``metadata.csv``, ``dataset.json``) are refused, and so is every file that may be an image of a kind that is not read (HEIC,
camera files): all but the endings of ``files.BESIDE``, which are known to be no images.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from ..core import CONTEXT, Context, ContextKind, Generator, ImageSource, Noise
from ..errors import DataError
from ..storage import parse_document, text_lines
from .files import EXTENSIONS, PREPROCESSING, ImageFiles, Progress, decode_many, relative_name

Encode = Callable[[Sequence[str]], Context]
MEMORY_LIMIT = 2**30
"""Bytes of uint8 pixels up to which a set is decoded once and kept; a larger one is decoded when it is read."""
_HASHED_FILES = 256
TABLES = frozenset({"metadata.jsonl", "metadata.csv", "metadata.json", "metadata.parquet", "dataset.json"})
"""What says of images which class or caption they have (Hugging Face, StyleGAN, EDM), in small letters."""


# --- sources ----------------------------------------------------------------------------------------------------------


class _Conditioned:
    """Labels, captions and the kind of context that they are turned into; the part that all sources share."""

    def __init__(
        self, count: int, labels: Tensor | None, captions: Sequence[str] | None, class_names: Sequence[str] | None
    ) -> None:
        for what, value in (("labels", labels), ("captions", captions)):
            if value is not None and len(value) != count:
                raise DataError(f"{len(value)} {what} for {count} images; give one for every image, or none at all.")
        if count == 0:
            raise DataError("no images; give at least one.")
        self._count = count
        self.labels = None if labels is None else labels.to("cpu", torch.int64)
        self.captions = None if captions is None else tuple(captions)
        self.class_names = None if class_names is None else tuple(class_names)
        self.kind: ContextKind = "class" if labels is not None else "none"
        self._encode: Encode | None = None

    def __len__(self) -> int:
        return self._count

    def conditioned(self, kind: ContextKind, encode: Encode | None = None, num_classes: int | None = None) -> Any:
        """The same images with contexts of the given kind (pixels are shared).

        Args:
            encode: prompts -> Context, for ``text``; pass ``generator.encode_prompts``.
            num_classes: number of the generator's classes, for ``class``.

        Raises:
            DataError: the images have no labels (``class``) or captions (``text``), or a label is out of range.
        """
        if kind == "class":
            if self.labels is None:
                raise DataError(
                    "the images have no classes, but the generator is class-conditional; sort them into class folders."
                )
            if num_classes is not None and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < num_classes:
                raise DataError(
                    f"labels {int(self.labels.min())}..{int(self.labels.max())} do not fit the generator's classes "
                    f"0..{num_classes - 1}; use its own labels."
                )
        if kind == "text":
            if self.captions is None:
                raise DataError(
                    "the images have no captions, but the generator is text-conditional; add a metadata.jsonl beside "
                    'them with one {"file": "...", "caption": "..."} a line.'
                )
            if encode is None:
                raise DataError("captions need an encoder; pass encode=generator.encode_prompts.")
        other = copy(self)
        other.kind, other._encode = kind, encode
        return other

    def contexts(self, index: Tensor) -> Context:
        """Contexts of the images ``index`` (n,) int64, on the CPU."""
        if self.kind == "class":
            assert self.labels is not None
            return Context(len(index), classes=self.labels[index.cpu()])
        if self.kind == "text":
            assert self.captions is not None and self._encode is not None
            return self._encode([self.captions[i] for i in index.tolist()]).to("cpu")
        return Context(len(index))

    def label_frequencies(self, num_classes: int | None = None) -> Tensor:
        """(num_classes,) float64 shares of the labels, summing to 1."""
        if self.labels is None:
            raise DataError("the images have no classes, so they have no label frequencies.")
        counts = torch.bincount(self.labels, minlength=num_classes or 0).double()
        return counts / counts.sum()


class MemoryImages(_Conditioned):
    """Images held in memory.

    Args:
        pixels: (M, 3, H, W) uint8.
        labels: (M,) int64 class ids or None. captions: M prompts or None.
        fingerprint: hash of where the pixels came from; None hashes pixels, labels and captions themselves.
    """

    def __init__(
        self,
        pixels: Tensor,
        *,
        labels: Tensor | None = None,
        captions: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or pixels.shape[1] != 3:
            raise DataError(f"pixels must be uint8 (M, 3, H, W), got {pixels.dtype} {tuple(pixels.shape)}.")
        super().__init__(len(pixels), labels, captions, class_names)
        self.pixels = pixels
        self.fingerprint = fingerprint or self._content_hash()

    def images(self, index: Tensor) -> Tensor:
        """(n, 3, H, W) float32 in [0, 1] for (n,) int64 indices."""
        return self.pixels[index.cpu()].float() / 255

    def _content_hash(self) -> str:
        digest = hashlib.sha256(repr(tuple(self.pixels.shape)).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        digest.update(json.dumps([None if self.labels is None else self.labels.tolist(), self.captions]).encode())
        return digest.hexdigest()[:16]


class FileImages(_Conditioned):
    """Images decoded when they are read, for sets that do not fit the memory limit.

    A corrupt image is found when it is read, by a DataError that names the file.

    Args:
        keep: hold what was decoded, so that each image is decoded once a process, and only those that are read.
    """

    def __init__(
        self,
        files: ImageFiles,
        names: Sequence[str],
        size: tuple[int, int],
        *,
        labels: Tensor | None,
        captions: Sequence[str] | None,
        class_names: Sequence[str] | None,
        fingerprint: str,
        keep: bool = False,
    ) -> None:
        super().__init__(len(names), labels, captions, class_names)
        self._files, self._names, self._size = files, tuple(names), size
        with torch.inference_mode(False):  # filled later, outside the mode that its maker may have set
            self._kept = torch.empty(len(names), 3, *size, dtype=torch.uint8) if keep else None
        self._decoded: set[int] = set()
        self.fingerprint = fingerprint

    def images(self, index: Tensor) -> Tensor:
        """(n, 3, H, W) float32 in [0, 1] for (n,) int64 indices."""
        positions = index.tolist()
        if self._kept is None:
            return self._decode(positions).float() / 255
        new = sorted(set(positions) - self._decoded)
        if new:
            self._kept[new] = self._decode(new)
            self._decoded.update(new)
        return self._kept[positions].float() / 255

    def _decode(self, positions: Sequence[int]) -> Tensor:
        return decode_many(self._files, [self._names[i] for i in positions], self._size)


# --- opening ----------------------------------------------------------------------------------------------------------


def images_for(
    generator: Generator,
    path: str | Path | None = None,
    *,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> ImageSource | None:
    """The real images a run uses: those at ``path``, or the generator's own, or None where it has none.

    Args:
        memory_limit: see :func:`open_images`; 0 where only their contexts are wanted.

    Raises:
        DataError: see :func:`open_images`.
    """
    if path is None:
        return generator.real_images()
    return open_images(
        path,
        generator.image_size,
        kind=generator.context_kind,
        num_classes=generator.num_classes,
        class_names=generator.class_names,
        encode=generator.encode_prompts if generator.context_kind == "text" else None,
        memory_limit=memory_limit,
        progress=progress,
    )


_Id = Annotated[str, Field(pattern="^(0|[1-9][0-9]{0,8})$")]
_Amount = Annotated[int, Field(gt=0, lt=2**53)]


@dataclass(frozen=True)
class ClassCounts:
    """How many of the user's images are of each class of a generator.

    Attributes:
        counts: (num_classes,) float64, not all 0.
    """

    counts: Tensor

    @classmethod
    def of(cls, generator: Generator, real: ImageSource) -> ClassCounts | None:
        """Those of real images; None where they have no classes, as images given in Python may.

        Raises:
            DataError: they have a class that the generator does not have.
        """
        labels = real.contexts(torch.arange(len(real))).classes
        if labels is None:
            return None
        number = generator.num_classes or 0
        if not 0 <= int(labels.min()) <= int(labels.max()) < number:
            raise DataError(
                f"the images have labels {int(labels.min())}..{int(labels.max())}, and {generator.name} has the classes "
                f"0..{number - 1}; use its own labels."
            )
        return cls(torch.bincount(labels, minlength=number).double())

    @classmethod
    def read(cls, generator: Generator, text: str, total: int | None = None) -> ClassCounts:
        """From JSON, an object of counts by class id, as ``adanat stats`` keeps them.

        Args:
            total: how many images they must be, where that is known.

        Raises:
            DataError: it is something else, or has a class that the generator does not have.
        """
        counts = torch.zeros(generator.num_classes or 0, dtype=torch.float64)
        remedy = (
            f"The statistics are of images of other classes than {generator.name} has, 0..{len(counts) - 1}; make them of "
            "images with its own labels."
        )
        where = "the classes of the statistics"
        found: dict[str, int] = parse_document(text, dict[_Id, _Amount], where=where, error=DataError, remedy=remedy)
        for number, count in found.items():
            if int(number) >= len(counts):
                raise DataError(f"{where} are not usable: there is no class {number}. {remedy}")
            counts[int(number)] = count
        if not found or total not in (None, sum(found.values())):
            raise DataError(f"{where} count {sum(found.values()):,} images, not {total or 'one or more'}. {remedy}")
        return cls(counts)

    @staticmethod
    def write(labels: Tensor) -> str:
        """What :meth:`read` reads, of (M,) int64 labels."""
        ids, counts = labels.unique(return_counts=True)
        return json.dumps(dict(zip(map(str, ids.tolist()), counts.tolist(), strict=True)))


OwnContexts = ImageSource | ClassCounts
"""What contexts are drawn from where the user gave images: their captions, or their classes."""


def draw_contexts(generator: Generator, noise: Noise, contexts_from: OwnContexts | None = None) -> Context:
    """One context a sample, which depends on the sample's seed alone.

    Args:
        contexts_from: of the user's own images (see ``evaluation.own_contexts``), of which each is equally likely; None: the
            generator's own distribution.

    Raises:
        ConfigError: a text-conditional generator that ships no captions, and none are given.
    """
    if contexts_from is None:
        return generator.sample_contexts(noise)
    if isinstance(contexts_from, ClassCounts):
        drawn = draw_positions(noise.uniform(CONTEXT, 0, (1,))[:, 0], contexts_from.counts)
        return Context(len(noise), classes=drawn.to(generator.device))
    index = (noise.uniform(CONTEXT, 0, (1,))[:, 0].double() * len(contexts_from)).long()
    return contexts_from.contexts(index).to(generator.device)


def open_images(
    path: str | Path,
    size: tuple[int, int],
    *,
    kind: ContextKind = "none",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    encode: Encode | None = None,
    memory_limit: int = MEMORY_LIMIT,
    progress: Progress | None = None,
) -> MemoryImages | FileImages:
    """Open a folder or a zip of images (the layouts are described at the top of this module).

    Args:
        size: (H, W) that the images are brought to.
        kind: what the generator is conditioned on; ``class`` wants labels, ``text`` captions.
        num_classes, class_names: the generator's, for ``class``.
        encode: ``generator.encode_prompts``, for ``text``.
        memory_limit: bytes; see :data:`MEMORY_LIMIT`.
        progress: called with (images decoded, images in all).

    Raises:
        DataError: the path does not exist or has no readable image; an image is corrupt (the file is named); class
            folders do not fit ``num_classes``; labels or captions are missing.
    """
    files = ImageFiles.open(Path(path))
    files, listing = _read_listing(files, kind, num_classes, class_names)
    height, width = size
    details: dict[str, Any] = {
        "labels": listing.labels,
        "captions": listing.captions,
        "class_names": listing.class_names,
        "fingerprint": _fingerprint(files, listing, size),
    }
    source: MemoryImages | FileImages
    if len(listing.names) * 3 * height * width > memory_limit:
        source = FileImages(files, listing.names, size, **details)
    else:
        source = MemoryImages(decode_many(files, listing.names, size, progress), **details)
    conditioned: MemoryImages | FileImages = source.conditioned(kind, encode, num_classes)
    return conditioned


@dataclass(frozen=True)
class _Listing:
    names: list[str]
    labels: Tensor | None = None
    captions: list[str] | None = None
    class_names: list[str] | None = None


def _read_listing(
    files: ImageFiles, kind: ContextKind, num_classes: int | None, class_names: Sequence[str] | None
) -> tuple[ImageFiles, _Listing]:
    """The images, and the files named as they are listed: from inside the folder around everything, if there is one."""
    images = [n for n in files.sizes if PurePosixPath(n).suffix.lower() in EXTENSIONS]
    if not images:
        what = "is empty" if not files.sizes else f"has {len(files.sizes)} files but no image"
        raise DataError(f"{files.path} {what}; give a folder or zip with images ({', '.join(sorted(EXTENSIONS))}).")
    if "metadata.jsonl" in files.sizes:
        return files, _from_metadata(files)
    unread = files.not_read()
    if unread:
        raise DataError(
            f"{files.path} has {_some(unread, 'file')} that may be images of kinds that are not read; save them as PNG, or "
            "move them away."
        )
    flat = [n for n in images if "/" not in n]
    if len(flat) == len(images):
        _refuse_tables(files)
        return files, _Listing(images)
    folders = sorted({n.split("/")[0] for n in images if "/" in n})
    if flat:
        raise DataError(
            f"{files.path} has {_some(flat, 'image')} beside class folders: {_some(folders, 'folder')}. Every image must be in "
            "its class's folder, or none in a folder, or a metadata.jsonl must list those that count; move the images."
        )
    if len(folders) == 1 and _is_around(folders[0], images, files, num_classes, class_names):
        return _read_listing(files.below(folders[0]), kind, num_classes, class_names)
    _refuse_tables(files)
    ids = _class_ids(folders, files.path, num_classes, class_names) if kind == "class" else None
    if ids is None:
        ids = {name: position for position, name in enumerate(folders)}
        if all(map(_is_id, folders)):
            ids = {name: int(name) for name in folders}
    labels = torch.tensor([ids[n.split("/")[0]] for n in images])
    return files, _Listing(images, labels, class_names=folders)


def _refuse_tables(files: ImageFiles) -> None:
    """
    Raises:
        DataError: a table beside the images says which class or caption they have, and it is none that is read.
    """
    found = [n for n in files.sizes if PurePosixPath(n).name.lower() in TABLES]
    if found:
        raise DataError(
            f"{files.path} has {_some(found, 'table')} with labels or captions that would not be read; write a metadata.jsonl "
            'beside everything, one {"file": "...", "label": 3, "caption": "..."} a line, or move it away.'
        )


def _is_id(name: str) -> bool:
    """Whether a folder's name is a class id (of a size that a tensor holds)."""
    return name.isascii() and name.isdecimal() and len(name) < 10


def _is_around(
    folder: str, images: Sequence[str], files: ImageFiles, num_classes: int | None, class_names: Sequence[str] | None
) -> bool:
    """Whether the only folder is one around everything, and not the only class: what is in it is sorted into folders or
    listed, and it has no class's name."""
    if f"{folder}/metadata.jsonl" in files.sizes:
        return True
    if any(name.count("/") == 1 for name in images):
        return False
    return not class_positions(folder, class_names or ()) and not (_is_id(folder) and int(folder) < (num_classes or 0))


def _class_ids(
    folders: Sequence[str], path: Path, num_classes: int | None, class_names: Sequence[str] | None
) -> dict[str, int] | None:
    """Ids of class folders for a class-conditional generator; None where the sorted names are those of all its classes.

    Raises:
        DataError: a name stands for no class, or two for the same one.
    """
    if all(map(_is_id, folders)):
        ids = {name: int(name) for name in folders}
    elif class_names is not None:
        found = {name: class_positions(name, class_names) for name in folders}
        unknown = [name for name, positions in found.items() if len(positions) != 1]
        if unknown:
            raise DataError(
                f"{path} has {_some(unknown, 'folder')} of {len(folders)} that stand for no class of the generator, which "
                f"has {len(class_names)}, such as {class_names[0]!r}; name each folder by a class's id or name."
            )
        ids = {name: positions[0] for name, positions in found.items()}
    elif num_classes is not None and len(folders) != num_classes:
        raise DataError(
            f"{path} has {len(folders)} class folders, but the generator has {num_classes} classes and no names for them; "
            "name folders by class id, or give a folder for every class (sorted names are taken in the order of class ids)."
        )
    else:
        return None
    by_id: dict[int, str] = {}
    for name, number in ids.items():
        if by_id.setdefault(number, name) != name:
            raise DataError(f"{path} has the folders {by_id[number]!r} and {name!r} for class {number}; join them.")
    return ids


def class_positions(name: str, class_names: Sequence[str]) -> list[int]:
    """Classes that a name stands for: their whole name, or the part behind the last " / ". Case does not count, nor which
    signs stand between words, since a folder's name cannot hold them all."""

    def plain(text: str) -> str:
        return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFC", text).casefold()).strip()

    wanted = plain(name)
    return [i for i, n in enumerate(class_names) if wanted in (plain(n), plain(n.rpartition(" / ")[2]))]


def _some(names: Sequence[str], noun: str) -> str:
    """``3 images (a.png, b.png, ...)``."""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"


def _from_metadata(files: ImageFiles) -> _Listing:
    names: list[str] = []
    captions: list[str | None] = []
    labels: list[int | None] = []
    source = f"metadata.jsonl in {files.path}"
    for number, line in enumerate(text_lines(files.read("metadata.jsonl", table=True), source), 1):
        if not line.strip():
            continue
        where = f"line {number} of {source}"
        row: dict[str, Any] = parse_document(
            line, dict[str, Any], where=where, error=DataError, remedy="Write one JSON object a line."
        )
        names.append(_listed_name(_one_of(row, "file", "file_name", where), files, where))
        captions.append(_caption(_one_of(row, "caption", "text", where), where))
        labels.append(_label(row.get("label"), where))
    if not names:
        raise DataError(f"{source} lists no image; write one object a line, or remove it.")

    def complete(values: Sequence[Any], what: str) -> list[Any] | None:
        missing = [n for n, v in zip(names, values, strict=True) if v is None]
        if len(missing) == len(names):
            return None
        if missing:
            raise DataError(f"{source} gives no {what} for {missing[0]}; give all images one, or none.")
        return list(values)

    ids = complete(labels, "label")
    return _Listing(names, None if ids is None else torch.tensor(ids), complete(captions, "caption"))


def _one_of(row: dict[str, Any], name: str, other: str, where: str) -> Any:
    """What a line says under either of two names."""
    found, also = row.get(name), row.get(other)
    if found is not None and also is not None and found != also:
        raise DataError(f'{where} has "{name}" and "{other}", which differ; keep one of them.')
    return also if found is None else found


def _listed_name(value: Any, files: ImageFiles, where: str) -> str:
    if not isinstance(value, str):
        raise DataError(f'{where} names no file: "file" (or "file_name") is {_kind(value)}; give the name as a text.')
    try:
        name = relative_name(value)
    except ValueError as error:
        raise DataError(f"{where} names {value!r}, and {error}; correct or remove the line.") from None
    if name not in files.sizes:  # an accent may be a sign of its own, as macOS writes it
        same = [n for n in files.sizes if unicodedata.normalize("NFC", n) == unicodedata.normalize("NFC", name)]
        if len(same) == 1:
            return same[0]
        raise DataError(f"{where} names {value!r}, which is not there; correct or remove the line.")
    return name


def _caption(value: Any, where: str) -> str | None:
    if value is not None and not isinstance(value, str):
        remedy = "list the image once for each caption" if isinstance(value, list) else "write it in quotes"
        raise DataError(f"the caption in {where} is {_kind(value)}, not a text; {remedy}.")
    return value


def _label(value: Any, where: str) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 10**9):
        raise DataError(f"the label in {where} is {str(value)[:40]!r}, not an integer >= 0; use class ids.")
    return value


def _kind(value: Any) -> str:
    """A JSON value's kind in words."""
    kinds = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "nothing"}
    return kinds.get(type(value), "a number")


def _fingerprint(files: ImageFiles, listing: _Listing, size: tuple[int, int]) -> str:
    """Hash of names, order, byte sizes, labels, captions, target size and preprocessing, and of the content of all
    files of a small set, or of 256 spread evenly over a large one (all of ImageNet would take minutes)."""
    names = listing.names
    digest = hashlib.sha256(f"{PREPROCESSING} {size}".encode())
    digest.update(json.dumps([[n, files.sizes[n]] for n in names]).encode())
    digest.update(json.dumps([None if listing.labels is None else listing.labels.tolist(), listing.captions]).encode())
    stride = max(1, len(names) // _HASHED_FILES)
    for name in names[::stride]:
        digest.update(files.checksum(name))
    return digest.hexdigest()[:16]


# --- augmentation -----------------------------------------------------------------------------------------------------


def draw_positions(uniform: Tensor, weights: Iterable[float] | Tensor) -> Tensor:
    """Positions drawn in proportion to ``weights`` by inverting their cumulative sum.

    Args:
        uniform: (B,) float in (0, 1). weights: (K,) non-negative, not all 0.

    Returns:
        (B,) int64 in 0..K-1, on ``uniform``'s device.
    """
    shares = torch.as_tensor(weights, dtype=torch.float64)
    cumulative = (shares.cumsum(0) / shares.sum()).to(uniform.device)
    return torch.searchsorted(cumulative, uniform.double(), right=True).clamp(max=len(shares) - 1)
