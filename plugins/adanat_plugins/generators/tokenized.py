"""What the generators with a tokenizer of ``adanat_plugins.tokenizers`` have in common: images, codes and code vectors."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from adanat_toolkit.interfaces import TokenGenerator


class Tokenizer(Protocol):
    """Codes <-> images in [0, 1]; see the classes in ``tokenizers``."""

    @property
    def downsampling(self) -> int: ...

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...

    def encode(self, images: Tensor) -> Tensor: ...

    def vectors(self, codes: Tensor, grid: tuple[int, int]) -> Tensor: ...


class TokenizedGenerator(TokenGenerator):
    """A token generator whose codes are those of ``tokenizer``."""

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
