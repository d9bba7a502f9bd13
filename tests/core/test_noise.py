"""Random numbers that belong to samples: their law, their independence, and that nothing but the seed decides them."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import ACTION, CONTEXT, REMASK, TOKEN, Noise, as_seeds, derive, mix, sample_seeds
from adanat_toolkit.core import noise as noise_module
from adanat_toolkit.errors import ConfigError

SEEDS = torch.arange(64)
PINNED_UNIFORM = [
    [0.5408509373664856, 0.6479445099830627, 0.859747588634491],
    [0.030412614345550537, 0.5380874276161194, 0.9496087431907654],
]
PINNED_DERIVED = 589156592103734088
PINNED_SEEDS = [2134094923242984530, 2585655610230896397]


def python_mix(value: int) -> int:
    """The SplitMix64 output function in plain unsigned arithmetic."""
    mask = 2**64 - 1
    z = (value + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mix_is_splitmix64() -> None:
    # The generator's published test vector: seed 1234567 gives these first outputs (state advances by the constant).
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(int(mix(torch.tensor(state))) % 2**64)
        state += 0x9E3779B97F4A7C15
        state = (state + 2**63) % 2**64 - 2**63
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]
    values = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    assert [int(v) % 2**64 for v in mix(torch.tensor(values))] == [python_mix(v % 2**64) for v in values]


def test_known_values() -> None:
    """Pinned: a change of these changes the image of every seed."""
    drawn = Noise(torch.tensor([0, 7])).uniform(TOKEN, 2, (3,))
    assert drawn.tolist() == PINNED_UNIFORM
    assert derive(1, 2, 3) == PINNED_DERIVED
    assert sample_seeds(5, 3, 10, 2).tolist() == PINNED_SEEDS


def test_literal_definition() -> None:
    seed, stream, step, cell = 91, REMASK, 3, 5
    key = python_mix(python_mix(seed) ^ (stream * 0x1000003 + step * 0x10001 + 1))
    expected = ((python_mix(python_mix(cell) ^ key) >> 41) + 0.5) / 2**23
    assert float(Noise(torch.tensor([seed])).uniform(stream, step, (8,))[0, cell]) == expected


def python_unmix(value: int) -> int:
    """Inverse of :func:`python_mix`."""

    def unshift(z: int, bits: int) -> int:
        out = z
        for _ in range(64 // bits):
            out = z ^ (out >> bits)
        return out

    mask = 2**64 - 1
    z = unshift(value, 31) * pow(0x94D049BB133111EB, -1, 2**64) & mask
    z = unshift(z, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) & mask
    return (unshift(z, 30) - 0x9E3779B97F4A7C15) & mask


@pytest.mark.parametrize("bits", [0, 1, 2**64 - 1, 2**64 - 2**41, 2**63])
def test_extreme_uniforms_stay_inside_the_open_interval(bits: int) -> None:
    """Seeds made for the smallest and the largest draws: these must not round to 0 or 1."""
    key = python_unmix(bits) ^ python_mix(0)
    seed = python_unmix(python_unmix(key) ^ (TOKEN * 0x1000003 + 1))
    noise = Noise(torch.tensor([(seed + 2**63) % 2**64 - 2**63]))
    drawn = float(noise.uniform(TOKEN, 0, (1,)))
    assert drawn == ((bits >> 41) + 0.5) / 2**23
    assert 0 < drawn < 1
    assert math.isfinite(float(noise.gumbel(TOKEN, 0, (1,))))
    assert int(torch.tensor(drawn) * 1000) < 1000  # how a class is drawn: never the null class behind the last one


@pytest.mark.parametrize("seeds", [torch.arange(500), sample_seeds(3, 9, 0, 500), torch.arange(500) * 2**40])
def test_uniform_law(seeds: Tensor) -> None:
    drawn = Noise(seeds).uniform(TOKEN, 1, (256,)).double().flatten()
    n, bins = drawn.numel(), 64
    counts = torch.histc(drawn, bins, 0, 1)
    chi2 = float(((counts - n / bins) ** 2).sum() / (n / bins))
    assert abs(chi2 - (bins - 1)) < 5 * math.sqrt(2 * (bins - 1))
    ordered = drawn.sort().values
    ks = float((ordered - (torch.arange(n) + 0.5) / n).abs().max())
    assert ks < 2.2 / math.sqrt(n)  # p about 1e-4


def test_normal_and_gumbel_laws() -> None:
    noise = Noise(torch.arange(400))
    n = 400 * 500
    normal = noise.normal(ACTION, 0, (500,)).double().flatten().sort().values
    expected = torch.tensor([NormalDist().cdf(x) for x in normal[::50].tolist()])
    assert float((expected - (torch.arange(n)[::50] + 0.5) / n).abs().max()) < 2.2 / math.sqrt(n)
    gumbel = noise.gumbel(REMASK, 0, (500,)).double().flatten().sort().values
    assert float((torch.exp(-torch.exp(-gumbel)) - (torch.arange(n) + 0.5) / n).abs().max()) < 2.2 / math.sqrt(n)


def test_streams_steps_and_seeds_are_independent() -> None:
    noise = Noise(SEEDS)
    columns = {
        (stream, step): noise.uniform(stream, step, (512,)).double().flatten()
        for stream in (TOKEN, REMASK, ACTION, CONTEXT)
        for step in range(4)
    }
    drawn = torch.stack([(c - 0.5) * math.sqrt(12) for c in columns.values()])
    n = drawn.shape[1]
    correlation = drawn @ drawn.T / n - torch.eye(len(drawn))
    assert float(correlation.abs().max()) < 5 / math.sqrt(n)
    rows = (noise.uniform(TOKEN, 0, (20_000,)).double() - 0.5) * math.sqrt(12)  # neighbouring seeds
    assert float((rows @ rows.T / 20_000 - torch.eye(64)).abs().max()) < 5.5 / math.sqrt(20_000)
    cells = rows.view(64, -1)
    assert abs(float((cells[:, 1:] * cells[:, :-1]).mean())) < 5 / math.sqrt(cells.numel())  # neighbouring cells


def test_no_two_uses_share_numbers() -> None:
    """Also for seeds whose xor is the difference of two steps' constants (65537 = 0x10001 is one)."""
    seeds = torch.tensor([0, 1, 65536, 65537, 131074, 2**24 + 3])
    first = {
        (stream, step, seed): value
        for stream in range(1, 10)
        for step in range(32)
        for seed, value in zip(seeds.tolist(), Noise(seeds).uniform(stream, step, (2,)).double().tolist(), strict=True)
    }
    assert len({tuple(v) for v in first.values()}) == len(first)


