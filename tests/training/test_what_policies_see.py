"""Policies that see the context (``context``) or statistics (``lean``): trained, resumed, exported, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adanat_toolkit import testing
from adanat_toolkit.core import Context, Noise, Policy, RewardModel, see, seen_shape
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.gym_env import GenerationVectorEnv
from adanat_toolkit.policies import ContextPolicy, LeanPolicy, SamplingPolicy, load_policy
from adanat_toolkit.sampling import collect, sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import Trainer, create_trainer, validate

from ..helpers.tiny import TinyGenerator, install_tiny

STEPS = 2


def settings(kind: str, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "generator": {"name": "tiny"},
        "reward": {"name": "dark"},
        "policy": {"name": kind, "average": 0.5},
        "ppo": {"learning_rate": 0.01},
        "steps": STEPS,
        "trajectories": 64,
        "batch": 16,
        "checkpoint_every": 1,
        "device": "cpu",
        "dtype": "float32",
    }
    return {**base, **more}


def steady(folder: Path) -> list[dict[str, Any]]:
    rows = RunFolder(folder).metrics()
    return [{k: v for k, v in row.items() if "second" not in k} for row in rows]


@pytest.mark.parametrize("policy", [ContextPolicy, LeanPolicy])
def test_contract(policy: type) -> None:
    testing.check_policy(policy)


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
@pytest.mark.parametrize("kind", ["context", "lean"])
def test_a_run_that_broke_off_goes_on_exactly_and_its_policy_is_loaded(
    kind: str, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    config = validate(settings(kind, engine=engine))
    create_trainer(config).run(tmp_path / "whole")

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        create_trainer(config).run(tmp_path / "broken", on_iteration=stop)
    trainer = create_trainer(config)
    trainer.run(tmp_path / "broken")
    assert steady(tmp_path / "whole") == steady(tmp_path / "broken")
    files = [(tmp_path / run / "policy" / "policy.safetensors").read_bytes() for run in ("whole", "broken")]
    assert files[0] == files[1]
    loaded = load_policy(tmp_path / "whole", trainer.generator)
    assert isinstance(trainer, Trainer)
    ours = next(sample(trainer.generator, trainer.exported(), seed_range(0, 6)))
    theirs = next(sample(trainer.generator, loaded, seed_range(0, 6), batch=6))
    assert torch.equal(ours.knobs, theirs.knobs) and ours.knobs.std(0).max() > 1e-6
    alone = next(sample(trainer.generator, loaded, seed_range(3, 1)))
    assert torch.allclose(alone.knobs[0], theirs.knobs[3], atol=1e-6)


def test_the_context_policy_tells_contexts_apart_and_nothing_else() -> None:
    for kind in ("class", "text"):
        generator = TinyGenerator(kind)  # type: ignore[arg-type]
        policy = perturbed(ContextPolicy, generator)
        noise = Noise(seed_range(0, 40))
        context = generator.sample_contexts(noise)
        knobs = collect(generator, policy, context, noise).actions
        _, inverse = context.distinct()
        means = torch.stack([knobs[inverse == i].mean(0) for i in range(int(inverse.max()) + 1)])
        assert torch.allclose(knobs, means[inverse], atol=1e-5)
        assert (means[0] - means[1]).abs().max() > 1e-3


def test_the_lean_policy_sees_logged_statistics_and_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    trainer = create_trainer(validate(settings("lean", trajectories=16)))
    assert isinstance(trainer, Trainer)
    row = trainer.step()
    generator, noise = trainer.generator, Noise(seed_range(0, 4))
    for name in generator.statistic_names:
        for step in range(STEPS):
            assert {f"statistic/{name}/{step}", f"statistic_spread/{name}/{step}"} <= row.keys()
    assert row["statistic/masked/0"] == pytest.approx(1) and row["statistic/masked/1"] < 1
    assert 0 < row["statistic/entropy/0"] < 1 and row["statistic_spread/entropy/1"] > 0
    assert not [name for name in Trainer(validate(settings("context"))).step() if name.startswith("statistic")]
    assert sum(p.numel() for p in trainer.policy.parameters()) < 1000
    context = generator.sample_contexts(noise)
    seen = see(generator, LeanPolicy, generator.reset(context, noise, STEPS), context)
    assert seen is not None and seen.shape == (4, 1, len(generator.statistic_names))
    actions = collect(generator, perturbed(LeanPolicy, generator), context, noise).actions
    assert actions[:, 1].std(0).max() > 1e-3  # other statistics, other actions


def test_what_is_not_there_is_refused() -> None:
    nothing = TinyGenerator("none")
    with pytest.raises(ConfigError, match="has none; use policy shared"):
        seen_shape(nothing, ContextPolicy)
    assert seen_shape(nothing, LeanPolicy) == ((1, 1), 5)

    class Silent(TinyGenerator):
        statistic_names = ()  # type: ignore[assignment]

    with pytest.raises(ConfigError, match="tiny:class gives none"):
        seen_shape(Silent(), LeanPolicy)


def perturbed(kind: type, generator: TinyGenerator) -> SamplingPolicy:
    """A policy whose every weight matters."""
    space = generator.bind(None, STEPS)
    grid, width = seen_shape(generator, kind)
    torch.manual_seed(0)
    policy = kind(kind.Options(), space=space, grid=grid, feature_dim=width)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return SamplingPolicy(policy, space)


class Linear(nn.Module):
    """Takes float32, as the contract says."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, outputs)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        return self.head(features.mean(1))


