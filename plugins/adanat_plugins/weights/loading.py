"""From named tensors to a module, with every mismatch named and next to no memory beyond the weights themselves."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from adanat_toolkit.errors import WeightsError

M = TypeVar("M", bound=nn.Module)
ShapesByName = Mapping[str, Sequence[int]]
_LISTED = 12


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, source: str, unused: ShapesByName | None = None) -> None:
    """Give ``module`` the tensors of ``state``; nothing is changed when they do not fit.

    The tensors themselves become the parameters (``assign``), so a module that was built on the meta device needs no
    memory of its own and weights from a memory-mapped file stay in it. Only a tensor of another dtype is copied.

    Args:
        module: on any device, ``meta`` included. Its dtypes are kept.
        source: what the tensors come from, for messages.
        unused: names and shapes that the published file may hold beside what the module needs (parameters that
            generation does not use). They may be absent; where present, their shapes are checked and they are left out.

    Raises:
        WeightsError: lists each missing, extra or misshapen tensor with what was expected.
    """
    own = module.state_dict()
    expected: dict[str, Sequence[int]] = {name: tuple(value.shape) for name, value in own.items()}
    allowed = {**(unused or {}), **expected}
    kinds = (
        [f"missing   {name}, expected {list(expected[name])}" for name in expected if name not in state],
        [f"extra     {name} {list(v.shape)}, expected no such tensor" for name, v in state.items() if name not in allowed],
        [
            f"misshapen {name} {list(value.shape)}, expected {list(allowed[name])}"
            for name, value in state.items()
            if name in allowed and tuple(value.shape) != tuple(allowed[name])
        ],
    )
    if any(kinds):
        lines = [line for problems in kinds for line in _shortened(problems)]
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}, which has {len(expected)} tensors: "
            f"{sum(map(len, kinds))} differ.\n  " + "\n  ".join(lines) + "\n"
            "Check that the file belongs to this variant, and that it was published for this architecture."
        )
    release = _Release()
    fitting = {name: release.convert(state[name], value.dtype) for name, value in own.items()}
    module.load_state_dict(fitting, strict=True, assign=True)
    left = [name for name, value in [*module.named_parameters(), *module.named_buffers()] if value.is_meta]
    if left:
        what = f"{type(module).__name__} keeps {', '.join(left)} outside its state dict"
        raise WeightsError(f"{what}; make them persistent buffers or compute them in forward.")


def _shortened(problems: list[str]) -> list[str]:
    if len(problems) <= _LISTED:
        return problems
    return [*problems[:_LISTED], f"... and {len(problems) - _LISTED} more {problems[0].split()[0]}"]


def load_timm_vit(model: Any, state: Mapping[str, Tensor], *, source: str) -> None:
    """:func:`load_into` for a vision transformer of timm's, ``meta`` included, without its head and its mask.

    Position embeddings of another image size are resampled (timm's ``resample_abs_pos_embed``).

    Raises:
        WeightsError: the tensors do not fit.
    """
    from timm.layers import resample_abs_pos_embed

    state = {name: value for name, value in state.items() if not name.startswith(("head.", "mask_token"))}
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens  # tokens that have positions of their own
    positions = state.get("pos_embed")
    if positions is not None and positions.ndim == 3 and positions.shape[1] != model.pos_embed.shape[1]:
        # What is no square of positions stays as it is, and is named with all else that does not fit.
        with suppress(ArithmeticError, RuntimeError, ValueError):
            size = list(model.patch_embed.grid_size)
            state["pos_embed"] = resample_abs_pos_embed(positions.float(), new_size=size, num_prefix_tokens=prefix)
    load_into(model, state, source=source)


def build(
    factory: Callable[[], M],
    state: Mapping[str, Tensor],
    *,
    source: str,
    unused: ShapesByName | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> M:
    """A frozen module in evaluation mode: built without memory, loaded, moved.

    Args:
        factory: makes the module; runs on the meta device.
        dtype: of the floating-point parameters; tensors of another one are converted one at a time.

    Raises:
        WeightsError: see :func:`load_into`; or the factory refuses the sizes.
    """
    try:
        with without_memory():
            module = factory()
    except (ArithmeticError, RuntimeError, ValueError) as error:  # torch's layers do not take every size
        raise WeightsError(
            f"{source}: no such network can be made from the sizes of its tensors ({error}). Check that the file belongs to "
            "this variant, and that it was published for this architecture."
        ) from None
    module = module.to(dtype).eval().requires_grad_(False)
    load_into(module, state, source=source, unused=unused)
    return place(module, device, dtype)


@contextmanager
def without_memory() -> Iterator[None]:
    """Inside, modules are made on the meta device, whose tensors hold no numbers; first weights are not drawn."""
    with torch.device("meta"), _NothingDrawn():
        yield


class _NothingDrawn(TorchFunctionMode):
    """Leaves out what would draw normal numbers into a tensor without memory, as embeddings do when they are made.

    There is nothing to fill, and the first such call of a process takes two seconds: torch imports its compiler for it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (nn.init.normal_, Tensor.normal_):
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def place(module: M, device: torch.device | str, dtype: torch.dtype) -> M:
    """``module.to(device, dtype)`` that lets go of a memory-mapped file as it converts.

    Floating-point tensors are converted one at a time, so that a file and its converted copy are never both in memory.
    """
    release = _Release()
    with torch.no_grad():
        for owner in module.modules():
            for tensors in (owner._parameters, owner._buffers):
                for value in tensors.values():
                    if value is not None:
                        target = dtype if value.is_floating_point() else value.dtype
                        value.data = release.convert(value.data, target, torch.device(device))
    return module


class _Release:
    """Converts tensors and tells Linux that the memory-mapped pages they came from are not needed any more.

    Without it a file and its converted copy both count as resident: loading 374 MB of float32 as bfloat16 takes 238 MB at its
    peak with it, and 565 MB without. It is a hint: the pages are read again from the
    file if anything still asks for them. Elsewhere than on Linux it does nothing.
    """

    _MADV_PAGEOUT = 21

    def __init__(self) -> None:
        self._page = mmap.PAGESIZE
        self._mapped: list[tuple[int, int]] = []
        if sys.platform == "linux":
            for line in Path("/proc/self/maps").read_text().splitlines():
                span, _, _, _, inode = line.split()[:5]
                if inode != "0":
                    first, last = (int(part, 16) for part in span.split("-"))
                    self._mapped.append((first, last))

    def convert(self, tensor: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
        result = tensor.to(device=device or tensor.device, dtype=dtype)
        if result is not tensor and tensor.device.type == "cpu" and tensor.nbytes:
            self._page_out(tensor.data_ptr(), tensor.nbytes)
        return result

    def _page_out(self, start: int, size: int) -> None:
        if not any(first <= start and start + size <= last for first, last in self._mapped):
            return  # ordinary memory: it is freed with its tensor
        first = -(-start // self._page) * self._page
        last = (start + size) // self._page * self._page
        if last > first:
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), self._MADV_PAGEOUT)
