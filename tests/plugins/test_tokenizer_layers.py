"""Layers of tokenizers that compute the same with less: nearest up-sampling with its convolution, SiLU in place."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adanat_plugins.tokenizers.layers import Upsample, silu_of_own

pytestmark = pytest.mark.usefixtures("one_thread")


def layer(inputs: int, outputs: int, *, bias: bool = True) -> Upsample:
    torch.manual_seed(0)
    return Upsample(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias).requires_grad_(False))


def as_it_is(layer: Upsample, x: Tensor) -> Tensor:
    return layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 8, 5, 7), (3, 16, 8, 2), (2, 1, 4, 4)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("format", [torch.contiguous_format, torch.channels_last])
def test_sums_of_weights_give_the_same(shape: tuple[int, ...], bias: bool, format: torch.memory_format) -> None:
    up = layer(shape[1], 6, bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=format)
    with torch.no_grad():
        torch.testing.assert_close(up(x), as_it_is(up, x), rtol=1e-5, atol=1e-6)


@pytest.mark.rounding
@pytest.mark.parametrize(("channels", "size"), [(192, 8), (128, 16), (64, 32)])
def test_an_image_does_not_depend_on_its_batch(channels: int, size: int) -> None:
    """Sizes of the embedded decoder."""
    up = layer(channels, channels).to(memory_format=torch.channels_last)
    x = torch.randn(12, channels, size, size, generator=torch.Generator().manual_seed(1))
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        whole = up(x)
        for number in (1, 2, 7):
            assert torch.equal(up(x[:number]), whole[:number])


def test_weights_may_change() -> None:
    up, x = layer(4, 4), torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = up(x)
        other = copy.deepcopy(up)
        up.conv.weight.mul_(2)
        torch.testing.assert_close(up(x), as_it_is(up, x), rtol=1e-5, atol=1e-6)
        assert torch.equal(other(x), before)
        up.conv.weight = nn.Parameter(torch.ones_like(up.conv.weight))
        torch.testing.assert_close(up(x), as_it_is(up, x), rtol=1e-5, atol=1e-6)
    assert set(up.state_dict()) == {"conv.weight", "conv.bias"}


def test_other_types_and_recorded_gradients_are_left_as_they_are() -> None:
    up, x = layer(4, 4), torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(up(x), as_it_is(up, x))
    with torch.no_grad():
        half = copy.deepcopy(up).to(torch.bfloat16)
        assert torch.equal(half(x.bfloat16()), as_it_is(half, x.bfloat16()))


def test_inside_inference_mode() -> None:
    up, x = layer(4, 4), torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        inside = up(x).clone()
        made_inside = layer(4, 4)
        assert torch.equal(made_inside(x), inside)
    with torch.no_grad():
        assert torch.equal(up(x), inside)


def test_silu_overwrites_only_where_no_gradient_is_recorded() -> None:
    x = torch.randn(4, 3)
    kept = x.clone()
    y = kept.clone().requires_grad_(True)
    silu_of_own(y * 1).sum().backward()  # type: ignore[no-untyped-call]
    assert y.grad is not None
    torch.testing.assert_close(silu_of_own(kept), F.silu(x))
    assert torch.equal(kept, x)
    with torch.no_grad():
        assert torch.equal(silu_of_own(kept), F.silu(x))
        assert not torch.equal(kept, x)
