"""Where the results of a comparison's cells are kept: a file each, which several processes may share, and other reports."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError, DataError, InUseError, PluginError
from ..storage import held, prepare_folder, write_json
from .grid import SEARCH, cell_key, configure
from .result import HAND_MADE, Cell, Result

POLL_SECONDS = 2.0


class CellFiles:
    """``cells/NAME.json`` with the result and the key of what it depends on, and ``NAME.png`` with its first images.

    Args:
        key: of a cell, see ``compare_grid.cell_key``. reuse: reports whose results of the same key count as finished; from
            the ``--out`` folder of a comparison the pictures are taken over too.

    Raises:
        DataError: a report that is not there, or is none.
    """

    def __init__(self, folder: Path, key: Callable[[Cell], str], *, reuse: Sequence[Path] = ()) -> None:
        self.folder, self.key = folder, key
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
        return own if own is not None else self._reusable.get(self.key(cell), (None, None))[0]

    def _own(self, cell: Cell) -> Result | None:
        """The result that is kept here. A damaged file counts as not finished."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            stored = json.loads(self.file(cell).read_text())
            if stored["key"] == self.key(cell):
                return Result.from_json(stored["result"])
        return None

    def save(self, cell: Cell, result: Result) -> None:
        write_json(self.file(cell), {"key": self.key(cell), "result": result.to_json()})

    def complete(
        self, cells: Sequence[Cell], make: Callable[[Cell], Result], *, on_wait: Callable[[int, int], None]
    ) -> list[Result]:
        """The results of all cells, in their order; ``make`` makes those that are not finished.

        Cells that another process is at are left to it and waited for in the end. Results with an error are not kept.

        Args:
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

    def _take(self, cell: Cell, make: Callable[[Cell], Result]) -> Result:
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
                result = self._take_over(cell) or make(cell)
                if result.error is None:
                    self.save(cell, result)
            lock.unlink(missing_ok=True)
        return result

    def _take_over(self, cell: Cell) -> Result | None:
        """The result of another report, with its picture; a picture of other settings does not stay beside it."""
        result, sheet = self._reusable.get(self.key(cell), (None, None))
        if result is not None and sheet is not None:
            self.sheet(cell).unlink(missing_ok=True)
            if sheet.is_file():
                shutil.copyfile(sheet, self.sheet(cell))
        return result


def read_report(path: Path) -> dict[str, Result]:
    """The finished cells of a ``compare.json`` by their keys.

    Raises:
        DataError: it is not there, or is none.
    """
    file = path / "compare.json" if path.is_dir() else path
    try:
        stored = json.loads(file.read_text())
        facts = stored["facts"]
        config = configure(**facts["config"])
        out = {}
        # Reports before this fact was stored have it in their hand-made rows.
        by_hand = [c["schedule"] for c in stored["cells"] if c["cell"]["policy"] == HAND_MADE and c["schedule"]]
        base = facts.get("default_schedule", by_hand[0] if by_hand else None)
        for value in stored["cells"]:
            result = Result.from_json({"training": [], "device": facts["device"], **value})
            if result.evaluation is None:
                continue
            key = cell_key(
                config,
                result.cell,
                generator=facts["generator_fingerprint"],
                protocol=facts["protocol"],
                data=facts["data"],
                dtype=facts["dtype"],
                base_schedule=base,
                schedule=None if result.cell.policy == SEARCH else result.schedule,
            )
            out[key] = result
        return out
    except OSError as error:
        reason = error.strerror or str(error)
    except (ValueError, KeyError, TypeError, ConfigError, PluginError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise DataError(
        f"cannot reuse {file}: {reason}. Give the --report (or --out) folder of an adanat compare that wrote its table."
    ) from None
