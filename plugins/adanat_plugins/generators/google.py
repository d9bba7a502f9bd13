"""``maskgit:google-256`` and ``google-512``: the original MaskGIT from its Flax checkpoints, computed in torch.

It was trained without dropped labels, so there is no null class and no guidance knob. The authors' own sampler is the
policy ``fixed:maskgit``.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adanat_toolkit.core import MASK_RATIO, MASK_TEMPERATURE, TOKEN_TEMPERATURE, ActionSpace
from adanat_toolkit.errors import WeightsError
from adanat_toolkit.interfaces import Context
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..fingerprints import fingerprint_state
from ..tokenizers.vqgan import VQGANTokenizer
from ..weights import asset, build, place, read_state
from .class_conditional import ClassConditional, PublishedOptions, published_files
from .google_net import MASK_ID, GoogleConfig, GoogleTransformer, tokenizer_state, transformer_state
from .tokenized import Tokenizer


class GoogleMaskGIT(ClassConditional):
    """The original class-conditional MaskGIT.

    Args:
        network: on the CPU in float32; its vocabulary is the codes, the classes and the mask.
        codebook_size: of the tokenizer; it tells codes from classes.
    """

    network: GoogleTransformer

    def __init__(
        self,
        name: str,
        network: GoogleTransformer,
        tokenizer: Tokenizer,
        codebook_size: int,
        *,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        config = network.config
        side = round((config.positions - 1) ** 0.5)
        classes = config.vocabulary - codebook_size - 1
        if side * side != config.positions - 1 or classes < 1:
            raise WeightsError(
                f"{name}: the network has {config.positions} positions and a vocabulary of {config.vocabulary}; with "
                f"{codebook_size} codes there must be one position and a square of cells, and room for a class and the "
                "mask. Check that the tokenizer belongs to it."
            )
        self.name = name
        self.action_space = ActionSpace((MASK_RATIO, MASK_TEMPERATURE, TOKEN_TEMPERATURE))
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.grid = (side, side)
        self.image_size = (side * tokenizer.downsampling, side * tokenizer.downsampling)
        self.mask_id = self.codebook_size = codebook_size
        self.feature_dim = config.width
        self.num_classes = classes
        self.default_schedule = "cosine,mask_temperature=4.5:0"  # the authors' decoder in the toolkit's words
        self.device, self.dtype = device, dtype

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("google-256", "google-512")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> GoogleMaskGIT:
        """See ``interfaces.Generator.create``."""
        name = f"maskgit:{variant or cls.variants()[0]}"
        chosen = parse_options(f"generator {name!r}", PublishedOptions, options)
        files = published_files(chosen, asset(name, "generator"), asset(name, "tokenizer"), offline=offline)
        tokenizer = load_google_tokenizer(files[1], device, dtype)
        codes = tokenizer.model.config.codebook_size
        return chosen.applied(cls(name, load_google(files[0]), tokenizer, codes, device=device, dtype=dtype))

    def called(self) -> Iterable[nn.Module]:
        """The layers: states and logits are asked for apart, and the network as a whole never."""
        return self.network.children()

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.classes is not None

        def run(ids: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            ids = ids.masked_fill(ids == self.mask_id, MASK_ID)
            hidden = self.network.hidden(torch.cat([self.codebook_size + classes[:, None], ids], dim=1))[:, 1:]
            return self.network.logits(hidden, self.codebook_size).float(), hidden.float()

        minimum = minimum_batch(self.dtype, self.device)
        logits, features = in_chunks(run, tokens, context.classes, minimum=minimum)
        return logits, features


def load_google(path: Path) -> GoogleTransformer:
    """The network of a published Flax file (top-level key ``params``), on the CPU in float32.

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = transformer_state(read_state(path))
    config = GoogleConfig.from_state(state)
    return build(lambda: GoogleTransformer(config), state, source=str(path))


def load_google_tokenizer(path: Path, device: torch.device, dtype: torch.dtype) -> VQGANTokenizer:
    """The tokenizer of a published Flax file.

    Raises:
        WeightsError: it is no such file, or a tensor is missing, extra or misshapen.
    """
    state = tokenizer_state(read_state(path))
    return VQGANTokenizer.from_state(state, source=str(path), device=device, dtype=dtype)
