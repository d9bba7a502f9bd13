"""How rewards are written: one parser, and a printer that is its inverse."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adanat_toolkit.core import RewardSpec, RewardTerm
from adanat_toolkit.errors import ConfigError


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


text = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), min_size=1, max_size=8)
names = text.map(lambda t: t.replace(":", "")).filter(lambda t: t and t == t.strip())
variants = st.none() | text.filter(lambda t: t == t.strip() and not is_number(t.rpartition(":")[2]))
term = st.builds(RewardTerm, names, variants)
weight = st.floats(allow_nan=False, allow_infinity=False).filter(bool)
mixtures = st.lists(st.tuples(term, weight), min_size=1, max_size=4, unique_by=lambda pair: pair[0]).map(
    lambda pairs: RewardSpec(tuple(t for t, _ in pairs), tuple(w for _, w in pairs))
)


@given(mixtures | term.map(lambda t: RewardSpec((t,))))
def test_what_is_printed_is_parsed_back(spec: RewardSpec) -> None:
    assert RewardSpec.parse(str(spec)) == spec


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused(given_text: str) -> None:
    try:
        spec = RewardSpec.parse(given_text)
    except ConfigError:
        return
    assert RewardSpec.parse(str(spec)) == spec
    assert all(math.isfinite(w) and w for w in spec.weights)


def test_names_variants_and_weights() -> None:
    def read(written: str) -> tuple[list[str], tuple[float, ...]]:
        spec = RewardSpec.parse(written)
        return [str(t) for t in spec.terms], spec.weights

    assert read("adversarial:1,clip-score:0.3") == (["adversarial", "clip-score"], (1.0, 0.3))
    assert read("fid:influence:-2, fid") == (["fid:influence", "fid"], (-2.0, 1.0))
    assert read("fid:influence") == (["fid:influence"], ()) and read("fid") == (["fid"], ())
    assert read("clip-score:-0.3") == (["clip-score"], (-0.3,)) and read("fid:influence:1e-3")[1] == (0.001,)
    assert not RewardSpec.parse("fid:influence").mixture and RewardSpec.parse("clip-score:-0.3").mixture
    assert str(RewardSpec.parse("a , b:x:0.50")) == "a:1,b:x:0.5"


@pytest.mark.parametrize("wrong", ["", "a:1,", ":2", "a:", "a::1", "a:0", "a:nan", "a:inf", "a:1,a:2", ",", "a:b, "])
def test_what_cannot_be_read(wrong: str) -> None:
    with pytest.raises(ConfigError):
        RewardSpec.parse(wrong)


def test_a_spec_that_would_be_read_back_as_another_is_refused() -> None:
    for name, variant in (("a", "0.3"), ("a:b", None), ("", None), ("a", ""), ("a,b", None), ("a", " b")):
        with pytest.raises(ConfigError):
            RewardTerm(name, variant)
    for terms, weights in (((), ()), ((RewardTerm("a"),), (1.0, 2.0)), ((RewardTerm("a"), RewardTerm("b")), ())):
        with pytest.raises(ConfigError):
            RewardSpec(terms, weights)
