"""The run folder: nothing is half written, and what is damaged or foreign is refused and left alone."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adanat_toolkit.errors import CheckpointError, InUseError, OutputError
from adanat_toolkit.storage import (
    MetricsLog,
    RunFolder,
    card_digest,
    content_hash,
    held,
    prepare_folder,
    read_card,
    read_tensors,
    replace,
    save_tensors,
    write_file,
    write_json,
)
from adanat_toolkit.storage import files as runs
from adanat_toolkit.storage.files import load_tensors

TENSORS: dict[str, Tensor] = {
    "a": torch.arange(6.0).view(2, 3),
    "b": torch.tensor(7),
    "c": torch.randn(4, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "d": torch.arange(6.0).view(2, 3).T,  # not contiguous
    "e": torch.zeros(0, 3),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_tensors_round_trip(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    save_tensors(tmp_path / "x" / "000003", "state", TENSORS, {"iteration": 3, "nested": {"k": [1, 2]}})
    tensors, facts = load_tensors(tmp_path / "x" / "000003", "state")
    assert tensors.keys() == TENSORS.keys()
    for key, value in TENSORS.items():
        assert tensors[key].dtype == value.dtype and torch.equal(tensors[key], value)
    assert facts["iteration"] == 3 and facts["nested"] == {"k": [1, 2]}
    assert set(snapshot(tmp_path)) == {"x/000003/state.safetensors", "x/000003/state.json"}


@pytest.mark.parametrize("name", ["folder", "file"])
def test_what_another_process_holds(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    program = "import sys, time, pathlib; from adanat_toolkit.storage.files import held\n"
    program += f"with held(pathlib.Path({str(path)!r})): print('held', flush=True); time.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=f"another process is writing to {path}"), held(path):
            raise AssertionError("both are in")
        other.send_signal(signal.SIGKILL)
        other.wait()
    with held(path):
        pass
    with held(path):  # the first one let go of it
        pass


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (tmp_path / "a.lock").symlink_to(outside)
    with pytest.raises(OutputError, match=r"a\.lock is a link, .* Remove it"), held(tmp_path / "a.lock"):
        raise AssertionError("it was opened")
    (tmp_path / f".b.json.{os.getpid()}.tmp").symlink_to(outside)
    write_json(tmp_path / "b.json", {})
    assert not outside.exists() and (tmp_path / "b.json").read_text() == "{}\n"
    (tmp_path / "runs").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    with held(tmp_path / "linked"):  # the user's own choice, and nothing is made
        pass


def test_tensors_that_share_memory(tmp_path: Path) -> None:
    whole = torch.arange(4.0)
    save_tensors(tmp_path / "s", "state", {"whole": whole, "part": whole[1:3], "again": whole}, {})
    assert load_tensors(tmp_path / "s", "state")[0]["part"].tolist() == [1.0, 2.0]


def test_saving_again_replaces_the_folder(tmp_path: Path) -> None:
    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(3)}, {"n": 1})
    save_tensors(tmp_path / "policy", "policy", {"a": torch.ones(3)}, {"n": 2})
    tensors, facts = load_tensors(tmp_path / "policy", "policy")
    assert tensors["a"].tolist() == [1, 1, 1] and facts["n"] == 2
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


@pytest.fixture(params=["exchange", "two steps"])
def exchanging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's exchange of two folders (where it has one), and without."""
    if request.param == "two steps":
        monkeypatch.setattr(replace, "exchange", lambda first, second: False)


def test_a_reader_finds_the_old_one_or_the_new_one_at_all_times(exchanging: None, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(3)}, {"n": 0})
    ended = threading.Event()

    def write() -> None:
        for n in range(1, 40):
            save_tensors(tmp_path / "policy", "policy", {"a": torch.full((3,), float(n))}, {"n": n})
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not ended.is_set():
        tensors, facts = read_policy(folder)
        assert tensors["a"].tolist() == [facts["n"]] * 3
        seen.add(facts["n"])
    writer.join()
    assert len(seen) > 1 and read_policy(folder)[1]["n"] == 39


@replace.again_if_replaced
def read_policy(folder: RunFolder) -> tuple[dict[str, Tensor], dict[str, Any]]:
    found = folder.policy
    card = read_card(found, "policy")
    return read_tensors(found, "policy", card), card


