"""Training end to end: what it leaves behind, that it resumes bit-exactly after a kill at any moment, what it refuses."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_toolkit.core import RewardModel
from adanat_toolkit.errors import AdaNATError, CheckpointError, ConfigError, InUseError, OutputError
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import create_generator
from adanat_toolkit.sampling import sample, seed_range
from adanat_toolkit.storage import RunFolder, card_digest, held, write_file
from adanat_toolkit.storage.files import load_tensors
from adanat_toolkit.training import Callback, Trainer, merge, validate
from adanat_toolkit.training.checkpoint import load_optimiser, optimiser_state

from ..helpers.tiny import install_tiny
from ..helpers.train_process import run_process, write_images

EMBEDDED: dict[str, Any] = {
    "generator": {"name": "maskgit"},
    "reward": {"options": {"batch": 4, "updates": 2}},
    "steps": 2,
    "trajectories": 20,
    "batch": 4,
    "checkpoint_every": 2,
    "keep_checkpoints": 2,
    "device": "cpu",
    "dtype": "float32",
    "seed": 3,
}
KINDS: dict[str, dict[str, Any]] = {
    "adaptive": {
        "policy": {"name": "adaptive", "average": 0.9},
        "ppo": {"group": 2, "learning_rate_decay": "linear", "sigma_drop_at": [0.5]},
        "reward": {"options": {"replay": 16}},
        "data": {"shift": 2},
    },
    "shared": {"policy": {"name": "shared"}, "reward": {"warmup": 1}, "ppo": {"gae_lambda": 0.9, "context_baseline": True}},
}
KILLS: dict[str, list[dict[str, Any]]] = {
    "adaptive": [
        {"stop_before": "config.json"},  # nothing but the folder
        {"stop_after": 1},  # metrics without a checkpoint
        {"stop_before": "state.json"},  # the first checkpoint, half written
        {"stop_before": "/000002"},  # written, not yet in its place; the policy is
        {"stop_after": 3},
        {"stop_before": "metrics.jsonl"},  # in the middle of resuming
        {"stop_before": ".policy.old", "exchange": False},
        {"stop_before": "/policy", "exchange": False},  # the old policy is moved aside, the new one is not there yet
        {"stop_before": "/000005"},  # the last checkpoint: the run would end here
    ],
    "shared": [{"stop_after": 2}, {"stop_before": "policy.json"}, {"stop_before": "/000004"}],
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "images")


def files(folder: Path) -> dict[str, bytes]:
    """Every file of a run; of the metrics (and of what checkpoints say of them), what does not depend on the clock."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in found:
        if name.endswith("state.json"):
            card = json.loads(found[name])
            rest = {key: value for key, value in card.items() if key not in ("metrics", "digest")}
            found[name] = json.dumps({**rest, "rows": card.get("metrics", {}).get("rows")}).encode()
    if "metrics.jsonl" in found and "config.json" in found:
        found["metrics.jsonl"] = json.dumps(steady(RunFolder(folder).metrics())).encode()
    return found


def steady(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in row.items() if not k.startswith("seconds") and k != "trajectories_per_second"} for row in rows
    ]


def settings_of(kind: str, images: Path) -> dict[str, Any]:
    return merge(merge(EMBEDDED, KINDS[kind]), {"data": {"path": str(images)}})


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_and_resumed_is_the_unbroken_run(kind: str, images: Path, tmp_path: Path) -> None:
    settings = settings_of(kind, images)
    run_process(settings, tmp_path / "unbroken")
    for number, moment in enumerate(KILLS[kind]):
        run_process(settings, tmp_path / "broken", **moment)
        if number == 4:  # a line cut off in the middle
            with open(tmp_path / "broken" / "metrics.jsonl", "a") as handle:
                handle.write('{"iteration": 4, "rewa')
    run_process(settings, tmp_path / "broken")
    unbroken, broken = files(tmp_path / "unbroken"), files(tmp_path / "broken")
    assert unbroken.keys() == broken.keys()
    assert not [name for name in unbroken if unbroken[name] != broken[name]]
    expected = {"config.json", "metrics.jsonl", "policy/policy.json", "policy/policy.safetensors"}
    expected |= {f"checkpoints/{i:06d}/state.{end}" for i in (4, 5) for end in ("json", "safetensors")}
    assert set(unbroken) == expected
    check_run(tmp_path / "unbroken", settings)
    # Running a finished run again changes nothing, and reports its last row.
    run_process(settings, tmp_path / "broken")
    assert files(tmp_path / "broken") == unbroken