def test_streams_have_distinct_numbers() -> None:
    names = ("TOKEN", "REMASK", "ACTION", "CONTEXT", "INITIAL", "STEP", "SHUFFLE", "DATA", "REWARD")
    assert len({getattr(noise_module, name) for name in names}) == len(names)


def test_batch_order_and_shape_do_not_matter() -> None:
    whole = Noise(SEEDS).normal(TOKEN, 2, (4, 6))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Noise(SEEDS[order]).normal(TOKEN, 2, (4, 6)), whole[order])
    assert torch.equal(Noise(SEEDS).select(slice(3, 4)).normal(TOKEN, 2, (4, 6)), whole[3:4])
    assert torch.equal(Noise(SEEDS).select(torch.tensor([9, 2])).normal(TOKEN, 2, (4, 6)), whole[[9, 2]])
    assert torch.equal(Noise(SEEDS).uniform(TOKEN, 2, (24,)).view(64, 4, 6), Noise(SEEDS).uniform(TOKEN, 2, (4, 6)))
    # A prefix of the cells has the same numbers: a cell's draw does not depend on how many cells there are.
    assert torch.equal(Noise(SEEDS).uniform(TOKEN, 2, (10,)), Noise(SEEDS).uniform(TOKEN, 2, (24,))[:, :10])
    assert Noise(SEEDS[:0]).uniform(TOKEN, 0, (3,)).shape == (0, 3)


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first, state = Noise(SEEDS).normal(TOKEN, 0, (3,)), torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(Noise(SEEDS).normal(TOKEN, 0, (3,)), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_numbers_on_the_gpu() -> None:
    own = Noise(SEEDS).uniform(TOKEN, 3, (64,))
    assert torch.equal(Noise(SEEDS.cuda()).uniform(TOKEN, 3, (64,)).cpu(), own)


def test_sample_seeds() -> None:
    whole = sample_seeds(4, 11, 0, 1000)
    assert whole.min() >= 0 and whole.unique().numel() == 1000
    assert torch.equal(sample_seeds(4, 11, 600, 50), whole[600:650])  # any slice of an iteration, on any process
    others = torch.cat([sample_seeds(4, 12, 0, 1000), sample_seeds(5, 11, 0, 1000)])
    assert torch.cat([whole, others]).unique().numel() == 3000


def test_derive() -> None:
    assert derive(1, 2) != derive(2, 1) and derive(0) != derive(0, 0) != derive(0, 0, 0)
    values = {derive(a, b) for a in range(60) for b in range(60)}
    assert len(values) == 3600 and all(0 <= v < 2**63 for v in values)
    assert derive(-1) != derive(1) and derive(2**63 - 1) >= 0


@pytest.mark.parametrize(
    "seeds", [torch.tensor([3, -1]), torch.tensor([2**63], dtype=torch.uint64), [True], range(10**12), range(10**30)]
)
def test_what_is_no_seed_is_refused_in_every_form(seeds: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        as_seeds(seeds)
