"""The commands end to end: what they print where, what they write, and that they go on where they were stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.images import read_facts, read_png
from adanat_toolkit.storage import RunFolder

from ..helpers.cli import adanat, contents, train_arguments
from ..helpers.train_process import write_images


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = adanat(*train_arguments(images, out))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    return out


# --- the program itself -----------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from adanat_cli.main import app; app(['--help'], standalone_mode=False);"
        "heavy = {'torch', 'numpy', 'pydantic', 'diffusers', 'transformers', 'PIL'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    for command in ("train", "sample", "evaluate", "plugins", "doctor", "weights", "encode", "stats"):
        assert f" {command} " in done.stdout
    # CPU time, because this machine may be busy; the whole process, interpreter included.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7


def test_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "adanat_cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[0], done.stderr) == (0, "adanat-toolkit", "")


def test_errors_are_one_line_and_debug_shows_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = adanat("train", "--preset", "papper")
    assert (plain.exit_code, plain.stdout) == (1, "")
    assert plain.stderr.startswith("error: unknown preset 'papper'; did you mean 'paper'?")
    assert plain.stderr.count("\n") == 1
    monkeypatch.setenv("ADANAT_DEBUG", "1")
    with pytest.raises(ConfigError, match="unknown preset"):
        adanat("train", "--preset", "papper")


def test_live_display_on_a_terminal() -> None:
    code = """
from adanat_cli.progress import TrainingProgress
with TrainingProgress(3, quiet=False) as progress:
    for i in (1, 2, 3):
        progress.update({"iteration": i, "trajectories_per_second": 12.5, "reward/mean": 0.5, "reward/std": 0.1,
                         "reward_model/accuracy_real": 0.6, "reward_model/accuracy_fake": 0.8,
                         "knob/guidance/0": 1.0, "knob/guidance/1": 2.0})
