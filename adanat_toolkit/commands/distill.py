"""``adanat distill``: teach a small decoder what a generator's own one does.

The lessons are the generator's own latents (codes) and what its decoder, frozen, makes of them: of images made under random
actions around the hand-made schedule, as a training makes them, and of real images where they can be encoded.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CONTEXT, Context, FeatureExtractor, Generator, ImageSource, Noise, RewardModel, derive
from ..core import sample_seeds as seeds_of
from ..decoding import DecoderCard, DistilledDecoder, TokenGenerator, widths_for
from ..errors import ConfigError, NotFiniteError
from ..images import draw_contexts
from ..limits import MOST_IMAGES, MOST_WIDTH
from ..metrics import FeatureStatistics, extract_features, frechet_distance
from ..policies import load_policy
from ..registry import toolkit_version
from ..runtime import CPU_CHUNK, Adam, MicroBatch, ready_to_learn
from ..sampling import collect, explored_by
from ..storage import prepare_file
from .headroom import SIGMA, explored
from .prepare_data import require_safetensors

IMAGES, STEPS, WIDTH = 8192, 4000, 32
HELD_OUT = 16
"""One of so many images is not learned from; the errors are of those."""
BATCH, RATE, WARM = 32, 3e-3, 100
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Distilled:
    """A taught decoder, and how far its images are from those of the own one.

    Attributes:
        decoder: ready for the generator that taught it.
        figures: psnr (dB, of all held-out pixels); frechet (distance between the two decoders' images of the same latents) and
            protocol, where there were features; images, held_out, steps, parameters, seconds.
    """

    decoder: DistilledDecoder
    figures: dict[str, Any]

    def __repr__(self) -> str:
        figures = self.figures
        frechet = "" if figures["frechet"] is None else f", Frechet distance {figures['frechet']:.3f}"
        return f"DistilledDecoder(PSNR {figures['psnr']:.1f} dB{frechet}, {figures['parameters']:,} parameters)"


class _Latents(RewardModel):
    """Keeps the latents of what was generated."""

    reads_latents = thread_safe = True

    def __init__(self) -> None:
        pass

    def score(self, images: Tensor, context: Context) -> Tensor:
        raise NotImplementedError

    def embed_latents(self, latents: Tensor, context: Context) -> Tensor:
        return latents


@ready_to_learn()
def distill(
    generator: Generator,
    *,
    real: ImageSource | None = None,
    extractor: FeatureExtractor | None = None,
    images: int = IMAGES,
    steps: int = STEPS,
    width: int = WIDTH,
    seed: int = 0,
    progress: Progress | None = None,
) -> Distilled:
    """Teach a decoder.

    Args:
        real: images whose codes are up to half of the lessons, each once, for a token generator with an encoder; the rest is
            the generator's own. None: these alone. extractor: features of the Frechet distance; None: it is not taken.
        images: lessons. steps: of Adam, in batches of 32. width: channels at the finest resolution that is computed.
        progress: called with (what, done, in all).

    Raises:
        ConfigError: a number out of range; or the generator gives no latents, does not say which tokenizer it has, or its
            images' sides are no power of two times the latents'. NotFiniteError: it diverged.
    """
    for name, value, most in (("images", images, MOST_IMAGES), ("steps", steps, MOST_IMAGES), ("width", width, MOST_WIDTH)):
        if not 1 <= value <= most:
            raise ConfigError(f"{name} = {value}; give at least 1 and at most {most:,}.")
    if images < 2 * HELD_OUT:
        raise ConfigError(f"{images} images teach nothing; give at least {2 * HELD_OUT}.")
    tokenizer = generator.tokenizer_fingerprint
    if tokenizer is None:
        raise ConfigError(
            f"{generator.name} does not say which tokenizer it has (tokenizer_fingerprint), so no file could say what it fits."
        )
    began, told = time.perf_counter(), progress or (lambda what, done, total: None)
    latents, targets = _lessons(generator, real, images, seed, told)
    channels, *side = latents.shape[1:]
    own, image = (side[0], side[1]), (targets.shape[2], targets.shape[3])
    card = DecoderCard(
        generator=generator.name, tokenizer=tokenizer, latent=(channels, *own), image=image,
        widths=widths_for(own, image, width),
    )  # fmt: skip
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(derive(seed, 0)))
    number = max(len(order) // HELD_OUT, 2)  # one image has no Frechet distance
    held, taught = order[:number], order[number:]
    decoder = _first_weights(card, latents[taught], seed).to(generator.device).to(memory_format=torch.channels_last)
    _teach(decoder, latents, targets, taught, steps, seed, generator.dtype, told)
    # The errors are those of the weights as they are stored.
    state = {key: value.half().float() for key, value in decoder.state_dict().items()}
    wrong = [key for key, value in state.items() if not bool(value.isfinite().all())]
    if wrong:
        raise NotFiniteError(
            f"{len(wrong)} of {len(state)} tensors of the decoder are not finite in half precision, first {wrong[0]}; use "
            "another --seed or --dtype float32."
        )
    decoder.load_state_dict(state)
    decoder.eval().requires_grad_(False)
    made = torch.cat([decoder.decode(latents[rows].to(generator.device)).cpu() for rows in held.split(CPU_CHUNK)])
    true = targets[held].float() / 255
    frechet = None
    if extractor is not None:
        pair = [FeatureStatistics.of(extract_features(extractor, x).values) for x in (made, true)]
        frechet = frechet_distance(*pair)
    figures = {
        "psnr": -10 * math.log10(max(float((made - true).square().mean()), 1e-12)),
        "frechet": frechet,
        "protocol": None if extractor is None else extractor.protocol,
        "images": len(taught),
        "held_out": len(held),
        "steps": steps,
        "seed": seed,
        "parameters": sum(p.numel() for p in decoder.parameters()),
        "toolkit": toolkit_version(),
    }
    decoder.card = card.model_copy(update={"training": figures})
    decoder.placed(generator.device, generator.dtype)
    return Distilled(decoder, {**figures, "seconds": time.perf_counter() - began})


def distill_to_file(generator: Generator, file: Path, **settings: Any) -> Distilled:
    """:func:`distill`, and the file that ``--decoder FILE`` reads.

    Raises:
        ConfigError: not a .safetensors name, and of :func:`distill`. OutputError: the file cannot be written.
    """
    require_safetensors(file)
    prepare_file(file)
    found = distill(generator, **settings)
    found.decoder.save(file)
    return found


def _lessons(
    generator: Generator, real: ImageSource | None, count: int, seed: int, told: Progress
) -> tuple[Tensor, Tensor]:
    """Latents (n, C, h, w) float32 and the own decoder's images of them (n, 3, H, W) uint8, on the CPU."""
    encoded = min(count // 2, len(real)) if real is not None and isinstance(generator, TokenGenerator) else 0
    latents: list[Tensor] = []
    targets: list[Tensor] = []

    def keep(vectors: Tensor, images: Tensor) -> None:
        latents.append(vectors.float().cpu())
        targets.append((images * 255).round().to("cpu", torch.uint8))
        told("images", sum(map(len, latents)), count)

    policy = explored(generator, load_policy("fixed", generator))
    space, device, reward = policy.space, generator.device, _Latents()

    def generated(rows: slice) -> None:
        noise = Noise(seeds_of(derive(seed, CONTEXT), 0, rows.start, rows.stop - rows.start, device))
        actions = SIGMA * explored_by(noise, space.decisions, space.size)
        context = draw_contexts(generator, noise, None)
        done = collect(
            generator, policy, context, noise, actions=actions, reward=reward, keep_features=False, keep_images=len(noise)
        )
        assert done.embedded is not None and done.images is not None
        keep(done.embedded, done.images)

    @torch.no_grad()
    def rebuilt(rows: slice) -> None:
        assert real is not None and isinstance(generator, TokenGenerator)
        codes = generator.encode_images(real.images(chosen[rows]).to(device))
        keep(generator.token_vectors(codes), generator.decode_tokens(codes))

    at_once = MicroBatch(CPU_CHUNK)
    at_once.map(generated, count - encoded)
    if real is not None and encoded:
        draw = torch.Generator().manual_seed(derive(seed, 1))
        chosen = torch.randperm(len(real), generator=draw)[:encoded]
        at_once.map(rebuilt, encoded)
    return torch.cat(latents), torch.cat(targets)


def _first_weights(card: DecoderCard, latents: Tensor, seed: int) -> DistilledDecoder:
    """He et al.'s weights; each block and the last layer begin at a tenth, near the identity and grey."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, 2) % 2**63)
        decoder = DistilledDecoder(card)
        for layer in decoder.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        some = latents[:2048]
        decoder.mean.copy_(some.mean((0, 2, 3))[:, None, None])
        decoder.std.copy_(some.std((0, 2, 3))[:, None, None].clamp(min=1e-6))
        for name, layer in decoder.named_modules():
            if name.endswith(".second"):
                layer.weight.mul_(0.1)
        decoder.last().weight.mul_(0.1)
    return decoder


def _teach(
    decoder: DistilledDecoder,
    latents: Tensor,
    targets: Tensor,
    taught: Tensor,
    steps: int,
    seed: int,
    dtype: torch.dtype,
    told: Progress,
) -> None:
    """Adam on the mean absolute error, its rate along a half cosine; convolutions in ``dtype``.

    Raises:
        NotFiniteError: it diverged.
    """
    device = decoder.mean.device
    optimiser = Adam(list(decoder.parameters()), lr=RATE, betas=(0.9, 0.99))
    draw = torch.Generator().manual_seed(derive(seed, 3))
    for step in range(steps):
        rate = RATE * min(1.0, (step + 1) / WARM) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        rows = taught[torch.randint(len(taught), (BATCH,), generator=draw)]
        wanted = targets[rows].to(device).float() / 255
        # Entered for every step: it keeps the weights' copies until it is left.
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            made = decoder(latents[rows].to(device))
        loss = (made.float() - wanted).abs().mean()
        if step % 100 == 0 and not bool(loss.isfinite()):
            raise NotFiniteError(f"the decoder's error is {float(loss)} at step {step}; use another --seed or --dtype float32.")
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        told("steps", step + 1, steps)
