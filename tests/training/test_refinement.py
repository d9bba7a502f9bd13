"""Best of N by a trained run's reward: which candidates there are, that the best is kept, what it costs, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.commands.headroom import reward_for
from adanat_toolkit.core import Context, Generator, Noise, RewardModel
from adanat_toolkit.errors import CheckpointError, ConfigError, NotFiniteError
from adanat_toolkit.evaluation.evaluate import _steps_of_forwards
from adanat_toolkit.images import read_facts
from adanat_toolkit.policies import load_policy, open_generator
from adanat_toolkit.registry import create_generator, create_reward
from adanat_toolkit.sampling import Refinement, candidate_seeds, sample, seed_range
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.training import load_judge

from ..helpers.cli import adanat, train_arguments
from ..helpers.tiny import TinyGenerator
from ..helpers.train_process import write_images


class Dark(RewardModel):
    def __init__(self) -> None:
        pass

    def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
        return 1 - images.mean((1, 2, 3))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the embedded generator with a discriminator."""
    folder = tmp_path_factory.mktemp("run")
    result = adanat(*train_arguments(write_images(folder / "real"), folder / "run"))
    assert result.exit_code == 0, result.stderr
    return folder / "run"


def test_the_best_candidate_of_each_image_is_kept() -> None:
    generator = TinyGenerator()
    policy, seeds, reward = load_policy("fixed", generator, 3), seed_range(5, 6), Dark()
    context = generator.sample_contexts(Noise(seeds))
    refined = list(Refinement(reward, 4, "dark").sample(generator, policy, seeds, batch=4))
    assert [len(part.seeds) for part in refined] == [4, 2]
    images = torch.cat([part.images for part in refined])
    kept = [fact for part in refined for fact in part.kept or ()]
    every = []
    for number in range(4):
        made = next(sample(generator, policy, candidate_seeds(seeds, number), context, batch=6))
        every.append(reward.score(made.images, context))
        for i, fact in enumerate(kept):
            if fact["candidate"] == number:
                assert torch.equal(made.images[i], images[i]) and fact["seed"] == int(made.seeds[i])
    scores = torch.stack(every)
    assert torch.allclose(torch.tensor([fact["score"] for fact in kept]), scores.max(0).values)
    assert torch.equal(torch.tensor([fact["candidate"] for fact in kept]), scores.argmax(0))
    assert len({fact["candidate"] for fact in kept}) > 1
    alone = next(Refinement(reward, 4, "dark").sample(generator, policy, seeds[3:4]))
    assert torch.allclose(alone.images[0], images[3], atol=1e-5)
    one = next(Refinement(reward, 1, "dark").sample(generator, policy, seeds))
    assert torch.equal(one.images, next(sample(generator, policy, seeds, batch=6)).images)


def test_what_it_costs_and_the_same_forwards_in_steps() -> None:
    generator = TinyGenerator()
    space = generator.bind(None, 4)
    facts = Refinement(Dark(), 3, "dark").facts(generator, space)
    assert (facts["forwards"], facts["extra_forwards"]) == (18, 12)  # 3 x 3 steps after the first, with and without condition
    assert _steps_of_forwards(generator, space, 3) == 10

    class Scales(TinyGenerator):
        def decisions(self, steps: int) -> int:
            if steps > 6:
                raise ConfigError("six scales")
            return steps

    assert _steps_of_forwards(Scales(), space, 3) is None


def test_the_judge_is_the_discriminator_of_the_checkpoint(run: Path) -> None:
    generator = open_generator(None, [str(run)], device="cpu", dtype="float32")
    reward, told = load_judge(run, generator, offline=True)
    assert "adversarial of run, iteration" in told
    images = next(sample(generator, load_policy("fixed", generator, 2), seed_range(0, 4)))
    fresh = create_reward(
        "adversarial", {}, generator=generator, real=generator.real_images(), device=generator.device, seed=0
    )
    scores = reward.score(images.images, images.context)
    assert scores.std() > 0 and not torch.allclose(scores, fresh.score(images.images, images.context))
    other = create_generator("mage", device=torch.device("cpu"), dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="judged images of maskgit, this generator is mage:emoji64"):
        load_judge(run, other)
    with pytest.raises(ConfigError, match="no run folder with a checkpoint"):
        load_judge(RunFolder(run).policy, generator)


