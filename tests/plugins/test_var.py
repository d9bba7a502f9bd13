"""VAR: the loop over scales, what it runs and what not, and loading."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_plugins.generators.var import NextScale, spread_scales
from adanat_toolkit.core import Noise, parse_schedule
from adanat_toolkit.errors import ConfigError, WeightsError
from adanat_toolkit.policies import AdaptiveOptions, AdaptivePolicy, SamplingPolicy, load_policy
from adanat_toolkit.runtime import COMPILED
from adanat_toolkit.sampling import collect, forwards_of_an_image
from adanat_toolkit.sampling.rollout import Start

from ..helpers.released import TINY_VAR, save_var

CPU = torch.device("cpu")
SEEDS = torch.arange(20, 25)


@pytest.fixture(scope="module")
def generator(tmp_path_factory: pytest.TempPathFactory) -> NextScale:
    folder = tmp_path_factory.mktemp("var")
    save_var(folder, "var_d16.pth")
    return NextScale.create("d16", {"weights": str(folder)}, device=CPU, dtype=torch.float32, offline=True)


def images(generator: NextScale, schedule: str, steps: int = 5, seeds: Tensor = SEEDS) -> Tensor:
    """(B, 3, H, W) under a schedule; the class of a seed is its own."""
    noise, table = Noise(seeds), parse_schedule(schedule, generator.action_space, steps).float()
    state = generator.reset(generator.encode_classes((seeds % 11).tolist()), noise, steps)
    for row in table:
        state = generator.step(state, row.expand(len(noise), -1), noise)
    return generator.decode(state)


def test_scales_of_fewer_steps() -> None:
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    for steps in range(1, 11):
        chosen = spread_scales(steps, sides, "var")
        assert len(set(chosen)) == steps and sorted(chosen) == list(chosen) and chosen[-1] == 9
        assert steps == 1 or chosen[0] == 0
    assert spread_scales(10, sides, "var") == tuple(range(10))
    assert [sides[i] for i in spread_scales(4, sides, "var")] == [1, 4, 8, 16]
    for steps in (0, 11):
        with pytest.raises(ConfigError, match=rf"steps is {steps}, and var:x has 10 scales .*use 1 to 10 steps"):
            spread_scales(steps, sides, "var:x")


def test_more_steps_than_scales_are_refused(generator: NextScale) -> None:
    context = generator.encode_classes([0])
    with pytest.raises(ConfigError, match="use 1 to 5 steps"):
        generator.reset(context, Noise(SEEDS[:1]), 6)
    with pytest.raises(ConfigError, match="use 1 to 5 steps"):
        generator.decisions(6)
    assert [generator.decisions(steps) for steps in (1, 3, 5)] == [1, 3, 5]


def test_masked_editing_is_refused(generator: NextScale) -> None:
    policy = load_policy("fixed", generator, 3)
    start = Start(torch.zeros(1, 25, dtype=torch.int64), torch.ones(1, 25, dtype=torch.bool))
    with pytest.raises(ConfigError, match="masked editing"):
        collect(generator, policy, generator.encode_classes([0]), Noise(SEEDS[:1]), start_from=start)


def test_what_it_declares(generator: NextScale) -> None:
    space = generator.action_space
    assert space.names == ("guidance", "top_k", "top_p", "token_temperature")
    assert space.knobs[1].high == TINY_VAR.vocabulary
    assert generator.grid == (16, 16) and generator.scales == TINY_VAR.scales
    table = parse_schedule("guidance=1", space, 2)
    assert table.tolist() == [[1, TINY_VAR.vocabulary, 1, 1]] * 2
    with pytest.raises(ConfigError, match=r"top_k.*\[0, 1024\]"):
        parse_schedule("guidance=1,top_k=1025", space, 2)


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_images_do_not_depend_on_the_batch(generator: NextScale, steps: int) -> None:
    schedule = "guidance=2,top_k=20,top_p=0.9,token_temperature=1.1"
    whole = images(generator, schedule, steps)
    for row in range(len(SEEDS)):
        assert torch.allclose(images(generator, schedule, steps, SEEDS[row : row + 1])[0], whole[row], atol=1e-5)
    assert torch.allclose(images(generator, schedule, steps, SEEDS.flip(0)).flip(0), whole, atol=1e-5)


class Rows:
    """Rows of every forward, and how many of them are of the null class; see ``watched``."""

    def __init__(self, generator: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[int, int]] = []
        embed = generator.network.embed

        def counted(latent: Tensor, scale: int, classes: Tensor) -> Tensor:
            self.calls.append((len(classes), int((classes == generator.null_class).sum())))
            return embed(latent, scale, classes)

        monkeypatch.setattr(generator.network, "embed", counted)


def test_no_forward_is_run_for_nothing(generator: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
    """One a scale and none after the last; the null rows ride along from the first guided step on, made up for before."""
    rows, size = Rows(generator, monkeypatch), len(SEEDS)
    context = generator.encode_classes([0, 1, 2, 3, 4])
    both, own, null = (2 * size, size), (size, 0), (size, size)
    for schedule, expected in {
        "guidance=0": [own] * 5,
        "guidance=1": [both] * 5,
        "guidance=0/0/1/1/1": [own, own, null, null, both, both, both],
        "guidance=0/1/0/1/0": [own, null, both, own, null, both, own],
    }.items():
        policy = load_policy(f"fixed:{schedule}", generator, 5)
        rows.calls.clear()
        collect(generator, policy, context, Noise(SEEDS), keep_images=size)
        assert rows.calls == expected, schedule


def test_a_policy_with_features_costs_no_more(generator: NextScale, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, size = Rows(generator, monkeypatch), len(SEEDS)
    space = generator.action_space.bind(parse_schedule(generator.default_schedule, generator.action_space, 5))
    network = AdaptivePolicy(AdaptiveOptions(), space=space, grid=generator.grid, feature_dim=generator.feature_dim)
    collect(generator, SamplingPolicy(network, space), generator.encode_classes([0, 1, 2, 3, 4]), Noise(SEEDS))
    assert rows.calls == [(2 * size, size)] * 5
    assert size * forwards_of_an_image(generator, space) == 5 * 2 * size


def test_making_up_for_null_rows_gives_the_same_images(generator: NextScale) -> None:
    """However the null rows came to be run, and when: together from the start, or late, or after an observation without."""
    noise, context = Noise(SEEDS), generator.encode_classes([0, 1, 2, 3, 4])
    table = parse_schedule("guidance=0/0/3/0/3,top_k=30,top_p=0.95", generator.action_space, 5).float()
    finished = []
    for seen in ([True] * 5, [None] * 5, [False] * 5, [None, True, False, None, False]):
        state = generator.reset(context, noise, 5)
        for row, guided in zip(table, seen, strict=True):
            if guided is not None:
                generator.observe(state, guided=guided)
            state = generator.step(state, row.expand(len(noise), -1), noise)
        finished.append(generator.decode(state))
    assert all(torch.allclose(x, finished[0], atol=1e-5) for x in finished[1:])
    assert not torch.allclose(images(generator, "guidance=0,top_k=30,top_p=0.95"), finished[0], atol=1e-3)


def test_a_state_can_be_taken_up_again(generator: NextScale) -> None:
    """Steps do not change the state they start from but for what it remembers of its own forward."""
    noise, context = Noise(SEEDS), generator.encode_classes([0, 1, 2, 3, 4])
    table = parse_schedule("guidance=2", generator.action_space, 5).float()[:, None].expand(-1, len(noise), -1)
    state = generator.reset(context, noise, 5)
    for row in table[:2]:
        state = generator.step(state, row, noise)
    ends = []
    for _ in range(2):
        end = state
        for row in table[2:]:
            end = generator.step(end, row, noise)
        ends.append(generator.decode(end))
        generator.step(state, table[0] * 0.5, Noise(SEEDS + 7))
    assert torch.equal(*ends)


def test_latents_are_what_is_decoded(generator: NextScale) -> None:
    noise, table = Noise(SEEDS), parse_schedule("guidance=1", generator.action_space, 2).float()
    state = generator.reset(generator.encode_classes([0] * 5), noise, 2)
    for row in table:
        state = generator.step(state, row.expand(5, -1), noise)
    latents = generator.latents(state)
    assert torch.equal(generator.tokenizer.decode(latents), generator.decode(state))
    again = generator.encode_latents(generator.decode(state))
    assert again.shape == latents.shape == (5, 8, 5, 5)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    state = save_var(tmp_path, "var_d30.pth")
    broken: dict[str, Any] = {name: value for name, value in state.items() if name != "blocks.1.attn.q_bias"}
    broken["head.bias"] = torch.zeros(7)
    torch.save(broken, tmp_path / "var_d30.pth")
    with pytest.raises(WeightsError, match=r"(?s)missing +blocks.1.attn.q_bias.*misshapen head.bias \[7\], expected \[1024\]"):
        NextScale.create("d30", {"weights": str(tmp_path)}, device=CPU, dtype=torch.float32, offline=True)
    torch.save({"head.weight": torch.zeros(2, 2)}, tmp_path / "var_d30.pth")
    with pytest.raises(WeightsError, match=r"no VAR transformer: 'lvl_1L' is missing"):
        NextScale.create("d30", {"weights": str(tmp_path)}, device=CPU, dtype=torch.float32, offline=True)


def test_a_tokenizer_of_another_vocabulary(tmp_path: Path) -> None:
    state = save_var(tmp_path, "var_d16.pth")
    state["head.weight"], state["head.bias"] = torch.zeros(50, 32), torch.zeros(50)
    torch.save(state, tmp_path / "var_d16.pth")
    with pytest.raises(WeightsError, match=r"predicts 50 codes .* do not belong together"):
        NextScale.create("d16", {"weights": str(tmp_path)}, device=CPU, dtype=torch.float32, offline=True)


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    """What was traced before, with another backend, is not used again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("nothing_compiled")
def test_a_compiled_generator_makes_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile does it, without gaps, and run by the eager backend, which needs no compiler."""
    traced: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        traced.append(len(inputs))
        return graph.forward

    monkeypatch.setitem(COMPILED, "backend", backend)
    monkeypatch.setitem(COMPILED, "fullgraph", True)
    save_var(tmp_path, "var_d16.pth")
    made = []
    for compiled in (False, True):
        options = {"weights": str(tmp_path), "compile": compiled}
        generator = NextScale.create("d16", options, device=CPU, dtype=torch.float32, offline=True)
        made += [images(generator, "guidance=2,top_k=20,top_p=0.9"), images(generator, "guidance=2", seeds=SEEDS[:3])]
    assert torch.allclose(made[0], made[2], atol=1e-5) and torch.allclose(made[1], made[3], atol=1e-5)
    # Once for all batches, but for sizes of one, which torch.compile always keeps apart: one token, and a cache of one.
    assert 2 <= len(traced) <= 6
