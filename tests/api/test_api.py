"""The public Python API, on the embedded generator and few images."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import adanat_toolkit as adanat
from adanat_toolkit import api
from adanat_toolkit.api import evaluating, gaining, generators, policies, sampling, training
from adanat_toolkit.errors import ConfigError, OutputError, PluginError
from adanat_toolkit.images import write_png
from adanat_toolkit.interfaces import Generator
from adanat_toolkit.testing import Control, control_reward

from ..helpers.cli import adanat as command
from ..helpers.cli import contents
from ..helpers.tiny import TinyGenerator

ROOT = Path(__file__).parents[2]
QUICK: dict[str, Any] = {
    "reward": {"options": {"batch": 8, "updates": 1}},
    "ppo": {"epochs": 1, "minibatches": 1},
    "checkpoint_every": 1,
}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return adanat.load_generator("maskgit", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def real(generator: Generator, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 of the embedded images as a folder of class folders: judging against all of them takes long."""
    source, folder = generator.real_images(), tmp_path_factory.mktemp("real")
    assert source is not None
    index = torch.arange(64)
    classes = source.contexts(index).classes
    assert classes is not None
    for number, image in enumerate(source.images(index)):
        home = folder / str(int(classes[number]))
        home.mkdir(exist_ok=True)
        write_png(home / f"{number}.png", image)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> adanat.Run:
    out = tmp_path_factory.mktemp("api") / "first"
    return adanat.train(steps=2, trajectories=16, batch=8, device="cpu", dtype="float32", settings=QUICK, out=out)


# --- what is there ----------------------------------------------------------------------------------------------------


