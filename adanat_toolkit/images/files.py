"""Image files in a folder or a zip, and how they are decoded.

Preprocessing: EXIF orientation applied, transparency composed on white, 8-bit RGB, the largest centred crop of the target's
aspect ratio (a square target: the centred square of the shorter side), antialiased bicubic resize. An image that
already has the target's size keeps its pixels. Every mode of Pillow is read but those whose numbers do not say what white
is (32-bit integers and floats), which are refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError
from ..storage import HEAD, not_the_file, read_bytes, read_head

Progress = Callable[[int, int], None]

_READ = ".png .apng .jpg .jpeg .jfif .jpe .webp .bmp .dib .gif .tif .tiff .avif .ppm .pgm .pbm .pnm"
EXTENSIONS = frozenset(_READ.split())
"""Endings of images that are read, in small letters."""
# Texts and tables, arrays and weights, programs, archives and checksums, films and sounds, notes of programs.
_BESIDE = """
.txt .md .rst .html .htm .css .pdf .rtf .doc .docx .log .nfo .bib .tex .url .webloc .license
.json .jsonl .ndjson .csv .tsv .xml .yaml .yml .toml .ini .cfg .xls .xlsx .ods .parquet .arrow .lst .names .sql .db
.sqlite .npy .npz .mat .pt .pth .ckpt .pkl .pickle .safetensors .h5 .hdf5 .onnx .mdb .tfrecord .tfrecords
.py .ipynb .sh .bat .ps1 .c .cpp .h .m .js .lua
.zip .tar .gz .tgz .bz2 .xz .7z .rar .zst .md5 .sha1 .sha256 .sha512 .crc .sfv .torrent
.mp4 .mov .avi .mkv .webm .mp3 .wav .flac .ogg .m4a
.xmp .aae .caption .captions .prompt .tag .tags .label .labels .srt .vtt .lnk .desktop
"""
BESIDE = frozenset(_BESIDE.split())
"""Endings of what lies beside images and is none."""
SIGNATURE = re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|BM....\0\0\0\0|II\*\0|MM\0\*|....ftyp(avi|hei|mif)", re.DOTALL)
"""How images begin."""
PREPROCESSING = "exif orientation, white background, centred crop, PIL bicubic antialiased"
LARGEST = 2**30
"""Bytes of one file that are read: a small zip may declare terabytes."""
LARGEST_TABLE = 2**28
"""Bytes of a table of images (``metadata.jsonl``): the names and captions of millions."""
MOST_PACKED = 100
"""How often larger a member of a zip may be than what is stored of it, from :data:`PACKED` bytes on (of a table: 1 MiB):
pictures and texts are packed less tightly."""
PACKED = 2**26
MOST_PIXELS = 89_478_485
"""Of one image, beyond which Pillow warns of a bomb."""
PIXELS_AT_ONCE = 2**27
"""That all threads together decode; each takes up to 20 bytes meanwhile."""
ENTERED = 1000
"""How often links may lead into one folder: a class may be shared, circles of links have no end."""


# --- names and bytes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFiles:
    """Named byte strings in a folder or a zip.

    Attributes:
        sizes: bytes by name. Names are relative, with forward slashes, sorted.
        members: where each name is stored.
    """

    path: Path
    sizes: dict[str, int]
    members: Mapping[str, Path | zipfile.ZipInfo]
    archive: zipfile.ZipFile | None = None

    @classmethod
    def open(cls, path: Path) -> ImageFiles:
        """List a folder (linked folders and files included) or a zip, without what is hidden.

        Raises:
            DataError: it is neither, cannot be listed, has a name that leads out of it or the same name twice, or a link
                to nothing.
        """
        if not path.exists():
            raise DataError(f"{path} does not exist; give a folder of images or a .zip of them.")
        archive = None if path.is_dir() else _open_zip(path)
        found: Iterator[tuple[str, Path | zipfile.ZipInfo, int]]
        if archive is None:
            found = ((str(p.relative_to(path)), p, size) for p, size in _walk(path))
        else:
            found = ((i.filename, i, i.file_size) for i in archive.infolist() if not i.filename.endswith(("/", "\\")))
        sizes: dict[str, int] = {}
        members: dict[str, Path | zipfile.ZipInfo] = {}
        for stored, member, size in found:
            try:
                name = relative_name(stored)
            except ValueError as error:
                raise DataError(f"{path} has a member {stored!r}, and {error}; make it again without.") from None
            if name in members:
                raise DataError(f"{path} has {name!r} twice; keep one of them.")
            if not any(p.startswith((".", "__MACOSX")) for p in name.split("/")):
                sizes[name], members[name] = size, member
        return cls(path, {name: sizes[name] for name in sorted(sizes)}, members, archive)

    def below(self, folder: str) -> ImageFiles:
        """What is in a folder, named from there."""
        inside = {name: name.removeprefix(f"{folder}/") for name in self.sizes if name.startswith(f"{folder}/")}
        return ImageFiles(
            self.path,
            {short: self.sizes[name] for name, short in inside.items()},
            {short: self.members[name] for name, short in inside.items()},
            self.archive,
        )

    def read(self, name: str, *, table: bool = False) -> bytes:
        """The bytes of a file.

        Raises:
            DataError: it is damaged, larger than :data:`LARGEST` (:data:`LARGEST_TABLE`), or cannot be read.
        """
        member, size = self.members[name], self.sizes[name]
        limit, packed = (LARGEST_TABLE, 2**20) if table else (LARGEST, PACKED)
        if size > limit:
            raise DataError(f"{name} in {self.path} has {size:,} bytes; at most {limit:,} are read.")
        if isinstance(member, zipfile.ZipInfo) and size > packed and size > MOST_PACKED * member.compress_size:
            raise DataError(
                f"{name} in {self.path} has {size:,} bytes and is stored in {member.compress_size:,}; beyond {packed:,} bytes "
                f"it may be {MOST_PACKED} times as large as what is stored. Unpack the zip if you trust it, and give that."
            )
        try:
            if isinstance(member, Path):
                return read_bytes(member, error=DataError, limit=limit, remedy="Repair or remove it.")
            assert self.archive is not None
            return self.archive.read(member)
        except DataError:
            raise
        except Exception as error:  # zipfile and its decompressors raise a dozen kinds for a damaged member
            raise DataError(f"{name} in {self.path} cannot be read ({_reason(error)}); repair or remove it.") from error

    def not_read(self) -> list[str]:
        """Names of what may be an image, and has no ending of those that are read: a set would be smaller without a word.

        A file without an ending is one where it begins as images do.
        """
        found = []
        for name in self.sizes:
            ending = PurePosixPath(name).suffix.lower()
            if ending in EXTENSIONS or ending in BESIDE:
                continue
            if re.fullmatch(r"\.\w{1,8}", ending) or SIGNATURE.match(self._head(name)):
                found.append(name)
        return found

    def _head(self, name: str) -> bytes:
        """The first bytes of a file, none of one that cannot be read."""
        member = self.members[name]
        if isinstance(member, Path):
            with contextlib.suppress(DataError):
                return read_head(member, HEAD, error=DataError)
            return b""
        assert self.archive is not None
        with contextlib.suppress(Exception), self.archive.open(member) as handle:  # as for ``read``
            return handle.read(HEAD)
        return b""

    def checksum(self, name: str) -> bytes:
        member = self.members[name]
        if isinstance(member, zipfile.ZipInfo):
            return member.CRC.to_bytes(4, "big")
        return hashlib.sha256(self.read(name)).digest()


def relative_name(name: str) -> str:
    """A name inside a folder or zip, with forward slashes and without ``./``.

    Raises:
        ValueError: it leads out of the folder; the message goes on with "and".
    """
    text = name.replace("\\", "/")
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or re.match("[A-Za-z]:/", text) or ".." in parts or not parts:
        raise ValueError("names must stay inside (no absolute ones, no '..')")
    return "/".join(parts)


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        if not path.is_file():
            raise OSError("it is no regular file")
        return zipfile.ZipFile(path)
    except Exception as error:  # a dozen kinds, as for members
        found = None
        with contextlib.suppress(DataError):  # the reason may be that nothing can be read
            found = not_the_file(read_head(path, HEAD, error=DataError))
        reason = f"it is {found}" if found else _reason(error)
        raise DataError(f"{path} is neither a folder nor a readable .zip ({reason}); give one of them.") from error


def _walk(top: Path) -> Iterator[tuple[Path, int]]:
    """(file, bytes) of all files below a folder. Linked folders are entered; a link to a folder around it is not."""
    entered: dict[tuple[int, int], int] = {}

    def inside(folder: Path, around: tuple[tuple[int, int], ...]) -> Iterator[tuple[Path, int]]:
        about = folder.stat()
        own = about.st_dev, about.st_ino
        if own in around:
            return
        entered[own] = entered.get(own, 0) + 1
        if entered[own] > ENTERED:
            raise DataError(f"links in {top} lead to {folder} more than {ENTERED} times; remove the circle of links.")
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not path.exists():
                raise DataError(f"{path} is a link to {os.readlink(path)}, where nothing is; mend or remove the link.")
            if entry.is_dir():
                yield from inside(path, (*around, own))
            elif entry.is_file():
                yield path, entry.stat().st_size

    try:
        yield from inside(top, ())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be listed ({error.strerror}); mend its permissions.") from error


def _reason(error: Exception) -> str:
    """An error's message without its last full stop, or its kind where it has none."""
    return str(error).rstrip(".") or type(error).__name__


