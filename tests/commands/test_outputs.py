"""Files that cannot be written are refused before the work, not after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adanat_toolkit.commands.distill import distill_to_file
from adanat_toolkit.commands.feature_statistics import write_statistics
from adanat_toolkit.commands.prepare_data import encode_to_file
from adanat_toolkit.errors import OutputError
from adanat_toolkit.interfaces import Context

from ..helpers.tiny import TinyGenerator
from ..helpers.tiny_plugins import Pixels


class Untouched:
    """Real images that nobody may look at."""

    fingerprint = "none"

    def __len__(self) -> int:
        return 64

    def images(self, index: Any) -> Any:
        raise AssertionError("work was begun")

    def contexts(self, index: Any) -> Context:
        raise AssertionError("work was begun")


def distilled(file: Path) -> Any:
    generator = TinyGenerator()
    generator.sample_contexts = Untouched().contexts  # type: ignore[method-assign, assignment]
    return distill_to_file(generator, file, real=Untouched())


@pytest.mark.parametrize(
    "write",
    [
        distilled,
        lambda file: encode_to_file(TinyGenerator(), Untouched(), file),
        lambda file: write_statistics(Pixels(), Untouched(), file, generator=TinyGenerator()),
    ],
)
def test_a_file_that_cannot_be_written(write: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = tmp_path / "a.safetensors"
    folder.mkdir()
    with pytest.raises(OutputError, match=r"a.safetensors is a folder; give --out the name of a file"):
        write(folder)
    with pytest.raises(OutputError, match="File name too long"):
        write(tmp_path / f"{'a' * 240}.safetensors")
    with pytest.raises(OutputError, match="File exists"):
        (tmp_path / "b").touch()
        write(tmp_path / "b" / "c.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b"] and not list(folder.iterdir())


def test_the_picture_of_tokens_is_a_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match=r"a.png is a folder"):
        encode_to_file(TinyGenerator(), Untouched(), tmp_path / "a.safetensors")
