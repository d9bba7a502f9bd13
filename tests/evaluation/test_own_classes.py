"""Classes of the user's own: a class-conditional generator is trained and judged on the classes that the real images have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from adanat_cli.main import app
from adanat_toolkit.compare import Comparison, configure
from adanat_toolkit.core import Noise, sample_seeds
from adanat_toolkit.errors import DataError
from adanat_toolkit.evaluation import own_contexts
from adanat_toolkit.images import ClassCounts, MemoryImages, draw_contexts, images_for
from adanat_toolkit.integrations.gym_env import GenerationVectorEnv
from adanat_toolkit.interfaces import Context
from adanat_toolkit.training import Trainer, create_trainer, validate

from ..helpers.tiny import Dark, TinyGenerator

OWN = {1, 3}
SETTINGS: dict[str, Any] = {
    "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 2,
    "trajectories": 32, "batch": 16, "device": "cpu", "dtype": "float32",
}  # fmt: skip


class Recording(TinyGenerator):
    """Notes the classes that images are made of."""

    asked: ClassVar[set[int]] = set()

    def reset(self, context: Context, *rest: Any, **more: Any) -> Any:
        assert context.classes is not None
        self.asked.update(context.classes.tolist())
        return super().reset(context, *rest, **more)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Real images of two of the five classes, three of class 1 for each of class 3; everything else is a plug-in."""
    info = tmp_path / "site" / "own_classes-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-classes\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        f"[adanat.generators]\ntiny = {__name__}:Recording\n[adanat.rewards]\ndark = {__name__}:Dark\n"
        "[adanat.features]\npixels = tests.helpers.tiny_plugins:Pixels\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    Recording.asked.clear()
    for i in range(40):
        place = tmp_path / "images" / ("3" if i % 4 == 0 else "1")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 3), (6 * i, 250 - 6 * i, 10 * (i % 20))).save(place / f"{i}.png")
    return tmp_path / "images"


def test_a_seed_draws_the_class_of_one_image(folder: Path) -> None:
    generator = Recording()
    source = images_for(generator, folder)
    noise = Noise(sample_seeds(0, 0, 0, 400))
    drawn = draw_contexts(generator, noise, own_contexts(generator, str(folder), source)).classes
    assert drawn is not None and set(drawn.tolist()) == OWN
    assert float((drawn == 3).double().mean()) == pytest.approx(0.25, abs=0.07)
    some = torch.tensor([7, 3, 200])
    assert torch.equal(draw_contexts(generator, noise.select(some), source).classes, drawn[some])  # type: ignore[arg-type]


def test_whose_classes() -> None:
    generator, pixels = Recording(), torch.zeros(2, 3, 3, 5, dtype=torch.uint8)
    labelled = MemoryImages(pixels, labels=torch.tensor([1, 3]))
    found = own_contexts(generator, "folder", labelled)
    assert isinstance(found, ClassCounts) and found.counts.tolist() == [0, 1, 0, 1, 0]
    assert own_contexts(generator, None, labelled) is None
    assert own_contexts(generator, "folder", MemoryImages(pixels)) is None
    with pytest.raises(DataError, match=r"labels 1\.\.5, and tiny:class has the classes 0\.\.4"):
        own_contexts(generator, "folder", MemoryImages(pixels, labels=torch.tensor([1, 5])))
    assert own_contexts(TinyGenerator("none"), "folder", labelled) is None


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_training_and_its_readings(folder: Path, tmp_path: Path, engine: str) -> None:
    more = {"evaluate_every": 1, "evaluate_images": 16, "evaluate_features": "pixels", "data": {"path": str(folder)}}
    row = create_trainer(validate({**SETTINGS, **more, "engine": engine})).run(tmp_path / "run")
    assert row["iteration"] == 2 and "yardstick/frechet" in row and Recording.asked == OWN
    Trainer(validate(SETTINGS)).step()
    assert Recording.asked - OWN


