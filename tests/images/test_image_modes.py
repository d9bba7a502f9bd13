"""Images as people have them: every mode of Pillow, 16 bits, transparency, EXIF data of all kinds; as data and as masks."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from adanat_toolkit.errors import DataError
from adanat_toolkit.images.files import decode_image
from adanat_toolkit.images.real_images import open_images
from adanat_toolkit.sampling import read_edit

SIDE = 64
RAMP = np.linspace(0, 255, SIDE).astype(np.uint8)[None].repeat(SIDE, 0)
GREY = torch.from_numpy(RAMP).expand(3, SIDE, SIDE)
DEEP = RAMP.astype(np.uint16) * 257


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> Tensor:
    return decode_image(data, (SIDE, SIDE)).int()


def png_of(rows: bytes, depth: int, colour: int, key: bytes = b"") -> bytes:
    """A PNG written by hand: Pillow cannot write 16-bit colours. Rows of SIDE pixels, without filter bytes."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    width = len(rows) // SIDE
    data = b"".join(b"\0" + rows[i * width : (i + 1) * width] for i in range(SIDE))
    head = struct.pack(">IIBBBBB", SIDE, SIDE, depth, colour, 0, 0, 0)
    middle = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + middle + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def tiff12() -> bytes:
    """A ramp of 12 bits a sample, packed, which Pillow reads but cannot write."""
    levels = (np.linspace(0, 4095, SIDE).astype(np.uint16)[None]).repeat(SIDE, 0).reshape(-1, 2).astype(np.uint32)
    packed = np.stack([levels[:, 0] >> 4, (levels[:, 0] & 15) << 4 | levels[:, 1] >> 8, levels[:, 1] & 255], 1)
    body = packed.astype(np.uint8).tobytes()
    return tiff(body, 12, 1)


def tiff(body: bytes, bits: int, photometric: int, sample: int | None = None) -> bytes:
    tags = {256: SIDE, 257: SIDE, 258: bits, 259: 1, 262: photometric, 273: 8, 277: 1, 278: SIDE, 279: len(body)}
    tags |= {} if sample is None else {339: sample}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def big_endian() -> Image.Image:
    return Image.frombytes("I;16B", (SIDE, SIDE), DEEP.astype(">u2").tobytes())


COLOURS = np.stack([DEEP, DEEP, DEEP], -1).astype(">u2").tobytes()
RAMPS = {
    "L": encoded(Image.fromarray(RAMP)),
    "I;16 PNG": encoded(Image.fromarray(DEEP)),
    "I;16 TIFF": encoded(Image.fromarray(DEEP), "TIFF"),
    "I;16B TIFF": encoded(big_endian(), "TIFF"),
    "I;16 JPEG 2000": encoded(Image.fromarray(DEEP), "JPEG2000"),
    "I PPM": encoded(Image.fromarray(DEEP), "PPM"),
    "12-bit TIFF": tiff12(),
    "16-bit TIFF, white is 0": tiff((65535 - DEEP).astype("<u2").tobytes(), 16, 0),
    "8-bit TIFF, white is 0": tiff((255 - RAMP).tobytes(), 8, 0),
    "16-bit RGB PNG": png_of(COLOURS, 16, 2),
    "16-bit LA PNG": png_of(np.stack([DEEP, np.full_like(DEEP, 65535)], -1).astype(">u2").tobytes(), 16, 4),
    **{mode: encoded(Image.fromarray(RAMP).convert("RGB").convert(mode), "TIFF") for mode in ("RGB", "RGBA", "CMYK", "YCbCr")},
    **{mode: encoded(Image.fromarray(RAMP).convert(mode), "TIFF") for mode in ("P", "LA")},
}


@pytest.mark.parametrize("name", RAMPS)
def test_a_ramp_is_the_same_in_every_mode(name: str) -> None:
    assert (decoded(RAMPS[name]) - GREY.int()).abs().max() <= 1


def test_two_levels() -> None:
    found = decoded(encoded(Image.fromarray(RAMP).point(lambda v: 255 * (v >= 100)).convert("1")))
    assert torch.equal(found, (GREY.int() >= 100) * 255)


