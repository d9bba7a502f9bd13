"""Folders that results go to, statistics and real images that do not fit: said before any work, with what to write."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adanat_plugins.rewards.fid import FidReward
from adanat_plugins.weights import read_state
from adanat_toolkit.commands.feature_statistics import write_statistics
from adanat_toolkit.commands.sample_folder import Row, sample_to_folder
from adanat_toolkit.compare import Comparison, configure
from adanat_toolkit.errors import ConfigError, DataError, OutputError, PluginError, WeightsError
from adanat_toolkit.evaluation import evaluate_policies, own_contexts, real_side
from adanat_toolkit.images import ClassCounts, MemoryImages, read_facts, read_png, write_png
from adanat_toolkit.images.pictures import png_bytes
from adanat_toolkit.images.real_images import open_images
from adanat_toolkit.metrics import FeatureStatistics, Reference
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.training import Trainer, validate

from ..helpers.tiny import TinyGenerator
from ..helpers.tiny_plugins import (
    Pixels,
    tiny_plugins,  # noqa: F401 - a fixture
)
from ..images.test_real_images import picture, png, write

STATISTICS = FeatureStatistics.of(torch.randn(20, 45, generator=torch.Generator().manual_seed(0)), "pixels-v1")


def sample_into(folder: Path, count: int = 3) -> dict[str, Any]:
    generator = TinyGenerator()
    policy = load_policy("fixed:cosine", generator, 2)
    sample_to_folder(generator, policy, folder, seeds=torch.arange(count))
    listing: dict[str, Any] = json.loads((folder / "samples.json").read_text())
    return listing


# --- output folders


@pytest.mark.parametrize("name", [".DS_Store", "Thumbs.db", "desktop.ini", "._notes"])
def test_what_file_browsers_leave_is_no_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert len(sample_into(tmp_path)["images"]) == 3
    assert (tmp_path / name).exists()


def test_a_file_of_the_users_is_content(tmp_path: Path) -> None:
    for name in ("notes.txt", ".secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(b"x")
        with pytest.raises(OutputError, match=r"is not empty and has no samples\.json"):
            sample_into(tmp_path / name)


def test_an_image_of_another_policy_is_foreign(tmp_path: Path) -> None:
    ours, theirs, generator = tmp_path / "ours", tmp_path / "theirs", TinyGenerator()
    whole = sample_into(ours)
    sample_to_folder(generator, load_policy("fixed:linear", generator, 2), theirs, seeds=torch.arange(5))
    row = read_facts(ours / "000000.png", Row)
    assert row is not None
    own = (ours / "000000.png").read_bytes()
    for foreign in ((theirs / "000000.png").read_bytes(), png_bytes(torch.zeros(3, *generator.image_size), row)):
        (ours / "000000.png").write_bytes(foreign)
        with pytest.raises(OutputError, match=r"000000\.png is of another folder .* or was changed .* Remove it, so that"):
            sample_into(ours)
    # One that is not asked for is not listed; ones of versions without marks stay.
    shutil.copy(theirs / "000004.png", ours)
    old = {key: value for key, value in row.items() if key not in ("settings", "pixels")}
    (ours / "000000.png").write_bytes(own)
    write_png(ours / "000000.png", read_png(ours / "000000.png"), old)
    assert sample_into(ours)["images"] == [old, *whole["images"][1:]]


def test_a_copied_image_is_no_image_of_the_list(tmp_path: Path) -> None:
    whole = sample_into(tmp_path)
    shutil.copy(tmp_path / "000001.png", tmp_path / "000001 copy.png")
    shutil.copy(tmp_path / "000001.png", tmp_path / "favourite.png")
    assert sample_into(tmp_path) == whole
    shutil.copy(tmp_path / "000001.png", tmp_path / "000003.png")
    assert sample_into(tmp_path) == whole
    with pytest.raises(OutputError, match=r"000003\.png .*is a copy of another image"):
        sample_into(tmp_path, 4)


@pytest.mark.parametrize("exists", [False, True])
def test_a_command_that_made_no_image_keeps_no_other_one_out(tmp_path: Path, exists: bool) -> None:
    """Whatever it failed by: the remedy may be other settings, and those are refused beside a list of these."""
    folder = tmp_path / "samples"
    if exists:
        folder.mkdir()

    class Failing(TinyGenerator):
        left = 0

        def decode_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
            self.left -= 1
            if self.left < 0:
                raise ArithmeticError
            return super().decode_tokens(tokens)

    generator = Failing()
    policy = load_policy("fixed:cosine", generator, 2)
    with pytest.raises(PluginError, match="failed in decode: ArithmeticError"):
        sample_to_folder(generator, policy, folder, seeds=torch.arange(3), batch=1)
    assert folder.exists() == exists and not list(tmp_path.glob("samples/*"))
    generator.left = 2  # what was made is kept with its list
    with pytest.raises(PluginError, match="failed in decode: ArithmeticError"):
        sample_to_folder(generator, policy, folder, seeds=torch.arange(3), batch=1)
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "samples.json"]
    generator.left = 1
    assert sample_to_folder(generator, policy, folder, seeds=torch.arange(3), batch=1)["made"] == 1


def test_a_sampler_without_tokens_to_sample_leaves_no_folder(tmp_path: Path) -> None:
    policy = load_policy("fixed:maskgit", TinyGenerator(), 2)
    other = create_generator("sit", device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ConfigError, match="is no token generator"):
        sample_to_folder(other, policy, tmp_path / "samples", seeds=torch.arange(3))
    assert not (tmp_path / "samples").exists()


def test_a_list_of_many_images_is_read_as_far_as_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sample_into(tmp_path)
    monkeypatch.setattr("adanat_toolkit.commands.sample_folder.MOST_LIST", 10)
    assert sample_into(tmp_path, 4)["images"][:3] == whole["images"]
    file = tmp_path / "samples.json"
    rows = [line for line in file.read_text().splitlines() if line.startswith("    {")]
    assert [json.loads(line.rstrip(",")) for line in rows[:3]] == whole["images"]
    file.write_text(json.dumps(json.loads(file.read_text())))  # by something else, without line breaks
    with pytest.raises(OutputError, match=r"samples\.json is too large.* The images beside it were left as they are\."):
        sample_into(tmp_path)
    monkeypatch.undo()
    assert sample_into(tmp_path)["images"][:3] == whole["images"]
    for damaged in ('{\n  "toolkit": "0', '{}', '{"images": 3}', '{\n  "images": ['):
        file.write_text(damaged)
        with pytest.raises(OutputError, match=r"samples\.json is damaged.* were left as they are|made with other settings"):
            sample_into(tmp_path)


# --- too few real images


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_real_images_are_refused_before_any_is_made(
    tmp_path: Path, tiny_plugins: None, count: int, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    monkeypatch.setattr(TinyGenerator, "decode_tokens", lambda *_: pytest.fail("an image was made"))
    generator = TinyGenerator()
    few = MemoryImages(torch.zeros(count, 3, *generator.image_size, dtype=torch.uint8))
    message = rf"{count} real images?, and the figures need at least 6 .*give --data"
    with pytest.raises(DataError, match=message):
        evaluate_policies(generator, [], Pixels(), few, count=16, steps=2)
    data = write(tmp_path / "data", {f"0/{i}.png": png(picture(i)) for i in range(count)})
    settings = {
        "generator": {"name": "tiny"}, "reward": {"name": "brightness"}, "policy": {"name": "shared"}, "steps": 2,
        "trajectories": 32, "batch": 16, "device": "cpu", "evaluate_every": 1, "evaluate_features": "pixels",
        "data": {"path": str(data)},
    }  # fmt: skip
    with pytest.raises(DataError, match=message):
        Trainer(validate(settings))
    grid = configure(
        base=validate({**settings, "evaluate_every": 0}), policies=("shared",), rewards=("brightness",), steps=(2,),
        seeds=(0,), candidates=0, images=16, features="pixels",
    )  # fmt: skip
    with pytest.raises(DataError, match=message):
        Comparison(grid, tmp_path / "out")


def test_six_real_images_are_enough() -> None:
    generator = TinyGenerator()
    few = MemoryImages((torch.rand(6, 3, *generator.image_size) * 255).to(torch.uint8))
    found = evaluate_policies(generator, [], Pixels(), few, count=16, steps=2)
    assert {"frechet", "precision", "coverage"} <= set(found.baselines[0].evaluation.figures)


def test_statistics_of_a_single_image(tmp_path: Path) -> None:
    one = MemoryImages(torch.zeros(1, 3, 3, 5, dtype=torch.uint8))
    with pytest.raises(DataError, match="at least 2 images"):
        write_statistics(Pixels(), one, tmp_path / "s.safetensors", generator=TinyGenerator())
    single = Reference(FeatureStatistics.of(torch.zeros(1, 45), "pixels-v1"))
    with pytest.raises(DataError, match="1 real image, and the figures need at least 2"):
        evaluate_policies(TinyGenerator(), [], Pixels(), single, count=16, steps=2)


# --- statistics that do not fit


def test_statistics_of_images_of_another_size_are_refused(tmp_path: Path, tiny_plugins: None) -> None:  # noqa: F811
    judged = TinyGenerator("none")
    file = of_two_folders(tmp_path, judged)
    real_side(judged, file, Pixels())
    FidReward(_pixels(file), generator=judged, real=None, device=torch.device("cpu"), seed=0)
    judged.image_size = (5, 3)  # as many pixels, so that the protocol stays
    message = r"images of 3x5 pixels, and tiny:none makes images of 5x3.*adanat stats --generator tiny:none"
    with pytest.raises(DataError, match=message):
        real_side(judged, file, Pixels())
    with pytest.raises(DataError, match=message):
        FidReward(_pixels(file), generator=judged, real=None, device=torch.device("cpu"), seed=0)


def _pixels(file: str) -> Any:
    return FidReward.Options(features="pixels", reference=file)


@pytest.mark.parametrize("card", [{}, {"note": "3x5"}])
def test_older_statistics_do_not_name_a_size(tmp_path: Path, tiny_plugins: None, card: dict[str, str]) -> None:  # noqa: F811
    file = tmp_path / "s.safetensors"
    replace(FeatureStatistics.of(torch.randn(9, 15), Pixels().protocol), card=card).save(file)
    assert isinstance(real_side(TinyGenerator(), str(file), Pixels()), Reference)


def of_two_folders(tmp_path: Path, made_for: TinyGenerator, name: str = "s") -> str:
    """Statistics of images in two folders, whose labels are their positions."""
    data = write(tmp_path / f"{name}-data", {f"{n}/{i}.png": png(picture(i)) for n in ("west", "ost") for i in range(3)})
    real = open_images(data, made_for.image_size)
    file = tmp_path / f"{name}.safetensors"
    write_statistics(Pixels(), real, file, generator=made_for)
    return str(file)


@pytest.mark.parametrize("kind", ["none", "text"])
def test_positions_of_folders_are_no_class_ids(tmp_path: Path, tiny_plugins: None, kind: Any) -> None:  # noqa: F811
    file = of_two_folders(tmp_path, TinyGenerator(kind))
    judged = TinyGenerator("class")
    assert own_contexts(judged, file, real_side(judged, file, Pixels())) is None


def test_labels_of_a_generator_with_classes_are_kept(tmp_path: Path, tiny_plugins: None) -> None:  # noqa: F811
    judged = TinyGenerator("class")
    file = of_two_folders(tmp_path, judged)
    counts = own_contexts(judged, file, real_side(judged, file, Pixels()))
    assert isinstance(counts, ClassCounts) and counts.counts[:2].tolist() == [3, 3]


def stored(tmp_path: Path, protocol: str, width: int = 7) -> str:
    file = tmp_path / "s.safetensors"
    FeatureStatistics.of(torch.randn(9, width), protocol).save(file)
    return str(file)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("emoji64-v1-00000000", r"statistics of emoji64-v1-00000000 \(7 features\).*give --features emoji64, which they fit"),
        ("clip-emoji64-1234", "give --features clip-emoji64, which"),
        ("clip-ViT-B-32-quickgelu-1234", "give --features clip, which"),
        ("pixels-v0", r"other weights of pixels, or make them .* stats --generator tiny:class --features pixels\."),
        ("of-someone-else", "no protocol that is installed fits them, or make them again"),
    ],
)
def test_statistics_of_another_protocol_name_those_that_fit(
    tmp_path: Path, tiny_plugins: None, protocol: str, message: str  # noqa: F811
) -> None:
    with pytest.raises(DataError, match=message):
        real_side(TinyGenerator(), stored(tmp_path, protocol), Pixels())


def test_published_statistics_of_another_width_name_those_that_fit(tmp_path: Path, tiny_plugins: None) -> None:  # noqa: F811
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(DataError, match="give --features inception-adanat or inception-fidelity, which they fit"):
        real_side(TinyGenerator(), str(tmp_path / "fid.npz"), Pixels())


def test_the_fid_reward_names_those_that_fit(tmp_path: Path) -> None:
    options = FidReward.Options(reference=stored(tmp_path, "clip-emoji64-1234"))
    with pytest.raises(DataError, match=r"set reward\.options\.features=clip-emoji64, which it fits, or make it again"):
        FidReward(options, generator=_named(), real=None, device=torch.device("cpu"), seed=0)


def _named() -> TinyGenerator:
    generator = TinyGenerator()
    generator.name = "maskgit:emoji64"
    return generator


INSTEAD = {
    "it is empty": b"",
    "it is a web page": b"\xef\xbb\xbf<html>Sign in</html>",
    "it is a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
}


@pytest.mark.parametrize("message", INSTEAD)
@pytest.mark.parametrize("ending", ["npz", "safetensors", "pth"])
def test_what_statistics_and_weights_hold_instead_is_said(tmp_path: Path, message: str, ending: str) -> None:
    file = tmp_path / f"file.{ending}"
    file.write_bytes(INSTEAD[message])
    with pytest.raises(DataError, match=rf"file\.{ending} holds no statistics, {message}"):
        FeatureStatistics.load(file)
    with pytest.raises(WeightsError, match=rf"file\.{ending} holds no weights, {message}"):
        read_state(file)


def test_damaged_npz_statistics_are_named(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "s.npz", mu=np.arange(40.0), sigma=np.random.default_rng(0).random((40, 40)))
    whole = (tmp_path / "s.npz").read_bytes()
    for at in range(60, 400, 20):
        (tmp_path / "s.npz").write_bytes(whole[:at] + b"\xff" * 30 + whole[at + 30 :])
        with pytest.raises(DataError, match=r"s\.npz is damaged .* Give a published FID"):
            FeatureStatistics.load(tmp_path / "s.npz")
