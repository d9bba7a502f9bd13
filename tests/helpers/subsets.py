"""Some of a set's images."""

from __future__ import annotations

from torch import Tensor

from adanat_toolkit.images import FileImages, MemoryImages


def in_memory(source: FileImages, index: Tensor) -> MemoryImages:
    """The images ``index`` (n,) int64 of a set, with their labels and captions, as a set of its own."""
    assert source.labels is not None and source.captions is not None
    return MemoryImages(
        (source.images(index) * 255).round().byte(),
        labels=source.labels[index],
        captions=[source.captions[i] for i in index.tolist()],
    )
