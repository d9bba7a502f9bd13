"""Which tokens may be drawn under top-k and top-p, and how they are drawn."""

from __future__ import annotations

import torch
from torch import Tensor

from adanat_toolkit.core import next_scale_knobs
from adanat_toolkit.core.actions import ActionSpace
from adanat_toolkit.decoding import draw_tokens, keep_likely
from adanat_toolkit.decoding.draws import token_log_prob


def kept(logits: Tensor, top_k: float | None = None, top_p: float | None = None) -> list[int]:
    """Ids that are left of one cell's logits."""
    limits = [None if value is None else torch.tensor([value]) for value in (top_k, top_p)]
    return keep_likely(logits[None, None], *limits)[0, 0].isfinite().nonzero()[:, 0].tolist()


def test_top_k() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 1.0, 0.0])
    assert kept(logits, 1.0) == [0]
    assert kept(logits, 2.9) == [0, 2]
    assert kept(logits, 3.0) == [0, 1, 2, 3]  # ties with the last one stay
    assert kept(logits, 2.9996) == [0, 2]
    for everything in (0.0, 0.999, 0.9999, 5.0, 80.0):
        assert kept(logits, everything) == [0, 1, 2, 3, 4]


def test_log_probabilities_near_zero_keep_their_digits() -> None:
    """Where one token is all but certain, cells do not tie that differ."""
    logits = torch.tensor([[[100.0, 100.0 - gap] for gap in (12, 12.5, 13, 13.5)]])
    found = token_log_prob(logits, torch.zeros(1, 4, dtype=torch.int64))
    expected = -torch.log1p(torch.exp(-torch.tensor([12, 12.5, 13, 13.5], dtype=torch.float64)))
    torch.testing.assert_close(found[0].double(), expected, rtol=0.1, atol=0)
    assert len(found.unique()) == 4


def test_a_whole_top_k_in_float32_is_that_number() -> None:
    """900 of 4,096 through the knob and back is 899.9999 or 900.0001; 899.99 is 899."""
    space = ActionSpace(next_scale_knobs(4096)).bind(torch.tensor([[1.5, 900.0, 0.96, 1.0]], dtype=torch.float64))
    zero = space.to_physical(torch.zeros(1, 4), 0)[:, 1]
    logits = torch.arange(4096.0)
    for top_k, count in ((zero.item(), 900), (899.9999, 900), (900.0, 900), (899.99, 899), (900.9, 900)):
        assert len(kept(logits, top_k)) == count, top_k


def test_top_p_counts_from_the_least_likely() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    assert kept(logits, top_p=1.0) == [0, 1, 2, 3]
    assert kept(logits, top_p=0.85) == [1, 2, 3]  # 0.1 goes; 0.1 + 0.2 is more than 0.15
    assert kept(logits, top_p=0.65) == [1, 3]
    assert kept(logits, top_p=0.0) == [1]
    # Of what top-k left: the 0.1 is gone already, and 0.2 / 0.9 is more than 0.15.
    assert kept(logits, 3.0, 0.85) == [1, 2, 3]
    assert kept(logits, 3.0, 0.7) == [1, 3]


def test_each_sample_has_its_own_limits() -> None:
    logits = torch.randn(3, 5, 20, generator=torch.Generator().manual_seed(0))
    top_k, top_p = torch.tensor([3.0, 0.0, 12.0]), torch.tensor([1.0, 0.5, 0.8])
    together = keep_likely(logits, top_k, top_p)
    for row in range(3):
        assert torch.equal(keep_likely(logits[row : row + 1], top_k[row : row + 1], top_p[row : row + 1])[0], together[row])
    left = together.isfinite()
    assert (left[0].sum(-1) == 3).all() and torch.equal(together[left], logits[left])


def test_draws_stay_among_what_is_left_and_follow_its_law() -> None:
    logits = torch.log(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    uniform = ((torch.arange(20_000) + 0.5) / 20_000)[None]
    cells = logits.expand(1, 20_000, 4)
    half = torch.tensor([0.5])
    drawn = draw_tokens(cells, half, uniform, top_k=torch.tensor([3.0]), top_p=torch.tensor([0.7]))
    shares = torch.bincount(drawn[0], minlength=4) / 20_000
    # Tokens 1 and 3 are left; the temperature squares their probabilities afterwards.
    assert torch.allclose(shares, torch.tensor([0.0, 0.16, 0.0, 0.09]) / 0.25, atol=1e-3)
    hot = draw_tokens(cells, half * 1e4, uniform, top_k=torch.tensor([3.0]), top_p=torch.tensor([0.7]))
    assert set(hot.flatten().tolist()) == {1, 3}
    ends = torch.tensor([[2.0**-24, 1 - 2.0**-24]])
    assert draw_tokens(cells[:, :2], half, ends, top_k=torch.tensor([2.0])).tolist() == [[1, 3]]


def test_without_limits_nothing_is_sorted_out() -> None:
    logits = torch.randn(4, 6, 30, generator=torch.Generator().manual_seed(1))
    uniform, temperature = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)), torch.full((4,), 0.7)
    plain = draw_tokens(logits, temperature, uniform)
    open_limits = draw_tokens(logits, temperature, uniform, top_k=torch.full((4,), 30.0), top_p=torch.ones(4))
    assert torch.equal(plain, open_limits)
