"""The decoding step: how many cells are masked, which, and that samples do not see each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adanat_toolkit.core import REMASK, TOKEN, Noise
from adanat_toolkit.decoding import StepKnobs, StepNoise, StepResult, masked_decoding_step
from adanat_toolkit.decoding.masked_decoding import draw_tokens, guide, remask_count

VOCABULARY = 13
MASK = VOCABULARY


def knobs(
    ratio: object, *, remask: float = 0.0, temperature: float = 1.0, guidance: float = 0.0, size: int = 1
) -> StepKnobs:
    ratios = torch.as_tensor(ratio, dtype=torch.float32).expand(size)
    return StepKnobs(ratios, *(torch.full((size,), value) for value in (remask, temperature, guidance)))


def noise_of(seeds: Tensor, cells: int) -> StepNoise:
    noise = Noise(seeds)
    return StepNoise(noise.uniform(TOKEN, 0, (cells,)), noise.gumbel(REMASK, 0, (cells,)))


def case(size: int, cells: int, seed: int, known: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens with about a share ``known`` of known cells, conditional and unconditional logits."""
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (size, cells), generator=draw)
    tokens[torch.rand(size, cells, generator=draw) >= known] = MASK
    logits = torch.randn(2, size, cells, VOCABULARY, generator=draw)
    return tokens, 2 * logits[0], 2 * logits[1]


def literal(tokens: Tensor, logits: Tensor, ratio: float, result: StepResult, remask: float, gumbel: Tensor) -> Tensor:
    """The rule of one sample, cell by cell, given the proposal."""
    log_p = logits.log_softmax(-1)
    confidence = []
    for cell, (before, now) in enumerate(zip(tokens.tolist(), result.proposal[0].tolist(), strict=True)):
        value = float(log_p[cell, now] + remask * gumbel[cell])
        confidence.append(value if before == MASK else float("inf"))
    k = min(int(len(tokens) * ratio), len(tokens) - 1)
    cutoff = sorted(confidence)[k]
    return torch.tensor(
        [MASK if c < cutoff else t for c, t in zip(confidence, result.proposal[0].tolist(), strict=True)]
    )


@given(
    st.integers(1, 40), st.floats(0, 1, width=32), st.floats(0, 6), st.floats(0, 3), st.floats(0, 4), st.integers(0, 2**40),
    st.floats(0, 1),
)  # fmt: skip
@settings(max_examples=150)
def test_properties(
    cells: int, ratio: float, remask: float, temperature: float, guidance: float, seed: int, known: float
) -> None:
    tokens, conditional, unconditional = case(1, cells, seed % 1000, known)
    drawn = noise_of(torch.tensor([seed]), cells)
    settings_ = knobs(ratio, remask=remask, temperature=temperature, guidance=guidance)
    result = masked_decoding_step(tokens, conditional, unconditional, settings_, drawn, MASK)
    unknown = tokens == MASK
    assert ((result.proposal >= 0) & (result.proposal < VOCABULARY)).all()
    assert torch.equal(result.proposal[~unknown], tokens[~unknown])  # known cells keep their token ...
    assert torch.equal(result.tokens[~unknown], tokens[~unknown])  # ... and are never masked again
    masked = result.tokens == MASK
    assert torch.equal(result.tokens[~masked], result.proposal[~masked])
    wanted = min(int(torch.tensor(ratio) * cells), cells - 1)
    assert int(masked.sum()) == min(wanted, int(unknown.sum()))
    # As the count, the cells are those that the rule names.
    logits = guide(conditional, unconditional, settings_.guidance)[0]
    expected = literal(tokens[0], logits, float(torch.tensor(ratio)), result, remask, drawn.remask[0])
    if len(expected) - int((expected == result.tokens[0]).sum()):  # rounding of a confidence against the cut-off only
        differ = expected != result.tokens[0]
        log_p = logits.log_softmax(-1).gather(1, result.proposal[0][:, None])[:, 0] + remask * drawn.remask[0]
        assert int(differ.sum()) == 2 and float(log_p[differ].diff().abs()) < 1e-5


