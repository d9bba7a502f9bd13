"""Properties of the published samplers: counts, clamps, orders, and independence of samples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adanat_toolkit.core import REMASK, TOKEN, TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.decoding import PUBLISHED_SAMPLERS, StepKnobs, StepNoise, StepResult, masked_decoding_step
from adanat_toolkit.decoding.released_counts import (
    clamped_counts,
    confidence_counts,
    halton_counts,
    halton_order,
    mask_schedule,
    radical_inverse,
    step_ratios,
)
from adanat_toolkit.decoding.released_samplers import (
    AmusedSampler,
    HaltonConfidenceSampler,
    HaltonSampler,
    MAGESampler,
    MaskGITSampler,
    PublishedSampler,
    published_sampler,
)
from adanat_toolkit.errors import ConfigError

GRID = (4, 5)
CELLS, CODES = 20, 30
SPACE = ActionSpace(TOKEN_KNOBS)
ALL = sorted(PUBLISHED_SAMPLERS)
KEEPING = [published_sampler(name, **({"redraw_known": False} if name == "halton-confidence" else {})) for name in ALL]


def logits_for(tokens: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Conditional and null logits that depend on the sample and on what is known, as a network's would."""
    base = Noise(seeds).normal(20, 0, (2, CELLS, CODES))
    shift = torch.sin(tokens.float().sum(1) * 0.1)[:, None, None]
    return base[:, 0] * 2 + shift * base[:, 1], base[:, 1]


def knobs_at(table: Tensor, step: int, batch: int) -> StepKnobs:
    row = dict(zip(SPACE.names, table[step].float(), strict=True))
    return StepKnobs(*(row[name].expand(batch) for name in StepKnobs._fields))


def run(
    sampler: PublishedSampler, steps: int, seeds: Tensor, editable: Tensor | None = None, known: int = 0
) -> list[tuple[Tensor, StepResult]]:
    """(tokens before, result) of every step, from all mask; in editing ``known`` fills the cells that are kept."""
    mask_id = CODES
    tokens = torch.full((len(seeds), CELLS), mask_id)
    if editable is not None:
        tokens = torch.where(editable, tokens, known)
    table = sampler.schedule(SPACE, steps, CELLS)
    trace = []
    for step in range(steps):
        noise = Noise(seeds)
        drawn = StepNoise(noise.uniform(TOKEN, step, (CELLS,)), noise.gumbel(REMASK, step, (CELLS,)))
        conditional, null = logits_for(tokens, seeds)
        result = sampler.decide(
            tokens, conditional, null, knobs_at(table, step, len(seeds)), drawn, mask_id, editable, grid=GRID
        )
        trace.append((tokens, result))
        tokens = result.tokens
    return trace


def masked_counts(trace: list[tuple[Tensor, StepResult]]) -> Tensor:
    return torch.stack([(result.tokens == CODES).sum(1) for _, result in trace], dim=1)


SEEDS = torch.arange(100, 106)


@pytest.mark.parametrize("sampler", KEEPING, ids=lambda s: s.name)
@pytest.mark.parametrize("steps", [1, 3, 8, 40])
def test_known_cells_never_change(sampler: PublishedSampler, steps: int) -> None:
    for before, result in run(sampler, steps, SEEDS):
        known = before != CODES
        assert torch.equal(result.tokens[known], before[known])
        assert torch.equal(result.proposal[known], before[known])
        assert (result.proposal != CODES).all()
        assert torch.isfinite(result.log_prob).all()
        kept = result.tokens != CODES
        assert torch.equal(result.tokens[kept], result.proposal[kept])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 4, 9])
def test_cells_that_editing_keeps_never_change(name: str, steps: int) -> None:
    editable = torch.rand(len(SEEDS), CELLS, generator=torch.Generator().manual_seed(1)) < 0.5
    editable[0] = False
    editable[1] = True
    for _, result in run(published_sampler(name), steps, SEEDS, editable, known=7):
        assert (result.tokens[~editable] == 7).all()
        assert (result.proposal[~editable] == 7).all()
    assert (result.proposal != CODES).all()


