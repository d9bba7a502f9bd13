"""Image files in a folder or a zip, and how they are decoded.

Preprocessing: EXIF orientation applied, transparency composed on white, RGB, the largest centred crop of the target's
aspect ratio (a square target: the centred square of the shorter side), antialiased bicubic resize. An image that
already has the target's size keeps its pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import DataError

Progress = Callable[[int, int], None]

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
PREPROCESSING = "exif orientation, white background, centred crop, PIL bicubic antialiased"


@dataclass(frozen=True)
class ImageFiles:
    """Named byte strings in a folder or a zip. Names are relative, with forward slashes, sorted."""

    path: Path
    sizes: dict[str, int]
    archive: zipfile.ZipFile | None = None
    prefix: str = ""

    @classmethod
    def open(cls, path: Path) -> ImageFiles:
        if not path.exists():
            raise DataError(f"{path} does not exist; give a folder of images or a .zip of them.")
        if path.is_dir():
            sizes = {p.relative_to(path).as_posix(): p.stat().st_size for p in path.rglob("*") if p.is_file()}
            return cls(path, _visible(sizes))
        try:
            archive = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(f"{path} is neither a folder nor a readable .zip ({error}); give one of them.") from error
        sizes = _visible({i.filename: i.file_size for i in archive.infolist() if not i.is_dir()})
        # Zips are often made of one folder around everything; it is not a class then.
        tops = {name.split("/")[0] for name in sizes}
        prefix = f"{tops.pop()}/" if len(tops) == 1 and all(name.count("/") != 0 for name in sizes) else ""
        if prefix and not any(n.count("/") > 1 or n.endswith("/metadata.jsonl") for n in sizes):
            prefix = ""
        return cls(path, {name.removeprefix(prefix): size for name, size in sizes.items()}, archive, prefix)

    def read(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes() if self.archive is None else self.archive.read(self.prefix + name)
        except (OSError, KeyError, zipfile.BadZipFile, RuntimeError) as error:
            raise DataError(f"{name} in {self.path} cannot be read ({error}); repair or remove it.") from error

    def checksum(self, name: str) -> bytes:
        if self.archive is not None:
            return self.archive.getinfo(self.prefix + name).CRC.to_bytes(4, "big")
        return hashlib.sha256(self.read(name)).digest()


def _visible(sizes: dict[str, int]) -> dict[str, int]:
    return {n: sizes[n] for n in sorted(sizes) if not any(p.startswith((".", "__MACOSX")) for p in n.split("/"))}


def centred_crop(size: tuple[int, int], target: tuple[int, int]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest centred crop of a (width, height) with the target's aspect ratio."""
    (wide, high), (width, height) = size, target
    crop = min(wide, max(1, round(high * width / height))), min(high, max(1, round(wide * height / width)))
    left, top = (wide - crop[0]) // 2, (high - crop[1]) // 2
    return left, top, left + crop[0], top + crop[1]


def decode_image(data: bytes, size: tuple[int, int]) -> Tensor:
    """One encoded image -> (3, H, W) uint8 (see the top of this module for the preprocessing).

    Raises:
        OSError, ValueError, SyntaxError: what Pillow raises for damaged files.
    """
    height, width = size
    with Image.open(io.BytesIO(data)) as opened:
        image: Image.Image = opened
        if image.getexif().get(0x0112, 1) != 1:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        if image.size != (width, height):
            # Cropped first: a resize with a box would let pixels outside the crop bleed in.
            image = image.crop(centred_crop(image.size, (width, height)))
            image = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1)


def decode_many(
    files: ImageFiles, names: Sequence[str], size: tuple[int, int], progress: Progress | None = None
) -> Tensor:
    """(n, 3, H, W) uint8 of the named files, decoded on all cores (Pillow releases the interpreter lock)."""
    out = torch.empty(len(names), 3, *size, dtype=torch.uint8)

    def decode(position: int) -> None:
        data = files.read(names[position])
        try:
            out[position] = decode_image(data, size)
        except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(
                f"{names[position]} in {files.path} is not a readable image ({error}); repair or remove it."
            ) from error

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for done, _ in enumerate(pool.map(decode, range(len(names))), 1):
            if progress is not None and (done % 256 == 0 or done == len(names)):
                progress(done, len(names))
    return out