def test_lab_colours() -> None:
    from PIL import ImageCms

    rgb = Image.merge("RGB", [Image.fromarray(RAMP), Image.fromarray(RAMP.T.copy()), Image.new("L", (SIDE, SIDE), 90)])
    lab = ImageCms.profileToProfile(rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
    assert lab is not None
    found = decoded(encoded(lab, "TIFF"))
    expected = torch.from_numpy(np.array(rgb)).permute(2, 0, 1).int()
    assert (found - expected).abs().float().mean() < 6 and found.max() > 200


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_without_a_white_are_refused(tmp_path: Path, mode: str) -> None:
    (tmp_path / "a.tif").write_bytes(encoded(Image.fromarray(RAMP).convert(mode), "TIFF"))
    with pytest.raises(DataError, match=r"a\.tif in .*do not say what white is: save it with 8 or 16 bits"):
        open_images(tmp_path, (SIDE, SIDE))
    (tmp_path / "image.png").write_bytes(RAMPS["L"])
    with pytest.raises(DataError, match=r"a\.tif is not a readable image .*what white is"):
        read_edit(tmp_path / "image.png", str(tmp_path / "a.tif"), (SIDE, SIDE))


@pytest.mark.parametrize(
    ("body", "bits", "sample", "message"),
    [
        (RAMP.tobytes(), 8, 2, "signed integers, which do not say what white is: save it with 8 or 16 bits"),
        (DEEP.astype("<i2").tobytes(), 16, 2, "signed integers"),
        ((RAMP / 255).astype("<f2").tobytes(), 16, 3, "floats of 16 bits, which is not read: save it with 8 or 16 bits"),
        (RAMP.tobytes() * 8, 64, 1, "unsigned integers of 64 bits"),
    ],
)
def test_numbers_of_a_tiff_that_are_not_read_are_named(body: bytes, bits: int, sample: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decoded(tiff(body, bits, 1, sample))
    assert torch.equal(decoded(tiff(RAMP.tobytes(), 8, 1, 1)), GREY.int())
    with pytest.raises(ValueError, match="its format is unknown, or it was cut short"):
        decoded(tiff(body, bits, 1, sample)[:9])


def test_a_transparent_colour_of_16_bits_is_that_colour_alone() -> None:
    """Of two colours that share their high bytes one is transparent; compared by these, both would be white."""
    pixels = np.full((SIDE, SIDE, 3), 0x0105, dtype=">u2")
    pixels[:, : SIDE // 2, 2] = 0x0101
    found = decoded(png_of(pixels.tobytes(), 16, 2, struct.pack(">HHH", 0x0105, 0x0105, 0x0101)))
    assert (found[..., : SIDE // 2] == 255).all() and (found[..., SIDE // 2 :] == 1).all()


HALF = np.where(np.arange(SIDE) < SIDE // 2, 255, 0).astype(np.uint8)[None].repeat(SIDE, 0)
CLEAR = {
    "RGBA": encoded(Image.merge("RGBA", [*Image.new("RGB", (SIDE, SIDE)).split(), Image.fromarray(255 - HALF)])),
    "LA": encoded(Image.merge("LA", [Image.new("L", (SIDE, SIDE)), Image.fromarray(255 - HALF)])),
    "L key": encoded(Image.fromarray(HALF // 3), transparency=85),
    "P key": encoded(Image.fromarray(HALF // 255).convert("P"), transparency=1),
    "I;16 key": encoded(Image.fromarray(HALF.astype(np.uint16) * 100), transparency=25500),
    "16-bit RGB key": png_of(
        np.stack([HALF.astype(np.uint16) * 100] * 3, -1).astype(">u2").tobytes(), 16, 2, struct.pack(">HHH", *[25500] * 3)
    ),
}
"""The left half is transparent, the right one black."""


@pytest.mark.parametrize("name", CLEAR)
def test_transparent_parts_are_white(name: str) -> None:
    found = decoded(CLEAR[name])
    assert (found[..., : SIDE // 2] == 255).all() and (found[..., SIDE // 2 :] == 0).all()


@pytest.mark.parametrize("name", RAMPS)
def test_a_mask_is_the_same_in_every_mode(tmp_path: Path, name: str) -> None:
    (tmp_path / "image.png").write_bytes(RAMPS["L"])
    (tmp_path / "mask").write_bytes(RAMPS[name])
    image, mask = read_edit(tmp_path / "image.png", str(tmp_path / "mask"), (SIDE, SIDE))
    assert torch.equal(mask[:, 1:], GREY[0, :, 1:] >= 128)
    assert (image - GREY / 255).abs().max() < 1e-6


# --- EXIF

PHOTO = np.random.default_rng(7).integers(0, 255, (6, 8, 3), dtype=np.uint8)


def exif(extra: bytes, order: str, *, first: bool) -> bytes:
    own = struct.pack(f"{order}HHIHH", 0x0112, 3, 1, 6, 0)
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries = extra + own if first else own + extra
    return b"Exif\0\0" + head + struct.pack(f"{order}IH", 8, 2) + entries + struct.pack(f"{order}I", 0)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("first", [False, True])
def test_only_the_orientation_matters(kind: str, first: bool) -> None:
    plain = Image.open(io.BytesIO(encoded(Image.fromarray(PHOTO), kind)))
    expected = torch.from_numpy(np.array(plain.transpose(Image.Transpose.ROTATE_270))).permute(2, 0, 1)
    for order in "<>":
        for tag in (0x0100, 0x0128, 0x8769, 0x927C):
            for type_ in range(14):
                for count, value in ((1, 0xFFFFFFFF), (2, 0xFFFFFFFF), (0, 0), (0xFFFFFFFF, 8), (1, 0)):
                    odd = exif(struct.pack(f"{order}HHII", tag, type_, count, value), order, first=first)
                    found = decode_image(encoded(Image.fromarray(PHOTO), kind, exif=odd), (8, 6))
                    assert torch.equal(found, expected), (order, tag, type_, count, value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_turned_upright(orientation: int) -> None:
    from PIL import ImageOps

    about = Image.Exif()
    about[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        data = encoded(Image.fromarray(PHOTO), kind, exif=about)
        expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(Image.fromarray(PHOTO), exif=about)))))
        found = decode_image(data, expected.shape[:2])
        assert torch.equal(found, torch.from_numpy(expected).permute(2, 0, 1)), kind


def test_a_damaged_text_for_the_orientation_is_ignored() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Raw profile type exif", "\nexif\n 4\nno hex digits")
    found = decode_image(encoded(Image.fromarray(PHOTO), pnginfo=info), (6, 8))
    assert torch.equal(found, torch.from_numpy(PHOTO).permute(2, 0, 1))


# --- files that are no images

NOT_IMAGES = {
    "is empty": b"",
    "is a web page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n",
    "format is unknown": b"nothing that is known",
}


@pytest.mark.parametrize("message", NOT_IMAGES)
def test_what_a_file_holds_instead_is_said(tmp_path: Path, message: str) -> None:
    (tmp_path / "a.png").write_bytes(NOT_IMAGES[message])
    for attempt in (lambda: open_images(tmp_path, (8, 8)), lambda: read_edit(tmp_path / "a.png", "0,0,1,1", (8, 8))):
        with pytest.raises(DataError, match=message) as caught:
            attempt()
        assert "a.png" in str(caught.value) and "BytesIO" not in str(caught.value)
