"""Where the results of a comparison's cells are kept: a file each, which several processes may share, and other reports."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..errors import ConfigError, DataError, InUseError, OutputError, PluginError
from ..images import write_png
from ..storage import MIB, held, prepare_folder, read_bytes, read_sealed, sealed, write_file, write_json
from .grid import cell_key
from .result import HAND_MADE, Cell, Result
from .stored import StoredCell, StoredReport

log = logging.getLogger("adanat_toolkit")
POLL_SECONDS = 2.0
MOST_SHEET = 64 * MIB
"""Bytes of a picture that is taken over."""


class CellFiles:
    """``cells/NAME.json`` with the result and the key of what it depends on, and ``NAME.png`` with its first images.

    Args:
        key: of a cell, see ``compare_grid.cell_key``. reuse: reports whose results of the same key count as finished; from
            the ``--out`` folder of a comparison the pictures are taken over too. lacks: whether a result of before was not
            asked for something that the grid wants; it is made again then.

    Raises:
        DataError: a report that is not there, or is none.
    """

    def __init__(
        self,
        folder: Path,
        key: Callable[[Cell], str],
        *,
        reuse: Sequence[Path] = (),
        lacks: Callable[[Cell, Result], bool] = lambda cell, result: False,
    ) -> None:
        self.folder, self.key, self.lacks = folder, key, lacks
        self._told: set[Cell] = set()
        self._reusable = {
            key: (result, path / "cells" / f"{result.cell.name}.png")
            for path in reuse
            for key, result in read_report(path).items()
        }

    def file(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.json"

    def sheet(self, cell: Cell) -> Path:
        return self.folder / f"{cell.name}.png"

    def load(self, cell: Cell) -> Result | None:
        """The result of a cell that was finished with these settings, here or in a report that may be reused."""
        own = self._own(cell)
        return own if own is not None else self._reused(cell)[0]

    def _reused(self, cell: Cell) -> tuple[Result | None, Path | None]:
        """The result of another report, and where its picture may lie."""
        result, sheet = self._reusable.get(self.key(cell), (None, None))
        return (None, None) if result is None or self.lacks(cell, result) else (result, sheet)

    def _own(self, cell: Cell) -> Result | None:
        """The result that is kept here. A damaged or changed file counts as not finished, which is said once."""
        if not os.path.lexists(self.file(cell)):
            return None
        try:
            remedy = "The cell counts as not finished."
            stored: StoredCell = read_sealed(self.file(cell), StoredCell, error=DataError, remedy=remedy)
        except DataError as error:
            if cell not in self._told:
                self._told.add(cell)
                log.warning("%s", error)
            return None
        result = replace(stored.result.result(), cell=cell)
        return result if stored.key == self.key(cell) and not self.lacks(cell, result) else None

    def save(self, cell: Cell, result: Result) -> None:
        write_json(self.file(cell), sealed({"key": self.key(cell), "result": result.to_json()}))

    def complete(
        self,
        cells: Sequence[Cell],
        make: Callable[[Cell], tuple[Result, Tensor | None]],
        *,
        on_wait: Callable[[int, int], None],
    ) -> list[Result]:
        """The results of all cells, in their order; ``make`` makes those that are not finished.

        Cells that another process is at are left to it and waited for in the end. Results with an error are not kept.

        Args:
            make: gives a cell's result and the picture of its first images, (3, H, W) uint8, where there are any.
            on_wait: called with the number of results there are and of all, whenever only others' cells are left.
        """
        prepare_folder(self.folder)
        found: dict[Cell, Result] = {}
        missing = list(cells)
        while missing:
            for cell in missing:
                with contextlib.suppress(InUseError):
                    found[cell] = self._take(cell, make)
            left = [cell for cell in missing if cell not in found]
            if len(left) == len(missing):
                on_wait(len(cells) - len(left), len(cells))
                time.sleep(POLL_SECONDS)
            missing = left
        return [found[cell] for cell in cells]

    def _take(self, cell: Cell, make: Callable[[Cell], tuple[Result, Tensor | None]]) -> Result:
        """The cell's result, made now where there is none.

        Raises:
            InUseError: another process is making it.
        """
        result = self._own(cell)
        if result is not None:
            return result
        lock = self.folder / f"{cell.name}.lock"
        with held(lock):
            result = self._own(cell)  # another process may have finished it meanwhile
            if result is None:
                picture = None
                result = self._take_over(cell)
                if result is None:
                    result, picture = make(cell)
                if result.error is None:
                    self.save(cell, result)
                if picture is not None:
                    self._draw(cell, picture)
            lock.unlink(missing_ok=True)
        return result

    def _draw(self, cell: Cell, picture: Tensor) -> None:
        """After the result is kept: a full disk must not lose what took long to make."""
        try:
            write_png(self.sheet(cell), picture)
        except OutputError as error:
            raise OutputError(
                f"{error} The figures of {cell.name} are kept; remove {self.file(cell)} to have its picture too."
            ) from None

    def _take_over(self, cell: Cell) -> Result | None:
        """The result of another report, with its picture; a picture of other settings does not stay beside it."""
        result, sheet = self._reused(cell)
        if result is None or sheet is None:
            return None
        if sheet.is_file():  # read before anything is removed: the report may be this folder's own
            remedy = "Remove it; the report is reused without."
            write_file(self.sheet(cell), read_bytes(sheet, error=DataError, limit=MOST_SHEET, remedy=remedy))
        else:
            self.sheet(cell).unlink(missing_ok=True)
        return replace(result, cell=cell)


def read_report(path: Path) -> dict[str, Result]:
    """The finished cells of a ``compare.json`` by their keys.

    Raises:
        DataError: it is not there, is none, or was changed since it was written.
    """
    file = path / "compare.json" if path.is_dir() else path
    remedy = "Give the --report (or --out) folder of an adanat compare that wrote its table."
    try:
        stored: StoredReport = read_sealed(file, StoredReport, error=DataError, remedy=remedy)
    except DataError as error:
        raise DataError(f"cannot reuse {file}: {error}") from None
    facts = stored.facts
    # Reports before this fact was stored have it in their hand-made rows.
    by_hand = [cell.schedule for cell in stored.cells if cell.cell.policy == HAND_MADE and cell.schedule]
    base = facts.default_schedule or (by_hand[0] if by_hand else None)
    out: dict[str, Result] = {}
    for value in stored.cells:
        result = value.result()
        if result.evaluation is None:
            continue
        try:
            key = cell_key(
                facts.config,
                result.cell,
                generator=facts.generator_fingerprint,
                protocol=facts.protocol,
                data=facts.data,
                dtype=facts.dtype,
                base_schedule=base,
                schedule=None if result.cell.search else result.schedule,
                sources=facts.sources,
            )
        except (ConfigError, PluginError) as error:
            raise DataError(f"cannot reuse {file}: {error} {remedy}") from None
        out[key] = result if result.device else replace(result, device=facts.device)
    return out