OTHERS: dict[str, dict[str, Any]] = {
    "dit": {"policy": {"name": "adaptive", "options": {"size": "small"}}, "steps": 3},
    "sit": {"policy": {"name": "lean"}, "steps": 3},
    "var": {"policy": {"name": "adaptive", "options": {"size": "small"}, "smoothing": 0.4}, "steps": 3},
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_run_of_every_kind_of_state_resumes_as_the_unbroken_run(name: str, images: Path, tmp_path: Path) -> None:
    """Latents and scales in place of masked tokens, statistics in place of features, actions that lean on the one before."""
    settings = merge(EMBEDDED, {"generator": {"name": name}, "trajectories": 8, "checkpoint_every": 1})
    settings = merge(merge(settings, OTHERS[name]), {"data": {"path": str(images)}, "reward": {"options": {"updates": 1}}})

    def stop(row: dict[str, Any]) -> None:
        raise InterruptedError

    Trainer(validate(settings)).run(tmp_path / "unbroken")
    with pytest.raises(InterruptedError):
        Trainer(validate(settings)).run(tmp_path / "broken", on_iteration=stop)
    assert RunFolder(tmp_path / "broken").checkpoints() == [1]
    Trainer(validate(settings)).run(tmp_path / "broken")
    unbroken, broken = files(tmp_path / "unbroken"), files(tmp_path / "broken")
    assert unbroken.keys() == broken.keys()
    assert not [file for file in unbroken if unbroken[file] != broken[file]]


def check_run(out: Path, settings: dict[str, Any]) -> None:
    """The metrics make sense, something was learned, and the exported policy is the trained one."""
    rows = RunFolder(out).metrics()
    assert [row["iteration"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["trajectories"] for row in rows] == [4, 8, 12, 16, 20]
    warmup = settings["reward"].get("warmup", 0)
    for row in rows:
        assert all(math.isfinite(v) for v in row.values())
        assert 0 < row["reward/mean"] < 1 and "reward_model/loss" in row
        assert ("ppo/policy_loss" in row) == (row["iteration"] > warmup)
    if settings["ppo"].get("learning_rate_decay") == "linear":
        assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4 * (1 - i / 5) for i in range(5)])
        assert [row["sigma"] for row in rows] == [0.6, 0.6, 0.6, 0.6, 0.3]  # after the update of iteration 2.5
    first, _ = load_tensors(RunFolder(out).checkpoint(4), "state")
    last, facts = load_tensors(RunFolder(out).checkpoint(5), "state")
    assert facts["iteration"] == 5
    exported, card = load_tensors(out / "policy", "policy")
    source = "average." if settings["policy"].get("average") else "policy."
    assert exported.keys() == {k.removeprefix(source) for k in last if k.startswith(source)}
    assert all(torch.equal(exported[k], last[source + k]) for k in exported)
    assert card["training"]["trajectories"] == 20 and card["kind"] == settings["policy"]["name"]
    for part in ("policy.", "critic.", "reward.", "optimiser."):
        assert any(not torch.equal(first[k], last[k]) for k in last if k.startswith(part)), part