@pytest.mark.parametrize("options", [{"pool": 2}, {"output": "logit"}])
def test_a_judge_is_what_its_checkpoint_was_made_with(options: dict[str, Any], run: Path, tmp_path: Path) -> None:
    """These leave every tensor's shape, and change the order of the scores."""
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["reward"]["options"] |= options
    (copy / "config.json").write_text(json.dumps(config))
    generator: Generator = open_generator(None, [str(run)], device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match=rf"other settings \(reward\.options\.{next(iter(options))}: None -> "):
        load_judge(copy, generator, offline=True)
    with pytest.raises(CheckpointError, match="made with other settings"):
        reward_for(None, copy, generator=generator, real=generator.real_images(), offline=True)


def test_a_judge_whose_folder_names_sources_is_refused(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = json.loads((copy / "config.json").read_text())
    config["reward"]["options"]["backbone_weights"] = "somewhere/else"
    (copy / "config.json").write_text(json.dumps(config))
    generator: Generator = open_generator(None, [str(run)], device="cpu", dtype="float32")
    with pytest.raises(ConfigError, match=r"backbone_weights = 'somewhere/else'\. What a folder names is not followed"):
        load_judge(copy, generator)


def test_a_reward_that_judges_sets_is_refused() -> None:
    class Sets(Dark):
        set_level = True

    with pytest.raises(ConfigError, match="by the others beside them"):
        Refinement(Sets(), 2, "a mixture")


def test_a_reward_that_reads_latents_is_refused() -> None:
    class Latents(Dark):
        reads_latents = True

    with pytest.raises(ConfigError, match="reads latents, and candidates are finished images"):
        Refinement(Latents(), 2, "a run")


def test_the_commands(run: Path, tmp_path: Path) -> None:
    common = ["--device", "cpu", "--dtype", "float32", "--policy", run]
    result = adanat("sample", *common, "--num", "3", "--refine", "3", "--out", tmp_path / "best", "--json")
    assert result.exit_code == 0, result.stderr
    assert "forwards an image, of which" in result.stderr
    listed = json.loads((tmp_path / "best" / "samples.json").read_text())
    assert listed["refine"] == json.loads(result.stdout)["refine"] and listed["refine"]["candidates"] == 3
    steps = listed["steps"]
    assert listed["refine"]["extra_forwards"] == 2 * 2 * (steps - 1)
    assert all(0 <= image["refined"]["candidate"] < 3 for image in listed["images"])
    assert read_facts(tmp_path / "best" / "000001.png", dict)["refined"] == listed["images"][1]["refined"]  # type: ignore[arg-type]
    again = adanat("sample", *common, "--num", "3", "--out", tmp_path / "best")
    assert again.exit_code == 1 and "other settings (refine" in again.stderr
    judged = adanat("evaluate", *common, "--num", "16", "--refine", "2", "--json")
    assert judged.exit_code == 0, judged.stderr
    value = json.loads(judged.stdout)
    rows = [(row["policy"].rpartition("/")[2], row["steps"]) for row in value["policies"]]
    more = 2 * (steps - 1) + 1
    assert [t for _, t in rows] == [steps, steps, more] and rows[1][0] == "run, best of 2"
    assert value["policies"][2]["policy"].startswith("fixed:") and value["refine"][0]["candidates"] == 2
    for words, message in (
        (["--judge", run], "give --refine N"),
        (["--refine", "2", "--policy", "fixed"], "no run folder with a checkpoint"),
    ):
        refused = adanat("sample", "--device", "cpu", "--out", tmp_path / "none", *words)
        assert refused.exit_code == 1 and message in refused.stderr


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_judge_whose_scores_are_not_finite_is_refused(value: float) -> None:
    class Bad(Dark):
        def score(self, images: torch.Tensor, context: Context) -> torch.Tensor:
            return torch.full((len(images),), value)

    generator = TinyGenerator()
    with pytest.raises(NotFiniteError, match="2 of 2 scores of the reward of dark are not finite"):
        list(Refinement(Bad(), 2, "dark").sample(generator, load_policy("fixed", generator, 3), seed_range(5, 2)))
