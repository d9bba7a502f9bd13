"""``maskgit:halton-256`` and ``halton-384``: Halton-MaskGIT and its LlamaGen VQ-16 tokenizer, from the published files.

Any published size loads (tiny to large): sizes, grid and vocabulary are read from the checkpoint. With the toolkit's
step the network obeys all four knobs; the authors' own samplers are the policies ``fixed:halton`` (their order, which
ignores the mask temperature) and ``fixed:halton-confidence``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace
from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..fingerprints import fingerprint_state
from ..tokenizers.llamagen_vq import LlamaGenTokenizer, LlamaGenVQ, LlamaGenVQConfig
from ..weights import asset, build, place, read_state
from .class_conditional import ClassConditional, PublishedOptions, published_files
from .halton_net import HaltonConfig, HaltonTransformer
from .tokenized import Tokenizer


class HaltonOptions(PublishedOptions):
    heads: int | None = Field(None, ge=1, le=1024)
    """Attention heads; None takes the published number for the checkpoint's width (weights do not tell it)."""


class HaltonMaskGIT(ClassConditional):
    """Halton-MaskGIT, class to image.

    Args:
        network: on the CPU in float32; its class table's last row is the null class of guidance.
        tokenizer: of the same codebook.
    """

    Options: ClassVar[type[PublishedOptions]] = HaltonOptions
    released_sampler = "halton"

    def __init__(
        self, name: str, network: HaltonTransformer, tokenizer: Tokenizer, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        config = network.config
        self.name = name
        self.action_space = ActionSpace(TOKEN_KNOBS)
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.grid = (config.grid, config.grid)
        self.image_size = (config.grid * tokenizer.downsampling, config.grid * tokenizer.downsampling)
        self.mask_id = self.codebook_size = config.codebook_size
        self.feature_dim = config.width
        self.num_classes = self.null_class = config.num_classes
        # The schedule of the authors' confidence sampler: arccos counts, both ramps linear.
        self.default_schedule = "arccos,guidance=0:3,mask_temperature=4.5:0"
        self.device, self.dtype = device, dtype

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("halton-256", "halton-384")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> HaltonMaskGIT:
        """See ``interfaces.Generator.create``."""
        name = f"maskgit:{variant or cls.variants()[0]}"
        chosen = parse_options(f"generator {name!r}", HaltonOptions, options)
        files = published_files(chosen, asset(name, "generator"), asset(name, "tokenizer"), offline=offline)
        network, tokenizer = load_halton(files[0], chosen.heads), load_llamagen(files[1], device, dtype)
        if tokenizer.codebook_size != network.config.codebook_size:
            raise WeightsError(
                f"{files[0]} predicts {network.config.codebook_size} codes and the tokenizer {files[1]} has "
                f"{tokenizer.codebook_size}: they do not belong together. Give the matching file with the option "
                "tokenizer."
            )
        return chosen.applied(cls(name, network, tokenizer, device=device, dtype=dtype))

    def null_context(self, size: int) -> Context:
        return Context(size, classes=torch.full((size,), self.null_class, dtype=torch.int64, device=self.device))

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.classes is not None

        def run(ids: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.network(ids, classes)
            # The last column is the mask, which a known cell cannot hold.
            return logits[..., : self.codebook_size].float(), features.float()

        minimum = minimum_batch(self.dtype, self.device)
        logits, features = in_chunks(run, tokens, context.classes, minimum=minimum)
        return logits, features


def load_halton(path: Path, heads: int | None = None) -> HaltonTransformer:
    """The network of a published file (``model_state_dict`` beside the training state), on the CPU in float32.

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = read_state(path)
    config = HaltonConfig.from_state(state, heads)
    network = build(lambda: HaltonTransformer(config), state, source=str(path))
    network.tie_weights()
    return network


def load_llamagen(path: Path, device: torch.device, dtype: torch.dtype) -> LlamaGenTokenizer:
    """The tokenizer of a published file (``model``).

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = read_state(path)
    config = LlamaGenVQConfig.from_state(state)
    return LlamaGenTokenizer(build(lambda: LlamaGenVQ(config), state, source=str(path), dtype=dtype), device, dtype)