def test_evaluating(folder: Path, tmp_path: Path) -> None:
    command = ["evaluate", "--generator", "tiny", "--data", str(folder), "--features", "pixels", "--num", "40"]
    more = ["--steps", "2", "--device", "cpu", "--quiet", "--json"]
    found = CliRunner().invoke(app, [*command, *more])
    assert found.exit_code == 0, found.output
    assert Recording.asked == OWN
    file = str(tmp_path / "real.safetensors")
    made = ["stats", "--generator", "tiny", "--data", str(folder), "--features", "pixels", "--out", file, "--quiet"]
    assert CliRunner().invoke(app, made).exit_code == 0
    Recording.asked.clear()
    command[command.index("--data") + 1] = file
    again = CliRunner().invoke(app, [*command, *more])
    assert again.exit_code == 0, again.output
    assert Recording.asked == OWN
    by_images, by_file = (json.loads(result.stdout)["baselines"][0]["figures"]["frechet"] for result in (found, again))
    assert by_file == pytest.approx(by_images)


@pytest.mark.parametrize(
    "text",
    [
        *('{"5": 1}', '{"-1": 1}', '{"1": 0}', "{}", "[1]", '{"a": 1}', '{"1": null}', "x", '{"1": 1e400}', '{"0": 5.9}'),
        *('{"00": 3}', '{"0": "3"}', '{" 1 ": 1}', '{"1_0": 7}', '{"1": 1, "1": 2}', '{"1": true}', '{"\u0661": 1}'),
    ],
)
def test_counts_of_other_classes_are_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"other classes than tiny:class has, 0\.\.4"):
        ClassCounts.read(Recording(), text)


def test_counts_are_as_many_as_images() -> None:
    assert ClassCounts.read(Recording(), '{"0": 3, "4": 2}', 5).counts.tolist() == [3, 0, 0, 0, 2]
    with pytest.raises(DataError, match="count 5 images, not 6"):
        ClassCounts.read(Recording(), '{"0": 3, "4": 2}', 6)


def test_data_like_the_generators_own_draw_the_same(tmp_path: Path) -> None:
    """So that the images of a seed do not change when the data that ship are given as a folder."""
    noise = Noise(sample_seeds(0, 0, 0, 200))
    counts = ClassCounts.read(Recording(), json.dumps({str(i): 7 for i in range(5)}))
    assert torch.equal(draw_contexts(Recording(), noise, counts).classes, Recording().sample_contexts(noise).classes)  # type: ignore[arg-type]


def test_comparing(folder: Path, tmp_path: Path) -> None:
    base = validate({**SETTINGS, "data": {"path": str(folder)}})
    grid = configure(
        base=base, policies=("shared",), rewards=("dark",), steps=(2,), seeds=(0,), candidates=0, images=40,
        features="pixels",
    )  # fmt: skip
    assert [result.error for result in Comparison(grid, tmp_path / "out").run()] == [None, None]
    assert Recording.asked == OWN


def test_reporting(folder: Path, tmp_path: Path) -> None:
    Trainer(validate({**SETTINGS, "data": {"path": str(folder)}})).run(tmp_path / "run")
    command = ["report", str(tmp_path / "run"), "--features", "pixels", "--device", "cpu", "--quiet"]
    Recording.asked.clear()
    found = CliRunner().invoke(app, [*command, "--data", str(folder), "--num", "16", "--out", str(tmp_path / "one.html")])
    assert found.exit_code == 0, found.output
    assert Recording.asked == OWN
    folder.rename(tmp_path / "moved")  # the pictures can be made without
    found = CliRunner().invoke(app, [*command, "--num", "0", "--out", str(tmp_path / "two.html")])
    assert found.exit_code == 0, found.output
    assert "own distribution" in (tmp_path / "two.html").read_text()


def test_episodes_of_the_environment(folder: Path) -> None:
    generator = Recording()
    reward = Dark(None, generator=generator, real=None, device=torch.device("cpu"), seed=0)  # type: ignore[arg-type]
    GenerationVectorEnv(16, generator=generator, reward=reward, steps=2, data=str(folder)).reset(seed=3)
    assert Recording.asked == OWN


def test_classes_that_the_generator_does_not_have(folder: Path) -> None:
    (folder / "3").rename(folder / "photos")
    with pytest.raises(DataError, match="2 class folders, but the generator has 5 classes"):
        Trainer(validate({**SETTINGS, "data": {"path": str(folder)}}))
    (folder / "photos").rename(folder / "7")
    with pytest.raises(DataError, match=r"labels 1\.\.7 do not fit the generator's classes 0\.\.4"):
        Trainer(validate({**SETTINGS, "data": {"path": str(folder)}}))
