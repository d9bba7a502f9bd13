"""A small decoder that was taught by a generator's own one, for the images that only a training looks at.

It reads what the own decoder reads (``Generator.latents``): code vectors, or the latents of a diffusion model. The file says
which tokenizer it was taught by, and fits no other. ``adanat distill`` makes one (docs/performance.md); the idea is that of
small autoencoders for previews of diffusion latents.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from ..core import Generator
from ..errors import ConfigError, WeightsError
from ..runtime import image_chunk, in_chunks, minimum_batch
from ..storage import content_hash, facts_of, parse_document, read_header, shortened, write_file

KEY = "adanat_decoder"
"""Entry of the metadata of a decoder's file."""
DIGEST = "adanat_digest"
"""Another: SHA-256 of what the file says."""
REMEDY = "Make it again with `adanat distill`."

_Size = Annotated[int, Field(ge=1, le=2**14)]
_Width = Annotated[int, Field(ge=1, le=2**12)]


class DecoderCard(BaseModel):
    """What a file says of its decoder.

    Attributes:
        generator: whose images taught it. tokenizer: ``Generator.tokenizer_fingerprint``, of every generator that it fits.
        latent: (C, h, w). image: (H, W). widths: channels of each resolution, the latents' first.
        training: how it was made, and how far its images are from the own decoder's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    generator: str = Field(max_length=200)
    tokenizer: str = Field(pattern="^[0-9a-f]{16}$")
    latent: tuple[_Size, _Size, _Size]
    image: tuple[_Size, _Size]
    widths: tuple[_Width, ...] = Field(min_length=1, max_length=8)
    training: dict[str, Any] = {}


def levels_between(latent: tuple[int, int], image: tuple[int, int]) -> int:
    """How often a latent's sides double to the image's.

    Raises:
        ConfigError: no power of two lies between them.
    """
    factor = image[0] // latent[0]
    if (latent[0] * factor, latent[1] * factor) != image or factor != 2 ** (factor.bit_length() - 1):
        raise ConfigError(
            f"latents of {latent[0]}x{latent[1]} and images of {image[0]}x{image[1]}: a distilled decoder doubles both sides "
            "a whole number of times; train with the own decoder."
        )
    return factor.bit_length() - 1


class _Block(nn.Module):
    """Two convolutions that are added to their input. Without norms: the image of a sample depends on it alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(x + self.second(F.relu_(self.first(x))))


