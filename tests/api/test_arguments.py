"""Arguments of the Python API as notebooks have them: taken, or refused by name before anything is loaded or written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import adanat_toolkit as adanat
from adanat_toolkit.decoding import SamplingPolicy
from adanat_toolkit.errors import AdaNATError, ConfigError

from ..helpers.tiny import TinyGenerator

TINY = TinyGenerator()


def bright(images: Any, context: Any) -> Any:
    return images.mean((1, 2, 3))


def three() -> SamplingPolicy:
    return adanat.load_policy("fixed", TINY, steps=3)


def train(**given: Any) -> Any:
    return adanat.train(**{"generator": TINY, "reward": bright, "out": "run", **given})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adanat.load_generator("maskgit", device=None), "device None is not a device"),
        (lambda: adanat.load_generator("maskgit", device="meta"), "device 'meta' is not a device"),
        (lambda: adanat.load_generator("maskgit", dtype=torch.float16), "dtype 'float16' is not supported"),
        (lambda: adanat.load_generator("maskgit", dtype=["float32"]), "is not supported; use auto"),
        (lambda: adanat.load_generator("maskgit", weights=3), "weights must be a text or a path; it is int 3"),
        (lambda: adanat.load_generator("maskgit", offline="yes"), "offline must be True or False"),
        (lambda: adanat.load_generator("maskgit", options={1: 2}, device="cpu"), "unknown key '1'"),
        (lambda: adanat.load_policy("fixed", TINY, steps=2.5), "steps is 2.5; give a whole number"),
        (lambda: adanat.sample(TINY, three(), steps=4), "steps = 4, and policy takes 3"),
        (lambda: adanat.sample(TINY, "fixed", steps=0), "steps = 0; it must be at least 1"),
        (lambda: adanat.sample(TINY, "fixed", classes=["1_0"]), "class '1_0' .* is unknown"),
        (lambda: adanat.sample(TINY, "fixed", classes=[True]), "class True .* is unknown"),
        (lambda: train(out=""), "out must be a path .* not empty"),
        (lambda: train(out="a\0b"), "out must be a path"),
        (lambda: train(out=3), "out must be a text or a path"),
        (lambda: train(device="gpu"), "device 'gpu' is not a device"),
        (lambda: train(dtype=torch.bfloat16), "dtype = bfloat16, and the generator computes in float32"),
        (lambda: train(dtype="bfloat16"), "dtype = bfloat16, and the generator computes in float32"),
        (lambda: train(steps=True), "steps must be a whole number; it is bool"),
        (lambda: train(preset=None), "preset must be a text; it is NoneType"),
        (lambda: train(on_iteration=3), "on_iteration must be a function; it is int 3"),
        (lambda: adanat.evaluate(TINY, features=3), "features must be a text; it is int 3"),
        (lambda: adanat.evaluate(TINY, refine=2, judge=3), "judge must be a text or a path"),
        (lambda: adanat.evaluate(TINY, progress="x"), "progress must be a function"),
        (lambda: adanat.headroom(TINY, bright, policy=three(), steps=4), "steps = 4, and policy takes 3"),
        (lambda: adanat.headroom(TINY, bright, steps=1.5), "steps must be a whole number; it is float 1.5"),
        (lambda: adanat.headroom(TINY, bright, data=3), "data must be a text or a path"),
        (lambda: adanat.distill(TINY, "a.safetensors", images=10**30), "images = 1000.* at most 10,000,000"),
        (lambda: adanat.distill(TINY, "a.safetensors", steps=10**12), "steps = 1000.* at most 10,000,000"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    call: Callable[[], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        call()
    assert not os.listdir(tmp_path)


def test_numbers_of_numpy_and_torch_are_taken(tmp_path: Path) -> None:
    own = adanat.sample(TINY, "fixed", seeds=[np.int64(3), torch.tensor(4)], batch=np.int32(1))
    assert torch.equal(own.images, adanat.sample(TINY, "fixed", seeds=[3, 4]).images)
    generator = adanat.load_generator("maskgit", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert generator.device.type == "cpu" and generator.dtype == torch.bfloat16
    with pytest.raises(AdaNATError, match="File name too long"):
        own.save(tmp_path / ("x" * 300))
    for folder in (3, None, b"bytes", ""):
        with pytest.raises(ConfigError, match="folder must be"):
            own.save(folder)  # type: ignore[arg-type]
