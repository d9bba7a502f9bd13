"""Prompts that are longer than a text encoder reads: every path says so once, with how many and the limit."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from adanat_plugins.features.clip import EmbeddedClipFeatures
from adanat_plugins.generators.amused import Amused
from adanat_plugins.generators.diffusers_pipeline import DiffusersPipeline
from adanat_plugins.generators.muse import Muse
from adanat_plugins.prompt_rows import CutPrompts, open_clip_ids
from adanat_plugins.rewards.imagereward import WordPiece
from adanat_toolkit.registry import create_generator, create_reward

from ..helpers.diffusion_pipelines import TEXT_LENGTH, save_pipeline
from ..helpers.released_pipelines import save_amused

CPU = torch.device("cpu")
Read = Callable[[list[str]], Any]


def muse(folder: Path) -> tuple[Read, int]:
    return Muse.create(None, {}, device=CPU, dtype=torch.float32, offline=True).encode_prompts, 24


def clip_score(folder: Path) -> tuple[Read, int]:
    generator = create_generator("maskgit", device=CPU, dtype=torch.float32, offline=True)
    reward: Any = create_reward("clip-score", {}, generator=generator, real=None, device=CPU, seed=0)
    return reward.clip.texts, 24


def clip_features(folder: Path) -> tuple[Read, int]:
    features = EmbeddedClipFeatures.create(None, device=CPU, offline=True)
    return lambda prompts: features.scores(torch.zeros(len(prompts), 3, 64, 64), prompts), 24


def imagereward(folder: Path) -> tuple[Read, int]:
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    return WordPiece(folder / "vocab.txt"), 35


def amused(folder: Path) -> tuple[Read, int]:
    save_amused(folder)
    made = Amused.create("256", {"weights": str(folder)}, device=CPU, dtype=torch.float32, offline=True)
    return made.encode_prompts, made.encoder.tokenizer.model_max_length


def diffusers(folder: Path) -> tuple[Read, int]:
    options = {"weights": str(save_pipeline("stable-diffusion", folder))}
    return DiffusersPipeline.create(None, options, device=CPU, dtype=torch.float32, offline=True).encode_prompts, TEXT_LENGTH


def transformers_tokenizer(folder: Path) -> tuple[Read, int]:
    """A CLIP of open_clip whose tokenizer is one of transformers, in open_clip's wrapper: padding is no 0."""

    class Wrapped:
        tokenizer = SimpleNamespace(pad_token_id=1)
        context_length = 8

        def __call__(self, prompts: list[str], context_length: int = 8) -> torch.Tensor:
            rows = [[5, *[7] * len(p.split()), 6] for p in prompts]
            rows = [row if len(row) <= context_length else [*row[: context_length - 1], 6] for row in rows]
            return torch.tensor([[*row, *[1] * (context_length - len(row))] for row in rows])

    tokenizer, cut = Wrapped(), CutPrompts("it", 8)
    return lambda prompts: open_clip_ids(tokenizer, list(dict.fromkeys(prompts)), cut), 8


PATHS = [muse, clip_score, clip_features, imagereward, amused, diffusers, transformers_tokenizer]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__)
def test_cut_prompts_are_counted_once(
    path: Callable[[Path], tuple[Read, int]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    read, limit = path(tmp_path)
    capfd.readouterr()
    fitting = ["a " * (limit - 2), "a", ""]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(fitting)
    long = [f"{'a ' * (limit - 2)}{more}" for more in ("a", "b b", "a")]
    with pytest.warns(UserWarning, match=rf"^2 of 3 prompts are longer than the {limit} tokens .* Shorten") as caught:
        read([*long, "b"])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(["a " * limit + "and more"])
    assert capfd.readouterr().err == ""  # nor does a library say it in its own way
