"""What the text-conditional generators share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adanat_toolkit.core import Noise
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import Context, ContextKind

from .tokenized import TokenizedGenerator


class TextConditional(TokenizedGenerator):
    """A generator of prompts.

    Attributes:
        encoder: a module that takes B prompts to states (B, L, C) and pooled (B, P) before normalisation.
    """

    released_sampler = "amused"  # Muse's authors published no code; aMUSEd is its reproduction

    context_kind: ContextKind = "text"
    encoder: Any
    _null: Context | None = None

    def parts(self) -> dict[str, Any]:
        return {"generator": self.network, "text encoder": self.encoder, "tokenizer": self.tokenizer}

    def sample_contexts(self, noise: Noise) -> Context:
        """Captions of the generator's data.

        Raises:
            ConfigError: no captions ship with it.
        """
        raise ConfigError(f"no captions ship with {self.name}; give --prompt, --prompts FILE, or --data with captions.")

    def encode_prompts(self, prompts: Sequence[str]) -> Context:
        """Contexts of prompts: states (B, L, C), pooled (B, P) before normalisation."""
        states, pooled = self.encoder(prompts)
        return Context(len(prompts), states=states, pooled=pooled, prompts=tuple(prompts))

    def null_context(self, size: int) -> Context:
        """The empty prompt, ``size`` times."""
        if self._null is None:
            self._null = self.encode_prompts([""])
        null = self._null
        assert null.states is not None and null.pooled is not None
        states, pooled = (value.expand(size, *value.shape[1:]) for value in (null.states, null.pooled))
        return Context(size, states=states, pooled=pooled, prompts=("",) * size)
