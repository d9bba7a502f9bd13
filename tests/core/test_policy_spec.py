from __future__ import annotations

from pathlib import Path

import pytest

from adanat_toolkit.core import PolicySpec
from adanat_toolkit.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "terms", "weights"),
    [
        ("fixed", ["fixed"], ()),
        ("fixed:cosine,guidance=0:3", ["fixed:cosine,guidance=0:3"], ()),
        ("runs/a+b", ["runs/a+b"], ()),
        ("owner/name@v1", ["owner/name@v1"], ()),
        ("FILE.pth,smoothing=0.4", ["FILE.pth,smoothing=0.4"], ()),
        ("runs/a*0.7+runs/b*0.3", ["runs/a", "runs/b"], (0.7, 0.3)),
        ("runs/a+b*.5+fixed:cosine,guidance=0/1*0.25+o/n@v1*0.25", ["runs/a+b", "fixed:cosine,guidance=0/1", "o/n@v1"],
         (0.5, 0.25, 0.25)),
        ("a * 1 + b * 0", ["a", "b"], (1, 0)),
        ("a*5e-1+b*0.5", ["a", "b"], (0.5, 0.5)),
        ("a*0.3333333+b*0.3333333+c*0.3333334", ["a", "b", "c"], (0.3333333, 0.3333333, 0.3333334)),
        ("a*0.12345678+b*0.87654322", ["a", "b"], (0.12345678, 0.87654322)),
        ("a*1e-7+b*0.9999999", ["a", "b"], (1e-7, 0.9999999)),
    ],
)  # fmt: skip
def test_what_is_read(text: str, terms: list[str], weights: tuple[float, ...]) -> None:
    spec = PolicySpec.parse(text)
    assert [term.text for term in spec.terms] == terms and spec.weights == weights
    assert spec.blend == bool(weights) and PolicySpec.parse(str(spec)) == spec
    assert spec.places == tuple(term for term in terms if not term.startswith("fixed"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a*0.7+b*0.4", r"sum to 1.1 \(0.7 \+ 0.4\); they must sum to 1"),
        ("a*1.5+b*-0.5", r"weight 1.5 of policy 'a' in a blend must lie in \[0, 1\]"),
        ("a*0.7+b", "the part 'b'; write a policy and its weight"),
        ("a*0.7+b*0.3+", "the part ''; write"),
        ("*0.7+b*0.3", "one policy; write two or more"),
        ("a*nan+b*0.3", "weight nan of policy 'a'"),
        ("a*1", "one policy; write two or more"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PolicySpec.parse(text)


def test_a_folder_of_that_name_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a*0.5+b*0.5"
    folder.mkdir()
    assert PolicySpec.parse(folder).places == (str(folder),)
