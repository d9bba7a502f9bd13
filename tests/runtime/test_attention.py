"""Attention of short rows: the function is the same whichever way it is computed, and a sample is its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from adanat_toolkit.runtime import attend


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(5, 3, 17, 17, 8), (2, 1, 1, 9, 4), (3, 2, 9, 1, 4), (2, 16, 257, 257, 8), (0, 2, 3, 3, 4)])
def test_it_is_softmax_attention(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    batch, heads, rows, keys, width = shape
    random = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(batch, length, heads, width, generator=random).transpose(1, 2).to(dtype) for length in (rows, keys, keys)
    )
    found = attend(query, key, value)
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double())
    assert found.dtype == dtype and found.shape == wanted.shape
    # Weights and output are each rounded to 8 bits.
    assert not batch or (found - wanted).abs().max() < (0.03 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_a_sample_does_not_depend_on_its_batch(heads: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = [torch.randn(16, heads, 65, 16, generator=random).bfloat16() for _ in range(3)]
    whole = attend(*inputs)
    for size in (2, 3, 7):
        assert torch.equal(attend(*(x[:size] for x in inputs)), whole[:size])


def test_it_can_be_differentiated_twice() -> None:
    """A gradient penalty needs that, where a backbone sees pixels: with the plain kernel, which such a reward asks for."""
    query, key, value = (torch.randn(2, 2, 5, 4).bfloat16().requires_grad_() for _ in range(3))
    with sdpa_kernel(SDPBackend.MATH):
        out = attend(query, key, value)
    (first,) = torch.autograd.grad(out.float().square().sum(), query, create_graph=True)
    first.float().square().sum().backward()
    assert value.grad is not None and bool(value.grad.isfinite().all())
