"""How a pipeline calls its denoiser, read and rewritten by hooks on the denoiser itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adanat_plugins.diffusion.families import Family, family_of

from ...errors import ConfigError

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Calls:
    """The arguments and the answer of a denoiser of one class, in common terms.

    Attributes:
        latents, time: names of the arguments, which are the first and the second if they have no name.
        listed: as Z-Image: latents and answer are lists of (C, 1, h, w), time runs from 0 to 1 towards the image, the
            velocity is the other way round, and of the two halves of a batch the conditional one comes first.
    """

    latents: str
    time: str
    listed: bool = False

    def latents_of(self, given: Arguments) -> Tensor:
        """(R, C, h, w)."""
        found = self._get(given, self.latents, 0)
        return torch.stack(found).squeeze(2) if self.listed else found

    def with_latents(self, given: Arguments, latents: Tensor) -> Arguments:
        """The call with other latents (R, C, h, w), in the dtype of those that it had."""
        latents = latents.to(self.latents_of(given).dtype)
        return self._set(given, self.latents, 0, list(latents[:, :, None].unbind()) if self.listed else latents)

    def with_times(self, given: Arguments, times: Tensor) -> Arguments:
        """The call with a time for each row, (R,) float32, as schedulers count them."""
        return self._set(given, self.time, 1, (1000 - times) / 1000 if self.listed else times)

    def answer(self, output: Any) -> Tensor:
        """(R, C, h, w) of what the denoiser returned, as a scheduler takes it."""
        found: Any = output[0] if isinstance(output, tuple) else output.sample
        return -torch.stack(found).squeeze(2) if self.listed else found

    def halves(self, rows: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
        """Conditional and unconditional rows of a batch of ``size`` images; None where the pipeline did not run the second."""
        if len(rows) == size:
            return rows, None
        return (rows[:size], rows[size:]) if self.listed else (rows[size:], rows[:size])

    def _get(self, given: Arguments, name: str, position: int) -> Any:
        positional, named = given
        return named[name] if name in named else positional[position]

    def _set(self, given: Arguments, name: str, position: int, value: Any) -> Arguments:
        positional, named = given
        if name in named:
            return positional, {**named, name: value}
        return (*positional[:position], value, *positional[position + 1 :]), named


CALLS: dict[str, Calls] = {
    "UNet2DConditionModel": Calls("sample", "timestep"),
    "SD3Transformer2DModel": Calls("hidden_states", "timestep"),
    "ZImageTransformer2DModel": Calls("x", "t", listed=True),
}
"""By the denoiser's class."""


def calls_of(denoiser: Any) -> Calls:
    """
    Raises:
        ConfigError: a denoiser of another class.
    """
    found = CALLS.get(type(denoiser).__name__)
    if found is None:
        raise ConfigError(
            f"policies know the denoisers {', '.join(CALLS)}; this pipeline has a {type(denoiser).__name__}."
        )
    return found


def family_of_denoiser(denoiser: Any) -> Family:
    """The family whose pipelines have such a denoiser.

    Raises:
        ConfigError: a denoiser of another class.
    """
    calls_of(denoiser)
    name = {
        "SD3Transformer2DModel": "StableDiffusion3Pipeline",
        "ZImageTransformer2DModel": "ZImagePipeline",
    }.get(type(denoiser).__name__)
    if name is None:
        is_xl = denoiser.config.get("addition_embed_type") == "text_time"
        name = "StableDiffusionXLPipeline" if is_xl else "StableDiffusionPipeline"
    return family_of(name)
