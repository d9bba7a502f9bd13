"""Masked editing: the tokens of a real image are kept outside a mask, and a policy fills in the rest.

The tokenizer turns the image into codes, the mask's pixels into cells (a cell may change where any of its pixels is
masked), and the rollout starts from there: the masking ratio is then a share of the cells to fill. What is kept is
codes, so the tokenizer's reconstruction of the image stands outside the mask, or, on request, the image's own pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..core import Context, Generator
from ..decoding import SamplingPolicy, TokenGenerator
from ..errors import ConfigError, DataError
from ..images import LARGEST, centred_crop, fitted, flattened, open_upright
from ..runtime import float32_by_default
from ..storage import read_bytes
from .rollout import Start
from .sample import Samples, sample

MASKED = 128
"""Grey level from which on a mask's pixel is to be filled in."""


@dataclass(frozen=True)
class Edit:
    """What to edit.

    Attributes:
        image: (3, H, W) float32 in [0, 1] at the generator's size. mask: (H, W) bool, the pixels to fill in.
        keep_pixels: put the image's own pixels outside the mask in place of the tokenizer's.
    """

    image: Tensor
    mask: Tensor
    keep_pixels: bool = False

    def facts(self) -> dict[str, Any]:
        """JSON-able: what tells two edits apart."""
        digest = hashlib.sha256(self.image.float().cpu().numpy().tobytes())
        digest.update(self.mask.cpu().numpy().tobytes())
        return {
            "content": digest.hexdigest()[:16],
            "masked_pixels": int(self.mask.sum()),
            "keep_pixels": self.keep_pixels,
        }


def read_edit(image: Path, mask: str, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """An image file and its mask, brought to a generator's size the same way.

    Args:
        image: any format that Pillow reads; preprocessed as in ``image_files``.
        mask: the path of an image of the same size in pixels, white where the image is to be filled in; or a box
            ``LEFT,TOP,RIGHT,BOTTOM`` in the image's pixels, of which the right and bottom edges are outside.
        size: (H, W) of the generator.

    Returns:
        (3, H, W) float32 in [0, 1], and (H, W) bool: pixels of which any part is masked.

    Raises:
        DataError: a file cannot be read, the mask has another size or is empty. ConfigError: a malformed box.
    """
    opened = _open(image)
    pixels = fitted(opened, size).float() / 255
    wide, high = opened.size
    full = _box(mask, wide, high) if _is_box(mask) else _mask_file(Path(mask), image, wide, high)
    left, top, right, bottom = centred_crop((wide, high), (size[1], size[0]))
    cropped = full[top:bottom, left:right].float()
    small = F.adaptive_max_pool2d(cropped[None, None], size)[0, 0] > 0
    if not small.any():
        raise DataError(
            f"mask {mask!r} is empty: none of its pixels is to be filled in. White pixels of a mask file, or those in "
            f"the box, are (the image is first cropped to {right - left} x {bottom - top} pixels at its centre)."
        )
    return pixels, small


def editable_cells(mask: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cells that a mask touches: (H, W) bool pixels -> (N,) bool of an (h, w) grid, row-major."""
    return (F.adaptive_max_pool2d(mask[None, None].float(), grid) > 0).flatten()


@float32_by_default()
def start_of_edit(generator: Generator, image: Tensor, mask: Tensor) -> Start:
    """The codes of an image, unknown where the mask is: a start of one sample.

    Args:
        image: (3, H, W) float32 in [0, 1] at the generator's size. mask: (H, W) bool.

    Raises:
        ConfigError: the generator has no tokens, or its tokenizer no encoder. DataError: another size, an empty mask.
    """
    if not isinstance(generator, TokenGenerator):
        raise ConfigError(f"{generator.name} has no tokens, so masked editing does not apply; use another generator.")
    if tuple(image.shape) != (3, *generator.image_size) or tuple(mask.shape) != generator.image_size:
        raise DataError(
            f"the image is {list(image.shape)} and the mask {list(mask.shape)}; {generator.name} needs "
            f"{[3, *generator.image_size]} and {list(generator.image_size)}."
        )
    editable = editable_cells(mask, generator.grid).to(generator.device)
    if not editable.any():
        raise DataError("the mask is empty, so there is nothing to fill in; mark at least one pixel.")
    tokens = generator.encode_images(image[None].to(generator.device))
    return Start(tokens.masked_fill(editable, generator.mask_id), editable[None])


def edit(
    generator: Generator,
    policy: SamplingPolicy,
    what: Edit,
    seeds: Tensor,
    context: Context | None = None,
    *,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
    one: Start | None = None,
) -> Iterator[Samples]:
    """Variants of an image, one a seed, each filled in by the policy.

    Args:
        one: what :func:`start_of_edit` gives for ``what``, where it is there already. The others are those of ``sample``.

    Raises:
        ConfigError, DataError: see :func:`start_of_edit`; when the first variant is asked for.
    """
    one = start_of_edit(generator, what.image, what.mask) if one is None else one
    start = Start(one.tokens.expand(len(seeds), -1), one.editable.expand(len(seeds), -1))
    for part in sample(generator, policy, seeds, context, batch=batch, on_batch=on_batch, start_from=start):
        if what.keep_pixels:
            own, inside = what.image.to(part.images.device), what.mask.to(part.images.device)
            part = replace(part, images=torch.where(inside, part.images, own))
        yield part


# --- files ------------------------------------------------------------------------------------------------------------


def _open(file: Path) -> Image.Image:
    data = read_bytes(file, error=DataError, limit=LARGEST, remedy="Give a PNG, JPEG or WebP file.")
    try:
        return open_upright(data)
    except ValueError as error:
        raise DataError(f"{file} is not a readable image ({error}); give a PNG, JPEG or WebP file.") from None


def _mask_file(file: Path, image: Path, wide: int, high: int) -> Tensor:
    opened = _open(file)
    if opened.size != (wide, high):
        raise DataError(
            f"mask {file} has {opened.width} x {opened.height} pixels and {image} has {wide} x {high}; make the mask "
            "as large as the image."
        )
    grey = flattened(opened, "black").convert("L")  # transparent pixels are kept
    return torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).view(high, wide) >= MASKED


def _is_box(mask: str) -> bool:
    return mask.count(",") == 3 and not os.path.exists(mask)


def _box(text: str, wide: int, high: int) -> Tensor:
    try:
        left, top, right, bottom = (int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"mask box {text!r} is not LEFT,TOP,RIGHT,BOTTOM in whole pixels, such as 16,16,48,48."
        ) from None
    if not (0 <= left < right <= wide and 0 <= top < bottom <= high):
        raise ConfigError(
            f"mask box {text!r} is empty or leaves the image of {wide} x {high} pixels; it must satisfy "
            f"0 <= LEFT < RIGHT <= {wide} and 0 <= TOP < BOTTOM <= {high}."
        )
    mask = torch.zeros(high, wide, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask
