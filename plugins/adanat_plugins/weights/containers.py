"""One reading path for every container that published weights come in.

``.pth`` / ``.ckpt`` / ``.pt`` (torch), safetensors, a diffusers folder, Flax msgpack. The kind is told from the
content, since published names say little (google/maskgit's files have no suffix). Files are memory-mapped where the
format allows it: a tensor that is never used is never read.
"""

from __future__ import annotations

import pickle
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from adanat_toolkit.errors import WeightsError
from adanat_toolkit.storage import HEAD, not_the_file, read_document, read_head, read_header, shortened

from .flax_file import read_flax
from .restricted import Inert, checked, restricted_pickle

Container = Literal["torch", "safetensors", "diffusers", "flax"]

EMA_KEYS = (
    "model_ema", "ema_model", "ema_state_dict", "state_dict_ema", "params_ema", "ema_params", "nnet_ema", "ema",
)  # fmt: skip
_PLAIN_KEYS = ("model_state_dict", "state_dict", "model", "params", "nnet", "module")
WRAPPER_KEYS = (*EMA_KEYS, *_PLAIN_KEYS, "net", "network", "weights", "checkpoint")
"""Top-level keys that published files wrap their weights in. Averaged weights (EMA) come first: they are what their
authors evaluate."""

MAX_BLOCKS = 2048
_NUMBER = re.compile(r"(?:(?<=[._/])|^)\d+(?=[./]|$)")

PREFIXES = ("module.", "_orig_mod.", "nnet.", "ema.")
"""Left behind by data parallelism, torch.compile and training wrappers."""


def container_of(path: Path) -> Container:
    """Which container a file or folder is.

    Raises:
        WeightsError: it is missing, empty, a download error page or a git-lfs pointer, or of an unknown kind.
    """
    if path.is_dir():
        return "diffusers"
    if not path.exists():
        raise WeightsError(f"{path} does not exist.")
    if not path.is_file():
        raise WeightsError(f"{path} is no regular file (a pipe, socket or device); give a file of weights.")
    head = read_head(path, HEAD, error=WeightsError)
    if zipfile.is_zipfile(path):
        return "torch"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"  # a bare pickle: torch before 1.6
    if len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "safetensors"
    if head[:1] and (0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF)):
        return "flax"
    instead = not_the_file(head)
    if instead is not None:
        raise WeightsError(f"{path} holds no weights, it is {instead}.")
    raise WeightsError(f"{path} ({path.stat().st_size} bytes) is no torch, safetensors or Flax file, or it is cut "
                       "short. Fetch it again.")


def read_tree(path: Path | str) -> Any:
    """Everything in a file, as stored: nested mappings and lists with tensors and plain values as leaves.

    Objects that only their authors' code could rebuild are :class:`~adanat_plugins.weights.restricted.Inert`.

    Raises:
        WeightsError: see :func:`container_of`; or the file is damaged.
    """
    path = Path(path)
    kind = container_of(path)
    if kind == "flax":
        return read_flax(path)
    if kind == "diffusers":
        return _read_diffusers(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def read_state(path: Path | str) -> dict[str, Tensor]:
    """The named tensors of a published checkpoint, without its wrappers and prefixes.

    Returns:
        Flat mapping. Nested trees (Flax) are keyed by "/" paths, without the leading ``params/``.

    Raises:
        WeightsError: see :func:`read_tree`; or the file holds no named tensors.
    """
    state = strip_prefixes(dict(flatten(unwrap(read_tree(path)))))
    if not state:
        raise WeightsError(f"{path} holds no named tensors; it is no checkpoint of a network.")
    for name in state:  # networks are built with as many blocks as the names count
        if any(len(number) > 6 or int(number) > MAX_BLOCKS for number in _NUMBER.findall(name)):
            raise WeightsError(f"{path} holds a tensor {shortened(name)}: blocks are counted to {MAX_BLOCKS:,} at most.")
    return state


def unwrap(tree: Any) -> Any:
    """The mapping of weights inside a training checkpoint (see ``WRAPPER_KEYS``), or the tree itself.

    Tensors beside it (a state of random numbers, a counter) are none of its weights, and a mapping of single numbers (what an
    average was made with) holds none.
    """
    while isinstance(tree, Mapping):
        found = (tree[key] for key in WRAPPER_KEYS if isinstance(tree.get(key), Mapping))
        inner = next((mapping for mapping in found if _has_tensor(mapping, axes=1)), None)
        if inner is None:
            break
        tree = inner
    return tree


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """("/" path, tensor) of every tensor in nested mappings."""
    if isinstance(tree, Tensor):
        yield prefix, tree.detach()
    elif isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from flatten(value, f"{prefix}/{key}" if prefix else str(key))


def strip_prefixes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without the prefixes in ``PREFIXES``, in any order, where all names share them.

    A file that stores ``ema.*`` beside the raw weights is reduced to the averaged ones.
    """
    result = {name.replace("._orig_mod.", "."): value for name, value in state.items()}
    averaged = {name: value for name, value in result.items() if name.startswith("ema.")}
    result = averaged or result
    while result:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) for name in result)), None)
        if prefix is None:
            break
        result = {name.removeprefix(prefix): value for name, value in result.items()}
    return result


def select(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below ``prefix``, without it: the tokenizer inside a MAGE checkpoint, for instance."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def without(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors that are not below ``prefix``."""
    return {name: value for name, value in state.items() if not name.startswith(prefix)}


def plain(tree: Any) -> Any:
    """JSON-able copy of what is not tensors: numbers, strings, and the attributes of inert objects."""
    if isinstance(tree, Inert):
        return plain(tree.state)
    if isinstance(tree, Mapping):
        return {str(key): plain(value) for key, value in tree.items() if _is_plain(value)}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree if _is_plain(value)]
    return tree


