"""``jax-maskgit``: the embedded MaskGIT, its transformer computed by JAX and Flax instead of PyTorch.

Ids and classes go to JAX and logits and features come back through DLPack, without a copy where memory allows (README.md).
Everything else - the decoding step, guidance, noise, the tokenizer - is the toolkit's own.
"""

from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from adanat_plugins.emoji64 import FOLDER, data
from adanat_plugins.fingerprints import fingerprint_state
from adanat_plugins.generators.maskgit import HAND_MADE, embedded_tokenizer
from adanat_toolkit.core import TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.errors import ConfigError, PluginError, nearest
from adanat_toolkit.interfaces import Context, ImageSource, PluginOptions, TokenGenerator
from adanat_toolkit.registry import parse_options
from adanat_toolkit.runtime import in_chunks

PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}


class Options(PluginOptions):
    chunk: int = 16
    """Samples of one call. Smaller batches are filled up, so that XLA compiles once and no image depends on its batch."""


class JaxMaskGIT(TokenGenerator):
    """Computes in float32, whatever ``--dtype`` says; the tokenizer, which is PyTorch's, follows it."""

    Options = Options
    name = "jax-maskgit:emoji64"
    action_space = ActionSpace(TOKEN_KNOBS)
    default_schedule = HAND_MADE
    context_kind = "class"
    image_size = data.SIZE

    def __init__(self, chunk: int, device: torch.device, dtype: torch.dtype) -> None:
        try:
            import jax

            from .network import compiled, to_flax
        except ImportError as error:
            raise PluginError(f"jax-maskgit needs JAX and Flax ({error}): pip install 'adanat-toolkit[jax]'.") from None
        try:
            where = jax.devices(PLATFORMS.get(device.type, device.type))[device.index or 0]
        except (RuntimeError, IndexError):
            found = sorted({d.platform for d in jax.devices()})
            raise ConfigError(
                f"JAX has no device {str(device)!r}, only {', '.join(found)}; use --device cpu."
            ) from None
        file = FOLDER / "maskgit.safetensors"
        with safe_open(file, "pt") as handle:
            meta = handle.metadata()
        names = ("tokens", "codebook_size", "embed_dim", "depth", "num_heads", "num_classes")
        sizes = {name: int(meta[name]) for name in names}
        state = {key: value.float() for key, value in load_file(file).items()}
        self.fingerprint = fingerprint_state(state)  # the same as maskgit:emoji64: policies fit both
        self._parameters = jax.device_put(to_flax({key: value.numpy() for key, value in state.items()}), where)
        self._apply = compiled(**sizes)
        self.tokenizer = embedded_tokenizer(device, dtype)
        self.grid, self.chunk = (8, 8), chunk
        self.mask_id = self.codebook_size = sizes["codebook_size"]
        self.feature_dim = sizes["embed_dim"]
        self.num_classes = self.null_class = sizes["num_classes"]
        self.class_names = data.class_names()
        self.device, self.dtype = device, torch.float32

    @classmethod
    def create(
        cls, variant: str | None, options: dict[str, Any], *, device: torch.device, dtype: torch.dtype, offline: bool
    ) -> JaxMaskGIT:
        chosen = parse_options("generator 'jax-maskgit'", Options, options)
        if variant not in (None, *cls.variants()):
            raise ConfigError(f"jax-maskgit has no variant {variant!r}{nearest(variant, cls.variants())}")
        return cls(chosen.chunk, device, dtype)

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("emoji64",)

    def real_images(self) -> ImageSource:
        return data.emoji_images()

    def sample_contexts(self, noise: Noise) -> Context:
        return Context(len(noise), classes=data.sample_labels(noise).to(self.device))

    def null_context(self, size: int) -> Context:
        return Context(size, classes=torch.full((size,), self.null_class, dtype=torch.int64, device=self.device))

    @torch.no_grad()
    def predict(self, tokens: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        assert context.classes is not None

        def run(ids: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
            logits, features = self._apply(self._parameters, to_jax(ids), to_jax(classes))
            return torch.from_dlpack(logits), torch.from_dlpack(features)

        logits, features = in_chunks(run, tokens, context.classes, chunk=self.chunk, minimum=self.chunk)
        return logits, features

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens, self.grid)


def to_jax(tensor: Tensor) -> Any:
    """An array of 32-bit integers: JAX has none of 64 bits unless a switch of the whole process is turned."""
    import jax

    return jax.dlpack.from_dlpack(tensor.int().contiguous())
