"""Reading pickles without running what is in them, and without letting them take the machine.

A pickle is a program: it may import any function and call it. :class:`RestrictedUnpickler` imports nothing. A handful of
names stand for functions of this module that rebuild tensors and plain containers; any other name becomes an inert class
that records what it was given and does nothing, so that an old research checkpoint (with an ``argparse.Namespace`` of its
command line, for instance) still yields its tensors. No attribute of anything is set, so no function of torch can be changed.

What is bounded: the number of instructions, the bytes of the program, storages by the size of the file, and the keys of
dicts and members of sets (the hash of nested tuples may take for ever). :func:`checked` bounds what came out.
"""

from __future__ import annotations

import math
import pickle
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
import torch._utils
from torch import Tensor

MAX_INSTRUCTIONS = 4_000_000
"""A tensor takes about 40."""

MAX_PROGRAM = 128 * 2**20
"""Bytes of instructions, names and numbers; tensors are stored apart from them."""

MAX_NAMES = 4096
"""Distinct names of classes and functions that are not rebuilt."""

MAX_SHARED = 16 * 2**20
"""Bytes that a tensor may stand for beyond its storage (one number seen as many)."""

MOST_VIEWS = 4
"""How often larger than their storages all tensors together may be: weights that are tied are stored once."""

MAX_DEPTH = 64
MAX_NODES = 2_000_000
"""Containers and leaves of a tree, what is shared counted wherever it is seen: what a walk meets."""


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


class _Rebuilds:
    """A function of this module that a pickle may call; nothing can be set on it."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse("it sets an attribute of a function")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


def _refuse(why: str) -> NoReturn:
    raise pickle.UnpicklingError(f"{why}, which no file of weights does")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """A view of a storage; hooks, gradients and metadata are left out."""
    if not isinstance(storage, torch.storage.TypedStorage) or not _is_sizes((offset,), size, stride):
        _refuse("it makes a tensor of something else than a storage and sizes")
    wanted = math.prod(size) * storage.dtype.itemsize
    # Of one tensor; what all stand for together is in :func:`checked`.
    if wanted > max(storage._untyped_storage.nbytes(), MAX_SHARED):
        _refuse(f"a tensor of shape {list(size)} is larger than its storage")
    return torch._utils._rebuild_tensor(storage, offset, tuple(size), tuple(stride))


def _tensor_of_type(
    storage: Any, offset: Any, size: Any, stride: Any, gradient: Any = None, hooks: Any = None, dtype: Any = None, *_: Any
) -> Tensor:
    if not isinstance(storage, torch.storage.TypedStorage) or not isinstance(dtype, torch.dtype):
        _refuse("it makes a tensor of something else than a storage and a type")
    return _tensor(torch.storage.TypedStorage(storage._untyped_storage, dtype, _internal=True), offset, size, stride)


def _is_sizes(*values: Any) -> bool:
    return all(
        isinstance(value, tuple) and len(value) <= 16 and all(type(n) is int and 0 <= n < 2**48 for n in value)
        for value in values
    )


def _parameter(data: Any, *_: Any) -> Any:
    """The tensor alone."""
    return data


def _with_attributes(function: Any, kind: Any = None, args: Any = (), *_: Any) -> Any:
    """A tensor that its authors gave attributes: the tensor alone."""
    return _call(function, args)


def _size(sizes: Any = ()) -> torch.Size:
    if not _is_sizes(tuple(sizes)):
        _refuse("it makes a shape of something else than sizes")
    return torch.Size(sizes)


def _ordered(items: Any = ()) -> OrderedDict[Any, Any]:
    result: OrderedDict[Any, Any] = OrderedDict()
    for key, value in items:
        result[_key(key)] = value
    return result


_KEYS = (str, bytes, int, float, torch.dtype, torch.Size, Inert)
"""An inert object, such as a member of an enumeration, hashes by its identity."""


def _key(value: Any) -> Any:
    """A key of a dict or member of a set, if its hash takes no time."""
    parts = value if isinstance(value, tuple) else (value,)
    if not all(part is None or isinstance(part, _KEYS) for part in parts):
        _refuse("it has a key that is no text or number")
    return value


class _NumpyType(Inert):
    """numpy's ``dtype``: its letter and size, such as ``i8``."""

    code = ""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code = code if isinstance(code, str) else ""


def _encode(text: Any = "", encoding: Any = "latin1") -> Any:
    """The bytes of a number: how protocol 2 writes them. Longer texts are not copied."""
    short = isinstance(text, str) and encoding == "latin1" and len(text) <= 16
    return text.encode("latin1") if short else Inert()


def _numpy_scalar(kind: Any = None, data: Any = b"") -> Any:
    """A number of numpy's as Python's own; anything else is not rebuilt."""
    letter = _NUMBERS.get(kind.code) if isinstance(kind, _NumpyType) else None
    if letter is None or not isinstance(data, bytes) or len(data) != struct.calcsize(f"<{letter}"):
        return Inert()
    layout = kind.state.get("")
    order = ">" if isinstance(layout, tuple) and layout[1:2] == (">",) else "<"
    return struct.unpack(order + letter, data)[0]


