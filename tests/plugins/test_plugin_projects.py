"""Plug-in projects as third parties write them: installed with pip, checked against the contracts, trained with."""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from adanat_toolkit import testing
from adanat_toolkit.actions import ActionSpace
from adanat_toolkit.errors import ConfigError, OutputError, PluginError
from adanat_toolkit.interfaces import Context, PluginOptions
from adanat_toolkit.policies import SharedPolicy
from adanat_toolkit.registry import GROUPS, discover, load, new_plugin
from adanat_toolkit.registry.scaffold import KINDS
from adanat_toolkit.testing.check import check_plugin
from adanat_toolkit.training import Trainer, validate

from ..helpers.cli import adanat
from ..helpers.tiny import Dark, TinyGenerator, install_tiny

ROOT = Path(__file__).parents[2]


def pip_install(project: Path, site: Path) -> None:
    """A real installation into a folder, from a copy: building leaves files in the project."""
    copy = site.parent / "source" / project.name
    shutil.copytree(project, copy)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    subprocess.run([*command, "--target", str(site), str(copy)], check=True, env=environment, timeout=300)


def test_the_example_reward_installs_and_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tmp_path / "site"
    pip_install(ROOT / "examples" / "reward_colourfulness", site)
    monkeypatch.syspath_prepend(str(site))
    install_tiny(tmp_path / "tiny", monkeypatch)
    (plugin,) = [p for p in discover("reward") if p.name == "colourfulness"]
    assert (plugin.distribution, plugin.version) == ("adanat-colourfulness", "1.0.0")
    source = site / "adanat_colourfulness.py"
    assert len(source.read_text().splitlines()) < 60
    failed = [o for o in check_plugin("colourfulness") if o.error is not None]
    assert not failed
    reward_class = load("reward", "colourfulness")

    def score(images: torch.Tensor, **options: bool) -> list[float]:
        reward = reward_class(
            reward_class.Options(**options), generator=TinyGenerator(), real=None, device=torch.device("cpu"), seed=0
        )
        return reward.score(images, Context(len(images))).tolist()

    images = torch.full((3, 3, 2, 2), 0.5)  # grey; then red and green halves by hand; then red on white
    images[1] = torch.tensor([1.0, 0, 0])[:, None, None]
    images[1, :, 0] = torch.tensor([0, 1.0, 0])[:, None]
    images[2] = 1
    images[2, 1:, 0, 0] = 0
    grey, halves, red = score(images)
    assert grey == 0 and red > 0
    # rg is 255 or -255: variance 255^2, mean 0; yb is 127.5 everywhere.
    assert halves == pytest.approx(255 + 0.3 * 127.5, rel=1e-5)
    # One red pixel alone: no spread, rg = 255 and yb = 127.5.
    assert score(images, ignore_white=True)[2] == pytest.approx(0.3 * (255**2 + 127.5**2) ** 0.5, rel=1e-5)
    config = validate(
        {"generator": {"name": "tiny"}, "reward": {"name": "colourfulness"}, "steps": 2, "batch": 8, "trajectories": 16}
        | {"device": "cpu", "ppo": {"epochs": 1}}
    )
    row = Trainer(config).run(tmp_path / "run")
    assert row["iteration"] == 2 and row["reward/mean"] == row["reward/mean"]
    assert (
        json.loads((tmp_path / "run" / "policy" / "policy.json").read_text())["training"]["reward"] == "colourfulness"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_project_installs_and_keeps_the_contract(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"my-{kind}"
    project = new_plugin(name, kind, tmp_path / "project")
    site = tmp_path / "site"
    pip_install(project, site)
    monkeypatch.syspath_prepend(str(site))
    assert [p.distribution for p in discover(kind) if p.name == name] == [f"adanat-{name}"]
    assert len(check_plugin(name, kind=kind)) >= 5
    runpy.run_path(str(project / "tests" / "test_contract.py"))["test_contract"]()
    install_tiny(tmp_path / "tiny", monkeypatch)
    parts = {"generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "adaptive"}}
    parts[kind] = {"name": name}
    config = validate({**parts, "steps": 2, "batch": 8, "trajectories": 16, "device": "cpu", "ppo": {"epochs": 1}})
    assert Trainer(config).run(tmp_path / "run")["iteration"] == 2
    with pytest.raises(PluginError, match="already has a"):
        new_plugin(name, kind, tmp_path / "again")


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_of_a_new_project_are_understood(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "adanat_mine", sys)  # so that what is imported is taken away in the end
    monkeypatch.delitem(sys.modules, "adanat_mine")
    project = new_plugin("mine", kind, tmp_path / "project")
    info = project / "adanat_mine-0.1.0.dist-info"
    info.mkdir()
    registered = tomllib.loads((project / "pyproject.toml").read_text())["project"]["entry-points"]
    lines = [f"{name} = {target}" for name, target in registered[GROUPS[kind]].items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{GROUPS[kind]}]", *lines]))
    monkeypatch.syspath_prepend(str(project))
    for colour in ("red", "green", "blue", "grey"):
        (tmp_path / "FOLDER" / colour).mkdir(parents=True)
        Image.new("RGB", (48, 48), colour).save(tmp_path / "FOLDER" / colour / "0.png")
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"^adanat (train .*)$", (project / "README.md").read_text().replace("\\\n", ""), re.MULTILINE)
    for command in commands:
        done = adanat(*shlex.split(command), "--dry-run")
        assert done.exit_code == 0, f"{command}: {done.stderr}"
    assert len(commands) == (2 if kind == "generator" else 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["toolkit", "plugins", "cli", "taken", "only-module"])
def test_a_name_that_would_replace_what_is_installed_is_refused(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site/adanat_taken-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site/adanat_taken-1.0.dist-info/METADATA").write_text("Name: adanat-taken\nVersion: 1.0\n")
    (tmp_path / "site/adanat_only_module.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(PluginError, match=rf"'adanat[-_].*' is installed already.* choose another name than '{name}'"):
        new_plugin(name, kind, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_of_the_modules_name_is_no_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "adanat_here").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert new_plugin("here", "reward", tmp_path / "adanat_here") == tmp_path / "adanat_here"


def test_what_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="small letters"):
        new_plugin("My Reward", "reward", tmp_path / "a")
    with pytest.raises(ConfigError, match="did you mean 'policy'"):
        new_plugin("mine", "polcy", tmp_path / "a")
    with pytest.raises(PluginError, match="adanat-toolkit already has a reward 'fid'"):
        new_plugin("fid", "reward", tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="not empty"):
        new_plugin("mine", "reward", tmp_path)


class Mixing(Dark):
    @torch.no_grad()
    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return super().score(images, context) - images.mean()


class Random(Dark):
    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return torch.rand(len(images))


class Flat(Dark):
    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return torch.ones(len(images))


class Differentiable(Dark):
    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (Mixing, "in another batch"),
        (Random, "scoring twice|micro-batches"),
        (Flat, "every image gets the score"),
        (Differentiable, "carry gradients"),
    ],
)
def test_the_contract_of_rewards_finds_faults(reward: type[Dark], complaint: str) -> None:
    images = torch.rand(9, 3, 3, 5, generator=torch.Generator().manual_seed(0))

    def make(seed: int) -> Dark:
        return reward(PluginOptions(), generator=TinyGenerator(), real=None, device=torch.device("cpu"), seed=seed)

    with pytest.raises(AssertionError, match=complaint):
        testing.check_reward(testing.RewardCase(make, images, Context(9)))


class MixesSamples(TinyGenerator):
    def predict(self, tokens: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        logits, features = super().predict(tokens, context)
        return logits - logits.mean(0) + len(tokens), features - 0.5 * features.mean(0)


class Unseeded(TinyGenerator):
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        return (super().decode_tokens(tokens) + 0.1 * torch.rand(1)).clamp(0, 1)


class OutOfRange(TinyGenerator):
    def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        return 2 * super().decode_tokens(tokens)


class DeafToContext(TinyGenerator):
    def predict(self, tokens: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        return super().predict(tokens, self.encode_classes([0] * len(tokens)))


class IgnoresGuidance(TinyGenerator):
    def null_context(self, size: int) -> Context:
        return self.encode_classes([0] * size)

    def predict(self, tokens: torch.Tensor, context: Context) -> tuple[torch.Tensor, torch.Tensor]:
        features = super().predict(tokens, context)[1]
        return super().predict(tokens, self.encode_classes([0] * len(tokens)))[0], features


class ScaleByScale(TinyGenerator):
    """No more steps than scales, as with next-scale generators."""

    scales = 3

    def decisions(self, steps: int) -> int:
        if steps > self.scales:
            raise ConfigError(f"steps is {steps}, and there are {self.scales} scales.")
        return steps


class NoScales(ScaleByScale):
    scales = 0


def test_a_generator_may_refuse_numbers_of_steps() -> None:
    testing.check_generator(ScaleByScale("class"))


@pytest.mark.parametrize(
    ("generator", "complaint"),
    [
        (MixesSamples, "must not mix|changes another one"),
        (Unseeded, "never from torch's global state"),
        (OutOfRange, r"must lie in \[0, 1\]"),
        (DeafToContext, "do not depend on the context"),
        (IgnoresGuidance, "declares the knob guidance, but turning it changes nothing"),
        (NoScales, "decisions refuses 2, 3, 5 steps"),
    ],
)
def test_the_contract_of_generators_finds_faults(generator: type[TinyGenerator], complaint: str) -> None:
    testing.check_generator(TinyGenerator("class"))
    with pytest.raises(AssertionError, match=complaint):
        testing.check_generator(generator("class"))


class SizedBySteps(SharedPolicy):
    """A table with a row a step, where it needs one a decision."""

    def __init__(self, options: Any, *, space: ActionSpace, grid: tuple[int, int], feature_dim: int) -> None:
        super().__init__(options, space=space, grid=grid, feature_dim=feature_dim)
        self.table = torch.nn.Embedding(space.steps, space.size)

    def forward(self, features: torch.Tensor | None, step: torch.Tensor) -> torch.Tensor:
        return self.table(step)


def test_the_contract_of_policies_finds_a_table_that_is_too_short() -> None:
    with pytest.raises(AssertionError, match=r"3 decisions make an image in 2 steps.*use space\.decisions"):
        testing.check_policy(SizedBySteps)


def test_a_plugin_that_is_not_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "odd_plugins-1.0.dist-info"
    info.mkdir()
    (info / "entry_points.txt").write_text(f"[adanat.rewards]\nodd = {__name__}:ROOT\nbroken = {__name__}:Nothing\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    (outcome,) = check_plugin("odd")
    assert outcome.error is not None and "must name a subclass of RewardModel" in outcome.error
    (outcome,) = check_plugin("broken")
    assert outcome.error is not None and "could not be loaded" in outcome.error
    with pytest.raises(PluginError, match="did you mean 'broken'"):
        check_plugin("brokn")
    with pytest.raises(ConfigError, match="did you mean 'reward'"):
        check_plugin("odd", kind="rewrd")


def test_the_documentation_runs() -> None:
    """The Python blocks of the page, one after the other in one namespace; its classes keep their contracts there."""
    page = (ROOT / "docs" / "writing-a-plugin.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    names: dict[str, Any] = {"__name__": "writing_a_plugin"}
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 8
    assert names["rollout"].physical.shape == (6, 4, 2) and names["rollout"].embedded.shape == (6, 3, 8, 8)
