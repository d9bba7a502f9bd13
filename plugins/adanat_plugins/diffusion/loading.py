"""Pipelines from folders in diffusers' layout, checked before anything large is read."""

from __future__ import annotations

import inspect
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from adanat_toolkit.errors import AdaNATError, ConfigError, WeightsError
from adanat_toolkit.runtime import distributed, dtype_name, free_host_memory
from adanat_toolkit.storage import is_hub_id, read_document, read_header, shortened, why_not_fetched

from .families import Family, family_of
from .samplers import sampler_of

log = logging.getLogger("adanat_toolkit")

INDEX = "model_index.json"
_REMEDY = "Give the whole folder that pipe.save_pretrained wrote, or a hub id."
TEXT_ENCODER = "text_encoder"
"""How the names of a pipeline's text encoders begin."""
_CPU = torch.device("cpu")
_PLAIN_WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
"""Names of the files that are loaded; those of variants (``.fp16.safetensors``) are not."""
_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")
"""Parts of pipelines that training on prompts has no use for."""
_IF_PRESENT = ("text_encoder_3", "tokenizer_3")


def pipeline_folder(weights: str | None, *, offline: bool) -> Path:
    """The folder that ``weights`` names, fetched where it is a hub id ``owner/name[@revision]``.

    Raises:
        ConfigError: nothing is given. WeightsError: there is no such folder, or it cannot be fetched.
    """
    if weights is None:
        raise ConfigError("the generator diffusers has no weights of its own; give --weights FOLDER or a hub id.")
    folder = Path(weights).expanduser()
    if (folder / INDEX).is_file():
        return folder
    if not is_hub_id(weights):
        raise WeightsError(f"{shortened(weights)} is no pipeline of diffusers: it holds no {INDEX}. {_REMEDY}")
    from diffusers import DiffusionPipeline

    repo, _, revision = weights.partition("@")
    try:
        return Path(DiffusionPipeline.download(repo, revision=revision or None, local_files_only=offline))
    except Exception as error:  # the hub client raises a dozen kinds: no network, no such repository, gated, no cache
        why = "--offline forbids it, and it is not in the hub's cache" if offline else why_not_fetched(error)
        raise WeightsError(f"cannot fetch the pipeline {weights}: {why}. {_REMEDY}") from None


