"""Pictures on disk: PNG files that say what they are, grids, and two sets of images side by side."""

from __future__ import annotations

import contextlib
import io
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import AdaNATError, OutputError
from ..storage import MIB, check_value, parse_document, read_bytes, write_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID_LIMIT = 64
"""Images of a grid, unless more are asked for: more cannot be told apart on a screen."""
MOST_BYTES = 256 * MIB
"""Bytes of a picture that is read."""
_CHUNK = "adanat"
_AGAIN = "Remove it and run the same command again."


def to_bytes(images: Tensor) -> Tensor:
    """Float images in [0, 1] -> uint8 on the CPU, rounded to the nearest level; uint8 images stay as they are."""
    if images.dtype == torch.uint8:
        return images.cpu()
    return (images.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def png_bytes(image: Tensor, facts: Mapping[str, Any] | None = None) -> bytes:
    """The PNG of one image; the arguments are those of :func:`write_png`."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = None
    if facts is not None:
        info = PngInfo()
        info.add_itxt(_CHUNK, json.dumps(facts))
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(image).permute(1, 2, 0).contiguous().numpy()).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def figure_png(figure: Figure) -> bytes:
    """A figure of matplotlib as a PNG file: the same bytes from the same numbers."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def write_png(path: Path, image: Tensor, facts: Mapping[str, Any] | None = None) -> None:
    """Write one image, aside and renamed, so that a file that is there is whole.

    Args:
        image: (3, H, W), float in [0, 1] or uint8.
        facts: JSON-able, kept inside the file (text chunk ``adanat``) and read back by :func:`read_facts`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_file(path, png_bytes(image, facts))


def read_facts(path: Path, schema: Any = dict[str, Any]) -> dict[str, Any] | None:
    """What :func:`write_png` kept in a file; None where it is damaged or was made by something else.

    Args:
        schema: of the facts, see ``documents.parse_document``.
    """
    try:
        with _opened(path) as image:
            text = getattr(image, "text", {}).get(_CHUNK)
        if not isinstance(text, str):
            return None
        facts: dict[str, Any] = parse_document(text, dict[str, Any], where=str(path), error=OutputError)
        check_value(facts, schema, where=str(path), error=OutputError)
    except OutputError:
        return None
    return facts


def read_png(path: Path, size: tuple[int, int] | None = None) -> Tensor:
    """(3, H, W) uint8.

    Args:
        size: (H, W) that it must have.

    Raises:
        OutputError: the file is gone or damaged, or of another size.
    """
    with _opened(path) as image:
        if size is not None and image.size != size[::-1]:
            found, wanted = (" x ".join(map(str, each)) for each in (image.size, size[::-1]))
            raise OutputError(f"{path} has {found} pixels, not {wanted}. {_AGAIN}")
        rgb = image.convert("RGB")
        pixels = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    return pixels.view(rgb.height, rgb.width, 3).permute(2, 0, 1)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A PNG of ours for as long as the block reads it; what Pillow finds wrong is an OutputError."""
    from PIL import Image

    data = read_bytes(path, error=OutputError, limit=MOST_BYTES, remedy=_AGAIN)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                yield image
    except AdaNATError:
        raise
    # A damaged file ends in errors of many kinds: of Pillow, zlib and struct.
    except Exception as error:
        raise OutputError(f"{path} is no readable PNG ({str(error)[:200]}). {_AGAIN}") from None


def grid(images: Tensor, *, columns: int | None = None, padding: int = 2) -> Tensor:
    """One picture of many, row by row, on white.

    Args:
        images: (B, 3, H, W), float in [0, 1] or uint8. columns: default: the squarest grid.

    Returns:
        (3, rows * (H + padding) + padding, columns * (W + padding) + padding) uint8.
    """
    pixels = to_bytes(images)
    count, _, height, width = pixels.shape
    across = columns or math.ceil(math.sqrt(count))
    down = math.ceil(count / across)
    sheet = torch.full(
        (3, down * (height + padding) + padding, across * (width + padding) + padding), 255, dtype=torch.uint8
    )
    for position, image in enumerate(pixels):
        top = padding + position // across * (height + padding)
        left = padding + position % across * (width + padding)
        sheet[:, top : top + height, left : left + width] = image
    return sheet


def side_by_side(sheets: Sequence[Tensor], titles: Sequence[str], *, gap: int = 16) -> Tensor:
    """Grids next to each other, each under its title.

    Args:
        sheets: (3, H_i, W_i) uint8 each. titles: one line each; longer ones than the sheet is wide are cut.

    Returns:
        (3, H, W) uint8 on white.
    """
    from PIL import Image, ImageDraw, ImageFont

    head = 22
    height = head + max(sheet.shape[1] for sheet in sheets)
    width = sum(sheet.shape[2] for sheet in sheets) + gap * (len(sheets) - 1)
    picture = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default()
    left = 0
    for sheet, title in zip(sheets, titles, strict=True):
        text = title
        while len(text) > 1 and pen.textlength(text, font=font) > sheet.shape[2]:
            text = text[:-1]
        pen.text((left + 2, 5), text, fill="black", font=font)
        picture.paste(Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()), (left, head))
        left += sheet.shape[2] + gap
    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return pixels.view(height, width, 3).permute(2, 0, 1)