@pytest.mark.parametrize("name", ALL)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    sampler = published_sampler(name)
    together = run(sampler, 6, SEEDS)
    for i in (0, 3, 5):
        alone = run(sampler, 6, SEEDS[i : i + 1])
        for (_, whole), (_, single) in zip(together, alone, strict=True):
            assert torch.equal(whole.tokens[i], single.tokens[0])
            assert torch.equal(whole.proposal[i], single.proposal[0])


@settings(max_examples=25, deadline=None)
@given(steps=st.integers(1, 30), method=st.sampled_from(["uniform", "cosine", "pow2.5", "log", "exp"]))
def test_maskgit_masks_the_clamped_schedule(steps: int, method: str) -> None:
    trace = run(MaskGITSampler(method=method), steps, SEEDS)
    expected = clamped_counts(steps, CELLS, method)
    assert torch.equal(masked_counts(trace), expected.expand(len(SEEDS), -1))
    assert expected.min() >= 1
    falls = expected[:-1] - expected[1:]
    assert ((falls >= 1) | (expected[1:] == 1)).all()


@pytest.mark.parametrize("steps", [2, 3, 12])
def test_mage_masks_the_cosine_and_ties_at_the_cut_off(steps: int) -> None:
    trace = run(MAGESampler(), steps, SEEDS)
    unknown, expected = CELLS, []
    for t in range(steps):
        unknown = max(1, min(unknown - 1, math.floor(CELLS * math.cos(math.pi / 2 * (t + 1) / steps))))
        expected.append(unknown)
    assert torch.equal(masked_counts(trace), torch.tensor(expected).expand(len(SEEDS), -1))

    # All cells equally confident: MAGE masks every one of them, MaskGIT none.
    flat = torch.zeros(1, CELLS, CODES)
    knobs = StepKnobs(torch.tensor([0.5]), torch.zeros(1), torch.ones(1), torch.zeros(1))
    noise = StepNoise(torch.full((1, CELLS), 0.5), torch.zeros(1, CELLS))
    tokens = torch.full((1, CELLS), CODES)
    tied = {s.name: s.decide(tokens, flat, None, knobs, noise, CODES, grid=GRID).tokens == CODES
            for s in (MAGESampler(), MaskGITSampler())}
    assert tied["mage"].all()
    assert not tied["maskgit"].any()


def test_mage_count_of_the_first_sample_only_where_asked() -> None:
    tokens = torch.full((2, CELLS), CODES)
    tokens[0, :15] = 1  # the first sample has 5 unknown cells left, the second one 20
    conditional, _ = logits_for(tokens, SEEDS[:2])
    knobs = StepKnobs(*(torch.full((2,), v) for v in (0.5, 0.0, 1.0, 0.0)))
    noise = StepNoise(torch.full((2, CELLS), 0.3), torch.zeros(2, CELLS))

    def masked(sampler: MAGESampler) -> list[int]:
        result = sampler.decide(tokens, conditional, None, knobs, noise, CODES, grid=GRID)
        return (result.tokens == CODES).sum(1).tolist()

    assert masked(MAGESampler()) == [4, 10]
    assert masked(MAGESampler(shared_count=True)) == [4, 4]


