"""Knobs and action spaces: raw numbers to physical values and back."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adanat_toolkit.core import GUIDANCE, MASK_RATIO, MASK_TEMPERATURE, TOKEN_KNOBS, ActionSpace, Knob, parse_schedule
from adanat_toolkit.core.schedules import RATIO_CURVES
from adanat_toolkit.errors import ConfigError

SPACE = ActionSpace(TOKEN_KNOBS)
raws = st.floats(-30, 60, width=32)
ratios = st.floats(0, 1)
positives = st.floats(0, 50)
rows = st.tuples(ratios, positives, positives, positives)
schedules = st.lists(rows, min_size=1, max_size=6).map(lambda values: torch.tensor(values, dtype=torch.float64))


@given(st.lists(raws, min_size=1, max_size=8))
def test_physical_values_are_in_range(values: list[float]) -> None:
    raw = torch.tensor(values)
    for knob in TOKEN_KNOBS:
        physical = knob.to_physical(raw)
        knob.check(physical)
        assert torch.isfinite(physical).all()
    ordered = raw.sort().values
    for knob in TOKEN_KNOBS:
        assert (knob.to_physical(ordered).diff() >= 0).all()


@given(st.floats(1e-5, 1 - 1e-5), st.floats(1e-5, 80))
def test_knob_round_trip_from_physical(ratio: float, temperature: float) -> None:
    for knob, value in ((MASK_RATIO, ratio), (MASK_TEMPERATURE, temperature)):
        physical = torch.tensor([value], dtype=torch.float64)
        assert float(knob.to_physical(knob.to_raw(physical))) == pytest.approx(value, rel=1e-9, abs=1e-12)


@given(st.floats(-12, 12), st.floats(-12, 60))
def test_knob_round_trip_from_raw(logit: float, raw: float) -> None:
    for knob, value in ((MASK_RATIO, logit), (GUIDANCE, raw)):
        exact = torch.tensor([value], dtype=torch.float64)
        # Physical values are only resolved to rounding, which the inverse magnifies where the curve is flat.
        assert float(knob.to_raw(knob.to_physical(exact))) == pytest.approx(value, abs=1e-4)


@given(schedules, st.data())
@settings(max_examples=50)
def test_residual_zero_is_the_schedule(schedule: torch.Tensor, data: st.DataObject) -> None:
    acted = data.draw(st.permutations(SPACE.names).flatmap(lambda names: st.integers(0, 4).map(lambda n: names[:n])))
    space = SPACE.bind(schedule, acted=acted, residual=True)
    assert space.steps == len(schedule) and space.size == len(acted)
    step = torch.arange(space.steps)
    physical = space.to_physical(torch.zeros(space.steps, space.size), step)
    assert torch.allclose(physical.double(), schedule, rtol=2e-5, atol=3e-6)
    for column, name in enumerate(SPACE.names):  # what the policy does not set is exact
        if name not in acted:
            assert torch.equal(physical[:, column], schedule[:, column].float())


@given(schedules, st.lists(st.floats(-6, 6, width=32), min_size=4, max_size=4), st.booleans())
@settings(max_examples=50)
def test_space_round_trip(schedule: torch.Tensor, values: list[float], residual: bool) -> None:
    inside = schedule.clone()  # the ends of the ranges have no finite raw value
    inside[:, 0] = inside[:, 0] * 0.8 + 0.1
    inside[:, 1:] += 0.1
    space = SPACE.bind(inside, acted=("guidance", "mask_ratio", "token_temperature"), residual=residual)
    raw = torch.tensor([values[:3]])
    for step in range(space.steps):
        physical = space.to_physical(raw, step)
        back = space.to_raw(physical.double(), step)
        assert torch.allclose(space.to_physical(back.float(), step), physical, rtol=1e-3, atol=1e-5)


smoothings = st.sampled_from([0.0, 0.4, 0.8])


def run(space: ActionSpace, raws: torch.Tensor) -> torch.Tensor:
    """(T, A) raw actions of one sample -> (T, K) physical values, step by step."""
    carried, rows = None, []
    for step, raw in enumerate(raws):
        carried = space.smoothed(raw[None], step, carried)
        rows.append(space.transformed(carried, step)[0])
    return torch.stack(rows)


@given(schedules, smoothings)
@settings(max_examples=50)
def test_residual_zero_is_the_schedule_under_smoothing(schedule: torch.Tensor, smoothing: float) -> None:
    inside = schedule.clone()
    inside[:, 0] = inside[:, 0] * 0.8 + 0.1
    inside[:, 1:] += 0.1
    space = SPACE.bind(inside, residual=True, smoothing=smoothing)
    own = run(space, torch.zeros(space.decisions, space.size))
    assert torch.allclose(own.double(), inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("curve", RATIO_CURVES)
def test_zero_actions_are_the_schedule_to_the_bit(curve: str) -> None:
    """Counts of cells are integer parts: a ratio that rounding takes below 1/2 would mask one cell less."""
    for steps in (1, 3, 4, 8, 12, 31):
        schedule = parse_schedule(f"{curve},guidance=0:9,mask_temperature=4.5:0", SPACE, steps)
        for smoothing in (0.0, 0.4, 0.8, 0.95):
            space = SPACE.bind(schedule, smoothing=smoothing)
            assert torch.equal(run(space, torch.zeros(steps, space.size)), schedule.float())
    free = SPACE.bind(schedule, residual=False)
    assert torch.equal(free.to_physical(torch.zeros(1, 4), 0)[0, :1], torch.tensor([0.5]))


def test_smoothing_by_hand() -> None:
    schedule = torch.tensor([[0.5, 1.0, 1.0, 2.0]]).repeat(3, 1)
    raw = torch.tensor([[1.0], [-2.0], [3.0]])
    space = SPACE.bind(schedule, acted=("guidance",), residual=False, smoothing=0.75)
    averages = [1.0, 0.75 * 1 + 0.25 * -2, 0.75 * 0.25 + 0.25 * 3]
    assert run(space, raw)[:, 3].tolist() == pytest.approx([math.log1p(math.exp(v)) for v in averages], rel=1e-6)
    carried = space.smoothed(raw[1:2], 1, space.smoothed(raw[:1], 0))
    back = space.to_raw(space.transformed(carried, 1), 1, space.smoothed(raw[:1], 0))
    assert float(back) == pytest.approx(-2, abs=1e-5)
    with pytest.raises(ConfigError, match=r"smoothing is 1; it must lie in \[0, 1\)"):
        SPACE.bind(schedule, smoothing=1.0)


def test_published_formulas() -> None:
    schedule = torch.tensor([[0.25, 0.5, 1.0, 2.0]], dtype=torch.float64)
    raw = torch.tensor([[0.3, -0.4, 0.5, 25.0]])
    free = SPACE.bind(schedule, residual=False).to_physical(raw, 0)[0].tolist()
    expected = [1 / (1 + math.exp(-0.3)), math.log1p(math.exp(-0.4)), math.log1p(math.exp(0.5)), 25.0]
    assert free == pytest.approx(expected, rel=1e-6)
    shifted = SPACE.bind(schedule, residual=True).to_physical(raw, 0)[0].tolist()
    base = [math.log(0.25 / 0.75), *(p + math.log(1 - math.exp(-p)) for p in (0.5, 1.0, 2.0))]
    sums = [r + b for r, b in zip(raw[0].tolist(), base, strict=True)]
    expected = [1 / (1 + math.exp(-sums[0])), *(math.log1p(math.exp(s)) for s in sums[1:])]
    assert shifted == pytest.approx(expected, rel=1e-6)


def test_steps_one_for_all_or_one_each() -> None:
    schedule = torch.tensor([[0.9, 4.0, 1.0, 0.5], [0.5, 2.0, 1.0, 1.5], [0.1, 0.0, 1.0, 3.0]])
    space = SPACE.bind(schedule, acted=("guidance",))
    raw = torch.tensor([[0.1], [0.2], [0.3]])
    each = space.to_physical(raw, torch.tensor([2, 0, 1]))
    for row, step in enumerate([2, 0, 1]):
        assert torch.equal(each[row], space.to_physical(raw[row : row + 1], step)[0])
    assert each[:, 0].tolist() == pytest.approx([0.1, 0.9, 0.5])


def test_gradients_flow_through_acted_columns() -> None:
    space = SPACE.bind(torch.tensor([[0.5, 1.0, 1.0, 1.0]]), acted=("mask_ratio", "guidance"))
    raw = torch.zeros(2, 2, requires_grad=True)
    space.to_physical(raw, 0).sum().backward()
    assert raw.grad is not None and (raw.grad > 0).all()


def test_saturated_softplus_is_the_identity() -> None:
    raw = torch.tensor([21.0, 50.0, 1e4])
    assert torch.equal(GUIDANCE.to_physical(raw), raw)


def test_spec_round_trip() -> None:
    schedule = torch.tensor([[0.9, 4.0, 1.0, 0.123456789], [0.5, 2.0, 1.0, 1.5]], dtype=torch.float64)
    space = SPACE.bind(schedule, acted=("guidance", "mask_ratio"), residual=True)
    again = SPACE.rebind(space.spec())
    assert again.acted == space.acted and again.residual and torch.equal(again.schedule, schedule)
    raw = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.to_physical(raw, 1), space.to_physical(raw, 1))
    assert again.smoothing == 0 and again.steps == again.decisions == 2
    old = {key: value for key, value in space.spec().items() if key not in ("smoothing", "steps")}
    assert SPACE.rebind(old).spec() == space.spec()  # as version 0.1 wrote it
    more = SPACE.rebind(SPACE.bind(schedule, smoothing=0.4, steps=1).spec())
    assert (more.smoothing, more.steps, more.decisions) == (0.4, 1, 2)


@pytest.mark.parametrize(
    ("schedule", "acted", "message"),
    [
        (torch.full((0, 4), 0.5), None, "steps >= 1"),
        (torch.full((3, 3), 0.5), None, r"\(3, 3\)"),
        (torch.full((3,), 0.5), None, "must be"),
        (torch.tensor([[1.5, 1, 1, 1]]), None, r"mask_ratio.*1\.5.*\[0, 1\]"),
        (torch.tensor([[0.5, -1, 1, 1]]), None, r"mask_temperature.*-1"),
        (torch.tensor([[0.5, 1, float("nan"), 1]]), None, "token_temperature"),
        (torch.tensor([[0.5, 1, 1, float("inf")]]), None, "guidance"),
        (torch.full((1, 4), 0.5), ("mask_ratio", "mask_ratio"), "twice"),
        (torch.full((1, 4), 0.5), ("guidence",), "did you mean 'guidance'"),
    ],
)
def test_bind_refuses(schedule: torch.Tensor, acted: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SPACE.bind(schedule, acted=acted)


def test_errors_of_unbound_and_foreign_spaces() -> None:
    with pytest.raises(ConfigError, match="bind"):
        _ = SPACE.steps
    bound = SPACE.bind(torch.full((1, 4), 0.5))
    other = ActionSpace((MASK_RATIO, Knob("sharpness", "softplus", "another", 1.0)))
    with pytest.raises(ConfigError, match="sharpness"):
        other.rebind(bound.spec())
    with pytest.raises(ConfigError, match="'mask_ratio', 'sharpness'"):
        other.rebind(bound.spec())
