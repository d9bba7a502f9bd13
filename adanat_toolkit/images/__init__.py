"""Real images and the files of generated ones."""

from .augment import augment
from .files import ImageFiles, Progress, centred_crop, decode_image, decode_many
from .pictures import GRID_LIMIT, grid, read_facts, read_png, side_by_side, to_bytes, write_png
from .real_images import MemoryImages, draw_contexts, draw_positions, images_for

__all__ = [
    "GRID_LIMIT",
    "ImageFiles",
    "MemoryImages",
    "Progress",
    "augment",
    "centred_crop",
    "decode_image",
    "decode_many",
    "draw_contexts",
    "draw_positions",
    "grid",
    "images_for",
    "read_facts",
    "read_png",
    "side_by_side",
    "to_bytes",
    "write_png",
]