def load_pipeline(
    folder: Path, dtype: torch.dtype, *, kind: str | None = None, device: torch.device = _CPU, offload: bool = False
) -> tuple[Any, Family]:
    """The pipeline on the CPU and its family. No code that lies in the folder is run.

    Args:
        kind: the class that it must be of. device: where it will run; its text encoders too unless ``offload``.

    Raises:
        ConfigError: its family or scheduler is unknown, its class is another one, its denoiser is quantised, or its weights
            do not fit into memory. WeightsError: a component is missing or damaged.
    """
    index: dict[str, Any] = read_document(folder / INDEX, dict[str, Any], error=WeightsError, remedy=_REMEDY)
    found = str(index.get("_class_name"))[:100]
    family = family_of(found)
    if kind not in (None, found):
        raise ConfigError(f"{folder} is a {found}, and a {kind} is asked for; give the folder of one.")
    _check_components(folder, index, family)
    _check_memory(folder, dtype, device, offload)

    import diffusers
    from diffusers.utils import is_accelerate_available

    loader: Any = getattr(diffusers, found, None)
    if loader is None:
        raise ConfigError(f"the installed diffusers {diffusers.__version__} has no {found}; install a newer one.")
    takes = inspect.signature(loader.__init__).parameters
    absent = [name for name in _IF_PRESENT if _library(index.get(name)) is None]
    without: dict[str, Any] = {name: None for name in (*_LEFT_OUT, *absent) if name in takes}
    if "requires_safety_checker" in takes:
        without["requires_safety_checker"] = False
    if _library(index.get("safety_checker")) is not None and distributed.is_main():
        log.warning(
            "%s has a safety checker, which is not run: it makes images black, and a reward would learn from those. Judge the "
            "images before you show them.",
            folder,
        )
    arguments = {"torch_dtype": dtype, "local_files_only": True, "low_cpu_mem_usage": is_accelerate_available()}
    try:
        sampler_of(getattr(diffusers, index["scheduler"][1]).from_pretrained(folder / "scheduler"))  # before what is large
        # Newer versions have another name for torch_dtype, older ones only this.
        with _without_bars(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
            networks = {name: _whole(folder / name, index[name][1], arguments) for name in (family.denoiser, "vae")}
            pipe = loader.from_pretrained(folder, **arguments, **without, **networks)
    except AdaNATError:
        raise
    except Exception as error:  # diffusers and transformers raise a dozen kinds for a damaged folder
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise WeightsError(f"{folder}: the pipeline cannot be read: {why} Fetch the whole folder again.") from None
    pipe.set_progress_bar_config(disable=True)
    return pipe, family


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without the libraries' bars of loading: ``--quiet`` does not reach them, and they tear up the toolkit's own."""
    import diffusers
    import transformers

    logs = (diffusers.utils.logging, transformers.utils.logging)
    # Older versions cannot be asked; bars are on unless somebody turned them off.
    shown = [each for each in logs if getattr(each, "is_progress_bar_enabled", lambda: True)()]
    for each in shown:
        each.disable_progress_bar()
    try:
        yield
    finally:
        for each in shown:
            each.enable_progress_bar()


def _whole(folder: Path, kind: str, arguments: dict[str, Any]) -> Any:
    """A network of diffusers, none of whose tensors is made up: diffusers itself only warns of those that it does not find."""
    import diffusers

    network, found = getattr(diffusers, kind).from_pretrained(folder, output_loading_info=True, **arguments)
    wrong = sorted([*found["missing_keys"], *(entry[0] for entry in found["mismatched_keys"])])
    if wrong:
        raise WeightsError(
            f"{folder} lacks or misshapes {len(wrong)} tensors ({', '.join(wrong[:6])}); fetch the whole folder again."
        )
    return network


def _check_components(folder: Path, index: dict[str, Any], family: Family) -> None:
    read = [*family.components, *(name for name in _IF_PRESENT if _library(index.get(name)) is not None)]
    missing = [name for name in read if _library(index.get(name)) is None or not (folder / name).is_dir()]
    if missing:
        raise WeightsError(
            f"{folder} lacks {', '.join(missing)}: pipelines of {family.name} need {', '.join(family.components)}. {_REMEDY}"
        )
    for name in read:
        library = _library(index[name])
        if library not in ("diffusers", "transformers"):
            raise ConfigError(
                f"{folder}: the {name} is of the library {shortened(library)}, whose code is not run; use a pipeline whose "
                "parts are diffusers' and transformers' own."
            )
        _check_class(folder, name, library, index[name][1])
    config = folder / family.denoiser / "config.json"
    if "quantization_config" in read_document(config, dict[str, Any], error=WeightsError, remedy=_REMEDY):
        raise ConfigError(
            f"{config}: the {family.denoiser} is quantised, which training on it does not support; give the pipeline in "
            "bfloat16 (--dtype bfloat16 halves the memory of float32)."
        )


def _check_class(folder: Path, part: str, library: str, name: Any) -> None:
    """Refuse what is no network, scheduler or tokenizer of the library: a pipeline inside a pipeline may bring code of its own,
    which some versions of diffusers run unasked.

    Raises:
        ConfigError: the class is another one, or unknown to the installed version.
    """
    import diffusers
    import transformers

    known: dict[str, tuple[Any, tuple[type, ...]]] = {
        "diffusers": (diffusers, (diffusers.ModelMixin, diffusers.SchedulerMixin)),
        "transformers": (transformers, (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase)),
    }
    module, kinds = known[library]
    found = getattr(module, name, None) if isinstance(name, str) else None
    if not (isinstance(found, type) and issubclass(found, kinds)):
        raise ConfigError(
            f"{folder}: the {part} is of the class {shortened(str(name))}, and the installed {library} has no network, "
            f"scheduler or tokenizer of that name; use a pipeline whose parts are the library's own, or another version of it."
        )


def weight_bytes(folder: Path, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the weights of each component once they are loaded, from the heads of its safetensors files."""
    found: dict[str, int] = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        if _PLAIN_WEIGHTS.fullmatch(file.name):
            tensors = read_header(file, error=WeightsError, remedy=_REMEDY)[0].values()
            sizes = (
                math.prod(fact.shape) * (dtype if fact.dtype.is_floating_point else fact.dtype).itemsize for fact in tensors
            )
            found[file.parent.name] = found.get(file.parent.name, 0) + sum(sizes)
    return found


def _check_memory(folder: Path, dtype: torch.dtype, device: torch.device, offload: bool) -> None:
    """Refuse weights that cannot be held: a system out of memory ends a program without a word."""
    sizes = {name: size for name, size in weight_bytes(folder, dtype).items() if name not in _LEFT_OUT}
    waiting = sum(size for name, size in sizes.items() if offload and name.startswith(TEXT_ENCODER))
    whole = sum(sizes.values())
    places = [("main memory", whole, free_host_memory())]
    if device.type == "cuda":
        places.append((f"memory of {device}", whole - waiting, torch.cuda.mem_get_info(device)[0]))
    for where, needed, free in places:
        if free is not None and needed > free:
            raise ConfigError(
                f"{folder}: the weights take {needed / 1e9:,.2f} GB in {dtype_name(dtype)} and {free / 1e9:,.2f} GB of "
                f"{where} are free. Use --dtype bfloat16, the option offload (text encoders wait in main memory), or a "
                "machine with more."
            )


def _library(entry: Any) -> str | None:
    """The library of a component in an index, which has [library, class] for it; None for an absent one."""
    if not isinstance(entry, list) or not entry or entry[0] is None:
        return None
    return str(entry[0])