# --- pixels -----------------------------------------------------------------------------------------------------------


def centred_crop(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred crop of a (width, height) with the target's aspect ratio."""
    (wide, high), (width, height) = size, target
    crop = min(wide, max(1, round(high * width / height))), min(high, max(1, round(wide * height / width)))
    left, top = (wide - crop[0]) // 2, (high - crop[1]) // 2
    return left, top, left + crop[0], top + crop[1]


class _AtOnce:
    """Keeps what goes on at once within ``most`` units; what is larger waits until it is alone."""

    def __init__(self, most: int) -> None:
        self._most, self._free, self._changed = most, most, threading.Condition()

    @contextlib.contextmanager
    def taken(self, units: int) -> Iterator[None]:
        units = min(units, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= units)
            self._free -= units
        try:
            yield
        finally:
            with self._changed:
                self._free += units
                self._changed.notify_all()


_PIXELS, _BYTES = _AtOnce(PIXELS_AT_ONCE), _AtOnce(LARGEST)


@cache
def _formats() -> tuple[str, ...]:
    """Pillow's names of what :data:`EXTENSIONS` are. It knows others that start programs (EPS) or need none of our bounds."""
    Image.init()
    return tuple(
        name for name in ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "PPM", "JPEG2000") if name in Image.OPEN
    )


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """An encoded image whose pixels are not read yet; what Pillow finds wrong in the block is a ValueError."""
    found = not_the_file(data[:HEAD])
    if found is not None:
        raise ValueError(f"it is {found}")
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            if math.prod(image.size) > MOST_PIXELS:
                wide, high = image.size
                raise ValueError(f"it has {wide} x {high} pixels, at most {MOST_PIXELS:,} are read")
            yield image
    except UnidentifiedImageError:
        raise ValueError(_unknown(data)) from None
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        raise ValueError(_reason(error)) from error