class Stored(Policy):
    """A plug-in whose features are kept in bfloat16, and which knows nothing of it."""

    kind = "stored"
    feature_dtype = torch.bfloat16

    def __init__(self, options: Any, *, space: Any, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.width, self.actor = feature_dim, Linear(feature_dim, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        assert features is not None
        return self.actor(features, step)

    def make_critic(self) -> nn.Module:
        return Linear(self.width, 1)


def dark(images: Tensor, context: Context) -> Tensor:
    return -images.mean((1, 2, 3))


def test_features_kept_in_fewer_bits_come_back_as_float32_and_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    testing.check_policy(Stored)
    monkeypatch.setattr("adanat_toolkit.policies.folder.load", lambda kind, name: Stored)
    once = {"generator": {}, "reward": {}, "ppo": {"epochs": 1, "minibatches": 1}}
    config = validate(settings("stored", **once))
    trainer = Trainer(config, TinyGenerator(), dark)
    assert trainer.step()["ppo/approx_kl"] < 1e-9  # before the first step of the optimiser nothing has changed


class Trunk(Policy):
    """Its critic shares a layer with it."""

    kind = "trunk"

    def __init__(self, options: Any, *, space: Any, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.trunk, self.head = nn.Linear(feature_dim, 8), nn.Linear(8, space.size)

    def forward(self, features: Tensor | None, step: Tensor) -> Tensor:
        assert features is not None
        return self.head(self.trunk(features.mean(1)).tanh())

    def make_critic(self) -> nn.Module:
        return SharedTrunk(self.trunk)


class SharedTrunk(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.value = trunk, nn.Linear(8, 1)

    def forward(self, features: Tensor, step: Tensor) -> Tensor:
        return self.value(self.trunk(features.mean(1)).tanh())


def test_a_layer_that_policy_and_critic_share_moves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    testing.check_policy(Trunk)
    monkeypatch.setattr("adanat_toolkit.policies.folder.load", lambda kind, name: Trunk)
    once = {"generator": {}, "reward": {}, "ppo": {"epochs": 1, "minibatches": 1, "max_gradient_norm": None}}
    trainer = Trainer(validate(settings("trunk", **once)), TinyGenerator(), dark)
    before = {key: value.clone() for key, value in trainer.policy.state_dict().items()}
    rate = trainer.step()["learning_rate"]
    moved = {key: float((value - before[key]).abs().max()) / rate for key, value in trainer.policy.state_dict().items()}
    assert max(moved.values()) < 1.001, moved  # Adam's first step is as long as its rate
    trainer.load_state({key: value.clone() for key, value in trainer.state().items()})


class Words(TinyGenerator):
    """Knows prompts as words alone."""

    def encode_prompts(self, prompts: Any) -> Context:
        return Context(len(prompts), prompts=tuple(prompts))


def test_prompts_without_an_embedding_are_a_clear_error() -> None:
    words = Words("text")
    assert words.context_dim == 0 and TinyGenerator("text").context_dim > 0
    with pytest.raises(ConfigError, match=r"gives no embedding of its prompts .*; use policy shared"):
        seen_shape(words, ContextPolicy)
    config = settings("shared", generator={}, reward={}, ppo={"context_baseline": True})
    with pytest.raises(ConfigError, match="context_baseline = true: tiny:text has no context"):
        Trainer(validate(config), words, dark)
    with pytest.raises(ConfigError, match="no embedding of their texts"):
        words.encode_prompts(["a cat"]).embedding()
    assert GenerationVectorEnv(2, generator=words, reward=Plain(), steps=STEPS).single_observation_space["context"].n == 1


class Plain(RewardModel):
    def __init__(self) -> None:
        """Nothing to build."""

    def score(self, images: Tensor, context: Context) -> Tensor:
        return dark(images, context)
