"""The embedded real images: 10,934 emoji of three styles with classes and captions (sources, licences: NOTICE.md)."""

from __future__ import annotations

import gzip
import hashlib
import json
from functools import cache
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor

from adanat_toolkit.core import CONTEXT, Noise
from adanat_toolkit.images import FileImages, ImageFiles, draw_positions

SIZE = (64, 64)
STYLES = ("noto", "twemoji", "fluent-3d")


@cache
def metadata() -> tuple[dict[str, Any], ...]:
    """One row an image: file, style, category, subcategory, label, name, skin_tone, unicode, caption."""
    raw = gzip.decompress((files(__package__) / "metadata.jsonl.gz").read_bytes()).decode()
    return tuple(json.loads(line) for line in raw.splitlines())


@cache
def class_names() -> tuple[str, ...]:
    """The 98 classes, "category / subcategory"."""
    return tuple(json.loads((files(__package__) / "classes.json").read_text(encoding="utf-8")))


@cache
def labels() -> Tensor:
    """(10934,) int64 class ids 0..97."""
    return torch.tensor([row["label"] for row in metadata()])


@cache
def style_labels() -> Tensor:
    """(10934,) int64 positions in :data:`STYLES`."""
    return torch.tensor([STYLES.index(row["style"]) for row in metadata()])


@cache
def captions() -> tuple[str, ...]:
    """10,934 captions, such as "3d emoji of waving hand sign, dark skin tone"."""
    return tuple(row["caption"] for row in metadata())


@cache
def label_frequencies() -> Tensor:
    """(98,) float64 shares of the classes."""
    counts = torch.bincount(labels(), minlength=len(class_names())).double()
    return counts / counts.sum()


def sample_labels(noise: Noise) -> Tensor:
    """(B,) int64 class ids, one a seed, in proportion to :func:`label_frequencies`."""
    return draw_positions(noise.uniform(CONTEXT, 0, (1,))[:, 0], label_frequencies())


def sample_captions(noise: Noise) -> tuple[str, ...]:
    """One caption a seed, every image's caption being equally likely."""
    count = len(captions())
    positions = (noise.uniform(CONTEXT, 0, (1,))[:, 0].double() * count).long()
    return tuple(captions()[i] for i in positions.tolist())


@cache
def fingerprint() -> str:
    """Hash of the embedded files (of the files, not of the pixels: these may differ in a bit between WebP decoders)."""
    digest = hashlib.sha256()
    for name in ("images.zip", "metadata.jsonl.gz"):
        digest.update((files(__package__) / name).read_bytes())
    return digest.hexdigest()[:16]


@cache
def codes() -> Tensor:
    """(10934, 64) int16 codes of all images, as the embedded tokenizer gives them in float32 (recipes/encode_emoji64.py)."""
    from safetensors.torch import load_file

    with as_file(files(__package__) / "codes.safetensors") as path:
        return load_file(path)["codes"]


@cache
def emoji_images() -> FileImages:
    """All images with labels and captions, each decoded when it is first read (0.4 ms) and kept (134 MB uint8 in the end).

    Class contexts by default; ``emoji_images().conditioned("text", generator.encode_prompts)`` gives prompts.
    """
    with as_file(files(__package__) / "images.zip") as path:
        archive = ImageFiles.open(path)
    return FileImages(
        archive,
        [row["file"] for row in metadata()],
        SIZE,
        labels=labels(),
        captions=captions(),
        class_names=class_names(),
        fingerprint=fingerprint(),
        keep=True,
    )
