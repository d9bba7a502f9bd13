"""What the generators with a tokenizer of ``adanat_plugins.tokenizers`` have in common: images, codes and code vectors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from adanat_toolkit.interfaces import Generator, ImageSource, PluginOptions, TokenGenerator
from adanat_toolkit.runtime import COMPILED

from ..emoji64 import FOLDER
from ..fingerprints import fingerprint_tokenizer

G = TypeVar("G", bound=Generator)


class TokenizedOptions(PluginOptions):
    """Options of all of them."""

    compile: bool = False
    """Compile the network and the tokenizer's decoder with torch.compile when they are first used: a minute or more at the
    start, and on a GPU a decoder about twice as fast (docs/results/throughput.md). Images change by rounding."""

    def applied(self, generator: G) -> G:
        """The generator, compiled where it was asked for: the last step of ``Generator.create``."""
        if self.compile:
            generator.compile()
        return generator


def compile_modules(generator: Generator, *modules: nn.Module) -> None:
    """What ``Generator.compile`` does with the modules that it calls. It stays in one thread then, as the compiler does."""
    for module in modules:
        module.compile(**COMPILED)
    generator.thread_safe = False


class Tokenizer(Protocol):
    """Codes <-> images in [0, 1]; see the classes in ``tokenizers``."""

    @property
    def downsampling(self) -> int: ...

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    @property
    def model(self) -> Any: ...


class TokenizedGenerator(TokenGenerator):
    """A token generator whose codes are those of ``tokenizer``."""

    thread_safe = True
    network: nn.Module
    tokenizer: Tokenizer

    def parts(self) -> dict[str, Any]:
        """The networks by name, for the parameter counts."""
        return {"generator": self.network, "tokenizer": self.tokenizer}

    def parameters_count(self) -> dict[str, int]:
        modules = {name: part for name, part in self.parts().items() if isinstance(part, nn.Module)}
        return {name: sum(p.numel() for p in part.parameters()) for name, part in modules.items()}

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens, self.grid)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)

    def token_vectors(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.vectors(tokens, self.grid)

    @property
    def tokenizer_fingerprint(self) -> str | None:
        return fingerprint_tokenizer(self.tokenizer) if isinstance(self.tokenizer, nn.Module) else None

    def compile(self) -> None:
        compile_modules(self, *self.called(), self.tokenizer.model.decoder)

    def called(self) -> Iterable[nn.Module]:
        """The modules that :meth:`predict` calls."""
        return (self.network,)


class Emoji64Tokens(TokenizedGenerator):
    """A generator with the embedded tokenizer, for which a distilled decoder and the codes of the real images ship. It stands
    before the base class."""

    @property
    def distilled_decoder(self) -> Path:
        return FOLDER / "decoder.safetensors"

    def known_codes(self, real: ImageSource) -> Tensor | None:
        from ..emoji64.data import codes, fingerprint

        return codes() if real.fingerprint == fingerprint() else None