def test_the_same_command_continues(images: Path, tmp_path: Path) -> None:
    """The command line, killed from outside as soon as it writes a checkpoint, at whatever moment that hits."""
    out = tmp_path / "run"
    command = [
        sys.executable, "-m", "adanat_cli", "train", "--steps", "2", "--trajectories", "16", "--batch", "4",
        "--policy", "shared", "--device", "cpu", "--dtype", "float32", "--data", str(images), "--out", str(out),
        "--set", "reward.options.batch=4", "--set", "checkpoint_every=2", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as in the run it is compared with
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None and not any((out / "checkpoints").glob("*")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not RunFolder(out).checkpoints() or RunFolder(out).checkpoints() == [2]
    subprocess.run(command, env=environment, check=True)
    run_process(json.loads((out / "config.json").read_text()), tmp_path / "unbroken")
    assert files(out) == files(tmp_path / "unbroken")


# --- with a generator of the test's own, as a plug-in -----------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a run with a tiny generator and a reward for small codes, installed as third-party plug-ins."""
    install_tiny(tmp_path / "site", monkeypatch)
    return {
        "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 3,
        "trajectories": 64, "batch": 16, "checkpoint_every": 2, "device": "cpu", "dtype": "float32",
        "ppo": {"learning_rate": 0.005},
    }  # fmt: skip


def train(settings: dict[str, Any], out: Path, **changes: Any) -> dict[str, Any]:
    return Trainer(validate(merge(settings, changes))).run(out)


@pytest.mark.parametrize(("kind", "trajectories"), [("shared", 3072), ("adaptive", 1024)])
def test_a_policy_learns(kind: str, trajectories: int, tiny: dict[str, Any], tmp_path: Path) -> None:
    """The reward for dark images rises, and the exported policy samples darker ones than the schedule it started from."""
    train(tiny, tmp_path / "run", trajectories=trajectories, batch=64, policy={"name": kind})
    rewards = [row["reward/mean"] for row in RunFolder(tmp_path / "run").metrics()]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.03
    generator = create_generator("tiny", device=torch.device("cpu"), dtype=torch.float32)
    means = {}
    for spec in (str(tmp_path / "run"), "fixed"):
        policy = load_policy(spec, generator, 3)
        means[spec] = float(torch.cat([s.images for s in sample(generator, policy, seed_range(0, 400))]).mean())
    assert means[str(tmp_path / "run")] < means["fixed"] - 0.02


def test_seed_decides_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    first, again, other = (train(tiny, tmp_path / name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert steady([{**first, "run": ""}]) == steady([{**again, "run": ""}])
    assert files(tmp_path / "a")["policy/policy.safetensors"] == files(tmp_path / "b")["policy/policy.safetensors"]
    assert files(tmp_path / "a")["policy/policy.safetensors"] != files(tmp_path / "c")["policy/policy.safetensors"]
    assert first["reward/mean"] != other["reward/mean"]


def test_micro_batches_do_not_change_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    whole = train(tiny, tmp_path / "whole", policy={"name": "adaptive"})
    cut = train(tiny, tmp_path / "cut", policy={"name": "adaptive"}, micro_batch=5)
    assert cut["reward/mean"] == pytest.approx(whole["reward/mean"], abs=1e-6)
    a, b = (load_tensors(tmp_path / name / "policy", "policy")[0] for name in ("whole", "cut"))
    assert max(float((a[k] - b[k]).abs().max()) for k in a) < 1e-5


def test_groups_share_context_and_noise(tiny: dict[str, Any]) -> None:
    trainer = Trainer(validate(merge(tiny, {"ppo": {"group": 4}})))
    rollout, _, _ = trainer._rollout(0.6)
    classes = rollout.context.classes
    assert classes is not None and torch.equal(classes, classes[::4].repeat_interleave(4))
    assert len(rollout.actions.flatten(1).unique(dim=0)) == 16  # exploration is each trajectory's own
    calm, _, _ = trainer._rollout(1e-9)
    assert calm.embedded is not None
    assert torch.equal(calm.embedded, calm.embedded[::4].repeat_interleave(4, 0))  # without it they are one image


def test_other_settings_are_refused(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    before = files(tmp_path / "run")
    changes: list[tuple[dict[str, Any], str]] = [
        ({"steps": 4}, "steps: 3 -> 4"),
        ({"seed": 9}, "seed: 0 -> 9"),
        ({"ppo": {"clip": 0.1}}, r"ppo\.clip: 0\.2 -> 0\.1"),
        ({"policy": {"name": "adaptive"}}, r"policy\.name: 'shared' -> 'adaptive'"),
        ({"trajectories": 16}, "trajectories: 64 -> 16"),
        ({"generator": {"options": {"width": 9}}}, r"generator\.options\.width"),
    ]
    for change, message in changes:
        with pytest.raises(CheckpointError, match=rf"{message}.*another --out to start anew\. Nothing was changed"):
            train(tiny, tmp_path / "run", **change)
        assert files(tmp_path / "run") == before
    # What does not change the result may be changed.
    train(tiny, tmp_path / "run", micro_batch=3, keep_checkpoints=5, checkpoint_every=7, offline=True)
    assert files(tmp_path / "run") == before


@pytest.fixture
def interrupted(tiny: dict[str, Any], tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A run that was stopped after 2 of 4 iterations."""

    class Stop(Exception):
        pass

    def stop(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            raise Stop

    with pytest.raises(Stop):
        Trainer(validate(tiny)).run(tmp_path / "run", on_iteration=stop)
    return tiny, tmp_path / "run"


def refused(settings: dict[str, Any], out: Path, message: str, error: type[AdaNATError] = CheckpointError) -> None:
    before = files(out)
    with pytest.raises(error, match=message):
        train(settings, out)
    assert files(out) == before


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("checkpoints/000001/notes", "checkpoints"),
        ("metrics.jsonl", "rows of metrics"),
        ("policy/thesis.txt", "a policy"),
        (".policy.old/thesis.txt", "a policy"),
    ],
)
def test_a_folder_of_others_is_left_as_it_is(name: str, what: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    """Without a config.json what bears a name of ours is not ours; what bears another is nobody's business."""
    for mine in (".work.tmp/thesis.txt", ".env.old", ".data.old/a.csv", "data/b.csv"):
        write_file(tmp_path / "mine" / mine, mine)
    before = files(tmp_path / "mine")
    train(tiny, tmp_path / "mine")
    assert files(tmp_path / "mine").items() > before.items()
    write_file(tmp_path / "other" / name, "mine, without a line break")
    refused(tiny, tmp_path / "other", f"has {what} but no config.json; choose another --out")


@pytest.mark.parametrize("part", ["checkpoints", "policy", ".policy.old", "metrics.jsonl", "checkpoints/000002", "board"])
def test_a_run_is_not_written_through_links(part: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    out, outside = tmp_path / "run", tmp_path / "outside"
    train(tiny, out)
    place = out / part
    if place.exists():
        shutil.copytree(place, outside) if place.is_dir() else shutil.copy(place, outside)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    place.symlink_to(outside)  # or to nothing, which a write would make
    before = files(out), files(outside)
    if part == "board":  # what a tracker writes to
        RunFolder(out).refuse_links()
        with pytest.raises(OutputError, match="board is a link"):
            RunFolder(out).refuse_links(part)
        return
    refused(tiny, out, rf"{re.escape(part)} is a link, .* Remove it, or choose another --out", OutputError)
    assert (files(out), files(outside)) == before


def test_a_run_is_made_longer_where_its_iterations_stay_what_they_were(tiny: dict[str, Any], tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    early = {"ppo": {"sigma_drop_at": [2]}}
    train(tiny, short, **early)
    assert train(tiny, short, **early, trajectories=96)["iteration"] == 6
    train(tiny, long, **early, trajectories=96)
    assert files(short) == files(long)  # as if it had been begun so, config.json included
    # Sigma's schedule is a share of the total here, and has moved: said, with what keeps it where it was.
    train(tiny, tmp_path / "share", ppo={"sigma_drop_at": [0.25]})
    before = files(tmp_path / "share")
    with pytest.raises(CheckpointError, match=r"trajectories: 64 -> 96.*--set 'ppo\.sigma_drop_at=\[1\]'"):
        train(tiny, tmp_path / "share", ppo={"sigma_drop_at": [0.25]}, trajectories=96)
    assert files(tmp_path / "share") == before
    train(tiny, tmp_path / "share", ppo={"sigma_drop_at": [1]}, trajectories=96)
    train(tiny, tmp_path / "linear", ppo={"learning_rate_decay": "linear"})
    with pytest.raises(CheckpointError, match="'linear' cannot be made longer"):
        train(tiny, tmp_path / "linear", ppo={"learning_rate_decay": "linear"}, trajectories=96)


def test_rows_that_a_checkpoint_counts_must_be_there(interrupted: tuple[dict[str, Any], Path]) -> None:
    settings, out = interrupted
    rows, card = out / "metrics.jsonl", out / "checkpoints" / "000002" / "state.json"
    whole = rows.read_bytes()
    last = len(whole) - whole.rindex(b'"learning_rate": 0.005')
    flipped = whole[:-last] + whole[-last:].replace(b"0.005", b"0.105")
    rows.unlink()
    refused(settings, out, "has 0 rows, but the checkpoint after iteration 2 counts 2")
    rows.write_bytes(whole[: len(whole) - 9])
    refused(settings, out, "has 1 rows, but .* counts 2: rows were deleted or cut off.*Restore the file from a copy")
    rows.write_bytes(flipped)
    refused(settings, out, "was changed or damaged since the checkpoint")
    facts = json.loads(card.read_text())
    del facts["metrics"]  # made by a version that did not record it: its rows are counted alone
    card.write_text(json.dumps({**facts, "digest": card_digest(facts)}))
    rows.write_bytes(whole[: len(whole) - 9])
    refused(settings, out, "has 1 rows, but .* counts 2")
    rows.write_bytes(whole)
    assert train(settings, out)["iteration"] == 4


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_goes_away_stops_the_run(moved: bool, tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"

    def take_away(row: dict[str, Any]) -> None:
        if row["iteration"] == 2:
            os.rename(out, tmp_path / "elsewhere") if moved else shutil.rmtree(out)

    with pytest.raises(OutputError, match=r"deleted, moved or replaced while .*Put the folder back and run the same"):
        Trainer(validate(tiny)).run(out, on_iteration=take_away)
    assert not out.exists()
    if moved:
        os.rename(tmp_path / "elsewhere", out)
        train(tiny, out)
        train(tiny, tmp_path / "unbroken")
        assert files(out) == files(tmp_path / "unbroken")


def test_data_that_was_moved_is_the_same_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_tiny(tmp_path / "site", monkeypatch)
    first = write_images(tmp_path / "images")
    settings = {
        "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 2,
        "trajectories": 16, "batch": 8, "device": "cpu", "data": {"path": str(first)},
    }  # fmt: skip
    train(settings, tmp_path / "run", trajectories=8, ppo={"sigma_drop_at": [9]})
    second = first.rename(tmp_path / "moved")
    changes = {"ppo": {"sigma_drop_at": [9]}, "data": {"path": str(second)}}
    assert train(settings, tmp_path / "run", **changes)["iteration"] == 2
    assert RunFolder(tmp_path / "run").config["data"]["path"] == str(second)  # type: ignore[index]
    (second / "0" / "0.png").unlink()
    refused(merge(settings, changes), tmp_path / "run", "made with another real images")


# --- objects in place of names ------------------------------------------------------------------------------------------


def test_a_function_is_a_reward(tiny: dict[str, Any], tmp_path: Path) -> None:
    generator = create_generator("tiny", device=torch.device("cpu"), dtype=torch.float32)
    settings = validate(merge(tiny, {"trajectories": 3072, "batch": 64}))
    bright = Trainer(settings, generator=generator, reward=lambda images, context: images.mean((1, 2, 3)))
    assert bright.generator is generator and bright.config.reward.name == "<lambda>"
    bright.run(tmp_path / "run")
    rewards = [row["reward/mean"] for row in RunFolder(tmp_path / "run").metrics()]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.02


def test_objects_give_what_their_names_give(tiny: dict[str, Any], tmp_path: Path) -> None:
    train(tiny, tmp_path / "names")
    given = merge(tiny, {"generator": {"name": "maskgit"}, "reward": {"name": "adversarial"}})
    Trainer(validate(given), generator="tiny", reward="dark").run(tmp_path / "given")
    assert files(tmp_path / "names") == files(tmp_path / "given")
    generator = create_generator("tiny", device=torch.device("cpu"), dtype=torch.float32)
    reward = Trainer(validate(tiny)).reward
    Trainer(validate(tiny), generator=generator, reward=reward).run(tmp_path / "objects")
    assert (
        files(tmp_path / "names")["policy/policy.safetensors"]
        == files(tmp_path / "objects")["policy/policy.safetensors"]
    )


def test_a_name_that_the_settings_have_keeps_its_options(tiny: dict[str, Any]) -> None:
    mixed = validate(merge(tiny, {"reward": {"name": "mix", "options": {"terms": "dark:2"}}}))
    assert Trainer(mixed, reward="mix").config.reward == mixed.reward
    assert Trainer(mixed, reward="dark").config.reward.options == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"config": {"steps": 2}}, "config must be a RunConfig.*; it is dict"),
        ({"generator": 3}, "generator must be a Generator, or a registered name; it is int"),
        ({"reward": [1]}, r"reward must be a RewardModel, a function \(images, context\) .*; it is list"),
        ({"reward": RewardModel}, "reward must be .*; it is the class RewardModel"),
        ({"data": 7}, "data must be real images .*, or a path; it is int"),
    ],
)
def test_a_wrong_type_names_the_argument(arguments: dict[str, Any], message: str, tiny: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(**{"config": validate(tiny), **arguments})


def test_callbacks(tiny: dict[str, Any], tmp_path: Path) -> None:
    calls: list[Any] = []

    class Told(Callback):
        def on_start(self, iteration: int) -> None:
            calls.append(("start", iteration))

        def on_iteration(self, row: dict[str, Any]) -> None:
            assert RunFolder(tmp_path / "run").metrics()[-1] == row
            calls.append(row["iteration"])
            if row["iteration"] == 3:
                raise KeyboardInterrupt

        def on_end(self) -> None:
            calls.append("end")

    with pytest.raises(KeyboardInterrupt):
        Trainer(validate(tiny)).run(tmp_path / "run", callbacks=[Told()])
    assert calls == [("start", 0), 1, 2, 3, "end"]
    with pytest.raises(ConfigError, match=r"callbacks must be Callback objects alone .*; it is function"):
        Trainer(validate(tiny)).run(tmp_path / "run", callbacks=[lambda row: None])  # type: ignore[list-item]


def test_damaged_checkpoints_are_refused(interrupted: tuple[dict[str, Any], Path]) -> None:
    settings, out = interrupted
    state = out / "checkpoints" / "000002" / "state.safetensors"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    refused(settings, out, r"damaged or truncated.*left untouched")
    state.unlink()
    refused(settings, out, "No such file")
    state.write_bytes(whole)
    (out / "config.json").write_text('{"steps": ')
    refused(settings, out, r"config\.json is damaged")
    (out / "config.json").unlink()
    refused(settings, out, r"has checkpoints but no config\.json")


def test_checkpoints_of_another_run_are_refused(interrupted: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    settings, out = interrupted
    card = out / "checkpoints" / "000002" / "state.json"
    facts = json.loads(card.read_text())
    for key, message in (
        ("generator", r"made with another generator \(another, now tiny-class\)"),
        ("real_images", "made with another real images"),
    ):
        other = {**facts, key: "another"}
        card.write_text(json.dumps({**other, "digest": card_digest(other)}))
        refused(settings, out, message)
    # A checkpoint of a run with another network, copied here.
    train(settings, tmp_path / "other", policy={"name": "adaptive"})
    shutil.rmtree(card.parent)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "000002", card.parent)
    refused(settings, out, r"is of another run: it was made with other settings \(policy\.name: 'adaptive' -> 'shared'\)")
    facts = {key: value for key, value in json.loads(card.read_text()).items() if key not in ("settings", "course")}
    card.write_text(json.dumps({**facts, "digest": card_digest(facts)}))  # of a version that did not record them
    refused(settings, out, "its first 2 rows are not those it counts, or it is of another run")
    shutil.copy(tmp_path / "other" / "metrics.jsonl", out)
    refused(settings, out, r"does not fit: .* tensors differ.*another configuration")


def test_a_folder_that_is_being_trained_in_is_left_alone(interrupted: tuple[dict[str, Any], Path]) -> None:
    settings, out = interrupted
    with held(out):
        refused(settings, out, "another process is writing to .*choose another --out", InUseError)
    train(settings, out)


def test_removing_the_newest_checkpoint_falls_back(interrupted: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    settings, out = interrupted
    shutil.rmtree(out / "checkpoints" / "000002")
    train(settings, out)
    train(settings, tmp_path / "unbroken")
    assert files(out) == files(tmp_path / "unbroken")


def test_output_that_cannot_be_written(tiny: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="Choose another --out"):
        train(tiny, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": {"name": "fixed"}}, "nothing to learn"),
        ({"policy": {"knobs": []}}, "at least one knob"),
        ({"policy": {"knobs": ["guidence"]}}, "did you mean 'guidance'"),
        ({"policy": {"schedule": "cosin"}}, "did you mean 'cosine'"),
        ({"policy": {"options": {"hiden": 3}}}, "did you mean 'hidden'"),
        ({"device": "cuda:99"}, "not available"),
        ({"device": "tpu"}, "not a device"),
        ({"dtype": "float16"}, "use auto, float32 or bfloat16"),
    ],
)
def test_settings_are_checked_before_work_starts(
    change: dict[str, Any], message: str, tiny: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(tiny, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


def test_plan(tiny: dict[str, Any]) -> None:
    trainer = Trainer(validate(merge(tiny, {"policy": {"name": "adaptive"}})))
    plan = trainer.plan()
    assert plan["iterations"] == 4 and plan["trajectories"] == 64
    assert plan["parameters"]["policy"] == sum(p.numel() for p in trainer.policy.parameters())
    assert plan["memory_bytes"]["stored features of one iteration"] == 16 * 3 * 15 * 8 * 2
    # The forwards that it announces are those that are run.
    forwards = trainer.generator.forwards  # type: ignore[attr-defined]
    for _ in range(4):
        trainer.step()
    after_first = [rows for rows, _ in forwards if rows >= 16]
    assert sum(after_first) == plan["generator_forwards"]


def test_knobs_that_are_not_acted_follow_the_schedule(tiny: dict[str, Any]) -> None:
    settings = merge(tiny, {"policy": {"knobs": ["guidance"], "schedule": "linear,guidance=1,mask_temperature=2:0"}})
    trainer = Trainer(validate(settings))
    row = trainer.step()
    assert [row[f"knob/mask_ratio/{t}"] for t in range(3)] == pytest.approx([2 / 3, 1 / 3, 0], abs=1e-6)
    assert [row[f"knob_spread/mask_temperature/{t}"] for t in range(3)] == pytest.approx([0] * 3, abs=1e-6)
    assert row["knob_spread/guidance/1"] > 0.1


def test_optimiser_state_round_trip() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1)

    layer, adam = make()
    for _ in range(3):
        layer(torch.ones(1, 3)).sum().backward()
        adam.step()
    flat = optimiser_state(adam)
    assert set(flat) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    other, restored = make()
    load_optimiser(restored, flat)  # copies: the two do not share their moments
    other.load_state_dict(layer.state_dict())
    for module, optimiser in ((layer, adam), (other, restored)):
        optimiser.zero_grad()
        module(torch.ones(1, 3)).square().sum().backward()
        optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))


def test_a_policy_may_have_tables_that_are_no_weights(tiny: dict[str, Any]) -> None:
    trainer = Trainer(validate(merge(tiny, {"policy": {"name": "shared", "average": 0.5}})))
    trainer.policy.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    trainer.average["calls"] = torch.zeros((), dtype=torch.int64)
    trainer.policy.calls += 3
    trainer.step()
    assert int(trainer.exported().network.calls) == 3
    assert any(not torch.equal(v, trainer.policy.state_dict()[k]) for k, v in trainer.average.items())


def test_adams_epsilon_is_that_the_run_was_started_with(
    interrupted: tuple[dict[str, Any], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of versions without the setting had 1e-8, and go on with it."""
    settings, out = interrupted
    monkeypatch.setattr("adanat_toolkit.training.checkpoint.made_with", lambda *_: {})  # nor had their checkpoints
    assert Trainer(validate(settings)).optimiser.param_groups[0]["eps"] == 1e-5
    stored = json.loads((out / "config.json").read_text())
    del stored["ppo"]["adam_epsilon"]
    (out / "config.json").write_text(json.dumps(stored))
    before = files(out)
    refused(merge(settings, {"ppo": {"adam_epsilon": 1e-5}}), out, r"ppo\.adam_epsilon: 1e-08 -> 1e-05")
    trainer = Trainer(validate(settings))
    trainer.run(out)
    assert trainer.optimiser.param_groups[0]["eps"] == trainer.config.ppo.adam_epsilon == 1e-8
    assert files(out)["config.json"] == before["config.json"]


@pytest.mark.parametrize("engine", ["adanat", "sb3"])
def test_adams_epsilon_in_both_engines(engine: str, tiny: dict[str, Any]) -> None:
    from adanat_toolkit.training import create_trainer

    for asked, expected in (({}, 1e-5), ({"adam_epsilon": 1e-3}, 1e-3)):
        trainer = create_trainer(validate(merge(tiny, {"engine": engine, "ppo": asked})))
        assert [group["eps"] for group in trainer.optimiser.param_groups] == [expected]