def test_between_two_steps_the_old_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed where the old folder was moved aside and the new one is not there yet."""
    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(3)}, {"n": 0})
    os.rename(tmp_path / "policy", tmp_path / ".policy.old")
    assert read_policy(RunFolder(tmp_path))[1]["n"] == 0


@pytest.mark.parametrize("call", range(1, 9))
def test_an_interruption_at_any_call_loses_nothing(
    call: int, exchanging: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th file operation never returns, as in a kill: the old or the new version can be read afterwards."""

    class Killed(BaseException):
        pass

    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(3)}, {"n": 1})
    count = 0

    def counted(name: str) -> None:
        original = getattr(os, name)

        def wrapper(*args: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            return original(*args, **options)

        monkeypatch.setattr(os, name, wrapper)

    for name in ("fsync", "replace", "mkdir", "rmdir"):
        counted(name)
    # A killed process does not clean up either.
    real_rmtree = runs.shutil.rmtree
    monkeypatch.setattr(runs.shutil, "rmtree", lambda *a, **k: None if count >= call else real_rmtree(*a, **k))
    try:
        save_tensors(tmp_path / "policy", "policy", {"a": torch.ones(3)}, {"n": 2})
        finished = True
    except Killed:
        finished = False
    monkeypatch.undo()
    assert finished == (count < call)
    assert read_policy(RunFolder(tmp_path))[1]["n"] in (1, 2)  # also before anything is tidied up
    write_json(tmp_path / "config.json", {})  # a run's: elsewhere nothing is tidied up
    RunFolder(tmp_path).recover()
    (tmp_path / "config.json").unlink()
    tensors, facts = load_tensors(tmp_path / "policy", "policy")
    assert tensors["a"].tolist() == [facts["n"] - 1.0] * 3
    assert facts["n"] == 2 if finished else facts["n"] in (1, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["policy"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_version(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(3)}, {"n": 1})
    write_json(tmp_path / "config.json", {"old": 1})
    before = snapshot(tmp_path)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OutputError, match=r"No space left on device.*Nothing was lost; free space"):
        save_tensors(tmp_path / "policy", "policy", {"a": torch.ones(3)}, {"n": 2})
    with pytest.raises(OutputError, match="No space left on device"):
        write_json(tmp_path / "config.json", {"new": 1})
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


def test_paths_that_are_no_text(tmp_path: Path) -> None:
    """The system has names of any bytes; what we write of them is UTF-8."""
    (tmp_path / os.fsdecode(b"a\xff")).mkdir()
    write_file(tmp_path / os.fsdecode(b"a\xff") / "x.md", f"of {os.fsdecode(b'a' + bytes([255]))}")
    assert (tmp_path / os.fsdecode(b"a\xff") / "x.md").read_text() == "of a\\udcff"
    assert content_hash(str(tmp_path)) != content_hash(str(tmp_path / os.fsdecode(b"a\xff")))
    assert content_hash(os.fsdecode(b"hub/\xff")) != content_hash("hub/")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for target in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OutputError, match=r"cannot write to .*Choose another --out"):
            prepare_folder(target)
    with pytest.raises(OutputError, match="cannot write"):
        write_file(tmp_path / "file" / "x.json", "{}")
    with pytest.raises(OutputError, match="cannot write"):
        save_tensors(tmp_path / "file" / "x", "state", TENSORS, {})
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied"):
            prepare_folder(tmp_path / "run")
        with pytest.raises(OutputError, match="Permission denied"):
            prepare_folder(tmp_path)
    finally:
        tmp_path.chmod(0o700)


def test_prepare_leaves_nothing_behind(tmp_path: Path) -> None:
    assert prepare_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert not list((tmp_path / "a" / "b").iterdir())


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "000001", "state", TENSORS, {"iteration": 1})
    return tmp_path / "000001"


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_tensors(keep: int, saved: Path) -> None:
    file = saved / "state.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    before = snapshot(saved)
    with pytest.raises(CheckpointError, match=r"damaged or truncated .*remove it to fall back"):
        load_tensors(saved, "state")
    assert snapshot(saved) == before


