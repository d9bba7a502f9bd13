"""Hand-made schedules and their texts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from adanat_toolkit.core import (
    MASK_RATIO,
    RATIO_CURVES,
    TOKEN_KNOBS,
    TOKEN_TEMPERATURE,
    ActionSpace,
    adanat_heuristic,
    linear,
    parse_schedule,
)
from adanat_toolkit.errors import ConfigError

SPACE = ActionSpace(TOKEN_KNOBS)
NAMES = SPACE.names


def column(table: torch.Tensor, name: str) -> list[float]:
    return table[:, NAMES.index(name)].tolist()


@pytest.mark.parametrize("curve", RATIO_CURVES)
@pytest.mark.parametrize("steps", [1, 2, 4, 16])
def test_ratio_curves(curve: str, steps: int) -> None:
    table = parse_schedule(curve, SPACE, steps)
    ratios = column(table, "mask_ratio")
    assert len(ratios) == steps and ratios[-1] == pytest.approx(0, abs=1e-12)
    assert all(0 <= b < a <= 1 for a, b in pairwise(ratios))
    assert column(table, "token_temperature") == [1.0] * steps
    assert column(table, "guidance") == [0.0] * steps == column(table, "mask_temperature")


def test_curves_by_hand() -> None:
    def at(curve: str) -> list[float]:
        return column(parse_schedule(curve, SPACE, 4), "mask_ratio")

    assert at("cosine") == pytest.approx([math.cos(math.pi / 8), math.sqrt(0.5), math.cos(3 * math.pi / 8), 0])
    assert at("linear") == pytest.approx([0.75, 0.5, 0.25, 0])
    assert at("square") == pytest.approx([15 / 16, 0.75, 7 / 16, 0])
    assert at("cubic") == pytest.approx([63 / 64, 7 / 8, 37 / 64, 0])
    assert at("sqrt") == pytest.approx([0.5, 1 - math.sqrt(0.5), 1 - math.sqrt(0.75), 0])
    assert at("arccos") == pytest.approx([2 / math.pi * math.acos(r) for r in (0.25, 0.5, 0.75, 1)])


def test_text_of_knobs() -> None:
    text = " cosine , guidance=0:3, mask_temperature=4.5:0,token_temperature=1/0.9/0.8/0.7"
    table = parse_schedule(text, SPACE, 4)
    assert column(table, "guidance") == [0, 1, 2, 3]
    assert column(table, "mask_temperature") == [4.5, 3, 1.5, 0]
    assert column(table, "token_temperature") == [1, 0.9, 0.8, 0.7]
    assert column(parse_schedule("linear,guidance=2.5", SPACE, 3), "guidance") == [2.5] * 3
    assert column(parse_schedule("linear,guidance=1:3^2", SPACE, 3), "guidance") == [1, 1.5, 3]
    assert column(parse_schedule("linear,guidance=4:0^0.5", SPACE, 5), "guidance")[-1] == 0
    explicit = parse_schedule("linear,mask_ratio=0.8/0.3/0", SPACE, 3)
    assert column(explicit, "mask_ratio") == [0.8, 0.3, 0]


def test_one_step_takes_the_last_value() -> None:
    assert linear(4.5, 0, 1) == [0]
    assert linear(0.1, 0, 4)[-1] == 0  # not -1e-17, which no knob accepts
    assert parse_schedule("cosine,guidance=0:3", SPACE, 1)[0].tolist() == pytest.approx([0, 0, 1, 3], abs=1e-12)


def test_adanat_heuristic() -> None:
    table = adanat_heuristic(TOKEN_KNOBS, 4)
    assert torch.equal(table, parse_schedule("adanat", SPACE, 4))
    q = [(t + 1 - 0.001) / 4 for t in range(4)]
    assert column(table, "mask_ratio") == pytest.approx([math.cos(math.pi * x / 2) for x in q])
    assert column(table, "mask_temperature") == pytest.approx([1 - x for x in q])
    assert column(table, "guidance") == pytest.approx([(t + 0.001) / 4 for t in range(4)])
    assert torch.isfinite(SPACE.bind(table).base()).all()
    assert torch.isfinite(SPACE.bind(adanat_heuristic(TOKEN_KNOBS, 64)).base()).all()


def test_spaces_with_fewer_knobs() -> None:
    few = ActionSpace((TOKEN_TEMPERATURE, MASK_RATIO))
    assert parse_schedule("adanat", few, 2).shape == (2, 2)
    assert parse_schedule("linear,token_temperature=0.5", few, 2).tolist() == [[0.5, 0.5], [0.5, 0.0]]
    with pytest.raises(ConfigError, match=r"no knob 'guidance'.*Knobs: token_temperature, mask_ratio"):
        parse_schedule("linear,guidance=1", few, 2)


@pytest.mark.parametrize(
    ("text", "steps", "message"),
    [
        ("cosin", 4, "did you mean 'cosine'"),
        ("", 4, "Known: cosine"),
        ("guidance=1", 4, "must begin with a ratio curve"),
        ("cosin,guidance=1", 4, "did you mean 'cosine'"),
        ("cosine,guidence=1", 4, "did you mean 'guidance'"),
        ("cosine,guidance=1/2", 4, "lists 2 values for 4 steps"),
        ("cosine,guidance=x", 4, "cannot read 'guidance=x'"),
        ("cosine,guidance=1:2:3", 4, "cannot read"),
        ("cosine,guidance=", 4, "cannot read"),
        ("cosine,guidance=1:2^", 4, "cannot read"),
        ("cosine,guidance=1:2^3^4", 4, "cannot read"),
        ("cosine,guidance=1:2^-1", 4, "power -1; it must be above 0"),
        ("cosine,guidance=1:2^nan", 4, "has the value nan; write finite"),
        ("cosine,guidance=inf:0", 4, "has the value inf; write finite"),
        ("cosine,guidance", 4, "cannot read"),
        ("cosine,guidance=-1", 4, r"'guidance' has the value -1.*\[0, infinity\)"),
        ("cosine,guidance=nan", 4, "nan"),
        ("cosine,mask_ratio=1.1", 4, r"1\.1.*\[0, 1\]"),
        ("cosine", 0, "at least 1 step"),
    ],
)
def test_bad_texts(text: str, steps: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_schedule(text, SPACE, steps)


def test_without_a_ratio_there_need_be_no_curve() -> None:
    space = ActionSpace(tuple(knob for knob in SPACE.knobs if knob.name != "mask_ratio"))
    table = parse_schedule("guidance=0:3,token_temperature=2", space, 4)
    assert torch.equal(table, parse_schedule("cosine,guidance=0:3,token_temperature=2", space, 4))
    assert table[:, space.names.index("guidance")].tolist() == [0, 1, 2, 3]
    for text, message in (
        ("cosin,guidance=1", "did you mean 'cosine'"),
        ("", "Known: cosine"),
        ("gidance=1", "guidance"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_schedule(text, space, 4)
