"""``adanat.evaluate`` of policies that are given as objects: each row is of the policy and the T that it names."""

from __future__ import annotations

from pathlib import Path

import pytest

import adanat_toolkit as adanat

from ..helpers.tiny_plugins import TinyWithData, tiny_plugins

__all__ = ["tiny_plugins"]


@pytest.fixture
def generator(tiny_plugins: None) -> TinyWithData:
    return TinyWithData()


def scores(generator: TinyWithData, policies: list[object], steps: int | None = None) -> dict[tuple[str, int], float]:
    found = adanat.evaluate(generator, policies, num=16, steps=steps, features="pixels")  # type: ignore[arg-type]
    rows = {(row["policy"], row["steps"]): row["frechet"] for row in found.rows}
    assert len(rows) == len(found.rows)
    return rows


def test_a_hand_made_policy_is_held_against_the_schedule_of_its_own_steps(generator: TinyWithData) -> None:
    name = f"fixed:{generator.default_schedule}"
    alone = scores(generator, ["fixed"], 6)[name, 6]
    mixed = [adanat.load_policy("fixed", generator, steps=2), adanat.load_policy("fixed:square", generator, steps=6)]
    rows = scores(generator, list(mixed))
    assert rows.keys() == {(name, 2), (name, 6), ("fixed:square", 6)}
    assert rows[name, 6] == alone != rows[name, 2]


def test_an_object_answers_for_no_text(generator: TinyWithData) -> None:
    rows = scores(generator, [adanat.load_policy("fixed:square", generator, steps=2), "fixed:square"], steps=4)
    assert {key for key in rows if key[0] == "fixed:square"} == {("fixed:square", 2), ("fixed:square", 4)}
    assert len({rows["fixed:square", 2], rows["fixed:square", 4]}) == 2


def test_a_folder_that_is_called_like_a_kind_is_judged_itself(
    generator: TinyWithData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(out: str, seed: int) -> adanat.Run:
        return adanat.train(
            generator=generator, reward="contrast", policy="shared", steps=2, trajectories=8, batch=8, seed=seed,
            settings={"ppo": {"learning_rate": 0.05}}, out=tmp_path / out,
        )  # fmt: skip

    first, second = trained("shared", 0), trained("other", 1)
    monkeypatch.chdir(tmp_path)
    rows = scores(generator, ["./shared", second.policy])
    again = scores(generator, ["shared", second.policy])
    assert again["shared", 2] == rows["./shared", 2] and again["shared (2)", 2] == rows["shared", 2]
    assert first.path.name == "shared" and again["shared", 2] != again["shared (2)", 2]
