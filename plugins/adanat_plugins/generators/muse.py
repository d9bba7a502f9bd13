"""``muse``: text-conditional masked-token generation with a U-ViT (Chang et al. 2023; the U-ViT form is AdaNAT's).

Variants: ``emoji64`` (embedded, with its own small CLIP), ``adanat-cc3m`` (the published 256-pixel generator, whose
text states come from CLIP ViT-bigG-14 through open_clip). The text reaches the network as the token states of the text
tower after its final layer norm; the null context of guidance is the empty prompt's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, ImageSource, PluginOptions, SamplingPolicy, Source
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..emoji64 import FOLDER
from ..fingerprints import fingerprint_state
from ..weights import asset, place, resolve
from .adanat import SCHEDULE, AdaNATOptions, load_uvit, load_vqgan, square_grid
from .class_conditional import published_files
from .maskgit import HAND_MADE, embedded_tokenizer
from .text_conditional import TextConditional
from .text_encoder import BIGG, TextConfig, TextEncoder
from .tokenized import Emoji64Tokens
from .uvit import UViT


class MuseOptions(AdaNATOptions):
    text_encoder: Source = None
    """Weights file of the CLIP whose text tower is used, a folder that holds it, or a hub id; None: the default."""


class Muse(TextConditional):
    """A text-conditional U-ViT with its text encoder and tokenizer.

    Args:
        network: in float32. encoder: text states of the network's context width.
        tokenizer: has ``decode(codes, grid)``, ``encode(images)`` and ``downsampling``.
    """

    Options: ClassVar[type[PluginOptions]] = MuseOptions

    def __init__(
        self,
        name: str,
        network: UViT,
        encoder: TextEncoder,
        tokenizer: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        default_schedule: str,
    ) -> None:
        self.name = name
        self.action_space = ActionSpace(TOKEN_KNOBS)
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.encoder = encoder
        self.tokenizer = tokenizer
        self.grid = square_grid(name, network.tokens)
        self.image_size = (self.grid[0] * tokenizer.downsampling, self.grid[1] * tokenizer.downsampling)
        self.mask_id = self.codebook_size = network.codebook_size
        self.feature_dim = network.norm.weight.shape[0]
        self.default_schedule = default_schedule
        self.device, self.dtype = device, dtype

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64", "adanat-cc3m")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> Muse:
        """See ``interfaces.Generator.create``."""
        name = variant or "emoji64"
        if name not in cls.variants():
            known = ", ".join(cls.variants())
            raise ConfigError(f"muse has no variant {name!r}{nearest(name, cls.variants())} Variants: {known}.")
        chosen = parse_options("generator 'muse'", MuseOptions, options)
        if name == "emoji64":
            return chosen.applied(_emoji64(chosen, device, dtype, offline))
        full = f"muse:{name}"
        files = published_files(chosen, asset(full, "generator"), asset(full, "tokenizer"), offline=offline)
        text_file = resolve(chosen.text_encoder, asset(full, "text encoder"), offline=offline)
        network = load_uvit(files[0], chosen.heads)
        _check_width(network, BIGG.width, str(files[0]))
        encoder = TextEncoder.load(text_file, BIGG, device=device, dtype=dtype)
        tokenizer = load_vqgan(files[1], network, device, dtype)
        made = cls(full, network, encoder, tokenizer, device=device, dtype=dtype, default_schedule=SCHEDULE)
        return chosen.applied(made)

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.states is not None

        def run(ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.network(ids, states.to(self.dtype))
            return logits.float(), features.float()

        minimum = minimum_batch(self.dtype, self.device)
        logits, features = in_chunks(run, tokens, context.states, minimum=minimum)
        return logits, features

    def read_policy(self, path: Path, steps: int | None, changes: str = "") -> SamplingPolicy:
        """A policy published with AdaNAT (see ``released_policy.read_policy``)."""
        from ..released_policy import read_policy

        return read_policy(path, self, steps, changes)


class Emoji64Muse(Emoji64Tokens, Muse):
    """The embedded generator: 64x64 emoji from captions such as "3d emoji of red apple"."""

    def sample_contexts(self, noise: Noise) -> Context:
        """Captions of the embedded images, every image's being equally likely."""
        from ..emoji64.data import sample_captions

        return self.encode_prompts(sample_captions(noise))

    def real_images(self) -> ImageSource:
        from ..emoji64.data import emoji_images

        images: ImageSource = emoji_images().conditioned("text", self.encode_prompts)
        return images


def embedded_text_encoder(device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The text tower of the embedded CLIP: 24 tokens, width 128."""
    config = TextConfig.from_open_clip(json.loads((FOLDER / "clip.json").read_text()))
    bpe = FOLDER / "bpe_4k.txt.gz"
    return TextEncoder.load(FOLDER / "clip.safetensors", config, device=device, dtype=dtype, bpe=bpe)


def _emoji64(options: MuseOptions, device: torch.device, dtype: torch.dtype, offline: bool) -> Muse:
    if options.tokenizer is not None or options.text_encoder is not None:
        raise ConfigError("muse:emoji64 ships with its tokenizer and text encoder; leave these options out.")
    embedded = asset("muse:emoji64", "generator")
    with safe_open(embedded.path, "pt") as handle:
        meta = handle.metadata()
    file = resolve(options.weights, embedded, offline=offline)
    network = load_uvit(file, options.heads or int(meta["num_heads"]))
    encoder = embedded_text_encoder(device, dtype)
    _check_width(network, encoder.width, str(file))
    return Emoji64Muse(
        "muse:emoji64",
        network,
        encoder,
        embedded_tokenizer(device, dtype),
        device=device,
        dtype=dtype,
        default_schedule=HAND_MADE,
    )


def _check_width(network: UViT, width: int, source: str) -> None:
    """The network must read text states of the encoder's width."""
    layer = network.context_embed
    if not isinstance(layer, torch.nn.Linear):
        raise WeightsError(f"{source} is class-conditional; use it with --generator maskgit.")
    if layer.in_features != width:
        raise WeightsError(
            f"{source} reads text states of width {layer.in_features}, but this variant's encoder gives {width}; use "
            "the checkpoint of this variant."
        )
