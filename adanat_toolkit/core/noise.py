"""Random numbers that belong to a sample.

Every random number the toolkit uses while it makes an image is a pure function of (the sample's seed, a stream, the
step, a cell index). It is a counter-based generator (the SplitMix64 finaliser), vectorised in int64 arithmetic, hence the
same on every device and independent of batch size, of the order of samples and of the number of processes. There is no
generator state, so nothing of it has to be saved: a resumed run continues bit-exactly from its counters alone.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ..errors import ConfigError
from ..limits import MOST_IMAGES, MOST_SEED

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX2 = 0x94D049BB133111EB - 2**64

# One number a purpose; two purposes never share random numbers.
TOKEN, REMASK, ACTION, CONTEXT, INITIAL, STEP, SHUFFLE, DATA, REWARD, CANDIDATE = range(1, 11)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical (unsigned) right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """SplitMix64 finaliser: int64 -> int64, a bijection whose output bits look independent."""
    z = z + _GOLDEN
    z = (z ^ _shift_right(z, 30)) * _MIX1
    z = (z ^ _shift_right(z, 27)) * _MIX2
    return z ^ _shift_right(z, 31)


_WORD = 2**64 - 1


def _mix_integer(z: int) -> int:
    """:func:`mix` of one Python integer, unsigned: a tensor for a single number costs a hundred times as much."""
    z = (z + _GOLDEN) & _WORD
    z = ((z ^ (z >> 30)) * _MIX1) & _WORD
    z = ((z ^ (z >> 27)) * _MIX2) & _WORD
    return z ^ (z >> 31)


def derive(*parts: int) -> int:
    """One 63-bit seed from several integers (run seed, iteration, purpose, ...), order matters."""
    z = 0
    for part in parts:
        z = _mix_integer(z ^ _mix_integer(part & _WORD))
    return z & (2**63 - 1)


def sample_seeds(run_seed: int, iteration: int, start: int, count: int, device: torch.device | str = "cpu") -> Tensor:
    """Seeds of trajectories ``start .. start + count - 1`` of one iteration: (count,) int64, non-negative."""
    base = derive(run_seed, iteration)
    index = torch.arange(start, start + count, dtype=torch.int64, device=device)
    return mix(mix(index) ^ base) & (2**63 - 1)


def as_seeds(seeds: Tensor | Sequence[int]) -> Tensor:
    """(B,) int64 of seeds in any form; a tensor stays on its device.

    Raises:
        ConfigError: not one axis of whole numbers, or one of a sequence is not in 0 .. 2^63 - 1.
    """
    if isinstance(seeds, Tensor):
        if seeds.dim() != 1 or seeds.is_floating_point() or seeds.is_complex() or seeds.dtype == torch.bool:
            raise ConfigError(
                f"seeds are a {seeds.dtype} tensor of shape {tuple(seeds.shape)}; give one axis of whole numbers."
            )
        numbers = seeds.to(torch.int64)
        if numbers.device.type == "cpu" and len(numbers) and int(numbers.min()) < 0:  # elsewhere it would be waited for
            raise ConfigError(f"seed {seeds.tolist()[int(numbers.argmin())]} is not in 0 .. 2^63 - 1; give another one.")
        return numbers
    try:
        if len(seeds) > MOST_IMAGES:
            raise OverflowError
        if any(isinstance(value, bool) for value in seeds):
            raise TypeError
        values = [operator.index(value) for value in seeds]
    except OverflowError:
        raise ConfigError(f"seeds holds more than {MOST_IMAGES} seeds; give fewer.") from None
    except TypeError:
        raise ConfigError(f"seeds = {seeds!r:.100}: give whole numbers, as a list or a tensor.") from None
    for value in values:
        if not 0 <= value <= MOST_SEED:
            raise ConfigError(f"seed {value} is not in 0 .. 2^63 - 1; give another one.")
    return torch.tensor(values, dtype=torch.int64)


@dataclass(frozen=True)
class Noise:
    """Noise of a batch of samples.

    Args:
        seeds: (B,) int64 (or a list), one seed a sample. A sample's image depends on its seed, its context and the policy
            only.

    Raises:
        ConfigError: see :func:`as_seeds`.
    """

    seeds: Tensor

    def __post_init__(self) -> None:
        # Whole int64 numbers are taken as they are: the tests of the law use all 64 bits.
        if not isinstance(self.seeds, Tensor) or self.seeds.dtype != torch.int64 or self.seeds.dim() != 1:
            object.__setattr__(self, "seeds", as_seeds(self.seeds))

    def __len__(self) -> int:
        return self.seeds.shape[0]

    def select(self, index: Tensor | slice) -> Noise:
        """The noise of some of the samples."""
        return Noise(self.seeds[index])

    def to(self, device: torch.device | str) -> Noise:
        return Noise(self.seeds.to(device))

    @cached_property
    def _mixed(self) -> Tensor:
        """The seeds, mixed: users number them 0, 1, 2, ..., and a plain xor with the stream and the step would let two of
        them share random numbers at different steps."""
        return mix(self.seeds)

    def uniform(self, stream: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32 in the open interval (0, 1), 2^-23 apart: odd multiples of 2^-24."""
        return self.uniforms([(stream, step)], shape)[0]

    def uniforms(self, draws: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Tensor:
        """:meth:`uniform` of several pairs of a stream and a step, together: (len(draws), B, *shape)."""
        purposes = _numbers(tuple(stream * 0x1000003 + step * 0x10001 + 1 for stream, step in draws), self.seeds.device)
        key = mix(self._mixed ^ purposes[:, None])
        # 23 bits: with 24, bits + 0.5 would no longer be exact in float32 and the largest value would round to 1.
        bits = _shift_right(mix(_cells(math.prod(shape), self.seeds.device) ^ key[:, :, None]), 41)
        return bits.float().add_(0.5).mul_(2.0**-23).view(len(draws), len(self), *shape)

    def gumbel(self, stream: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32, standard Gumbel."""
        return to_gumbel(self.uniform(stream, step, shape))

    def normal(self, stream: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) float32, standard normal."""
        return self.normals([(stream, step)], shape)[0]

    def normals(self, draws: Sequence[tuple[int, int]], shape: tuple[int, ...]) -> Tensor:
        """:meth:`normal` of several pairs of a stream and a step, together: (len(draws), B, *shape), by Box-Muller."""
        first, second = self.uniforms(draws, (2, *shape)).unbind(2)
        return torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * math.pi * second)


def to_gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel numbers of uniform ones: -log(-log(u))."""
    return -torch.log(-torch.log(uniform))


@lru_cache(maxsize=256)
def _numbers(values: tuple[int, ...], device: torch.device) -> Tensor:
    """A few integers on a device, kept: the same ones are asked for at every iteration."""
    return torch.tensor(values, dtype=torch.int64, device=device)


@lru_cache(maxsize=32)
def _cells(count: int, device: torch.device) -> Tensor:
    """The mixed indices of so many cells, kept likewise."""
    return mix(torch.arange(count, dtype=torch.int64, device=device))
