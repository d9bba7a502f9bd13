"""Sizes of a network, read off the tensors of a file that anybody may have made."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from adanat_toolkit.errors import WeightsError


class Shapes:
    """The shapes of a checkpoint's tensors; what is absent or has another form is a WeightsError.

    Args:
        state: named tensors, on any device, ``meta`` included. Their numbers are not read.
        what: begins each error, such as "x.pth is no VAR transformer". expected: ends it: the layout that was expected.
    """

    def __init__(self, state: Mapping[str, Tensor], what: str, expected: str) -> None:
        self._state, self._what, self._expected = state, what, expected

    def of(self, name: str, axes: int, *, least: int = 1) -> tuple[int, ...]:
        """The shape of a tensor.

        Args:
            axes: how many it must have, none of length 0. least: of the first one.

        Raises:
            WeightsError: there is no such tensor, or its shape is another one.
        """
        if name not in self._state:
            raise self.wrong(f"{name!r} is missing")
        shape = tuple(self._state[name].shape)
        if len(shape) != axes or 0 in shape or shape[0] < least:
            more = f", the first at least {least}" if least > 1 else ""
            raise self.wrong(f"{name!r} has the shape {list(shape)}; it must have {axes} axes, none empty{more}")
        return shape

    def blocks(self, prefix: str) -> int:
        """How many blocks there are below a prefix such as ``blocks.``, which are numbered from 0 on.

        Raises:
            WeightsError: no name begins so, or other numbers follow: one name must not make a network of a million blocks.
        """
        found = {name.removeprefix(prefix).split(".")[0] for name in self._state if name.startswith(prefix)}
        if not found:
            raise self.wrong(f"'{prefix}N' is missing")
        if found != {str(number) for number in range(len(found))}:
            raise self.wrong(f"the names that begin with {prefix!r} do not go on with the numbers 0 to {len(found) - 1}")
        return len(found)

    def check_heads(self, width: int, heads: int) -> None:
        """Raises WeightsError where attention of so many heads does not divide the width."""
        if width % heads:
            raise self.wrong(f"its width {width} is no multiple of {heads} attention heads")

    def wrong(self, problem: str) -> WeightsError:
        """The error of a problem, to be raised."""
        return WeightsError(f"{self._what}: {problem}. Expected {self._expected}.")


def encoder_sizes(shapes: Shapes, levels: str = "encoder.down.", block: str = "block") -> tuple[int, tuple[int, ...], int]:
    """Width, multipliers and residual blocks a level of a checkpoint, read from its encoder's shapes.

    Args:
        levels, block: how the names of levels begin, and what their residual blocks are called.

    Raises:
        WeightsError: the tensors are not those of this layout.
    """
    width = shapes.of("encoder.conv_in.weight", 4)[0]
    blocks = shapes.blocks(f"{levels}0.{block}.")
    channels = [shapes.of(f"{levels}{i}.{block}.0.conv2.weight", 4)[0] for i in range(shapes.blocks(levels))]
    return width, tuple(c // width for c in channels), blocks
