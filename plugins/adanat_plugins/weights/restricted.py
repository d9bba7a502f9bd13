"""Reading pickles without running what is in them.

A pickle is a program: it may import any function and call it. ``torch.load(weights_only=True)`` refuses every file that
names something it does not know, and old research checkpoints do (an ``argparse.Namespace`` of the command line is the
usual one). :class:`RestrictedUnpickler` imports a handful of names that rebuild tensors and plain containers; any other
name becomes an inert class that records what it was given and does nothing, so such a file still yields its tensors.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import torch
import torch._utils

_TENSOR_NAMES: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): torch._utils._rebuild_parameter_with_state,
    ("torch", "Tensor"): torch.Tensor,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("__builtin__", "set"): set,
    ("__builtin__", "frozenset"): frozenset,
}


class Inert:
    """Stands for an object that was not rebuilt. It accepts whatever unpickling does to an object and runs nothing.

    Attributes:
        origin: dotted name of the class or function in the file.
        state: what the file sets on the object: the attributes of an ``argparse.Namespace``, for instance.
    """

    origin = "unknown"

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        self = object.__new__(cls)
        self.state = {}
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {"": state}

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<not rebuilt: {self.origin}>"


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler that imports nothing beyond tensors and plain containers; see the module's docstring."""

    def find_class(self, module: str, name: str) -> Any:
        known = _TENSOR_NAMES.get((module, name))
        if known is not None:
            return known
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        return type(name, (Inert,), {"origin": f"{module}.{name}"})


def _load(file: Any, **kwargs: Any) -> Any:
    return RestrictedUnpickler(file, **kwargs).load()


RESTRICTED_PICKLE = SimpleNamespace(__name__="restricted_pickle", Unpickler=RestrictedUnpickler, load=_load)
"""What ``torch.load(pickle_module=...)`` expects of a pickle module."""
