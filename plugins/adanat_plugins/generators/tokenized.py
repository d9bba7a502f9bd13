"""What the generators with a tokenizer of ``adanat_plugins.tokenizers`` have in common: images, codes and code vectors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn

from adanat_toolkit.interfaces import TokenGenerator


class Tokenizer(Protocol):
    """Codes <-> images in [0, 1]; see the classes in ``tokenizers``."""

    @property
    def downsampling(self) -> int: ...

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...


class TokenizedGenerator(TokenGenerator):
    """A token generator whose codes are those of ``tokenizer``."""

    tokenizer: Tokenizer

    def decode_tokens(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.decode(tokens, self.grid)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.tokenizer.encode(images)

    def token_vectors(self, tokens: Tensor) -> Tensor:
        return self.tokenizer.vectors(tokens, self.grid)