"""
    terminal, program = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], stderr=program, stdout=subprocess.PIPE, env=environment)
    os.close(program)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    text = shown.decode()
    assert (done.returncode, done.stdout) == (0, b"")
    for number in (1, 2, 3):
        assert f"iteration {number} of 3" in text
    lines = {" ".join(line.split()) for line in text.splitlines()}
    assert {
        "trajectories/s 12.5",
        "reward 0.500 +- 0.100",
        "discriminator accuracy 0.70",
        "guidance 1.00 2.00",
    } <= lines


# --- train ------------------------------------------------------------------------------------------------------------


def test_dry_run_prints_settings_that_config_reads_back(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = adanat(*train_arguments(images, out, "--seed", "7", "--dry-run"))
    assert result.exit_code == 0 and not out.exists()
    assert "generator_forwards: 32" in result.stdout  # 16 trajectories, guided, one step after the first
    file = tmp_path / "again.yaml"
    file.write_text(result.stdout)
    again = adanat("train", "--config", file, "--dry-run", "--json")
    settings = json.loads(again.stdout)["config"]
    assert settings == yaml.safe_load(result.stdout)
    assert (settings["seed"], settings["steps"], settings["ppo"]["epochs"]) == (7, 2, 1)
    plan = json.loads(again.stdout)["plan"]
    assert plan["parameters"]["generator"] > 4_000_000 and plan["iterations"] == 2
    assert plan["dtype"].startswith("float32: as given")


def test_train_leaves_a_run_folder_and_plain_progress(run: Path, images: Path, tmp_path: Path) -> None:
    assert {"config.json", "metrics.jsonl", "checkpoints/000002/state.safetensors", "policy/policy.json"} <= set(
        contents(run)
    )
    again = adanat(*train_arguments(images, tmp_path / "other", "--json"))
    lines = again.stderr.splitlines()
    assert lines[0].endswith("2 iterations of 8 trajectories, T=2, on cpu in float32")
    for number, line in enumerate(lines[1:3], 1):
        assert line.startswith(f"{number}/2")
        for name in ("left", "trajectories/s", "reward", "discriminator accuracy", "mask ratio", "guidance"):
            assert name in line
    row = json.loads(again.stdout)
    assert row["iteration"] == 2 and row["run"] == str(tmp_path / "other")
    # The same command and seed give the same policy.
    assert (
        contents(tmp_path / "other" / "policy")["policy.safetensors"] == contents(run / "policy")["policy.safetensors"]
    )


def test_interrupted_by_the_user_and_continued(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = train_arguments(images, out)

    def interrupt() -> None:
        while not (out / "checkpoints" / "000001").exists():
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = adanat(*command)
    thread.join()
    if stopped.exit_code == 0:
        pytest.skip("the run ended before the signal arrived")
    assert stopped.exit_code == 130
    assert "the same command continues after iteration 1 of 2" in stopped.stderr
    quiet = adanat(*command, "--quiet")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "")
    assert contents(out / "policy")["policy.safetensors"] == contents(run / "policy")["policy.safetensors"]
    assert len(RunFolder(out).metrics()) == 2


def test_finished_run_is_left_as_it_is(run: Path, images: Path) -> None:
    before = contents(run)
    result = adanat(*train_arguments(images, run, "--json"))
    assert result.exit_code == 0 and "continuing after iteration 2 of 2" in result.stderr
    assert json.loads(result.stdout)["iteration"] == 2
    assert contents(run) == before


# --- sample -----------------------------------------------------------------------------------------------------------


def sample(run: Path | str, out: Path, *more: str | Path) -> list[str | Path]:
    return ["sample", "--policy", run, "--device", "cpu", "--dtype", "float32", "--out", out, *more]


def test_sample_writes_images_by_seed_with_their_knobs(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "samples"
    result = adanat(*sample(run, out, "--num", "5", "--classes", "3, face-smiling", "--seed", "40", "--json"))
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == {
        "out": str(out),
        "images": 5,
        "made": 5,
        "kept": 0,
        "grid": str(out / "grid.png"),
        "list": str(out / "samples.json"),
    }
    names = [f"{seed:06d}.png" for seed in range(40, 45)]
    assert sorted(p.name for p in out.iterdir()) == [*names, "grid.png", "samples.json"]
    listing = json.loads((out / "samples.json").read_text())
    assert listing["generator"]["name"] == "maskgit:emoji64" and listing["policy"]["kind"] == "adaptive"
    rows = listing["images"]
    assert [row["file"] for row in rows] == names and [row["seed"] for row in rows] == list(range(40, 45))
    smiling = rows[1]["class"]
    assert [row["class"] for row in rows] == [3, smiling, 3, smiling, 3] and smiling != 3
    for row in rows:
        assert set(row["knobs"]) == {"mask_ratio", "mask_temperature", "token_temperature", "guidance"}
        assert all(len(values) == 2 for values in row["knobs"].values())
    for name in names:
        with Image.open(out / name) as image:
            assert image.size == (64, 64) and len(image.convert("RGB").getcolors(4096) or []) > 8


def test_batch_does_not_change_images_and_what_exists_is_kept(run: Path, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert adanat(*sample(run, whole, "--num", "7", "--batch", "7")).exit_code == 0
    assert adanat(*sample(run, parts, "--num", "3", "--micro-batch", "2")).exit_code == 0
    (parts / "000001.png").unlink()
    times = {p: p.stat().st_mtime_ns for p in parts.glob("00*.png")}
    more = adanat(*sample(run, parts, "--num", "7", "--batch", "1", "--json"))
    assert {k: v for k, v in json.loads(more.stdout).items() if k in ("made", "kept")} == {"made": 5, "kept": 2}
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in times.items())
    assert contents(parts).keys() == contents(whole).keys()
    for name in (f"{seed:06d}.png" for seed in range(7)):
        # The tokens are the same; the decoder's last bits may move a pixel by a level, the policy's a knob's sixth digit.
        assert (read_png(parts / name).int() - read_png(whole / name).int()).abs().max() <= 1
        ours, theirs = read_facts(parts / name), read_facts(whole / name)
        assert ours is not None and theirs is not None and ours["class"] == theirs["class"]
        for knob, values in ours["knobs"].items():
            assert values == pytest.approx(theirs["knobs"][knob], rel=1e-4)


def test_sample_alone_needs_neither_policy_nor_network(tmp_path: Path) -> None:
    result = adanat("sample", "--num", "2", "--steps", "4", "--out", tmp_path / "s", "--offline", "--quiet")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")
    assert len(json.loads((tmp_path / "s" / "samples.json").read_text())["images"]) == 2


@pytest.mark.parametrize("family", ["maskgit", "muse"])
def test_sample_alone_takes_the_policy_that_ships(family: str, tmp_path: Path) -> None:
    some = ("sample", "--generator", family, "--num", "2", "--quiet", "--out")
    assert adanat(*some, tmp_path / "learned").exit_code == 0
    assert adanat(*some, tmp_path / "fixed", "--steps", "2").exit_code == 0
    learned = json.loads((tmp_path / "learned" / "samples.json").read_text())["images"]
    fixed = json.loads((tmp_path / "fixed" / "samples.json").read_text())["images"]
    assert learned[0]["knobs"]["token_temperature"] != learned[1]["knobs"]["token_temperature"]  # its own for each sample
    assert fixed[0]["knobs"]["token_temperature"] == fixed[1]["knobs"]["token_temperature"]
    assert len(learned[0]["knobs"]["guidance"]) == 4 and len(fixed[0]["knobs"]["guidance"]) == 2


def test_prompts_from_flags_and_files_are_taken_in_turn(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("3d emoji of a red apple\n\n  emoji of a cat  \n")
    more = ["--generator", "muse", "--num", "4", "--steps", "2", "--prompt", "emoji of a dog", "--prompts", file]
    result = adanat(*sample("fixed", tmp_path / "s", *more))
    assert result.exit_code == 0, result.stderr
    rows = json.loads((tmp_path / "s" / "samples.json").read_text())["images"]
    dog, apple, cat = "emoji of a dog", "3d emoji of a red apple", "emoji of a cat"
    assert [row["prompt"] for row in rows] == [dog, apple, cat, dog]


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_stands_beside_the_hand_made_schedule(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "evaluation"
    common = ["--num", "32", "--data", images, "--device", "cpu", "--dtype", "float32"]
    policies = ["--policy", run, "--policy", "fixed", "--steps", "2"]
    result = adanat("evaluate", *policies, *common, "--json", "--out", out)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    assert value == json.loads((out / "evaluation.json").read_text())
    assert (value["images"], value["seeds"], value["real_images"]) == (32, [0, 31], 12)
    assert value["protocol"].startswith("emoji64") and value["data"]
    (baseline,) = value["baselines"]
    learned, hand_made = value["policies"]
    for judged in (baseline, learned):
        assert {"frechet", "kid", "precision", "recall", "density", "coverage"} <= set(judged["figures"])
        low, high = judged["intervals"]["frechet"]
        assert low <= judged["figures"]["frechet"] <= high
    ratio = learned["figures"]["frechet"] / baseline["figures"]["frechet"]
    assert learned["ratio"]["frechet"] == pytest.approx(ratio) and ratio != 1
    assert learned["ratio_interval"]["frechet"][0] <= ratio <= learned["ratio_interval"]["frechet"][1]
    # Same schedule, same seeds: the very same figures.
    assert hand_made["ratio"] == {"frechet": 1.0} and hand_made["figures"] == baseline["figures"]
    with Image.open(out / "comparison.png") as picture:
        assert picture.width > 2 * 6 * 64
    table = adanat("evaluate", "--policy", run, *common, "--quiet")
    assert table.stderr == ""
    assert "Frechet / hand-made" in table.stdout and f"{ratio:.3f}" in table.stdout


def test_evaluate_draws_the_curve_between_two_policies(run: Path, images: Path, tmp_path: Path) -> None:
    common = ["--num", "16", "--data", images, "--device", "cpu", "--dtype", "float32"]
    two = ["--policy", run, "--policy", "fixed:linear"]
    result = adanat("evaluate", *two, "--blend", "0,0.5,1", *common, "--json", "--out", tmp_path / "curve")
    assert result.exit_code == 0, result.stderr
    policies = json.loads(result.stdout)["policies"]
    assert [row["policy"] for row in policies] == ["fixed:linear", f"{run}*0.5+fixed:linear*0.5", str(run)]
    assert len({row["figures"]["frechet"] for row in policies}) == 3
    assert Image.open(tmp_path / "curve" / "blend.png").width > 600
    for options, message in (
        (["--policy", run, "--blend", "0.5"], "--blend needs two policies, and there are 1"),
        ([*two, "--blend", "0,2"], "--blend has the weight 2"),
        ([*two, "--blend", "half"], "--blend 'half' is no list of numbers"),
        (["--policy", run, "--policy", f"{run}*0.5+fixed*0.5", "--blend", "1"], "is a blend itself"),
    ):
        refused = adanat("evaluate", *options, *common)
        assert refused.exit_code == 1 and message in refused.stderr


# --- the others -------------------------------------------------------------------------------------------------------


def test_plugins_lists_every_kind_as_working() -> None:
    rows = json.loads(adanat("plugins", "--json").stdout)
    found = {(row["kind"], row["name"]): row for row in rows}
    for key in (("generator", "maskgit"), ("reward", "adversarial"), ("policy", "adaptive"), ("features", "emoji64")):
        assert found[key]["status"] == "ok" and found[key]["distribution"] == "adanat-toolkit"
    assert found["generator", "maskgit"]["variants"][0] == "emoji64"
    assert "adversarial" in adanat("plugins").stdout


def test_doctor_finds_what_is_required() -> None:
    result = adanat("doctor", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["problems"]) == (0, [])
    cpu = report["devices"][0]
    assert cpu["device"] == "cpu" and cpu["dtype"] in ("float32", "bfloat16")
    assert f"auto computes in {cpu['dtype']}: {cpu['dtype_reason']}" in cpu["note"]
    works = {part["distribution"]: part["works"] for part in report["parts"]}
    assert works["torch"] and works["open-clip-torch"] and works["timm"]
    assert {file["state"] for file in report["embedded"]} == {"ok"} and len(report["embedded"]) >= 8
    assert "everything that is required works" in adanat("doctor").stdout


def test_doctor_names_a_place_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADANAT_WEIGHTS", str(tmp_path / "file" / "weights"))
    result = adanat("doctor", "--json")
    assert result.exit_code == 1
    assert str(tmp_path / "file" / "weights") in json.loads(result.stdout)["problems"][0]


def test_weights_tells_what_is_embedded_and_where_the_rest_is_published() -> None:
    rows = json.loads(adanat("weights", "maskgit", "--json").stdout)
    embedded = [row["file"] for row in rows if row["embedded"]]
    assert "maskgit.safetensors" in embedded and all(row["source"] and row["licence"] for row in rows)
    assert "obtain: " in adanat("weights", "maskgit:halton-256").stdout


def test_encode_keeps_tokens_labels_and_a_picture(images: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    file = tmp_path / "tokens.safetensors"
    result = adanat("encode", "--data", images, "--out", file, "--device", "cpu", "--dtype", "float32", "--json", "-q")
    assert json.loads(result.stdout)["images"] == 12 and json.loads(result.stdout)["mean_absolute_error"] < 0.2
    with safe_open(str(file), "pt") as stored:
        tokens, labels = stored.get_tensor("tokens"), stored.get_tensor("labels")
        facts = json.loads(stored.metadata()["adanat_tokens"])
    assert tokens.shape == (12, 64) and tokens.dtype == torch.int32 and 0 <= tokens.min() <= tokens.max() < 1024
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert facts["generator"] == "maskgit:emoji64" and facts["grid"] == [8, 8]
    assert file.with_suffix(".png").is_file()


def test_stats_are_those_of_the_images(images: Path, tmp_path: Path) -> None:
    from adanat_toolkit.metrics import FeatureStatistics

    file = tmp_path / "real.safetensors"
    result = adanat("stats", "--data", images, "--out", file, "--device", "cpu", "--json", "-q")
    statistics = FeatureStatistics.load(file)
    assert json.loads(result.stdout)["images"] == statistics.count == 12
    assert json.loads(result.stdout)["image_size"] == [64, 64] and statistics.card["image_size"] == "64x64"
    assert statistics.protocol.startswith("emoji64") and statistics.mean.shape == (192,)
    assert [p.name for p in tmp_path.iterdir()] == ["real.safetensors"]
    # They stand for the images: the same distance, and nothing that needs the images themselves.
    common = ["evaluate", "--policy", "fixed", "--steps", "2", "--num", "16", "--json", "-q", "--data"]
    by_images, by_file = (json.loads(adanat(*common, real).stdout)["baselines"][0] for real in (images, file))
    assert by_file["figures"]["frechet"] == pytest.approx(by_images["figures"]["frechet"], rel=1e-6)
    assert "kid" in by_images["figures"] and "kid" not in by_file["figures"]
