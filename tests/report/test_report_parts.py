"""The parts of a report: what is read from run folders, the ranking of samples, single steps, tables of like with like."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.core import GUIDANCE, INITIAL, ActionSpace, Noise, parse_schedule
from adanat_toolkit.errors import CheckpointError
from adanat_toolkit.images import to_bytes
from adanat_toolkit.interfaces import Context, Generator
from adanat_toolkit.metrics import FIGURES
from adanat_toolkit.policies import AdaptivePolicy, SamplingPolicy, build_policy, load_policy
from adanat_toolkit.report.gather import Gathered, Group, Look
from adanat_toolkit.report.page import render
from adanat_toolkit.report.probing import OPACITY, Probe, Ranking, cover, probe, rank, trace
from adanat_toolkit.report.reading import short_names
from adanat_toolkit.report.yardstick import blocks
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import read_rows

from ..helpers.report_runs import evaluation, made_run, rows_of
from ..helpers.tiny import TinyGenerator

# --- reading ----------------------------------------------------------------------------------------------------------


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]


def test_a_cut_off_last_line_is_ignored_and_other_damage_is_not(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    assert read_rows(file) == []
    good = [json.dumps(row) for row in rows_of(3)]
    file.write_text("\n".join(good) + '\n{"iteration": 4, "traj')
    assert [row["iteration"] for row in read_rows(file)] == [1, 2, 3]
    for line, message in (
        ('{"iteration": 2', f"line 2 of {file} is damaged"),
        ("[1, 2]", f"line 2 of {file} is not usable: the value must be an object"),
        ('{"iteration": 2, "reward/mean": "high"}', "'reward/mean' is no number"),
        ('{"iteration": 0}', "it has no whole number 'iteration' from 1 on"),
    ):
        file.write_text("\n".join([good[0], line, good[2]]) + "\n")
        with pytest.raises(CheckpointError, match=re.escape(message)):
            read_rows(file)
    file.write_bytes(b"\xff\xfe\x00\n" + good[0].encode() + b"\n")
    with pytest.raises(CheckpointError, match=r"line 1 of .* is damaged"):
        read_rows(file)


# --- the policy's own behaviour ---------------------------------------------------------------------------------------


def space_of(generator: Generator, steps: int, acted: tuple[str, ...] | None = None) -> ActionSpace:
    return generator.action_space.bind(
        parse_schedule(generator.default_schedule, generator.action_space, steps), acted=acted
    )


def knobs_of(space: ActionSpace, count: int) -> Tensor:
    assert space.schedule is not None
    return space.schedule.float().expand(count, -1, -1).clone()


def test_simple_is_what_is_kept_early() -> None:
    space = space_of(TinyGenerator(), 3)
    knobs = knobs_of(space, 4)
    knobs[:, :2, 0] = torch.tensor([[0.9, 0.5], [0.8, 0.2], [0.95, 0.8], [0.9, 0.5]])
    knobs[2, 2, 0] = 0.0  # the last step leaves nothing masked: its ratio does not count
    knobs[0, 2, 0] = 0.7
    found = rank(knobs, space)
    assert found.measure == "kept early" and found.order == [1, 0, 3, 2]
    assert found.values == pytest.approx([0.3, 0.5, 0.125, 0.3])


def test_without_the_ratio_simple_is_close_to_the_mean() -> None:
    space = space_of(TinyGenerator(), 2, ("guidance", "token_temperature"))
    knobs = knobs_of(space, 3)
    knobs[:, :, space.names.index("guidance")] = torch.tensor([[1.0, 3.0], [5.0, 3.0], [3.0, 3.0]])
    found = rank(knobs, space)
    assert found.measure == "distance" and found.order[0] == 2
    # Away by 2 at one step of two; the spread is sqrt(8 / 6). The other knob is the same for all.
    expected = (2**2 / 2 / (8 / 6)) ** 0.5
    assert found.values == pytest.approx([expected, expected, 0])
    knobs[:, :, space.names.index("token_temperature")] = torch.tensor([[10.0, 10.0], [10.0, 10.0], [30.0, 30.0]])
    assert rank(knobs, space).order[-1] == 2  # each knob counts alike, whatever its unit
    knobs[:, :, 0] = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    before = rank(knobs, space).values
    knobs[:, :, 0] = 0.5  # a knob that the policy does not set says nothing about it
    assert rank(knobs, space).values == before


def test_a_policy_that_treats_all_alike_ranks_nothing() -> None:
    for acted in (None, ("guidance",), ()):
        space = space_of(TinyGenerator(), 3, acted)
        found = rank(knobs_of(space, 5), space)
        assert found.measure is None and found.order == [] and found.values == []


def test_spread_over_the_samples() -> None:
    knobs = torch.arange(11.0)[:, None, None].expand(11, 2, 1)
    (spread,) = Probe(list(range(11)), [""] * 11, torch.empty(0), knobs, ("guidance",)).spread()
    assert (spread.mean, spread.low, spread.high) == ([5.0, 5.0], [1.0, 1.0], [9.0, 9.0])


def test_the_table_of_knobs_has_a_column_an_action() -> None:
    """A generator may take another number of actions than steps."""
    knobs = torch.tensor([0.125, 0.25, 0.375]).view(1, 3, 1).expand(4, -1, -1)
    seen = Probe([0, 1, 2, 3], [""] * 4, torch.zeros(4, 3, 8, 8, dtype=torch.uint8), knobs, ("guidance",))
    run = made_run(rows_of(3))
    look = Look(run, seen, Ranking(None, [], []), [], ("guidance",))
    page = render([run], Gathered(groups=[Group("tiny", 2, "guidance=1", seen, [look])]))
    table = page[page.index("policy, knob") :].partition("</table>")[0]
    assert table.count("step ") == 3 and table.count("0.375") == 4  # mean of both, low and high of the run's


# --- single steps -----------------------------------------------------------------------------------------------------


def lively_policy(generator: Generator, steps: int) -> SamplingPolicy:
    """A policy whose actions differ from sample to sample."""
    space = space_of(generator, steps)
    policy, _ = build_policy(
        AdaptivePolicy,
        AdaptivePolicy.Options(),
        space=space,
        grid=generator.grid,
        feature_dim=generator.feature_dim,
        seed=3,
    )
    assert isinstance(policy, AdaptivePolicy)
    with torch.no_grad():
        policy.actor.network.linear3.weight.normal_(0, 0.5, generator=torch.Generator().manual_seed(1))
    return SamplingPolicy(policy.eval(), space)


def test_steps_are_those_that_sampling_takes() -> None:
    generator = TinyGenerator()
    policy = lively_policy(generator, 4)
    seeds = [7, 3, 12]
    (made,) = sample(generator, policy, torch.tensor(seeds))
    traced = trace(generator, policy, seeds)
    assert [len(steps) for steps in traced] == [4, 4, 4]
    shares = set()
    for i, steps in enumerate(traced):
        assert torch.equal(steps[-1].image, to_bytes(made.images)[i])
        assert torch.tensor([step.knobs for step in steps]) == pytest.approx(made.knobs[i], abs=1e-6)
        for t, step in enumerate(steps):
            assert step.mask is not None and step.kept is not None and step.mask.shape == generator.grid
            # One pixel a cell: what is kept is drawn, and what is masked is not.
            assert torch.equal(step.kept[:, ~step.mask], step.image[:, ~step.mask])
            asked = int(step.knobs[policy.space.names.index("mask_ratio")] * generator.cells)
            assert int(step.mask.sum()) <= (asked if t < 3 else 0)
            shares.add(int(step.mask.sum()))
            if t:  # what was kept stays
                before = steps[t - 1]
                assert before.mask is not None
                assert torch.equal(step.image[:, ~before.mask], before.image[:, ~before.mask])
    assert len(shares) > 3


@pytest.mark.parametrize("spec", ["fixed", "fixed:halton"])
def test_hand_made_steps_too(spec: str) -> None:
    """The steps shown are those of the policy's own rule, a published sampler's too."""
    generator = TinyGenerator()
    policy = load_policy(spec, generator, 3)
    (made,) = sample(generator, policy, seed_range(5, 2))
    traced = trace(generator, policy, [5, 6])
    assert torch.equal(torch.stack([steps[-1].image for steps in traced]), to_bytes(made.images))


def test_covering() -> None:
    image = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    mask = torch.tensor([[True, False], [False, False]])
    covered = cover(image, mask)
    assert (covered[:, :2, :2] == round(255 * (1 - OPACITY) + 150 * OPACITY)).all()
    assert (covered[:, 2:] == 255).all() and (covered[:, :, 2:] == 255).all()


def test_probing_does_not_depend_on_the_batch_and_names_the_contexts() -> None:
    for kind, expected in (("class", "class "), ("text", "a "), ("none", "")):
        generator = TinyGenerator(kind)  # type: ignore[arg-type]
        policy = lively_policy(generator, 2)
        counted: list[int] = []
        one = probe(generator, policy, seed_range(0, 6), batch=4, progress=counted.append)
        two = probe(generator, policy, seed_range(0, 6))
        assert counted == [4, 6] and one.labels == two.labels
        assert torch.equal(one.images, two.images) and torch.allclose(one.knobs, two.knobs)
        assert any(label.startswith(expected) for label in one.labels) and (expected != "" or set(one.labels) == {""})


class Drift(Generator):
    """A generator without tokens: each step makes the image lighter by a hundredth of the guidance."""

    name, context_kind, grid, feature_dim, image_size = "drift", "none", (2, 2), 4, (2, 2)
    action_space, default_schedule = ActionSpace((GUIDANCE,)), "cosine,guidance=10"
    device, dtype, fingerprint = torch.device("cpu"), torch.float32, "drift"

    @classmethod
    def create(cls, *_: Any, **__: Any) -> Drift:
        return cls()

    @classmethod
    def variants(cls) -> tuple[str, ...]:
        return ("only",)

    def sample_contexts(self, noise: Noise) -> Context:
        return Context(len(noise))

    def reset(self, context: Context, noise: Noise, steps: int) -> Tensor:
        return noise.uniform(INITIAL, 0, (3, 2, 2)) / 2

    def observe(self, state: Tensor, *, guided: bool = True) -> Tensor:
        return state.flatten(1).view(len(state), 4, 3).repeat(1, 1, 2)[:, :, :4]

    def step(self, state: Tensor, action: Tensor, noise: Noise) -> Tensor:
        return state + action[:, :, None, None] / 100

    def decode(self, state: Tensor) -> Tensor:
        return state.clamp(0, 1)


def test_a_generator_without_tokens_has_images_and_no_masks() -> None:
    generator = Drift()
    policy = load_policy("fixed", generator, 3)
    (steps,) = trace(generator, policy, [4])
    assert [step.mask for step in steps] == [None] * 3 == [step.kept for step in steps]
    levels = [float(step.image.float().mean()) for step in steps]
    assert levels[1] - levels[0] == pytest.approx(25.5, abs=1)
    learned = lively_policy(generator, 3)
    assert rank(probe(generator, learned, seed_range(0, 8)).knobs, learned.space).measure == "distance"


# --- tables -----------------------------------------------------------------------------------------------------------


def test_like_joins_like() -> None:
    one, two = (made_run(rows_of(1), name) for name in ("a", "b"))
    (block,) = blocks([(evaluation("A", 9.0), {"A": one}, False), (evaluation("B", 12.0), {"B": two}, False)])
    assert [(line.label, line.learned, line.ratio) for line in block.lines] == [
        ("cosine", False, 1.0), ("a", True, 0.9), ("b", True, 1.2),
    ]  # fmt: skip
    assert block.figures == ["frechet", "precision", "recall"] and block.apart is None


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"images": 2000}, "unlike numbers of generated images (500 and 2000)"),
        ({"protocol": "q"}, "unlike feature protocols ('p' and 'q')"),
        ({"data": "e"}, "unlike real data sets"),
        ({"real_images": 200}, "unlike numbers of real images"),
        ({"estimators": {"k": 5}}, "unlike estimator settings"),
        ({"seeds": [500, 999]}, "another seeds"),
        ({"generator_fingerprint": "g"}, "another generator"),
    ],
)
def test_unlike_never_share_a_table(other: dict[str, Any], reason: str) -> None:
    one, two = (made_run(rows_of(1), name) for name in ("a", "b"))
    found = blocks([(evaluation("A"), {"A": one}, False), (evaluation("B", **other), {"B": two}, False)])
    assert [[line.label for line in block.lines] for block in found] == [["cosine", "a"], ["cosine", "b"]]
    assert found[0].apart is None and reason in (found[1].apart or "")


def test_a_reward_that_reads_the_networks_of_the_table_is_marked() -> None:
    """Whatever the reward is called: what it reads stands in the policy's card."""
    run = made_run(rows_of(1), "a")
    for reads, marked in ((["p"], FIGURES[:-1]), (["q", "clip-p"], ("clip_score",)), (["q"], ()), (None, ())):
        facts = evaluation("A", estimators={"clip": "clip-p"})
        facts["policies"][0]["card"] = {"training": {} if reads is None else {"reads": reads}}
        (block,) = blocks([(facts, {"A": run}, False)])
        assert [line.flattered for line in block.lines] == [(), tuple(marked)]
