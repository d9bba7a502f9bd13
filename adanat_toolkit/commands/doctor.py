"""What works on this machine: versions, devices, parts, embedded files, places to write."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..registry import toolkit_version


@dataclass(frozen=True)
class Part:
    """A package that some feature needs.

    Attributes:
        module: what is imported. distribution: what is installed. serves: what does not work without it.
        extra: the extra that installs it; None for a required package.
    """

    module: str
    distribution: str
    serves: str
    extra: str | None = None


PARTS = (
    Part("torch", "torch", "everything"),
    Part("torchvision", "torchvision", "image networks of other packages"),
    Part("diffusers", "diffusers", "tokenizers, aMUSEd"),
    Part("transformers", "transformers", "text encoders, ImageReward"),
    Part("open_clip", "open-clip-torch", "CLIP features, text towers, CLIP score"),
    Part("timm", "timm", "DINO and other frozen backbones"),
    Part("torch_fidelity", "torch-fidelity", "Inception features"),
    Part("gymnasium", "gymnasium", "environments"),
    Part("stable_baselines3", "stable-baselines3", "the sb3 engine"),
    Part("matplotlib", "matplotlib", "figures"),
    Part("jinja2", "jinja2", "reports"),
    Part("tensorboard", "tensorboard", "TensorBoard logs", "tensorboard"),
    Part("wandb", "wandb", "Weights & Biases logs", "wandb"),
    Part("jax", "jax", "generators written in JAX", "jax"),
    Part("flax", "flax", "generators written in Flax", "jax"),
)


def diagnose(files: Mapping[Path, str | None], folders: Mapping[str, Path]) -> dict[str, Any]:
    """A JSON-able report.

    Args:
        files: embedded files and their sha256, where known. folders: what is written, and where.

    Returns:
        ``versions``, ``devices``, ``parts``, ``embedded``, ``folders`` and ``problems``: what a user must act on, in
        sentences; empty when all that is required works.
    """
    parts = [_part(part) for part in PARTS]
    embedded = [_embedded(path, digest) for path, digest in files.items()]
    places = [_folder(what, path) for what, path in folders.items()]
    problems = [
        f"{p['distribution']} does not work ({p['error']}); reinstall adanat-toolkit."
        for p in parts
        if not p["works"] and p["extra"] is None
    ]
    problems += [f"{e['path']} is {e['state']}; reinstall adanat-toolkit." for e in embedded if e["state"] != "ok"]
    problems += [f"cannot write {f['what']} in {f['path']}: {f['error']}." for f in places if not f["writable"]]
    return {
        "versions": {
            "adanat-toolkit": toolkit_version(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "executable": sys.executable,
        },
        "devices": _devices(),
        "parts": parts,
        "embedded": embedded,
        "folders": places,
        "problems": problems,
    }


def _part(part: Part) -> dict[str, Any]:
    error: str | None = None
    try:
        version: str | None = importlib.metadata.version(part.distribution)
    except importlib.metadata.PackageNotFoundError:
        version, error = None, "not installed"
    if version is not None:
        try:
            importlib.import_module(part.module)
        except BaseException as reason:  # a broken compiled extension raises anything
            if isinstance(reason, KeyboardInterrupt):
                raise
            error = f"{type(reason).__name__}: {reason}"
    return {
        "distribution": part.distribution,
        "version": version,
        "works": error is None,
        "error": error,
        "serves": part.serves,
        "extra": part.extra,
    }


def _devices() -> list[dict[str, Any]]:
    """What can be named with --device, the compute type that ``auto`` takes there, and why."""
    import torch

    from ..runtime import dtype_name, fastest_dtype

    def row(device: str, name: str, memory: int | None, note: str = "") -> dict[str, Any]:
        dtype, reason = fastest_dtype(torch.device(device))
        note = "; ".join(part for part in (note, f"auto computes in {dtype_name(dtype)}: {reason}") if part)
        return {
            "device": device,
            "name": name,
            "memory_bytes": memory,
            "dtype": dtype_name(dtype),
            "dtype_reason": reason,
            "note": note,
        }

    processor = platform.processor() or platform.machine()
    found = [row("cpu", f"{processor}, {os.cpu_count()} cores, {torch.get_num_threads()} threads", _memory())]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        facts = torch.cuda.get_device_properties(index)
        note = f"CUDA {torch.version.cuda}, compute capability {facts.major}.{facts.minor}"
        found.append(row(f"cuda:{index}", facts.name, facts.total_memory, note))
    if torch.backends.mps.is_available():
        found.append(row("mps", "Apple GPU", None, "not used: it has no float64"))
    return found


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _embedded(path: Path, digest: str | None) -> dict[str, Any]:
    if not path.is_file():
        state = "missing"
    elif digest is not None and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
        state = "damaged"
    else:
        state = "ok"
    return {"path": str(path), "state": state}


def _folder(what: str, path: Path) -> dict[str, Any]:
    """Whether files can be made in a folder, or in the nearest parent that exists, for one that does not yet."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    error = None
    try:
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"\0" * 4096)
    except OSError as reason:
        error = reason.strerror or str(reason)
    return {"what": what, "path": str(path), "writable": error is None, "error": error}
