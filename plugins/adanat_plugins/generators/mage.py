"""``mage``: MAGE, unconditional masked-token generation (Li et al. 2023, arXiv:2211.09117).

Variants: ``emoji64`` (embedded), ``vit-b`` and ``vit-l`` (the published ImageNet-256 checkpoints, which bring their own
tokenizer). Unconditional: there is no context, hence no guidance knob; the other three act as in every generator. The
published sampler itself is ``--policy fixed:mage``.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from torch import Tensor

from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, WeightsError, nearest
from adanat_toolkit.interfaces import Context, ImageSource, PluginOptions, Source
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks, minimum_batch

from ..fingerprints import fingerprint_state
from ..tokenizers.vqgan import VQGANTokenizer
from ..weights import asset, build, place, read_state, resolve, select, without
from .mage_net import MAGEConfig, MAGENet, unused_shapes
from .maskgit import embedded_tokenizer
from .tokenized import Emoji64Tokens, TokenizedGenerator, TokenizedOptions

PUBLISHED_SCHEDULE = "cosine,mask_temperature=4.5:0"
"""The published sampler's choice (temperature 4.5 falling to 0), as a schedule of the toolkit's own step."""

HEADS = {"vit-b": (12, 16), "vit-l": (16, 16)}
"""Attention heads of encoder and decoder, which no tensor's shape tells."""


class MAGEOptions(TokenizedOptions):
    weights: Source = None
    """File, folder or hub id of another checkpoint of the variant; None means the embedded or default one."""


class MAGE(TokenizedGenerator):
    """MAGE with its tokenizer.

    The features that a policy sees are the output of the decoder's final norm at the image positions, (B, N, decoder
    width): the last state before the vocabulary head, which is what AdaNAT takes from its U-ViT. The encoder's states
    would say less: at an unknown cell they never reach the decoder, which puts the class token's vector in their place.

    Args:
        network: in float32; tokenizer: has ``decode(codes, grid)`` and ``encode(images)``.
    """

    released_sampler = "mage"

    Options: ClassVar[type[PluginOptions]] = MAGEOptions
    context_kind = "none"

    def __init__(
        self,
        name: str,
        network: MAGENet,
        tokenizer: Any,
        *,
        device: torch.device,
        dtype: torch.dtype,
        default_schedule: str = PUBLISHED_SCHEDULE,
    ) -> None:
        config = network.config
        side = math.isqrt(config.tokens)
        if side * side != config.tokens:
            raise WeightsError(f"{name}: the checkpoint has {config.tokens} positions, which form no square grid.")
        self.name = name
        self.action_space = ActionSpace(tuple(knob for knob in TOKEN_KNOBS if knob.name != "guidance"))
        self.fingerprint = fingerprint_state(network.state_dict())
        self.network = place(network, device, dtype).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.grid = (side, side)
        self.image_size = (side * tokenizer.downsampling, side * tokenizer.downsampling)
        self.mask_id, self.codebook_size = config.mask_id, config.codebook_size
        self.feature_dim = config.decoder_width
        self.default_schedule = default_schedule
        self.device, self.dtype = device, dtype

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64", "vit-b", "vit-l")

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> MAGE:
        """See ``interfaces.Generator.create``."""
        name = variant or "emoji64"
        if name not in cls.variants():
            known = ", ".join(cls.variants())
            raise ConfigError(f"mage has no variant {name!r}{nearest(name, cls.variants())} Variants: {known}.")
        chosen = parse_options("generator 'mage'", MAGEOptions, options)
        if name == "emoji64":
            return chosen.applied(_emoji64(chosen, device, dtype, offline))
        file = resolve(chosen.weights, asset(f"mage:{name}", "generator and tokenizer"), offline=offline)
        state = read_state(file)
        heads, decoder_heads = HEADS[name]
        own = without(state, "vqgan.")
        config = MAGEConfig.from_state(own, heads=heads, decoder_heads=decoder_heads, source=str(file))
        network = build(lambda: MAGENet(config), own, source=str(file), unused=unused_shapes(config))
        tokenizer = VQGANTokenizer.from_state(
            select(state, "vqgan."), source=f"{file} (vqgan.*)", device=device, dtype=dtype
        )
        return chosen.applied(cls(f"mage:{name}", network, tokenizer, device=device, dtype=dtype))

    def sample_contexts(self, noise: Noise) -> Context:
        """Nothing to condition on."""
        return Context(len(noise))

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        def run(ids: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self.network(ids)
            return logits.float(), features.float()

        logits, features = in_chunks(run, tokens, minimum=minimum_batch(self.dtype, self.device))
        return logits, features


class Emoji64MAGE(Emoji64Tokens, MAGE):
    """The embedded generator: 64x64 emoji of all classes and styles."""

    def real_images(self) -> ImageSource:
        from ..emoji64.data import emoji_images

        images: ImageSource = emoji_images().conditioned("none")
        return images


def _emoji64(options: MAGEOptions, device: torch.device, dtype: torch.dtype, offline: bool) -> MAGE:
    embedded = asset("mage:emoji64", "generator")
    file = resolve(options.weights, embedded, offline=offline)
    with safe_open(embedded.path, "pt") as handle:
        meta = handle.metadata()
    state = read_state(file)
    config = MAGEConfig.from_state(
        state, heads=int(meta["num_heads"]), decoder_heads=int(meta["decoder_num_heads"]), source=str(file)
    )
    network = build(lambda: MAGENet(config), state, source=str(file), unused=unused_shapes(config))
    return Emoji64MAGE(
        "mage:emoji64", network, embedded_tokenizer(device, dtype), device=device, dtype=dtype
    )