def open_upright(data: bytes) -> Image.Image:
    """An encoded image as 8-bit RGB, or RGBA where it has transparent parts, turned as its EXIF orientation says.

    Raises:
        ValueError: it cannot be read, or has more than :data:`MOST_PIXELS`; the message says why.
    """
    with _opened(data) as image:
        return _upright(image, data)


def _upright(image: Image.Image, data: bytes) -> Image.Image:
    eight_bit = _eight_bit(image, data)
    # Pillow itself turns TIFF files. Its exif_transpose writes all metadata anew, and fails where any is odd.
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))
    return eight_bit if turn is None else eight_bit.transpose(turn)


def flattened(image: Image.Image, background: str) -> Image.Image:
    """What :func:`open_upright` gives, as RGB: transparent parts show the background."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image).convert("RGB")


def fitted(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """What :func:`open_upright` gives, cropped and resized to (H, W) = ``size`` on white: (3, H, W) uint8."""
    height, width = size
    image = flattened(image, "white")
    if image.size != (width, height):
        # Cropped first: a resize with a box would let pixels outside the crop bleed in.
        image = image.crop(centred_crop(image.size, (width, height)))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1)


def decode_image(data: bytes, size: tuple[int, int]) -> Tensor:
    """One encoded image -> (3, H, W) uint8 (see the top of this module for the preprocessing).

    Raises:
        ValueError: it cannot be read; the message says why.
    """
    with _opened(data) as image, _PIXELS.taken(math.prod(image.size)):
        return fitted(_upright(image, data), size)


_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation (Exif 2.3, tag 0x0112)."""


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation, 1 where there is none.

    Its entry alone is looked for: Pillow stops at, or warns of, odd entries beside it.
    """
    exif = image.info.get("exif")
    if not isinstance(exif, bytes):
        try:
            return image.getexif().get(0x0112, 1)  # of XMP, or of a PNG's text
        except Exception:  # whatever odd metadata raise, the pixels are there
            return 1
    body = exif.removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if body.startswith(b"II") else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(body[at : at + size], order)

    first = number(4, 4) + 2
    for entry in range(first, min(first + 12 * number(first - 2, 2), len(body)), 12):
        if number(entry, 2) == 0x0112:
            return number(entry + 8, 4 if number(entry + 2, 2) == 4 else 2)  # type 4 is a long
    return 1


def _unknown(data: bytes) -> str:
    """Why Pillow does not know a file: of TIFF, which has many kinds of numbers, what its pixels are."""
    with contextlib.suppress(Exception):  # whatever is damaged in it
        if data.startswith((b"II*\0", b"MM\0*")):
            tags, file = TiffImagePlugin.ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
            file.seek(tags.next)
            tags.load(file)
            bits, number = " + ".join(map(str, tags[258])), _SAMPLES.get(tags.get(339, (1,))[0], "an unknown kind of numbers")
            return f"it is a TIFF file whose pixels are {number} of {bits} bits, which is not read: save it with 8 or 16 bits"
    return "its format is unknown, or it was cut short"


_SAMPLES = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}
"""Sample formats of TIFF (tag 339)."""


def _eight_bit(image: Image.Image, data: bytes) -> Image.Image:
    """RGB, or RGBA where there is transparency.

    Args:
        data: the file that the image is of.

    Raises:
        ValueError: no level is known to be white.
    """
    if 2 in getattr(image, "tag_v2", {}).get(339, ()):  # Pillow takes those of 8 bits for unsigned ones
        raise ValueError("its pixels are 32-bit or signed integers, which do not say what white is: save it with 8 or 16 bits")
    # Read before the pixels are, which drops it.
    deep = ";16" in str(getattr(image, "tile", ""))
    image.load()
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = _from_16_bit(image)
    elif image.mode in ("I", "F"):
        kind = "floats" if image.mode == "F" else "32-bit or signed integers"
        raise ValueError(f"its pixels are {kind}, which do not say what white is: save it with 8 or 16 bits")
    if image.mode == "La":
        image = image.convert("LA")
    key = image.info.get("transparency")
    if deep and image.mode == "RGB" and isinstance(key, tuple):
        return _without_colour(image, data, key)
    transparent = image.mode in ("1", "L", "P", "RGB") and key is not None
    return image.convert("RGBA" if transparent or image.mode in ("RGBA", "LA", "PA", "RGBa") else "RGB")


def _without_colour(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image:
    """RGBA of a PNG of 16 bits a channel in which one colour is transparent: all its bits, of which Pillow keeps the high 8."""
    with Image.open(io.BytesIO(data)) as again:
        low: Any = again
        low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # the other byte order: the low 8
        low.load()
        values = np.asarray(image).astype(np.uint16) * 256 + np.asarray(low)
    opaque = (values != np.array(key, dtype=np.uint16)).any(-1)
    image.info.pop("transparency")
    image.putalpha(Image.fromarray(np.where(opaque, 255, 0).astype(np.uint8)))
    return image


def _from_16_bit(image: Image.Image) -> Image.Image:
    """L, or LA with transparency. Pillow's own conversion cuts at 255, so that nearly everything becomes white."""
    tags: Any = getattr(image, "tag_v2", {})  # of TIFF, which also has fewer bits, and white at 0
    white = 2 ** int(tags.get(258, (16,))[0]) - 1
    values = np.asarray(image)
    levels = np.empty(values.shape, np.uint8)
    for start in range(0, values.size, 2**20):  # in pieces: numbers of 64 bits take much more than the image
        part = (2 * 255 * values.flat[start : start + 2**20].astype(np.int64) + white) // (2 * white)
        levels.flat[start : start + 2**20] = (255 - part if tags.get(262) == 0 else part).clip(0, 255)
    grey = Image.fromarray(levels)
    key = image.info.get("transparency")
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    return grey


def decode_many(
    files: ImageFiles, names: Sequence[str], size: tuple[int, int], progress: Progress | None = None
) -> Tensor:
    """(n, 3, H, W) uint8 of the named files, decoded on all cores (Pillow releases the interpreter lock)."""
    with torch.inference_mode(False):  # the threads that fill it are in no mode of the caller's
        out = torch.empty(len(names), 3, *size, dtype=torch.uint8)

    def decode(position: int) -> None:
        with _BYTES.taken(files.sizes[names[position]]):
            data = files.read(names[position])
            try:
                out[position] = decode_image(data, size)
            except ValueError as error:
                raise DataError(
                    f"{names[position]} in {files.path} is not a readable image ({error}); repair or remove it."
                ) from error

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(names))), 1):
            if progress is not None and (done % 256 == 0 or done == len(names)):
                progress(done, len(names))
    return out
