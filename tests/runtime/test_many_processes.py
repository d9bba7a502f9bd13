"""Commands in one, two and three processes: the same results, one voice, nothing lost when a process fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.metrics import FeatureStatistics
from adanat_toolkit.runtime import distributed
from adanat_toolkit.runtime import launcher as launching
from adanat_toolkit.storage import RunFolder
from adanat_toolkit.storage.files import load_tensors

from ..helpers.cli import adanat, contents, refused, train_arguments
from ..helpers.ranks import failing_reward, ranks
from ..helpers.tiny_plugins import tiny_plugins
from ..helpers.train_process import write_images

__all__ = ["failing_reward", "tiny_plugins"]
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


# --- training ---------------------------------------------------------------------------------------------------------


def same_rows(one: Path, other: Path) -> list[dict[str, Any]]:
    """Two runs logged the same figures; returns them."""
    rows, expected = RunFolder(one).metrics(), RunFolder(other).metrics()
    assert [row["iteration"] for row in rows] == [row["iteration"] for row in expected]
    for own, theirs in zip(rows, expected, strict=True):
        assert own.keys() == theirs.keys()
        for key, value in theirs.items():
            if not key.startswith("seconds") and key not in ("trajectories_per_second", "alarms"):
                assert own[key] == pytest.approx(value, rel=1e-4, abs=TOLERANCE), key
    return rows


@pytest.mark.rounding
def test_training_in_processes_resumed_by_another_number(images: Path, tmp_path: Path) -> None:
    """One process, and two that are interrupted and followed by three."""

    def arguments(out: Path) -> list[str | Path]:
        # Adam makes steps even of gradients that are mostly rounding; a small rate keeps them below the tolerance.
        return train_arguments(images, out, "--json", "--set", "ppo.learning_rate=1e-4", "--set", "ppo.context_baseline=true")

    alone, moved = tmp_path / "alone", tmp_path / "moved"
    single = adanat(*arguments(alone))
    assert single.exit_code == 0, single.stderr

    stopped = ranks(2, tmp_path, *arguments(moved), interrupt_once=lambda: 1 in RunFolder(moved).checkpoints())
    assert [(end.code, end.stdout) for end in stopped] == [(130, ""), (130, "")]
    assert "in 2 processes" in stopped[0].stderr
    assert "the same command continues after iteration 1 of 2" in stopped[0].stderr
    assert stopped[1].stderr == ""

    first, *others = ranks(3, tmp_path, *arguments(moved))
    assert first.code == 0, first.stderr
    assert "continuing after iteration 1 of 2" in first.stderr
    assert json.loads(first.stdout)["iteration"] == 2
    assert [(end.code, end.stdout, end.stderr) for end in others] == [(0, "", ""), (0, "", "")]

    for name, stem in (("checkpoints/000002", "state"), ("policy", "policy")):
        own, expected = (load_tensors(run / name, stem)[0] for run in (moved, alone))
        assert own.keys() == expected.keys()
        for key in expected:
            torch.testing.assert_close(
                own[key], expected[key], rtol=0, atol=TOLERANCE, msg=lambda m, key=key: f"{key}: {m}"
            )
    same_rows(moved, alone)
    assert contents(moved).keys() == contents(alone).keys()


def test_readings_do_not_depend_on_the_number_of_processes(tiny_plugins: None, tmp_path: Path) -> None:
    """The held-out images are made by all processes and judged by the main one, while the others wait."""

    def arguments(out: Path) -> list[str | Path]:
        settings = ("evaluate_every=2", "evaluate_images=300", "evaluate_features=pixels", "checkpoint_every=1")
        changed = [part for setting in settings for part in ("--set", setting)]
        return [
            "train", "--generator", "tiny", "--reward", "brightness", "--policy", "shared", "--steps", "2",
            "--trajectories", "24", "--batch", "8", "--device", "cpu", *changed, "--out", out, "--json",
        ]  # fmt: skip

    single = adanat(*arguments(tmp_path / "alone"))
    assert single.exit_code == 0, single.stderr
    first, *others = ranks(3, tmp_path, *arguments(tmp_path / "three"))
    assert first.code == 0, first.stderr
    assert [(end.code, end.stdout, end.stderr) for end in others] == [(0, "", ""), (0, "", "")]
    rows = same_rows(tmp_path / "three", tmp_path / "alone")
    assert len(rows) == 3 and all("yardstick/frechet" in row for row in rows)


FAILING = (
    "train", "--generator", "tiny", "--reward", "fails-on-rank-one", "--steps", "2", "--trajectories", "24", "--batch", "8",
    "--device", "cpu", "--set", "checkpoint_every=1", "--quiet", "--out",
)  # fmt: skip


def test_a_failing_process_stops_all_and_is_named(failing_reward: None, tmp_path: Path) -> None:
    """Under a launcher that only starts processes: the others fail because of it and are silent."""
    out = tmp_path / "run"
    ended = ranks(2, tmp_path, *FAILING, out)
    assert [end.code for end in ended] == [1, 1]
    assert ended[1].stderr == "error: rank 1 of 2 failed: the lamp went out; change it.\n"
    assert (ended[0].stdout, ended[0].stderr, ended[1].stdout) == ("", "", "")
    assert RunFolder(out).checkpoints() == [1] and len(RunFolder(out).metrics()) == 1


def test_gpus_starts_the_processes_itself(failing_reward: None, tmp_path: Path) -> None:
    """The real launcher, a failure, and the checkpoint before it."""
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "adanat_cli", *FAILING, str(out), "--gpus", "2"],
        capture_output=True,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
    )
    message = "error: rank 1 of 2 failed, the others were stopped: the lamp went out; change it.\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert RunFolder(out).checkpoints() == [1]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupt", "kill a rank"])
def test_stopping_the_launcher(how: str, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = train_arguments(images, out, "--trajectories", "8000", "--gpus", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "adanat_cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
    )
    try:
        while not RunFolder(out).checkpoints():
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        ranked = {rank: pid for pid in children if (rank := _rank_of(pid)) is not None}
        assert ranked.keys() == {0, 1}
        if how == "interrupt":
            process.send_signal(signal.SIGINT)
        else:
            os.kill(ranked[1], signal.SIGKILL)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    if how == "interrupt":
        assert process.returncode == 130
        assert "interrupted; the same command continues after iteration" in stderr
        assert "rank 1" not in stderr
    else:
        assert process.returncode == 1
        assert "error: rank 1 of 2 failed, the others were stopped: it was stopped by SIGKILL" in stderr
    assert "Traceback" not in stderr
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


def _rank_of(pid: int) -> int | None:
    pairs = [line.partition("=") for line in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    found = {name: value for name, _, value in pairs}
    return int(found["RANK"]) if "RANK" in found else None


@pytest.mark.slow
def test_torchrun(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "adanat_cli", "--"]
    arguments = train_arguments(images, tmp_path / "run", "--json")
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["iteration"] == 2
    assert adanat(*train_arguments(images, tmp_path / "alone")).exit_code == 0
    own, expected = (load_file(tmp_path / run / "policy" / "policy.safetensors") for run in ("run", "alone"))
    for key in expected:
        torch.testing.assert_close(own[key], expected[key], rtol=0, atol=TOLERANCE)


# --- sampling, evaluation, statistics -----------------------------------------------------------------------------------


def test_images_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    def arguments(out: Path, number: int) -> list[str | Path]:
        return [
            "sample",
            "--policy",
            "fixed",
            "--num",
            str(number),
            "--steps",
            "2",
            "--device",
            "cpu",
            "--out",
            out,
            "--json",
        ]

    alone, shared = tmp_path / "alone", tmp_path / "shared"
    assert adanat(*arguments(alone, 7), "--batch", "3").exit_code == 0
    # Two images first: the third process has none. Then the five that are missing.
    for number, made in ((2, 2), (7, 5)):
        first, *others = ranks(3, tmp_path, *arguments(shared, number))
        assert first.code == 0, first.stderr
        result = json.loads(first.stdout)
        assert (result["made"], result["kept"]) == (made, number - made)
        assert all((end.code, end.stdout, end.stderr) == (0, "", "") for end in others)
    assert contents(shared) == contents(alone)


def test_figures_do_not_depend_on_the_number_of_processes(tiny_plugins: None, tmp_path: Path) -> None:
    """300 images are three batches of features: two processes have one and two of them, one of four has none."""
    common = ["--generator", "tiny", "--features", "pixels", "--device", "cpu"]
    judge = ["evaluate", *common, "--policy", "fixed", "--policy", "fixed:linear", "--num", "300", "--json"]
    judged = adanat(*judge)
    assert judged.exit_code == 0, judged.stderr
    assert adanat("stats", *common, "--out", tmp_path / "1.safetensors").exit_code == 0
    expected = FeatureStatistics.load(tmp_path / "1.safetensors")
    assert expected.count == 300
    for size in (2, 4):
        first, *others = ranks(size, tmp_path, *judge, "--out", tmp_path / f"judged{size}")
        assert first.code == 0, first.stderr
        assert json.loads(first.stdout) == json.loads(judged.stdout)
        assert contents(tmp_path / f"judged{size}").keys() == {"evaluation.json", "comparison.png"}
        file = tmp_path / f"{size}.safetensors"
        first, *more = ranks(size, tmp_path, "stats", *common, "--out", file, "--json")
        assert first.code == 0, first.stderr
        assert json.loads(first.stdout)["images"] == 300
        assert all((end.code, end.stdout, end.stderr) == (0, "", "") for end in (*others, *more))
        found = FeatureStatistics.load(file)
        assert (found.count, found.protocol, found.data) == (expected.count, expected.protocol, expected.data)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.scatter, expected.scatter, rtol=1e-9, atol=1e-9)


# --- what is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="needs a machine with fewer than two CUDA devices")
@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "stats"])
def test_more_gpus_than_there_are(command: str, tmp_path: Path) -> None:
    found = "1 was" if torch.cuda.device_count() else "none was"
    out = tmp_path / "out.safetensors"
    refused(
        adanat(command, "--gpus", "2", "--out", out), "--gpus 2 needs 2 CUDA devices", f"{found} found", "--device cpu"
    )
    assert not out.exists()


def test_a_device_that_processes_cannot_share(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--device mps does not fit"):
        launching.check_devices(2, "mps")
    launching.check_devices(8, "cpu")
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="cuda:0' cannot be used by 2 processes"):
        launching.join("cuda:0")


def test_gpus_under_a_launcher_must_agree(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, second = ranks(2, tmp_path, "sample", "--gpus", "3", "--device", "cpu", "--out", tmp_path / "out")
    assert (first.code, second.code) == (1, 1)
    assert first.stderr.startswith("error: rank 0 of 2 failed: --gpus 3 under a launcher that started 2 processes")
    assert second.stderr == ""
    assert not (tmp_path / "out").exists()


def test_blocks_are_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 8):
        monkeypatch.setattr(distributed, "world_size", lambda size=size: size)
        for total in (0, 1, 128, 129, 1000):
            edges = []
            for rank in range(size):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                edges.append(distributed.local_slice(total, 128))
            assert [i for start, stop in edges for i in range(start, stop)] == list(range(total))
            assert all(start % 128 == 0 for start, stop in edges if stop > start)


def test_other_commands_refuse_to_run_as_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    refused(adanat("compare", "--dry-run"), "adanat compare runs in one process, and a launcher started 2")