def _is_plain(value: Any) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return not _has_tensor(value)
    if isinstance(value, Inert):
        return bool(value.state)
    return value is None or isinstance(value, (bool, int, float, str))


def _has_tensor(tree: Any, axes: int = 0) -> bool:
    """Whether a tensor of so many axes or more is inside."""
    if isinstance(tree, Mapping):
        return any(_has_tensor(value, axes) for value in tree.values())
    if isinstance(tree, (list, tuple)):
        return any(_has_tensor(value, axes) for value in tree)
    return isinstance(tree, Tensor) and tree.ndim >= axes


def _read_torch(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        elif tarfile.is_tarfile(path):
            raise pickle.UnpicklingError("it is a tar archive")
        size = path.stat().st_size
        # Nothing that the file names is imported or run, see restricted.py.
        tree = torch.load(
            path,
            map_location="cpu",
            mmap=zipfile.is_zipfile(path),
            weights_only=False,
            pickle_module=restricted_pickle(size),
        )
        return checked(tree)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
        raise WeightsError(f"{path} cannot be read as a torch checkpoint ({reason}). It is damaged or was cut short. "
                           "Fetch it again.") from None


def _check_zip(path: Path) -> None:
    """Torch's archives are not compressed, so all parts together are no larger than the file; and none is a program."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if any(member.filename.rpartition("/")[2] == "constants.pkl" for member in members):
        raise pickle.UnpicklingError("it is a TorchScript program, not weights; save its state_dict()")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise pickle.UnpicklingError("its parts are compressed, as torch never writes them")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise pickle.UnpicklingError("its parts are larger than the file")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path, error=WeightsError, remedy="Fetch it again.")
    try:
        return load_file(str(path))
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as safetensors: {error}. Fetch it again.") from None


class _Index(BaseModel):
    """What is needed of an index file of shards."""

    weight_map: dict[str, str] = Field(min_length=1)


def _shards(index: Path) -> list[str]:
    """The files that an index names, which lie beside it."""
    found: _Index = read_document(index, _Index, error=WeightsError, remedy="Fetch the whole folder again.")
    names = sorted(set(found.weight_map.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or name in (".", ".."):
            raise WeightsError(
                f"{index} names the file {shortened(name)}: a shard lies beside its index. Fetch the folder from a source that "
                "you trust."
            )
    return names


_HALF, _RAW = (re.compile(rf"\.{variant}[.-]") for variant in ("fp16", "non_ema"))
"""Marks of other copies of the weights in names of files, of shards (``model.fp16-00001-of-00002.safetensors``) and of
indices (``model.safetensors.index.fp16.json``)."""


def _read_diffusers(folder: Path) -> dict[str, Tensor]:
    """All weights of a diffusers model folder: one file, or shards named by an index file.

    Full precision comes before half; then an index before a single file, and safetensors before torch's files. An index
    whose shards are not all there is passed over where there is something else.
    """
    indices = {index: _shards(index) for pattern in ("*.index.json", "*.index.*.json") for index in folder.glob(pattern)}
    listed = {name for names in indices.values() for name in names}
    lacking: WeightsError | None = None
    for half in (False, True):
        own = [index for index in indices if bool(_HALF.search(index.name)) == half and not _RAW.search(index.name)]
        for index in sorted(own, key=lambda file: (".safetensors." not in file.name, file.name)):
            names = indices[index]
            missing = [name for name in names if not (folder / name).is_file()]
            if not missing:
                return {key: value for name in names for key, value in _read_named(folder / name).items()}
            what = f"{folder} lacks {', '.join(missing)}, listed in {index.name}; fetch the whole folder."
            lacking = lacking or WeightsError(what)
        for pattern in ("*.safetensors", "*.bin"):
            files = [file for file in sorted(folder.glob(pattern)) if file.name not in listed]
            files = [f for f in files if bool(_HALF.search(f.name)) == half and not _RAW.search(f.name)]
            if len(files) == 1:
                return _read_named(files[0])
            if len(files) > 1:
                raise WeightsError(f"{folder} holds {len(files)} weight files ({', '.join(f.name for f in files)}); "
                                   "name one of them instead of the folder.")
    raise lacking or WeightsError(
        f"{folder} holds neither *.safetensors nor *.bin; a diffusers model folder has one of them."
    )


def _read_named(file: Path) -> dict[str, Tensor]:
    """A file of named tensors; a folder inside the folder is none."""
    tree = None if file.is_dir() else read_tree(file)
    if not isinstance(tree, dict):
        raise WeightsError(f"{file} holds no named tensors; fetch the whole folder again.")
    return tree