@pytest.mark.parametrize("cells", [1, 2, 64, 256])
def test_remask_count_at_the_ends(cells: int) -> None:
    ratios = torch.tensor([0.0, 1e-6, 1 / cells, 1 - 1e-6, 1.0])
    counts = remask_count(ratios, cells).tolist()
    assert counts[0] == counts[1] == 0 and counts[-1] == cells - 1
    assert counts[2] == (1 if cells > 1 else 0)
    assert remask_count(torch.tensor([0.5]), torch.tensor([0])).tolist() == [0]


def test_samples_do_not_see_each_other() -> None:
    tokens, conditional, unconditional = case(6, 30, 1)
    ratios = torch.tensor([0.0, 0.2, 0.5, 0.7, 0.9, 1.0])
    seeds = torch.arange(6) + 100
    each = StepKnobs(ratios, torch.linspace(0, 3, 6), torch.linspace(0.5, 1.5, 6), torch.linspace(0, 2, 6))
    whole = masked_decoding_step(tokens, conditional, unconditional, each, noise_of(seeds, 30), MASK)
    for order in ([0], [5, 2], [3, 1, 4, 0, 5, 2]):
        part = masked_decoding_step(
            tokens[order], conditional[order], unconditional[order], StepKnobs(*(k[order] for k in each)),
            noise_of(seeds[order], 30), MASK,
        )  # fmt: skip
        for own, expected in zip(part, whole, strict=True):
            assert torch.equal(own, expected[order])


def test_guidance() -> None:
    tokens, conditional, unconditional = case(2, 8, 2)
    g = torch.tensor([0.0, 1.5])
    guided = guide(conditional, unconditional, g)
    assert torch.equal(guided[0], conditional[0])
    assert torch.allclose(guided[1], 2.5 * conditional[1] - 1.5 * unconditional[1], atol=1e-5)
    assert guide(conditional, None, g) is conditional
    none = masked_decoding_step(tokens, conditional, None, knobs(0.5, size=2), noise_of(torch.arange(2), 8), MASK)
    zero = masked_decoding_step(
        tokens, conditional, unconditional, knobs(0.5, size=2), noise_of(torch.arange(2), 8), MASK
    )
    assert torch.equal(none.tokens, zero.tokens)


def test_temperature_zero_is_the_arg_max() -> None:
    tokens, conditional, _ = case(4, 50, 3, known=0.0)
    for temperature in (0.0, 1e-6, 1e-3):
        result = masked_decoding_step(
            tokens, conditional, None, knobs(0.0, temperature=temperature, size=4), noise_of(torch.arange(4), 50), MASK
        )
        assert torch.equal(result.proposal, conditional.argmax(-1))
    assert torch.isfinite(result.log_prob).all()


def test_draws_follow_the_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, float("-inf")])
    for temperature in (0.5, 1.0, 2.0):
        uniform = ((torch.arange(100_000) + 0.5) / 100_000)[None]  # every quantile once: frequencies are exact
        drawn = draw_tokens(logits.expand(1, 100_000, 5), torch.tensor([temperature]), uniform)
        counts = torch.bincount(drawn[0], minlength=5) / 100_000
        assert torch.allclose(counts, (logits / temperature).softmax(0), atol=2e-5)
    ends = torch.tensor([[2.0**-24, 1 - 2.0**-24]])
    assert draw_tokens(logits.expand(1, 2, 5), torch.ones(1), ends).tolist() == [[0, 3]]