_NUMBERS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
            "f2": "e", "f4": "f", "f8": "d"}  # fmt: skip
"""numpy's names of types and ``struct``'s."""


def _members(values: Any = ()) -> set[Any]:
    return {_key(value) for value in values}


_NAMES: dict[tuple[str, str], _Rebuilds] = {
    ("torch._utils", "_rebuild_tensor"): _Rebuilds(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Rebuilds(_tensor),
    ("torch._utils", "_rebuild_tensor_v3"): _Rebuilds(_tensor_of_type),
    ("torch._utils", "_rebuild_parameter"): _Rebuilds(_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): _Rebuilds(_parameter),
    ("torch._tensor", "_rebuild_from_type_v2"): _Rebuilds(_with_attributes),
    ("torch", "Size"): _Rebuilds(_size),
    ("collections", "OrderedDict"): _Rebuilds(_ordered),
    ("builtins", "set"): _Rebuilds(_members),
    ("builtins", "frozenset"): _Rebuilds(_members),
    ("__builtin__", "set"): _Rebuilds(_members),
    ("__builtin__", "frozenset"): _Rebuilds(_members),
    ("numpy", "dtype"): _Rebuilds(_NumpyType),
    ("numpy.core.multiarray", "scalar"): _Rebuilds(_numpy_scalar),
    ("numpy._core.multiarray", "scalar"): _Rebuilds(_numpy_scalar),
    ("_codecs", "encode"): _Rebuilds(_encode),
}


def _call(function: Any, args: Any) -> Any:
    known = isinstance(function, _Rebuilds | Inert) or (isinstance(function, type) and issubclass(function, Inert))
    if not known or not isinstance(args, tuple):
        _refuse("it calls something that is no function")
    return function(*args)


class _Program:
    """A pickle's file: reads what is asked for, up to :data:`MAX_PROGRAM` bytes in all."""

    def __init__(self, file: Any) -> None:
        self._file, self._left = file, MAX_PROGRAM

    def _take(self, size: int) -> None:
        self._left -= size
        if size < 0 or self._left < 0:
            _refuse(f"its program is longer than {MAX_PROGRAM:,} bytes")

    def read(self, size: int) -> bytes:
        self._take(size)
        data: bytes = self._file.read(size)
        return data

    def readline(self) -> bytes:
        line: bytes = self._file.readline(min(self._left, 2**20))
        self._take(len(line))
        return line


class _Counted(dict[int, Any]):
    """The instructions by their codes, which counts how many are looked up."""

    left = MAX_INSTRUCTIONS

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            _refuse(f"it has more than {MAX_INSTRUCTIONS:,} instructions")
        return super().__getitem__(code)


class RestrictedUnpickler(pickle._Unpickler):
    """An unpickler that imports nothing and calls nothing but this module's functions; see the module's docstring."""

    file_size = MAX_PROGRAM
    """Elements that all storages have together are at most as many as the file has bytes."""

    stack: list[Any]
    append: Callable[[Any], None]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(_Program(file), **options)
        self.dispatch = _Counted(_INSTRUCTIONS)  # type: ignore[misc]
        self._inert: dict[tuple[str, str], type[Inert]] = {}
        self._storages: set[str | bytes] = set()
        self._elements = 0

    def find_class(self, module: str, name: str) -> Any:
        known = _NAMES.get((module, name))
        if known is not None:
            return known
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        if len(self._inert) >= MAX_NAMES:
            _refuse(f"it names more than {MAX_NAMES:,} classes")
        if (module, name) not in self._inert:
            self._inert[module, name] = type("Inert", (Inert,), {"origin": f"{module}.{name}"})
        return self._inert[module, name]

    def _reduce(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def _new(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], args)

    def _new_with_names(self) -> None:
        self.stack.pop()
        self._new()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(_call(klass, tuple(args)))

    def _build(self) -> None:
        """Attributes are kept for what is not rebuilt, and dropped for a dict (torch gives its state dicts some)."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].__setstate__(state)
        elif not isinstance(self.stack[-1], dict | Tensor):
            _refuse("it sets attributes")

    def _set(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[_key(key)] = value
        elif not isinstance(target, Inert):
            _refuse("it sets items of something that is no dict")

    def _set_one(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_many(self) -> None:
        self._set(self.pop_mark())

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._set(items)

    def _add_many(self) -> None:
        items = self.pop_mark()
        if isinstance(self.stack[-1], set):
            self.stack[-1].update(_members(items))
        elif not isinstance(self.stack[-1], Inert):
            _refuse("it adds to something that is no set")

    def _frozenset(self) -> None:
        items = self.pop_mark()  # first: it changes what append appends to
        self.append(_members(items))

    def _long(self) -> None:
        size = int.from_bytes(self.read(4), "little")
        if size > 128:
            _refuse(f"it has an integer of {size:,} bytes")
        self.append(int.from_bytes(self.read(size), "little", signed=True))

    def _integer(self) -> None:
        text = self.readline().strip().rstrip(b"L")
        if len(text) > 64:
            _refuse(f"it has an integer of {len(text):,} digits")
        self.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text or b"0"))

    def _storage(self) -> None:
        """The bytes of tensors, which torch reads: ("storage", type, key, place, elements, ...)."""
        pid = self.stack.pop()
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            _refuse("it refers to something else than a storage")
        key, elements = pid[2], pid[4]
        if type(elements) is not int or elements < 0 or not isinstance(key, str | bytes):
            _refuse("it has a storage without a size")
        if key not in self._storages:
            self._storages.add(key)
            self._elements += elements
        if self._elements > self.file_size:
            _refuse(f"its storages have more elements than its {self.file_size:,} bytes can hold")
        self.append(self.persistent_load(pid))


_OWN = {
    pickle.REDUCE: RestrictedUnpickler._reduce,
    pickle.NEWOBJ: RestrictedUnpickler._new,
    pickle.NEWOBJ_EX: RestrictedUnpickler._new_with_names,
    pickle.BUILD: RestrictedUnpickler._build,
    pickle.SETITEM: RestrictedUnpickler._set_one,
    pickle.SETITEMS: RestrictedUnpickler._set_many,
    pickle.DICT: RestrictedUnpickler._dict,
    pickle.ADDITEMS: RestrictedUnpickler._add_many,
    pickle.FROZENSET: RestrictedUnpickler._frozenset,
    pickle.LONG4: RestrictedUnpickler._long,
    pickle.LONG: RestrictedUnpickler._integer,
    pickle.INT: RestrictedUnpickler._integer,
    pickle.BINPERSID: RestrictedUnpickler._storage,
}
_NEVER = (
    pickle.PERSID,
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.BYTEARRAY8,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
)
_INSTRUCTIONS: dict[int, Any] = {
    **{code: do for code, do in pickle._Unpickler.dispatch.items() if bytes([code]) not in _NEVER},
    **{code[0]: do for code, do in _OWN.items()},
}


def restricted_pickle(file_size: int) -> Any:
    """What ``torch.load(pickle_module=...)`` expects of a pickle module, for a file of so many bytes."""

    class Unpickler(RestrictedUnpickler):
        pass

    Unpickler.file_size = file_size

    def load(file: Any, **options: Any) -> Any:
        return Unpickler(file, **options).load()

    return SimpleNamespace(__name__="restricted_pickle", Unpickler=Unpickler, load=load)


def checked(tree: Any) -> Any:
    """The tree, if walking it ends soon, and its tensors take no more than the file has.

    Raises:
        pickle.UnpicklingError: it is nested too deeply, refers to itself, or shares its parts so that a walk takes for ever;
            or its tensors show few numbers as many.
    """
    tensors: dict[int, Tensor] = {}
    sizes: dict[int, int] = {}
    depths: dict[int, int] = {}
    open_: set[int] = set()
    todo = [(tree, False)]
    while todo:
        node, done = todo.pop()
        if isinstance(node, Tensor):
            tensors[id(node)] = node
            continue
        parts = _parts(node)
        if parts is None or id(node) in sizes:
            continue
        if not done:
            if id(node) in open_:
                _refuse("it holds itself")
            open_.add(id(node))
            todo.append((node, True))
            todo.extend((part, False) for part in parts if _met(part) and id(part) not in sizes)
            if len(open_) > MAX_NODES:
                _refuse("it is too large")
            continue
        open_.discard(id(node))
        sizes[id(node)] = 1 + sum(sizes.get(id(part), 1) for part in parts)
        depths[id(node)] = 1 + max((depths.get(id(part), 0) for part in parts), default=0)
        if sizes[id(node)] > MAX_NODES or depths[id(node)] > MAX_DEPTH:
            _refuse("it is nested too deeply")
    stored = {value.untyped_storage()._cdata: value.untyped_storage().nbytes() for value in tensors.values()}
    shown = sum(value.numel() * value.element_size() for value in tensors.values())
    if shown > MOST_VIEWS * sum(stored.values()) + MAX_SHARED:
        _refuse(f"its tensors show {sum(stored.values()):,} bytes as {shown:,}")
    return tree


def _met(node: Any) -> bool:
    """Whether a walk has something to look at there."""
    return isinstance(node, Tensor) or _parts(node) is not None


def _parts(node: Any) -> list[Any] | None:
    if isinstance(node, Inert):
        return [node.state]
    if isinstance(node, Mapping):
        return list(node.values())
    return list(node) if isinstance(node, list | tuple | set) else None