def test_a_flipped_bit(saved: Path) -> None:
    file = saved / "state.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum differs"):
        load_tensors(saved, "state")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (b"", "is empty"),
        (b'{"format": 1, "sha', "not valid JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[1, 2]", "must be an object, found a list of 2"),
        (b'{"format": 99}', "format 99; this version reads 1 and 2"),
        (b'{"format": 2, "sha256": 7}', "sha256 must be a valid string, found 7"),
    ],
)
def test_damaged_card(card: bytes, message: str, saved: Path) -> None:
    (saved / "state.json").write_bytes(card)
    with pytest.raises(CheckpointError, match=message):
        load_tensors(saved, "state")


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_missing_file(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{name}: No such file"):
        load_tensors(saved, "state")


def test_not_tensors_at_all(saved: Path) -> None:
    """A file with the right checksum that safetensors cannot read."""
    import hashlib

    (saved / "state.safetensors").write_bytes(b"not tensors")
    card = json.loads((saved / "state.json").read_text())
    card["sha256"] = hashlib.sha256(b"not tensors").hexdigest()
    card["digest"] = card_digest(card)
    (saved / "state.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match="is damaged"):
        load_tensors(saved, "state")


# --- the run's files --------------------------------------------------------------------------------------------------


def test_checkpoints_are_listed_and_pruned(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.checkpoints() == []
    (tmp_path / "checkpoints").mkdir()
    for iteration in (2, 10, 4, 1_000_000):
        save_tensors(folder.checkpoint(iteration), "state", {"a": torch.zeros(1)}, {"iteration": iteration})
    (tmp_path / "checkpoints" / ".000012.99.tmp").mkdir()  # half written
    (tmp_path / "checkpoints" / "000099").write_text("a file")
    (tmp_path / "checkpoints" / "5-backup").mkdir()  # the user's
    assert folder.checkpoints() == [2, 4, 10, 1_000_000]
    folder.prune(2)
    assert folder.checkpoints() == [10, 1_000_000]
    assert (tmp_path / "checkpoints" / "5-backup").is_dir()


def test_recover(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    save_tensors(folder.checkpoint(3), "state", {"a": torch.zeros(1)}, {})
    save_tensors(tmp_path / "policy", "policy", {"a": torch.zeros(1)}, {})
    write_json(tmp_path / "config.json", {})
    expected = snapshot(tmp_path)
    os.replace(tmp_path / "policy", tmp_path / ".policy.old")  # killed before the successor took its place
    (tmp_path / ".policy.77.tmp").mkdir()
    (tmp_path / ".policy.77.tmp" / "policy.safetensors").write_bytes(b"half")
    (tmp_path / "checkpoints" / ".000004.77.tmp").mkdir()
    (tmp_path / ".config.json.77.tmp").write_bytes(b"{")
    folder.recover()
    assert snapshot(tmp_path) == expected
    os.rename(tmp_path / "policy", tmp_path / ".policy.old")
    save_tensors(tmp_path / "policy", "policy", {"a": torch.ones(1)}, {})  # killed after it did
    folder.recover()
    assert not (tmp_path / ".policy.old").exists()
    assert load_tensors(tmp_path / "policy", "policy")[0]["a"].tolist() == [1]


THEIRS = (".work.tmp/thesis.txt", ".env.tmp", ".data.old/last.csv", ".env.old", ".policy.mine.tmp", ".config.json.old")


@pytest.mark.parametrize("is_run", [True, False])
def test_recover_leaves_what_is_the_users(is_run: bool, tmp_path: Path) -> None:
    for name in (*THEIRS, "data/this.csv", "checkpoints/.best.old/notes", "checkpoints/.12.tmp"):
        write_file(tmp_path / name, name)
    if is_run:
        write_json(tmp_path / "config.json", {})
    else:  # names of ours are the user's too where no run was begun
        for name in (".policy.old/notes", ".policy.77.tmp", ".metrics.jsonl.7.tmp", "checkpoints/.000003.old/notes"):
            write_file(tmp_path / name, name)
    before = snapshot(tmp_path)
    RunFolder(tmp_path).recover()
    assert snapshot(tmp_path) == before


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    """The log of a run folder that was just begun."""
    write_json(tmp_path / "config.json", {})
    RunFolder(tmp_path).truncate_metrics(0)
    return MetricsLog(RunFolder(tmp_path))


def test_metrics(log: MetricsLog, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.metrics() == []
    for iteration in range(1, 5):
        log.append({"iteration": iteration, "x": iteration / 3})
    with open(tmp_path / "metrics.jsonl", "a") as handle:
        handle.write('{"iteration": 5, "x": 1.6')  # cut off by a kill
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3, 4]
    folder.truncate_metrics(2)
    assert folder.metrics() == [{"iteration": 1, "x": 1 / 3}, {"iteration": 2, "x": 2 / 3}]
    MetricsLog(folder).append({"iteration": 3})
    assert [row["iteration"] for row in folder.metrics()] == [1, 2, 3]
    folder.truncate_metrics(0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_a_checkpoint_counts_rows_byte_by_byte(log: MetricsLog, tmp_path: Path) -> None:
    folder, file = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    for iteration in range(1, 4):
        log.append({"iteration": iteration, "x": 1.0})
    record, whole = log.record(), file.read_bytes()
    assert record["rows"] == 3
    log.append({"iteration": 4, "x": 1.0})
    with open(file, "a") as handle:
        handle.write('{"iteration": 5, "x"')
    for known in (record, None):  # what comes after the checkpoint does not matter
        folder.check_metrics(3, known)
    folder.truncate_metrics(3)
    assert file.read_bytes() == whole and MetricsLog(folder).record() == record
    second = whole.splitlines(keepends=True)[1]
    for damaged, message in (
        (None, "has 0 rows, but the checkpoint after iteration 3 counts 3: rows were deleted or cut off"),
        (b"", "has 0 rows"),
        (whole[:-1], "has 2 rows"),
        (whole[: len(whole) // 2], "has 1 rows"),
        (whole.replace(second, b""), "has 2 rows"),
        (whole.replace(second, second + second), "was changed or damaged"),
        (whole[:-3] + b"1}\n", "was changed or damaged"),
    ):
        if damaged is None:
            file.unlink()
        else:
            file.write_bytes(damaged)
        for known in (record, None) if damaged != whole[:-3] + b"1}\n" else (record,):
            with pytest.raises(CheckpointError, match=rf"{message}.*Restore the file from a copy.*Nothing was changed"):
                folder.check_metrics(3, known)
        assert (file.read_bytes() if file.exists() else None) == damaged


def test_a_long_run_resumes_from_more_rows_than_are_held_at_once(
    log: MetricsLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adanat_toolkit.storage.files.MOST_METRICS", 1000)
    folder = RunFolder(tmp_path)
    for iteration in range(1, 101):
        log.append({"iteration": iteration})
    record = log.record()
    folder.check_metrics(100, record)
    folder.truncate_metrics(100)
    assert MetricsLog(folder).record() == record and [row["iteration"] for row in folder.each_row()] == [*range(1, 101)]
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is too large .* the run itself can go on; read"):
        folder.metrics()


@pytest.mark.parametrize("moved", ["metrics.jsonl", "config.json", "."])
def test_what_is_taken_away_does_not_come_back(moved: str, log: MetricsLog, tmp_path: Path) -> None:
    log.append({"iteration": 1})
    os.rename(tmp_path / moved, tmp_path.parent / "elsewhere")
    with pytest.raises(OutputError, match=r"cannot write .*Restore it|deleted, moved or replaced.*Put the folder back"):
        log.append({"iteration": 2})
    with pytest.raises(OutputError):
        log.record()
    assert not (tmp_path / moved).exists()
    os.rename(tmp_path.parent / "elsewhere", tmp_path / moved)
    log.append({"iteration": 2})
    assert [row["iteration"] for row in RunFolder(tmp_path).metrics()] == [1, 2]


def test_damage_inside_the_metrics_loses_no_row(tmp_path: Path) -> None:
    folder, file = RunFolder(tmp_path), tmp_path / "metrics.jsonl"
    file.write_text('{"iteration": 1}\n{"iterat\n{"iteration": 3}\n')
    with pytest.raises(CheckpointError, match=r"line 2 of .*metrics\.jsonl is damaged"):
        folder.truncate_metrics(3)
    assert len(file.read_text().splitlines()) == 3 and [path.name for path in tmp_path.iterdir()] == [file.name]


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]", b"3"])
def test_damaged_config(content: bytes, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.config is None
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json is (damaged|not usable).* Restore it or choose"):
        _ = folder.config