def test_confidence_is_at_temperature_one() -> None:
    """Two cells draw the same token with certainty; the colder sampling temperature must not change who is masked."""
    logits = torch.tensor([[[3.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]])
    tokens = torch.full((1, 3), 3)
    drawn = StepNoise(torch.full((1, 3), 0.01), torch.zeros(1, 3))
    for temperature in (0.01, 1.0):
        result = masked_decoding_step(tokens, logits, None, knobs(0.4, temperature=temperature), drawn, 3)
        assert result.tokens.tolist() == [[0, 3, 0]]
        assert torch.allclose(result.log_prob, logits.log_softmax(-1)[..., 0])


def test_ties_mask_fewer_cells() -> None:
    logits = torch.zeros(1, 6, VOCABULARY)
    logits[0, :, 0] = torch.tensor([5.0, 1.0, 3.0, 3.0, 3.0, 5.0])
    tokens = torch.full((1, 6), MASK)
    drawn = StepNoise(torch.full((1, 6), 1e-3), torch.zeros(1, 6))

    def masked(ratio: float) -> list[int]:
        result = masked_decoding_step(tokens, logits, None, knobs(ratio), drawn, MASK)
        return (result.tokens[0] == MASK).nonzero().flatten().tolist()

    assert masked(1 / 6 + 0.01) == [1]
    assert masked(2 / 6 + 0.01) == masked(3 / 6 + 0.01) == [1]  # the cut-off lies inside the tie: strictly below it
    assert masked(4 / 6 + 0.01) == [1, 2, 3, 4]
    assert masked(1.0) == [1, 2, 3, 4]


def test_no_progress_when_more_is_asked_than_is_unknown() -> None:
    tokens, conditional, _ = case(1, 40, 4, known=0.6)
    result = masked_decoding_step(tokens, conditional, None, knobs(0.95), noise_of(torch.tensor([3]), 40), MASK)
    assert torch.equal(result.tokens == MASK, tokens == MASK)


def test_remask_noise_changes_who_is_masked() -> None:
    tokens, conditional, _ = case(1, 64, 5, known=0.0)
    drawn = noise_of(torch.tensor([8]), 64)
    cold = masked_decoding_step(tokens, conditional, None, knobs(0.5), drawn, MASK)
    hot = masked_decoding_step(tokens, conditional, None, knobs(0.5, remask=1e4), drawn, MASK)
    assert torch.equal(cold.proposal, hot.proposal)
    lowest = drawn.remask[0].argsort()[:32]
    assert set((hot.tokens[0] == MASK).nonzero().flatten().tolist()) == set(lowest.tolist())
    assert not torch.equal(cold.tokens, hot.tokens)


@given(st.integers(0, 1000), st.floats(0, 1, width=32))
@settings(max_examples=60)
def test_editing_keeps_what_is_not_editable(seed: int, ratio: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (2, 24), generator=draw)
    editable = torch.rand(2, 24, generator=draw) < 0.4
    editable[1] = False  # a sample with nothing to edit
    started = tokens.masked_fill(editable, MASK)
    conditional = torch.randn(2, 24, VOCABULARY, generator=draw)
    result = masked_decoding_step(
        started, conditional, None, knobs(ratio, size=2), noise_of(torch.tensor([seed, seed]), 24), MASK, editable
    )
    assert torch.equal(result.proposal[~editable], tokens[~editable])
    masked = result.tokens == MASK
    assert not masked[~editable].any()
    cells = int(editable[0].sum())
    wanted = max(0, min(int(torch.tensor(ratio) * cells), cells - 1))
    assert int(masked[0].sum()) == wanted and not masked[1].any()


def test_inputs_are_not_changed() -> None:
    tokens, conditional, unconditional = case(2, 10, 6)
    copies = [t.clone() for t in (tokens, conditional, unconditional)]
    masked_decoding_step(
        tokens, conditional, unconditional, knobs(0.5, guidance=1.0, size=2), noise_of(torch.arange(2), 10), MASK
    )
    assert all(torch.equal(a, b) for a, b in zip((tokens, conditional, unconditional), copies, strict=True))
