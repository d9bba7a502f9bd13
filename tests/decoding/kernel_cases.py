"""The Triton kernels against PyTorch, interpreted on the CPU: ``test_fused.py`` runs this file in a process of its own, since
``TRITON_INTERPRET=1`` must be set before Triton is imported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import REMASK, TOKEN, Noise
from adanat_toolkit.decoding import StepKnobs, StepNoise, StepResult, fused, kernels, masked_decoding_step

Case = tuple[Tensor, Tensor, Tensor, StepKnobs, StepNoise, int]


def case(samples: int, cells: int, vocabulary: int, *, seed: int = 0, known: float = 0.3) -> Case:
    """Tokens, conditional and unconditional logits, knobs of each sample, noise, the mask."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (samples, cells), generator=draw)
    tokens[torch.rand(samples, cells, generator=draw) >= known] = vocabulary
    logits = 2 * torch.randn(2, samples, cells, vocabulary, generator=draw)
    # Columns of one tensor, as the generator has them.
    values = torch.rand(samples, 4, generator=draw) * torch.tensor([1.0, 3.0, 1.5, 4.0])
    noise = Noise(torch.arange(samples) + seed)
    drawn = StepNoise(noise.uniform(TOKEN, 0, (cells,)), noise.gumbel(REMASK, 0, (cells,)))
    return tokens, logits[0], logits[1], StepKnobs(*values.unbind(1)), drawn, vocabulary


def same(found: StepResult, expected: StepResult, tolerance: float = 1e-5) -> None:
    assert torch.equal(found.proposal, expected.proposal)
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.allclose(found.log_prob, expected.log_prob, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("samples", "cells", "vocabulary"),
    [(1, 7, 100), (3, 6, 100), (1, 5, 1024), (3, 3, 1024), (1, 4, 8192), (3, 2, 8193)],
)
def test_sizes(samples: int, cells: int, vocabulary: int) -> None:
    tokens, conditional, unconditional, *others = case(samples, cells, vocabulary)
    for null in (None, unconditional, unconditional[:1].expand(samples, -1, -1)):
        arguments = (tokens, conditional, null, *others)
        same(kernels.decoding_step(*arguments), masked_decoding_step(*arguments))


def test_more_cells_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "LARGEST_BLOCK", 8)
    arguments = case(2, 19, 50)
    same(kernels.decoding_step(*arguments), masked_decoding_step(*arguments))


def test_bfloat16_logits_are_computed_with_in_float32() -> None:
    tokens, conditional, unconditional, *others = case(3, 6, 1000)
    half = conditional.bfloat16(), unconditional.bfloat16()
    same(
        kernels.decoding_step(tokens, *half, *others),
        masked_decoding_step(tokens, half[0].float(), half[1].float(), *others),
    )


@pytest.mark.parametrize(
    "knobs",
    [
        {"guidance": 0.0},
        {"token_temperature": 0.0},
        {"token_temperature": 1e-7, "guidance": 3.0},
        {"mask_temperature": 0.0},
        {"mask_ratio": 0.0},
        {"mask_ratio": 1.0},
    ],
)
def test_knobs_at_their_ends(knobs: dict[str, float]) -> None:
    tokens, conditional, unconditional, values, noise, mask = case(3, 5, 100)
    values = values._replace(**{name: torch.full((3,), value) for name, value in knobs.items()})
    found = kernels.decoding_step(tokens, conditional, unconditional, values, noise, mask)
    same(found, masked_decoding_step(tokens, conditional, unconditional, values, noise, mask))
    if knobs == {"guidance": 0.0}:
        same(found, kernels.decoding_step(tokens, conditional, None, values, noise, mask), 0.0)


@pytest.mark.parametrize("known", [0.0, 1.0])
def test_everything_masked_and_nothing(known: float) -> None:
    arguments = case(2, 9, 100, known=known)
    found = kernels.decoding_step(*arguments)
    same(found, masked_decoding_step(*arguments))
    assert torch.equal(found.tokens, arguments[0]) == (known == 1.0)


