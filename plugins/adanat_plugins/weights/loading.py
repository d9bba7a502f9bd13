"""From named tensors to a module, with every mismatch named and next to no memory beyond the weights themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from adanat_toolkit.errors import WeightsError

M = TypeVar("M", bound=nn.Module)
Shapes = Mapping[str, Sequence[int]]
_LISTED = 12


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, source: str, unused: Shapes | None = None) -> None:
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
    problems = [f"missing   {name}, expected {list(expected[name])}" for name in expected if name not in state]
    problems += [
        f"extra     {name} {list(value.shape)}, expected no such tensor"
        for name, value in state.items()
        if name not in allowed
    ]
    problems += [
        f"misshapen {name} {list(value.shape)}, expected {list(allowed[name])}"
        for name, value in state.items()
        if name in allowed and tuple(value.shape) != tuple(allowed[name])
    ]
    if problems:
        more = f"\n  ... and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
        raise WeightsError(
            f"{source} does not fit {type(module).__name__}, which has {len(expected)} tensors: {len(problems)} differ."
            f"{lines}{more}\n"
            "Check that the file belongs to this variant, and that it was published for this architecture."
        )
    fitting = {name: state[name].to(value.dtype) for name, value in own.items()}
    module.load_state_dict(fitting, strict=True, assign=True)
    left = [name for name, value in [*module.named_parameters(), *module.named_buffers()] if value.is_meta]
    if left:
        what = f"{type(module).__name__} keeps {', '.join(left)} outside its state dict"
        raise WeightsError(f"{what}; make them persistent buffers or compute them in forward.")


def build(
    factory: Callable[[], M],
    state: Mapping[str, Tensor],
    *,
    source: str,
    unused: Shapes | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> M:
    """A frozen module in evaluation mode: built without memory, loaded, moved.

    Args:
        factory: makes the module; runs on the meta device.
        dtype: of the floating-point parameters; tensors of another one are converted one at a time.

    Raises:
        WeightsError: see :func:`load_into`.
    """
    with torch.device("meta"):
        module = factory()
    module = module.to(dtype).eval().requires_grad_(False)
    load_into(module, state, source=source, unused=unused)
    return module.to(device)