def test_the_import_alone_imports_nothing_heavy() -> None:
    code = (
        "import sys, adanat_toolkit as adanat; assert 'sample' in dir(adanat); "
        "heavy = {'torch', 'numpy', 'pydantic', 'adanat_toolkit.api'} & set(sys.modules); assert not heavy, heavy; "
        "assert adanat.list_generators; assert 'adanat_toolkit.api' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_every_name_is_the_one_of_the_api() -> None:
    assert adanat.__all__ == api.__all__
    for name in adanat.__all__:
        assert getattr(adanat, name) is getattr(api, name)
        assert getattr(adanat, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        adanat.smaple  # noqa: B018


@pytest.mark.parametrize("module", [generators, policies, sampling, training, evaluating, gaining])
def test_examples_of_the_docstrings(module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
    public = [getattr(module, name) for name in api.__all__ if getattr(module, name, None) is not None]
    functions = [f for f in public if not isinstance(f, type) and f.__module__ == module.__name__]
    assert all(">>> " in f.__doc__ for f in functions)


def test_quickstart_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text(encoding="utf-8"))
    assert len(notebook["cells"]) < 10
    names: dict[str, Any] = {"__name__": "notebook"}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
            exec("".join(cell["source"]), names)
    assert "<img" in names["samples"]._repr_html_()


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_samples_tell_what_made_them(generator: Generator) -> None:
    samples = adanat.sample(generator, "fixed", steps=3, seeds=[5, 6, 7], classes=[3, 17], batch=2)
    assert samples.images.shape == (3, 3, 64, 64) and samples.images.dtype == torch.float32
    assert samples.images.min() >= 0 and samples.images.max() <= 1
    assert samples.seeds == [5, 6, 7]
    assert samples.contexts == [{"class": 3}, {"class": 17}, {"class": 3}]
    assert len(samples.knobs) == 3 * 3
    assert [(row["seed"], row["step"]) for row in samples.knobs[2:4]] == [(5, 2), (6, 0)]
    assert set(generator.action_space.names) == set(samples.knobs[0]) - {"seed", "step"}
    page = samples._repr_html_()
    assert page.count("<img") == 3 and "seed 6, class 17" in page


def test_no_policy_is_the_one_that_ships(generator: Generator) -> None:
    shipped = adanat.load_policy(None, generator)
    assert shipped.card["kind"] == "adaptive"
    assert adanat.load_policy(None, generator, steps=shipped.steps + 3).card["kind"] == "fixed"
    default = adanat.sample(generator, seeds=range(2))
    assert torch.equal(default.images, adanat.sample(generator, shipped, seeds=range(2)).images)
    assert not torch.equal(default.images, adanat.sample(generator, "fixed", seeds=range(2)).images)


def test_two_images_of_one_seed_are_not_written_over_each_other(generator: Generator, tmp_path: Path) -> None:
    samples = adanat.sample(generator, "fixed:linear", steps=1, seeds=[4, 5, 5], classes=[3, 3, 7])
    with pytest.raises(ConfigError, match="seed 5 is given 2 times"):
        samples.save(tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_save_writes_what_the_command_writes(generator: Generator, tmp_path: Path) -> None:
    samples = adanat.sample(generator, "fixed", seeds=range(3), classes=[3, 17])
    result = samples.save(tmp_path / "here")
    assert (result["made"], result["kept"]) == (3, 0)
    options = ["--policy", "fixed", "--num", "3", "--classes", "3,17", "--device", "cpu", "--dtype", "float32"]
    told = command("sample", *options, "--out", tmp_path / "there")
    assert told.exit_code == 0, told.stderr
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert samples.save(tmp_path / "here")["kept"] == 3
    with pytest.raises(OutputError, match="other settings"):
        adanat.sample(generator, "fixed:linear", seeds=[9]).save(tmp_path / "here")


# --- training and evaluation ------------------------------------------------------------------------------------------


def test_a_run_gives_its_policy_metrics_and_report(run: adanat.Run, tmp_path: Path) -> None:
    assert [row["trajectories"] for row in run.metrics] == [8, 16]
    assert run.policy.steps == 2 and run.policy.card["training"]["trajectories"] == 16
    images = adanat.sample(run.generator, run.policy, seeds=[1]).images
    assert torch.equal(images, adanat.sample(run.generator, run.path, seeds=[1]).images)
    page = run._repr_html_()
    assert "<svg" in page and "polyline" in page and "first: 2 iterations" in page
    assert run.report(tmp_path / "report.html", pictures=False).read_text().startswith("<!")


def test_the_same_call_continues_a_run(run: adanat.Run) -> None:
    rows = run.metrics
    seen: list[dict[str, Any]] = []
    again = adanat.train(
        steps=2, trajectories=16, batch=8, device="cpu", dtype="float32", settings=QUICK, out=run.path,
        on_iteration=seen.append,
    )  # fmt: skip
    assert seen == [] and again.metrics == rows


def test_settings_win_and_keep_the_options_of_what_keywords_name(tmp_path: Path) -> None:
    run = adanat.train(
        reward="fid", policy="shared", steps=3, trajectories=32, batch=16, device="cpu", out=tmp_path / "run",
        settings={"steps": 2, "policy": {"residual": False}, "ppo": {"epochs": 1}},
    )  # fmt: skip
    stored = json.loads((run.path / "config.json").read_text())
    assert (stored["steps"], stored["reward"]["name"]) == (2, "fid")
    assert stored["policy"]["name"] == "shared" and stored["policy"]["residual"] is False


def test_objects_and_functions_in_place_of_names(generator: Generator, tmp_path: Path) -> None:
    def redness(images: torch.Tensor, context: Any) -> torch.Tensor:
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))

    run = adanat.train(generator=generator, reward=redness, steps=2, trajectories=8, batch=8, out=tmp_path / "red")
    stored = json.loads((run.path / "config.json").read_text())
    assert (stored["generator"]["name"], stored["reward"]["name"]) == (generator.name, "redness")
    assert run.generator is generator and len(run.metrics) == 1
    assert adanat.sample(generator, run.policy, seeds=[1]).images.shape == (1, 3, 64, 64)


def test_scores(generator: Generator, run: adanat.Run, real: Path) -> None:
    shipped = adanat.load_policy(None, generator)
    scores = adanat.evaluate(generator, [shipped, shipped, "fixed", run], num=16, data=real)
    assert [(row["policy"].partition(":")[0], row["steps"]) for row in scores.rows] == [
        ("fixed", 4),
        ("fixed", 2),
        ("adaptive", 4),
        ("adaptive (2)", 4),
        (str(run.path), 2),
    ]
    assert scores.rows[2]["frechet"] == scores.rows[3]["frechet"]
    assert scores.rows[2]["ratio"] == pytest.approx(scores.rows[2]["frechet"] / scores.rows[0]["frechet"])
    assert json.loads(json.dumps(scores.to_dict()))["images"] == 16
    table = str(scores)
    assert "frechet" in table and f"{scores.rows[2]['frechet']:.4f}" in table and len(table.splitlines()) == 7
    assert scores._repr_html_().count("<tr>") == 6 and "lower is better" in scores._repr_html_()


@pytest.mark.usefixtures("one_thread")
def test_scores_are_those_of_the_command(generator: Generator, run: adanat.Run, real: Path, tmp_path: Path) -> None:
    judging = ("--policy", "fixed:linear", "--refine", "2", "--judge", run.path, "--num", "16", "--data", real)
    told = command("evaluate", *judging, "--device", "cpu", "--dtype", "float32", "--json", "--out", tmp_path / "there")
    assert told.exit_code == 0, told.stderr
    policy, asked = adanat.load_policy("fixed:linear", generator), []
    scores = adanat.evaluate(
        generator, policy, num=16, data=real, refine=2, judge=run, progress=lambda *now: asked.append(now)
    )
    assert json.loads(told.stdout) == json.loads(json.dumps(scores.to_dict()))
    assert ("fixed:linear, best of 2", 16, 16) in asked
    scores.save(tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


def test_refined_samples_are_those_of_the_command(generator: Generator, run: adanat.Run, tmp_path: Path) -> None:
    asked = ("--policy", run.path, "--refine", "3", "--num", "5", "--seed", "7", "--device", "cpu", "--dtype", "float32")
    told = command("sample", *asked, "--out", tmp_path / "there")
    assert told.exit_code == 0, told.stderr
    samples = adanat.sample(generator, run, seeds=range(7, 12), refine=3)
    samples.save(tmp_path / "here")
    assert contents(tmp_path / "here") == contents(tmp_path / "there")
    assert samples.refined is not None and {row["candidate"] for row in samples.refined} <= {0, 1, 2}
    plain = adanat.sample(generator, run, seeds=range(7, 12))
    assert plain.refined is None
    for i, row in enumerate(samples.refined):
        assert torch.equal(samples.images[i], plain.images[i]) == (row["candidate"] == 0)


def test_headroom_tells_how_far_it_is_and_writes_its_files(tmp_path: Path) -> None:
    asked: list[tuple[str, int, int]] = []
    found = adanat.headroom(
        Control(by_context=0, by_state=0), control_reward, batch=1024, progress=lambda *now: asked.append(now), out=tmp_path
    )
    assert asked[-1] == ("headroom", found.trajectories, found.trajectories)
    assert json.loads((tmp_path / "headroom.json").read_text()) == json.loads(json.dumps(found.to_dict()))


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_unknown_names_get_suggestions() -> None:
    with pytest.raises(PluginError, match="did you mean 'maskgit'"):
        adanat.load_generator("maskgti")
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        adanat.train(preset="dmeo")


def test_an_argument_of_the_wrong_type_says_which_what_and_what_is_needed(generator: Generator) -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: adanat.sample("maskgit"), "generator must be a Generator, .* it is str 'maskgit'"),
        (lambda: adanat.sample(TinyGenerator), "generator must be .* the class TinyGenerator"),
        (lambda: adanat.sample(generator, 3), "policy must be a run .* it is int 3"),
        (lambda: adanat.sample(generator, seeds=5), "seeds must be a list.* it is int 5"),
        (lambda: adanat.sample(generator, seeds=[]), "seeds holds 0 seeds"),
        (lambda: adanat.sample(generator, classes="face"), "classes must be a list .* it is str 'face'"),
        (lambda: adanat.sample(generator, seeds=[1], classes=[1, 2]), "the number of seeds, 1, is less than the 2 classes"),
        (lambda: adanat.sample(generator, prompts=["a cat"]), "not text-conditional"),
        (lambda: adanat.sample(generator, classes=[1], prompts=["a cat"]), "exclude each other"),
        (lambda: adanat.sample(generator, batch=0), "batch = 0; it must be at least 1"),
        (lambda: adanat.load_policy(7, generator), "spec must be .* it is int 7"),
        (lambda: adanat.load_policy("fixed", None), "generator must be .* it is NoneType None"),
        (lambda: adanat.load_generator(3), "name must be a text; it is int 3"),
        (lambda: adanat.load_generator("maskgit", options=["a"]), "options must be a dictionary"),
        (lambda: adanat.train(generator=3), "generator must be a Generator, .* it is int 3"),
        (lambda: adanat.train(reward=3), "reward must be a RewardModel, a function"),
        (lambda: adanat.train(policy=3), "policy must be .* it is int 3"),
        (lambda: adanat.train(generator=generator, settings={"generator": {"name": "muse"}}), "settings say .* generator"),
        (lambda: adanat.train(reward=lambda images, context: images, settings={"reward": {}}), "settings say .* reward"),
        (lambda: adanat.train(settings="ppo"), "settings must be a dictionary .* it is str 'ppo'"),
        (lambda: adanat.train(data=3), "data must be real images"),
        (lambda: adanat.evaluate(generator, 3), "policies must be a list .* it is int 3"),
        (lambda: adanat.evaluate(generator, [3]), "policy must be .* it is int 3"),
        (lambda: adanat.evaluate(generator, []), "policies is empty"),
        (lambda: adanat.evaluate(generator, judge="runs/first"), "give --refine N"),
        (lambda: adanat.evaluate(generator, refine=2, judge="nowhere"), "nowhere is no run folder"),
        (lambda: adanat.sample(generator, judge="runs/first"), "give --refine N"),
        (lambda: adanat.sample(generator, refine=2, judge="nowhere"), "nowhere is no run folder"),
        (lambda: adanat.sample(generator, refine=2), "give judge, the folder of a training"),
        (lambda: adanat.sample(generator, refine=2, judge=7), "judge"),  # type: ignore[arg-type]
        (lambda: adanat.sample(generator, refine=0), "refine"),
        (lambda: adanat.evaluate(generator, num="many"), "num must be a whole number; it is str 'many'"),
    ]
    for call, message in wrong:
        with pytest.raises(ConfigError, match=message):
            call()


def test_steps_that_no_policy_takes_are_refused(generator: Generator, run: adanat.Run, real: Path) -> None:
    with pytest.raises(ConfigError, match="steps"):
        adanat.evaluate(generator, run, num=16, steps=7, data=real)


def test_a_policy_of_another_generator_is_refused(generator: Generator) -> None:
    shipped = adanat.load_policy(None, generator)
    with pytest.raises(ConfigError, match="policy was made for maskgit:emoji64, and generator is tiny:class"):
        adanat.sample(TinyGenerator(), shipped)
