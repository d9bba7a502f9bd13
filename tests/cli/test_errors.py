"""Bad input on the command line: the exit code, a message with the remedy, and that nothing on disk is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ..helpers.cli import adanat, contents, file_size_limit, refused, train_arguments
from ..helpers.train_process import write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    assert adanat(*train_arguments(images, out, "--quiet")).exit_code == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--generator", "maskgitt"], ["unknown generator 'maskgitt'", "did you mean 'maskgit'", "Installed:"]),
        (["--generator", "maskgit:emoji46"], ["no variant 'emoji46'", "did you mean 'emoji64'"]),
        (["--reward", "adverserial"], ["unknown reward 'adverserial'", "did you mean 'adversarial'"]),
        (["--policy", "adaptve"], ["unknown policy 'adaptve'", "did you mean 'adaptive'"]),
        (["--policy", "runs/a"], ["'runs/a' is a place", "adanat evaluate --policy runs/a", "command that began it again"]),
        (["--policy", "fixed:cosine"], ["nothing to learn", "--set policy.schedule=cosine"]),
        (["--policy", "fixed"], ["nothing to learn", "use adaptive, residual, lean, context or shared"]),
        (["--steps", "0"], ["steps = 0", "greater than or equal to 1"]),
        (["--trajectories", "0"], ["trajectories = 0", "greater than or equal to 1"]),
        (["--dtype", "float8"], ["dtype 'float8'", "use auto, float32 or bfloat16"]),
        (["--device", "gpu"], ["'gpu' is not a device", "use auto, cpu, cuda"]),
        (["--preset", "papper"], ["unknown preset 'papper'", "did you mean 'paper'"]),
        (["--set", "ppo.epochs"], ["'ppo.epochs' must be written KEY=VALUE"]),
        (["--set", "ppo.epochs=[1"], ["ppo.epochs=[1", "not valid YAML"]),
        (["--set", "ppo.epoch=3"], ["unknown key 'ppo.epoch'", "did you mean 'epochs'"]),
        (["--set", "learning_rate=3"], ["unknown key 'learning_rate'", "did you mean 'ppo.learning_rate'"]),
        (["--set", "bacth=3"], ["unknown key 'bacth'", "did you mean 'batch'"]),
        (["--set", "reward.options.bacth=3"], ["unknown key 'bacth'", "did you mean 'batch'"]),
        (["--config", "nowhere.yaml"], ["cannot read nowhere.yaml: No such file", "as printed by --dry-run"]),
        (["--data", "nowhere"], ["nowhere does not exist", "give a folder of images or a .zip"]),
        (["--weights", "nowhere.safetensors"], ["nowhere.safetensors does not exist", "--weights PATH"]),
    ],
)
def test_settings_that_cannot_work(arguments: list[str], parts: list[str], images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    refused(adanat(*train_arguments(images, out, *arguments)), *parts)
    assert not out.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
def test_cuda_without_a_cuda_device(command: str, tmp_path: Path) -> None:
    result = adanat(command, "--device", "cuda", "--out", tmp_path / "out")
    refused(result, "'cuda' is not available", "no CUDA device was found", "Use --device cpu")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--bogus"], ["--batch", "many"]])
def test_usage_errors_exit_with_2(arguments: list[str]) -> None:
    refused(adanat("train", *arguments), code=2)
    refused(adanat("trian"), "Did you mean 'train'", code=2)
    refused(adanat("evaluate", "runs/first"), "--policy runs/first", code=2)
    refused(adanat("train", "runs/first"), "Unexpected: runs/first", code=2)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--classes", "98"], ["class id 98 is outside 0..97", "give an id in that range"]),
        (["--classes", "3,-1"], ["class id -1 is outside 0..97"]),
        (["--classes", "face-smilin"], ["'face-smilin'", "did you mean 'face-smiling'"]),
        (["--classes", ","], ["names no class"]),
        (["--classes", "1,2,3", "--num", "2"], ["--num 2 is less than the 3 classes"]),
        (["--num", "0"], ["--num 0", "at least 1"]),
        (["--steps", "0"], ["steps is 0", "at least 1 step"]),
        (["--prompt", "a cat"], ["maskgit:emoji64 is not text-conditional", "leave them out"]),
        (["--prompts", "nowhere.txt"], ["cannot read nowhere.txt", "one prompt a line"]),
        (["--policy", "fixed:cosinus"], ["'cosinus'", "did you mean 'cosine'"]),
        (["--policy", "nowhere"], ["no policy at 'nowhere'", "fixed[:SCHEDULE]"]),
        (["--policy", "adaptive"], ["no policy at 'adaptive'", "adanat train --policy adaptive"]),
        (["--generator", "mage", "--classes", "1"], ["mage:emoji64 is not class-conditional", "leave them out"]),
    ],
)
def test_sampling_that_cannot_work(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    out = tmp_path / "samples"
    refused(adanat("sample", "--policy", "fixed", "--quiet", "--out", out, *arguments), *parts)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--num", "3"], ["--num 3 is too few", "at least 16"]),
        (["--features", "emoji46"], ["unknown features 'emoji46'", "did you mean 'emoji64'"]),
        (["--baseline", "cosinus"], ["'cosinus'", "did you mean 'cosine'"]),
    ],
)
def test_evaluation_that_cannot_work(arguments: list[str], parts: list[str], images: Path) -> None:
    refused(adanat("evaluate", "--policy", "fixed", "--num", "16", "--data", images, *arguments), *parts)


def test_steps_that_no_policy_takes_are_refused(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were ignored: a learned policy has its own, and the one that ships takes 4."""
    command = ["evaluate", "--num", "16", "--data", images, "--quiet", "--json"]
    refused(adanat(*command, "--policy", run, "--steps", "9"), "in 2 steps, not 9", "leave --steps out")

    def steps(*more: str | Path) -> list[list[int]]:
        found = json.loads(adanat(*command, *more).stdout)
        return [[row["steps"] for row in found[part]] for part in ("baselines", "policies")]

    assert steps("--policy", run, "--steps", "2") == [[2], [2]]
    assert steps("--policy", run, "--policy", "fixed", "--steps", "3") == [[2, 3], [2, 3]]
    assert steps("--steps", "3") == [[3], []]  # nothing ships for 3 steps: the hand-made schedule alone
    assert steps("--steps", "4") == [[4], [4]] == steps()


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "stats"])
def test_empty_data_folder(command: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = adanat(command, "--data", tmp_path / "empty", "--out", tmp_path / "out.safetensors")
    refused(result, f"{tmp_path / 'empty'} is empty", "give a folder or zip with images")
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_corrupt_image_is_named(images: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(images, tmp_path / "data"))
    victim = data / "1" / "2.png"
    victim.write_bytes(victim.read_bytes()[:60])
    before = contents(data)
    result = adanat(*train_arguments(data, tmp_path / "run"))
    refused(result, "1/2.png", "is not a readable image", "repair or remove it")
    assert contents(data) == before and not (tmp_path / "run").exists()


# --- runs and policies ------------------------------------------------------------------------------------------------


def test_truncated_checkpoint_stops_the_run_and_is_left_alone(run: Path, images: Path) -> None:
    victim = run / "checkpoints" / "000002" / "state.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1000])
    before = contents(run)
    refused(
        adanat(*train_arguments(images, run, "--quiet")),
        str(victim),
        "truncated",
        "remove it to fall back to an older one",
    )
    assert contents(run) == before
    shutil.rmtree(victim.parent)  # the remedy
    assert adanat(*train_arguments(images, run, "--quiet")).exit_code == 0
    assert len(contents(run)) == len(before)


def test_truncated_policy(run: Path, tmp_path: Path) -> None:
    victim = run / "policy" / "policy.safetensors"
    victim.write_bytes(victim.read_bytes()[:-10])
    refused(
        adanat("sample", "--policy", run, "--quiet", "--out", tmp_path / "s"),
        str(victim),
        "truncated",
        "left untouched",
    )
    (run / "policy" / "policy.json").write_text("{")
    refused(adanat("sample", "--policy", run / "policy", "--quiet", "--out", tmp_path / "s"), "damaged")
    assert not (tmp_path / "s").exists()


def test_run_of_other_settings_is_left_alone(run: Path, images: Path) -> None:
    before = contents(run)
    changed = train_arguments(images, run, "--quiet", "--seed", "5")
    refused(adanat(*changed), "holds a run with other settings (seed: 0 -> 5)", "another --out", "Nothing was changed")
    assert contents(run) == before


def test_checkpoint_of_another_generator(run: Path, images: Path, tmp_path: Path) -> None:
    before = contents(run)
    command = ["--generator", "mage", "--set", "checkpoint_every=1", "--quiet"]
    refused(adanat(*train_arguments(images, run, *command)), "generator.name: 'maskgit' -> 'mage'", "another --out")
    assert contents(run) == before
    # Not even when it is put into a run folder of the other generator.
    other = tmp_path / "other"
    assert adanat(*train_arguments(images, other, *command)).exit_code == 0
    shutil.rmtree(other / "checkpoints")
    shutil.copytree(run / "checkpoints", other / "checkpoints")
    before = contents(other)
    said = "made with other settings (generator.name: 'maskgit'"
    refused(adanat(*train_arguments(images, other, *command)), said, "Nothing was changed")
    assert contents(other) == before


def test_policy_of_another_generator(run: Path, tmp_path: Path) -> None:
    result = adanat("sample", "--policy", run, "--generator", "mage", "--quiet", "--out", tmp_path / "s")
    refused(
        result, "was trained for maskgit:emoji64", "this generator is mage:emoji64", "Use --generator maskgit:emoji64"
    )
    assert not (tmp_path / "s").exists()
    refused(adanat("sample", "--policy", run, "--steps", "9", "--quiet"), "in 2 steps, not 9", "leave --steps out")


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("place", ["below a file", "/proc"])
def test_output_that_cannot_be_written(command: str, place: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    out = Path("/proc/adanat") if place == "/proc" else tmp_path / "file" / "out"
    arguments = {
        "train": train_arguments(images, out, "--quiet"),
        "sample": ["sample", "--policy", "fixed", "--num", "1", "--quiet", "--out", out],
        "evaluate": ["evaluate", "--policy", "fixed", "--num", "16", "--data", images, "--quiet", "--out", out],
    }
    refused(adanat(*arguments[command]), f"cannot write to {out}", "Choose another --out")
    assert contents(tmp_path)["file"] == b"precious"


def test_full_disk_while_training(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    with file_size_limit(300_000):  # less than a checkpoint
        result = adanat(*train_arguments(images, out, "--quiet"))
    refused(result, "cannot write", "Nothing was lost; free space and run again")
    assert not list(out.rglob("*.tmp")) and "config.json" in contents(out)
    assert adanat(*train_arguments(images, out, "--quiet")).exit_code == 0
    assert contents(out / "policy")["policy.safetensors"] == contents(run / "policy")["policy.safetensors"]


def test_disk_that_is_full_from_the_start(images: Path, tmp_path: Path) -> None:
    with file_size_limit(1000):
        refused(adanat(*train_arguments(images, tmp_path / "full", "--quiet")), "cannot write to", "free space")


def test_full_disk_while_sampling(tmp_path: Path) -> None:
    out = tmp_path / "samples"
    command = ["sample", "--policy", "fixed", "--steps", "2", "--num", "30", "--quiet", "--out", out]
    with file_size_limit(70_000):  # enough for an image, too little for the grid
        refused(adanat(*command), "cannot write", "grid.png", "Nothing was lost; free space and run again")
    before = {name: data for name, data in contents(out).items() if name.startswith("00")}
    assert len(before) == 30
    done = adanat(*command, "--json")
    assert json.loads(done.stdout)["kept"] == 30
    assert before.items() <= contents(out).items()


def test_samples_of_other_settings_and_files_of_others_are_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    own = ["sample", "--policy", run, "--num", "2", "--quiet", "--out", out]
    assert adanat(*own, "--classes", "3").exit_code == 0
    before = contents(out)
    other = ["sample", "--policy", "fixed", "--num", "2", "--quiet", "--out", out]
    refused(adanat(*other), "holds images made with other settings", "choose another --out", "Nothing was changed")
    message = refused(adanat(*own, "--classes", "5"), "000000.png", "Nothing was changed")
    assert "{'class': 3}" in message and "{'class': 5}" in message
    assert contents(out) == before
    foreign = tmp_path / "holiday"
    foreign.mkdir()
    (foreign / "000000.png").write_bytes(b"a picture of mine")
    refused(
        adanat("sample", "--policy", "fixed", "--num", "1", "--quiet", "--out", foreign),
        "is not empty",
        "another --out",
    )
    (out / "000007.png").write_bytes(b"a picture of mine")
    refused(adanat(*own, "--classes", "3", "--seed", "7"), "000007.png was not made by this command")
    assert (foreign / "000000.png").read_bytes() == (out / "000007.png").read_bytes() == b"a picture of mine"


def test_files_of_encode_and_stats_are_named_safetensors(images: Path, tmp_path: Path) -> None:
    for command in ("encode", "stats"):
        refused(adanat(command, "--data", images, "--out", tmp_path / "x.npz", "-q"), "give a name that ends so")
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    message = refused(adanat("evaluate", "--policy", "fixed", "--data", tmp_path / "foreign.npz"), "2048 features")
    assert "(192 features): give --features inception-adanat or inception-fidelity, which they fit" in message
    refused(adanat("weights", "maskgit:halton"), "no weights are known for 'maskgit:halton'", "did you mean")