def test_masked_editing() -> None:
    arguments = case(3, 8, 100)
    editable = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < torch.tensor([[0.0], [0.5], [1.0]])
    tokens = torch.where(editable, 100, arguments[0].clamp_max(99))
    same(
        kernels.decoding_step(tokens, *arguments[1:], editable), masked_decoding_step(tokens, *arguments[1:], editable)
    )


def test_ties() -> None:
    """Of logits: each can be drawn, at temperature 0 only the largest. Of confidences: none of them is masked."""
    tokens, conditional, _, values, noise, mask = case(2, 8, 64, known=0.0)
    tied = torch.zeros_like(conditional)
    tied[..., 5] = tied[..., 40] = 1.0
    values = values._replace(mask_temperature=torch.zeros(2), mask_ratio=torch.full((2,), 0.6))
    for temperature in (0.0, 1.0):
        values = values._replace(token_temperature=torch.full((2,), temperature))
        found = kernels.decoding_step(tokens, tied, None, values, noise, mask)
        same(found, masked_decoding_step(tokens, tied, None, values, noise, mask))
    even = kernels.decoding_step(tokens, torch.zeros_like(conditional), None, values, noise, mask)
    same(even, masked_decoding_step(tokens, torch.zeros_like(conditional), None, values, noise, mask))
    assert not (even.tokens == mask).any()


def test_impossible_tokens_are_not_drawn() -> None:
    """Top-k leaves minus infinity: also at the ends of the uniform numbers."""
    tokens, conditional, _, values, noise, mask = case(2, 5, 100, known=0.0)
    kept = conditional.topk(3, dim=-1)
    conditional = torch.full_like(conditional, float("-inf")).scatter_(-1, kept.indices, kept.values)
    for uniform in (2.0**-24, 0.5, 1 - 2.0**-24):
        ends = noise._replace(token=torch.full_like(noise.token, uniform))
        found = kernels.decoding_step(tokens, conditional, None, values, ends, mask)
        same(found, masked_decoding_step(tokens, conditional, None, values, ends, mask))
        assert (found.proposal[..., None] == kept.indices).any(-1).all()


def test_samples_do_not_see_each_other() -> None:
    tokens, conditional, unconditional, values, noise, mask = case(3, 6, 100)
    whole = kernels.decoding_step(tokens, conditional, unconditional, values, noise, mask)
    own = kernels.decoding_step(
        tokens[1:2], conditional[1:2], unconditional[1:2], StepKnobs(*(k[1:2] for k in values)),
        StepNoise(*(n[1:2] for n in noise)), mask,
    )  # fmt: skip
    for part, all_of_it in zip(own, whole, strict=True):
        assert torch.equal(part, all_of_it[1:2])


def test_no_samples() -> None:
    found = kernels.decoding_step(*case(0, 6, 100))
    assert found.tokens.shape == (0, 6)


def test_the_first_call_is_held_against_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a CUDA device: kernels that give something else, or nothing, are not used again, and it is said once."""
    arguments = case(2, 8, 100)
    expected = masked_decoding_step(*arguments)
    own = kernels.decoding_step

    def wrong(*arguments: object) -> StepResult:
        found = own(*arguments)
        return found._replace(log_prob=found.log_prob + 0.1)

    same(fused._by_kernels(*arguments), expected)
    assert fused._kernels is own and not caplog.messages
    for reason, step in {"is not that of PyTorch": wrong, "holds 100": broken}.items():
        monkeypatch.setattr(fused, "_kernels", None)
        monkeypatch.setattr(fused, "_refused", False)
        monkeypatch.setattr(kernels, "decoding_step", step)
        caplog.clear()
        same(fused._by_kernels(*arguments), expected, 0.0)
        assert fused._refused and fused._kernels is None
        assert len(caplog.messages) == 1 and reason in caplog.text
    monkeypatch.setattr(kernels, "decoding_step", full)
    with pytest.raises(torch.OutOfMemoryError):  # a smaller micro-batch mends it
        fused._by_kernels(*arguments)


def broken(*arguments: object) -> StepResult:
    raise RuntimeError("Triton's PTX is too new for a driver that holds 100\nand more lines")


def full(*arguments: object) -> StepResult:
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_vocabulary_too_large_is_refused() -> None:
    with pytest.raises(ValueError, match="20,000 entries"):
        kernels.decoding_step(*case(1, 1, 20_000))