class DistilledDecoder(nn.Module):
    """Latents (B, C, h, w) -> images. No layer works at the image's own resolution: the last one gives four pixels a cell.

    Residual blocks are three at the latents' resolution, where they cost least, then two, then one.
    """

    mean: Tensor
    """(C, 1, 1) of the latents, as ``std``."""
    std: Tensor

    def __init__(self, card: DecoderCard) -> None:
        super().__init__()
        self.card = card
        doublings = levels_between(card.latent[1:], card.image)
        if len(card.widths) != max(doublings, 1):
            raise ConfigError(
                f"{len(card.widths)} widths for {doublings} doublings between latents and images; give "
                f"{max(doublings, 1)}."
            )
        self.register_buffer("mean", torch.zeros(card.latent[0], 1, 1))
        self.register_buffer("std", torch.ones(card.latent[0], 1, 1))
        self.first = nn.Conv2d(card.latent[0], card.widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for i, width in enumerate(card.widths):
            blocks = [_Block(width) for _ in range(max(3 - i, 1))]
            last = i + 1 == len(card.widths)
            outputs = 3 if last else card.widths[i + 1]
            out = nn.Conv2d(width, outputs * (4 if doublings else 1), 3 if last else 1, padding=1 if last else 0)
            self.levels.append(nn.Sequential(*blocks, out, nn.PixelShuffle(2 if doublings else 1)))
        self.fingerprint = ""
        """Hash of the file that it was read from."""

    def forward(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), nominally in [0, 1], in the type of the weights."""
        x = ((latents - self.mean) / self.std).to(self.first.weight.dtype)
        x = F.relu_(self.first(x.contiguous(memory_format=torch.channels_last)))
        for level in self.levels:
            x = level(x)
        return x + 0.5

    def last(self) -> nn.Conv2d:
        """The layer that gives the pixels."""
        *_, layer = (module for module in self.modules() if isinstance(module, nn.Conv2d))
        return layer

    def placed(self, device: torch.device, dtype: torch.dtype) -> DistilledDecoder:
        """Itself, frozen, with its convolutions where and in what a generator computes."""
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(dtype=dtype)
        return self.to(device).to(memory_format=torch.channels_last).eval().requires_grad_(False)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> images (B, 3, H, W) float32 in [0, 1], each of its own latents alone."""

        def run(part: Tensor) -> Tensor:
            return self(part).float().clamp(0, 1).contiguous()

        weight = self.first.weight
        minimum = minimum_batch(weight.dtype, weight.device)
        return in_chunks(run, latents, chunk=image_chunk(weight.device), minimum=minimum, convolves=True)[0]

    def save(self, path: Path) -> None:
        """Write the file, weights in float16.

        Raises:
            OutputError: it cannot be written.
        """
        from safetensors.torch import save

        tensors = {key: value.detach().cpu().half().contiguous() for key, value in self.state_dict().items()}
        card = self.card.model_dump_json()
        write_file(path, save(tensors, metadata={KEY: card, DIGEST: _digest(card, tensors)}))


def _digest(card: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a file says."""
    digest = hashlib.sha256(card.encode())
    for key in sorted(tensors):
        digest.update(f"\0{key}\0".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()


def read_decoder(path: Path) -> DistilledDecoder:
    """A decoder as :meth:`DistilledDecoder.save` wrote it, in float32 on the CPU.

    Raises:
        WeightsError: the file is missing or damaged, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    found, _ = read_header(path, error=WeightsError, remedy=REMEDY)
    try:
        with safe_open(str(path), "pt") as file:
            about = file.metadata() or {}
            text = about.get(KEY)
            if text is None:
                raise WeightsError(f"{path} is no distilled decoder (no metadata {KEY!r}). {REMEDY}")
            card: DecoderCard = parse_document(
                text, DecoderCard, where=f"the metadata of {path}", error=WeightsError, remedy=REMEDY
            )
            with torch.device("meta"):
                decoder = DistilledDecoder(card)
            expected = facts_of(decoder.half().state_dict())
            if found != expected:
                wrong = next(key for key in sorted({*found, *expected}) if found.get(key) != expected.get(key))
                raise WeightsError(
                    f"{path} does not hold the tensors it should: {shortened(wrong)} is {found.get(wrong, 'missing')}, "
                    f"expected {expected.get(wrong, 'no such tensor')}. {REMEDY}"
                )
            stored = {key: file.get_tensor(key) for key in found}
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged ({error}). {REMEDY}") from None
    except ConfigError as error:
        raise WeightsError(f"{path}: {error} {REMEDY}") from None
    if about.get(DIGEST) not in (None, _digest(text, stored)):  # none: written by a version without it
        raise WeightsError(f"{path} was changed or damaged since it was written: its checksum differs. {REMEDY}")
    state = {key: value.float() for key, value in stored.items()}
    if not all(bool(value.isfinite().all()) for value in state.values()):
        raise WeightsError(f"{path} holds numbers that are not finite. {REMEDY}")
    if not bool((state["std"] > 0).all()):
        raise WeightsError(f"{path} holds a standard deviation that is not above 0, so it divides by zero. {REMEDY}")
    decoder.float().load_state_dict(state, assign=True)
    decoder.fingerprint = content_hash(str(path))[:16]
    return decoder


def load_decoder(path: Path, generator: Generator) -> DistilledDecoder:
    """A decoder ready to use with a generator, on its device and in its compute type.

    Raises:
        WeightsError: see :func:`read_decoder`. ConfigError: it was taught by another tokenizer.
    """
    decoder = read_decoder(path)
    card, own = decoder.card, generator.tokenizer_fingerprint
    if own is None or card.tokenizer != own or card.image != tuple(generator.image_size):
        raise ConfigError(
            f"the distilled decoder {path} was taught by the tokenizer {card.tokenizer} of {card.generator}, for images of "
            f"{card.image[0]}x{card.image[1]}; that of {generator.name} is {own or 'unknown'}. Make one for it with `adanat "
            f"distill --generator {generator.name}`, or train with --decoder own."
        )
    return decoder.placed(generator.device, generator.dtype)


def widths_for(latent: tuple[int, int], image: tuple[int, int], width: int) -> tuple[int, ...]:
    """Channels of each resolution, ``width`` at the finest one: more where cells are few."""
    levels = max(levels_between(latent, image), 1)
    return tuple(width * (2 + i) // 2 for i in reversed(range(levels)))
