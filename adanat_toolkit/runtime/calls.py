"""Calls into plug-ins: what they raise and what they return, checked where they are called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, strided

from ..errors import AdaNATError, PluginError
from .micro_batch import is_out_of_memory

MEND = "Mend the plug-in."
LONGEST_NAME = 200
"""Characters of a figure's name."""


@contextmanager
def plugin_call(plugin: str, method: str) -> Iterator[None]:
    """Around a call of ``plugin`` (``"reward 'mine'"``). A ``yield`` of the caller's has no place inside.

    Our own errors and those of memory go on as they are: whoever chose how much is done at once can choose less.

    Raises:
        PluginError: whatever else was raised but an interruption from the keyboard, also what would end the program or a loop
            without a word.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except SystemExit as error:
        raise PluginError(
            f"{plugin} tried to end the program in {method} (SystemExit: {error}); a plug-in must raise an error instead."
        ) from error
    except BaseException as error:
        if isinstance(error, AdaNATError) or is_out_of_memory(error):
            raise
        said = f": {str(error)[:500]}" if str(error) else ""
        raise PluginError(
            f"{plugin} failed in {method}: {type(error).__name__}{said}. {MEND} ADANAT_DEBUG=1 shows where."
        ) from error


def require_made(plugin: str, made: object, kind: type) -> None:
    """
    Raises:
        PluginError: ``create`` of the plug-in gave something else.
    """
    if not isinstance(made, kind):
        raise PluginError(f"create of {plugin} must return a {kind.__name__}, not {_found(made)}. {MEND}")


def require_each(what: str, values: object, count: int) -> None:
    """
    Raises:
        PluginError: they are not ``count`` floating point numbers that can be read.
    """
    wanted = f"it must be a tensor of floating point numbers of shape ({count},), one an image"
    _require_readable(what, values, wanted)
    assert isinstance(values, Tensor)
    if values.shape != (count,) or not values.is_floating_point():
        raise PluginError(f"{what}: {wanted}, not {_found(values)}. {MEND}")


def require_rows(what: str, values: object, count: int) -> None:
    """
    Raises:
        PluginError: they are no tensor of ``count`` rows that can be read.
    """
    wanted = f"it must be a tensor whose first axis has {count} entries, one an image"
    _require_readable(what, values, wanted)
    assert isinstance(values, Tensor)
    if values.dim() == 0 or len(values) != count:
        raise PluginError(f"{what}: {wanted}, not {_found(values)}. {MEND}")


def _require_readable(what: str, values: object, wanted: str) -> None:
    if not isinstance(values, Tensor):
        raise PluginError(f"{what}: {wanted}, not {_found(values)}. {MEND}")
    if values.is_nested or values.layout is not strided:  # before the shape, which a nested tensor has not
        layout = "a nested tensor" if values.is_nested else f"one with {values.layout}"
        raise PluginError(f"{what}: {wanted}, not {layout}. {MEND}")
    if values.is_meta:
        raise PluginError(f"{what}: {wanted}, not one on the device {values.device}. {MEND}")


def require_tensors(what: str, found: object) -> None:
    """
    Raises:
        PluginError: it is no dictionary of names and tensors.
    """
    if not isinstance(found, Mapping):
        raise PluginError(f"{what} must be a dict of tensors, not {_found(found)}. {MEND}")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            entry = f"{key!r:.100}: {_found(value)}"
            raise PluginError(f"{what} must be a dict of names and tensors; it has {entry}. {MEND}")


def checked_figures(plugin: str, found: object) -> dict[str, float]:
    """What ``update`` returned, as plain numbers; NaN and infinity are left to whoever keeps them.

    Raises:
        PluginError: it is no dictionary of names and numbers.
    """
    what = f"what update of {plugin} returns"
    if not isinstance(found, Mapping):
        raise PluginError(f"{what} must be a dict of names and numbers ({{}} for none), not {_found(found)}. {MEND}")
    figures: dict[str, float] = {}
    for name, value in found.items():
        if not (isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and name.isprintable()):
            wanted = f"text of 1 to {LONGEST_NAME} characters that can be printed"
            raise PluginError(f"{what} must be named by {wanted}, not {name!r:.100}. {MEND}")
        if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # a tensor or NumPy's, of one number
            value = value.item()
        if not isinstance(value, int | float):
            raise PluginError(f"{what}: {name!r} must be one real number, not {_found(value)}. {MEND}")
        try:
            figures[name] = float(value)
        except OverflowError:
            raise PluginError(f"{what}: {name!r} is a whole number too large for a float. {MEND}") from None
    return figures


def _found(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__