@pytest.mark.parametrize("name", ["maskgit", "mage", "amused"])
def test_a_clamped_step_is_the_toolkits_step_where_nothing_is_clamped(name: str) -> None:
    noise = Noise(SEEDS)
    drawn = StepNoise(noise.uniform(TOKEN, 0, (CELLS,)), noise.gumbel(REMASK, 0, (CELLS,)))
    tokens = torch.full((len(SEEDS), CELLS), CODES)
    conditional, null = logits_for(tokens, SEEDS)
    knobs = StepKnobs(*(torch.full((len(SEEDS),), v) for v in (0.6, 2.0, 0.8, 1.5)))
    own = masked_decoding_step(tokens, conditional, null, knobs, drawn, CODES)
    published = published_sampler(name).decide(tokens, conditional, null, knobs, drawn, CODES, grid=GRID)
    for mine, theirs in zip(own, published, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_amused_equals_the_stock_scheduler_for_the_same_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock scheduler's step with its two random draws replaced by ours: same proposal, same masked cells."""
    from diffusers.schedulers import AmusedScheduler, scheduling_amused

    steps, sampler = 7, AmusedSampler(guidance_scale=1.0)
    stock = AmusedScheduler(mask_token_id=CODES)
    stock.set_timesteps(steps, temperature=(2, 0))
    trace = run(sampler, steps, SEEDS)
    for step, (tokens, own) in enumerate(trace):
        conditional, _ = logits_for(tokens, SEEDS)
        gumbel = Noise(SEEDS).gumbel(REMASK, step, (CELLS,))
        monkeypatch.setattr(scheduling_amused, "gumbel_noise", lambda t, generator=None, g=gumbel: g)
        monkeypatch.setattr(torch, "multinomial", lambda p, n, generator=None, d=own.proposal: d.reshape(-1, 1))
        theirs = stock.step(conditional, int(stock.timesteps[step]), tokens)
        monkeypatch.undo()
        assert torch.equal(theirs.pred_original_sample, own.proposal)
        assert torch.equal(theirs.prev_sample, own.tokens)
    assert (own.tokens != CODES).all()


def test_halton_temperatures_that_leave_the_range_of_numbers_are_refused() -> None:
    for first, power in ((0.5, 1e5), (10.0, 1e3), (1e-200, 2.0)):
        with pytest.raises(ConfigError, match="leave the range of numbers; give a smaller power"):
            HaltonSampler(first_temperature=first, last_temperature=first, power=power).schedule(SPACE, 3, CELLS)


@pytest.mark.parametrize("steps", [1, 5, 12, 20, 33])
def test_halton_reveals_exactly_its_order(steps: int) -> None:
    order, counts = halton_order(GRID), halton_counts(steps, CELLS)
    assert sorted(order.tolist()) == list(range(CELLS))
    for count, (_, result) in zip(counts.tolist(), run(HaltonSampler(), steps, SEEDS), strict=True):
        revealed = torch.zeros(CELLS, dtype=torch.bool)
        revealed[order[:count]] = True
        assert torch.equal(result.tokens != CODES, revealed.expand(len(SEEDS), -1))
    assert counts[-1] == max(CELLS, steps)


def test_published_counts_where_steps_and_cells_are_extreme() -> None:
    """The published formulas to the letter; what a sampler makes of them stays within the grid."""
    assert halton_counts(6, 4).tolist() == [1, 2, 3, 4, 5, 6]  # at least i + 1
    assert confidence_counts(6, 4).tolist() == [1, 2, 3, 4, 5, 6]
    assert confidence_counts(1, 4).tolist() == [1]
    assert confidence_counts(1, 4, clamp=False).tolist() == [0]
    for sampler in (HaltonSampler(), HaltonConfidenceSampler()):
        for steps in (1, 6):
            ratios = sampler.schedule(SPACE, steps, 4)[:, SPACE.names.index("mask_ratio")]
            assert ratios[-1] == 0 and (ratios >= 0).all()
    # exp is 1 - 2^(-log2(n) (1 - r)): nothing is left to mask of a single cell
    assert mask_schedule(step_ratios(4), "exp", 1).tolist() == pytest.approx([1e-6] * 4)
    assert mask_schedule(step_ratios(2), "log", 1).tolist() == pytest.approx([1.0, 1e-6])


def test_halton_editing_keeps_the_order_among_the_editable_cells() -> None:
    editable = torch.rand(len(SEEDS), CELLS, generator=torch.Generator().manual_seed(2)) < 0.6
    order = halton_order(GRID).tolist()
    for _, result in run(HaltonSampler(), 5, SEEDS, editable, known=3):
        for b in range(len(SEEDS)):
            cells = [c for c in order if editable[b, c]]
            masked = [bool(result.tokens[b, c] == CODES) for c in cells]
            assert masked == sorted(masked)  # revealed cells first, then masked ones
    assert (result.tokens != CODES).all()


@pytest.mark.parametrize("edit", [False, True])
def test_halton_rotation_starts_each_image_somewhere_else(edit: bool) -> None:
    seeds = torch.arange(40)
    editable = None
    if edit:
        editable = torch.rand(1, CELLS, generator=torch.Generator().manual_seed(3)).expand(40, -1) < 0.7
    free = list(range(CELLS)) if editable is None else editable[0].nonzero().flatten().tolist()
    order = [c for c in halton_order(GRID).tolist() if c in free]
    starts = set()
    trace = run(HaltonSampler(rotate=True), 6, seeds, editable, known=3)
    straight = run(HaltonSampler(), 6, seeds, editable, known=3)
    assert torch.equal(masked_counts(trace), masked_counts(straight))
    for b in range(40):
        first = [c for c in order if trace[0][1].tokens[b, c] != CODES]
        start = next(order.index(c) for c in first if order[order.index(c) - 1] not in first)
        starts.add(start)
        turned = order[start:] + order[:start]
        for _, result in trace:
            masked = [bool(result.tokens[b, c] == CODES) for c in turned]
            assert masked == sorted(masked)
    assert len(starts) > len(order) // 2


def test_halton_temperature_multiplies_and_top_k_restricts() -> None:
    table = HaltonSampler(first_temperature=1.0, last_temperature=2.0, warmup_steps=1).schedule(SPACE, 3, CELLS)
    assert table[:, SPACE.names.index("token_temperature")].tolist() == pytest.approx([2.0, 1 / 1.5, 0.5])
    best = HaltonSampler(top_k=1)
    for tokens, result in run(best, 4, SEEDS):
        conditional, null = logits_for(tokens, SEEDS)
        guided = conditional + best.guidance * (conditional - null)
        unknown = tokens == CODES
        assert torch.equal(result.proposal[unknown], guided.argmax(-1)[unknown])


@pytest.mark.parametrize("mode", ["root", "linear", "square", "cosine", "arccos"])
def test_confidence_sampler_reveals_its_counts(mode: str) -> None:
    sampler = HaltonConfidenceSampler(mode=mode, redraw_known=False)
    counts = CELLS - masked_counts(run(sampler, 8, SEEDS))
    assert torch.equal(counts, confidence_counts(8, CELLS, mode).expand(len(SEEDS), -1))


def test_confidence_sampler_redraws_known_cells_as_published() -> None:
    changed = 0
    for before, result in run(HaltonConfidenceSampler(temperature=0.3), 6, SEEDS):
        known = before != CODES
        assert (result.tokens[known] != CODES).all()
        changed += int((result.tokens[known] != before[known]).sum())
    assert changed > 0


def test_schedules_leave_out_what_a_generator_has_not() -> None:
    without_guidance = ActionSpace(TOKEN_KNOBS[:3])
    table = AmusedSampler().schedule(without_guidance, 4, CELLS)
    assert table.shape == (4, 3)
    full = AmusedSampler().schedule(SPACE, 4, CELLS)
    assert full[:, SPACE.names.index("guidance")].tolist() == [9.0] * 4
    assert MaskGITSampler().schedule(SPACE, 4, CELLS)[:, SPACE.names.index("guidance")].tolist() == [0.0] * 4
    for name in ALL:
        for knob, column in zip(SPACE.knobs, published_sampler(name).schedule(SPACE, 5, CELLS).T, strict=True):
            knob.check(column)


@given(base=st.integers(2, 7), count=st.integers(1, 300))
def test_radical_inverse_is_the_mirrored_number(base: int, count: int) -> None:
    digits, rest = [], count
    while rest:
        digits.append(rest % base)
        rest //= base
    expected = sum(d / base ** (i + 1) for i, d in enumerate(digits))
    assert float(radical_inverse(base, count)[-1]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("grid", [(1, 1), (3, 7), (24, 24), (64, 64)])
def test_halton_order_visits_every_cell_once(grid: tuple[int, int]) -> None:
    order = halton_order(grid)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1]))
    shorter = halton_order(grid, 64)
    assert torch.equal(order, shorter)  # more points never change the order of the cells seen before


def test_errors_name_the_remedy() -> None:
    with pytest.raises(ConfigError, match="did you mean 'maskgit'"):
        published_sampler("maskgti")
    with pytest.raises(ConfigError, match="did you mean 'guidance'"):
        published_sampler("halton", guidanc=1.0)
    with pytest.raises(ConfigError, match="Known: uniform"):
        mask_schedule(step_ratios(3), "cosin", 16)
    with pytest.raises(ConfigError, match="write pow2 or"):
        mask_schedule(step_ratios(3), "pow", 16)
    with pytest.raises(ConfigError, match="at least 1 step"):
        MaskGITSampler().schedule(SPACE, 0, CELLS)
    with pytest.raises(ConfigError, match="Known: root"):
        HaltonConfidenceSampler(mode="sqrt").schedule(SPACE, 4, CELLS)
