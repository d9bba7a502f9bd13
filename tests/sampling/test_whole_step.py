"""The step as one compiled piece: it is traced without gaps, gives the same trajectories, and gives way where it fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adanat_toolkit.core import Context, Noise, seen_shape
from adanat_toolkit.decoding import SamplingPolicy, TokenGenerator
from adanat_toolkit.policies.networks import build_policy
from adanat_toolkit.registry import create_generator, load
from adanat_toolkit.runtime import devices
from adanat_toolkit.sampling import Rollout, WholeStep, collect
from adanat_toolkit.sampling.rollout import Start

Run = tuple[TokenGenerator, SamplingPolicy, nn.Module, Context]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Iterator[None]:
    """What was traced before, with another backend, is not used again."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def run(
    name: str,
    policy_name: str = "adaptive",
    acted: list[str] | None = None,
    compile: bool = False,
    critic_statistics: bool = False,
) -> Run:
    generator = create_generator(
        name, {"compile": True} if compile else {}, device=torch.device("cpu"), dtype=torch.float32, offline=True
    )
    assert isinstance(generator, TokenGenerator)
    kind = load("policy", policy_name)
    space = generator.bind(generator.default_schedule, 3, acted=acted)
    grid, width = seen_shape(generator, kind)
    network, critic = build_policy(
        kind, kind.Options(), space=space, grid=grid, feature_dim=width, seed=1,
        statistics=len(generator.statistic_names) if critic_statistics else 0,
    )  # fmt: skip
    assert critic is not None
    generator_of_weights = torch.Generator().manual_seed(0)
    for parameter in (*network.parameters(), *critic.parameters()):  # heads begin at zero, where all policies are alike
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator_of_weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = generator.sample_contexts(Noise(torch.arange(20)))
    return generator, SamplingPolicy(network, space), critic, context


def rolled(made: Run, whole: WholeStep | None, rows: slice = slice(None), micro_batch: int | None = None) -> Rollout:
    generator, policy, critic, context = made
    noise = Noise(torch.arange(20)[rows])
    return collect(
        generator, policy, context.select(rows), noise, critic=critic, sigma=0.3, keep_images=20, whole=whole,
        micro_batch=micro_batch,
    )  # fmt: skip


def same(found: Rollout, expected: Rollout, tolerance: float) -> None:
    for name in ("actions", "physical", "log_prob", "values", "images", "features", "statistics"):
        own, other = getattr(found, name), getattr(expected, name)
        if other is not None:
            assert torch.allclose(own.float(), other.float(), rtol=tolerance, atol=tolerance), name


def options(backend: Any) -> dict[str, Any]:
    return {"dynamic": False, "fullgraph": True, "backend": backend}


@pytest.mark.parametrize(
    ("name", "policy", "acted"),
    [
        ("maskgit", "adaptive", None),
        pytest.param("maskgit", "lean", ["mask_ratio", "guidance"], marks=pytest.mark.slow),
        pytest.param("mage", "shared", None, marks=pytest.mark.slow),
        pytest.param("muse", "context", None, marks=pytest.mark.slow),
        pytest.param("muse", "shared", ["mask_ratio"], marks=pytest.mark.slow),
    ],
)
def test_a_step_is_traced_without_gaps(
    name: str, policy: str, acted: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """No number of a step is waited for: fullgraph refuses what would need it. Once for each size, whatever the step."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    made = run(name, policy, acted)
    whole = WholeStep(*made[:3], options(backend))
    same(rolled(made, whole), rolled(made, None), 0.0)
    assert 1 <= len(graphs) <= 2 and whole.sizes == {20}, said(caplog)  # two where only some steps are guided
    assert len(said(caplog)) == 1 and "compiling the step for 20 samples" in said(caplog)[0]


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "adanat_toolkit"]


def test_compiled_trajectories_are_the_same() -> None:
    made = run("maskgit", "shared", critic_statistics=True)
    expected = rolled(made, None)
    assert expected.statistics is not None
    same(rolled(made, WholeStep(*made[:3], options("aot_eager"))), expected, 1e-4)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on whether the networks were compiled apart before."""
    monkeypatch.setitem(devices.COMPILED, "backend", "eager")
    made = run("maskgit", compile=True)
    eager, whole = rolled(run("maskgit"), None), WholeStep(*made[:3], options("aot_eager"))
    same(rolled(made, whole), eager, 1e-4)
    part = rolled(made, whole, slice(4, 20), micro_batch=8)
    assert torch.allclose(part.actions, eager.actions[4:], atol=1e-4)
    assert torch.allclose(part.images, eager.images[4:], atol=1e-4)
    assert whole.sizes == {8, 20}


class Asking(TorchDispatchMode):
    """Notes operators by which the host asks for numbers, and so would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2", "aten::masked_select"):
            self.asked.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "policy"), [("maskgit", "adaptive"), ("maskgit", "shared"), ("muse", "lean")])
def test_the_steps_of_a_rollout_ask_for_no_number(name: str, policy: str) -> None:
    """Without compiling either; from a given start, as predictions of first states are looked up by what contexts they have."""
    generator, bundle, critic, context = run(name, policy)
    tokens = torch.full((20, generator.cells), generator.mask_id)
    start = Start(tokens, tokens == generator.mask_id)
    noise = Noise(torch.arange(20))
    generator.null_context(1)  # a prompt is encoded once a process
    with Asking() as mode:
        collect(generator, bundle, context, noise, critic=critic, sigma=0.3, start_from=start)
    assert not mode.asked


@pytest.mark.slow
def test_inductors_trajectories_are_the_same() -> None:
    made = run("maskgit")
    whole = WholeStep(*made[:3])
    found, expected = rolled(made, whole), rolled(made, None)
    assert torch.allclose(found.log_prob, expected.log_prob, atol=1e-3)
    # Rounding may change a token whose random number lies at a boundary; the sample goes its own way from there.
    apart = (found.actions - expected.actions).abs().flatten(1).amax(1) > 2e-3
    assert apart.float().mean() <= 0.1
    assert expected.images is not None and found.images is not None
    other = (found.images - expected.images).abs().flatten(1).amax(1) > 1e-2
    assert other.float().mean() <= 0.5
    assert whole.sizes == {20}


def test_what_does_not_compile_is_done_in_parts(caplog: pytest.LogCaptureFixture) -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise RuntimeError("no compiler found\nand much more")

    made = run("maskgit")
    whole = WholeStep(*made[:3], options(backend))
    for _ in range(2):
        same(rolled(made, whole), rolled(made, None), 0.0)
    reasons = [message for message in said(caplog) if "cannot be compiled" in message]
    assert len(reasons) == 1 and reasons[0].endswith("RuntimeError: no compiler found")


def test_memory_that_runs_out_is_for_the_micro_batch(caplog: pytest.LogCaptureFixture) -> None:
    class Full(WholeStep):
        def _step(self, tokens: torch.Tensor, *others: Any) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
            if len(tokens) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super()._step(tokens, *others)

    made = run("maskgit")
    whole = Full(*made[:3], {"disable": True})
    same(rolled(made, whole, micro_batch=20), rolled(made, None), 1e-4)
    assert whole.sizes == {10} and "going on with 10" in caplog.text


def test_it_takes_no_step_of_another_policy() -> None:
    made, other = run("maskgit"), run("maskgit")
    whole = WholeStep(*made[:3], options("eager"))
    rolled(other, whole)
    assert not whole.sizes
