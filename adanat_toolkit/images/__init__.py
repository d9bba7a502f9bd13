"""Real images and the files of generated ones."""

from .augment import augment
from .files import LARGEST, ImageFiles, Progress, centred_crop, decode_many, fitted, flattened, open_upright
from .pictures import (
    GRID_LIMIT,
    figure_png,
    grid,
    png_bytes,
    read_facts,
    read_png,
    side_by_side,
    to_bytes,
    write_png,
)
from .real_images import (
    ClassCounts,
    FileImages,
    MemoryImages,
    OwnContexts,
    class_positions,
    draw_contexts,
    draw_positions,
    images_for,
)

__all__ = [
    "GRID_LIMIT",
    "LARGEST",
    "ClassCounts",
    "FileImages",
    "ImageFiles",
    "MemoryImages",
    "OwnContexts",
    "Progress",
    "augment",
    "centred_crop",
    "class_positions",
    "decode_many",
    "draw_contexts",
    "draw_positions",
    "figure_png",
    "fitted",
    "flattened",
    "grid",
    "images_for",
    "open_upright",
    "png_bytes",
    "read_facts",
    "read_png",
    "side_by_side",
    "to_bytes",
    "write_png",
]
