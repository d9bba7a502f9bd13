"""Numbers and names from the command line that no machine can serve: one clear error, before any work and any memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from adanat_plugins.generators.maskgit import MaskGIT
from adanat_toolkit.commands.inputs import run_name
from adanat_toolkit.compare.result import Cell
from adanat_toolkit.core import Noise
from adanat_toolkit.errors import ConfigError
from adanat_toolkit.interfaces import PluginOptions
from adanat_toolkit.limits import MOST_IMAGES, MOST_SEED
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import parse_options, plugin_report
from adanat_toolkit.report import Settings
from adanat_toolkit.runtime import check_devices
from adanat_toolkit.sampling import seed_range
from adanat_toolkit.training import resolve, validate

from ..helpers.cli import adanat, refused
from ..helpers.train_process import write_images

HUGE = str(10**12)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("real"))


@pytest.mark.parametrize("command", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("arguments", "parts", "code"),
    [
        (["--num", HUGE], ["1000000000000 images", "at most 10000000"], 1),
        (["--num", "99999999999999999999"], ["99999999999999999999 images", "at most 10000000"], 1),
        (["--seed", str(2**63 - 1)], ["seeds 9223372036854775807 to", "below 2^63", "smaller first one (--seed)"], 1),
        (["--seed", str(2**64)], ["Invalid value for '--seed'"], 2),
        (["--seed", "-1"], ["Invalid value for '--seed'"], 2),
        (["--batch", HUGE], ["Invalid value for '--micro-batch'"], 2),
        (["--steps", "1000000000"], ["steps is 1000000000", "at most 1024"], 1),
        (["--policy", "fixed:maskgit", "--steps", "1000000000"], ["steps is 1000000000", "at most 1024"], 1),
        (["--gpus", "1000000", "--device", "cpu"], ["Invalid value for '--gpus'"], 2),
        (["--policy", "x" * 300], ["no policy at 'xxx", "give a run folder"], 1),
        (["--policy", "fixed:" + "x" * 300], ["unknown schedule or sampler 'xxx"], 1),
        (["--weights", "x" * 300], ["xxx", "File name too long"], 1),
    ],
)
def test_of_the_commands_that_make_images(
    command: str, arguments: list[str], parts: list[str], code: int, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = arguments if "--policy" in arguments else ["--policy", "fixed", *arguments]
    refused(adanat(command, "--quiet", "--out", out, *given), *parts, code=code)
    assert not list(out.rglob("*"))


@pytest.mark.parametrize(
    ("arguments", "parts", "code"),
    [
        (["encode", "--num", HUGE, "--out", "x.safetensors"], ["Invalid value for '--num'"], 2),
        (["encode", "--batch", HUGE, "--out", "x.safetensors"], ["Invalid value for '--micro-batch'"], 2),
        (["report", "nowhere", "--num", HUGE], ["1000000000000 images", "at most 10000000"], 1),
        (["report", "nowhere", "--seed", str(2**63 - 1)], ["seeds 9223372036854775807", "below 2^63"], 1),
        (["publish", "nowhere", "./there", "--seed", str(2**63 - 1)], ["seeds 9223372036854775807", "below 2^63"], 1),
        (["publish", "x" * 300, "./there"], ["no policy at 'xxx"], 1),
        (["plugins", "--timeout", "nan"], ["--timeout nan", "0.1 to 3600"], 1),
        (["plugins", "--timeout", "1e300"], ["--timeout 1e+300", "0.1 to 3600"], 1),
        (["report", "x" * 300], ["xxx", "File name too long"], 1),
        (["sample", "--prompts", "x" * 300], ["xxx", "File name too long"], 1),
        (["stats", "--data", "x" * 300, "--out", "s.safetensors"], ["xxx", "File name too long"], 1),
        (["sample", "--policy", "fixed", "--out", "x" * 300], ["xxx", "File name too long"], 1),
    ],
)
def test_of_other_commands(
    arguments: list[str], parts: list[str], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(adanat(*arguments), *parts, code=code)
    assert not list(tmp_path.iterdir())


SETTINGS = (
    "steps", "trajectories", "batch", "micro_batch", "seed", "checkpoint_every", "keep_checkpoints", "evaluate_every",
    "evaluate_images", "data.shift", "reward.warmup", "ppo.epochs", "ppo.minibatches", "ppo.group", "fit.actions",
    "fit.repeats",
)  # fmt: skip


@pytest.mark.parametrize("key", SETTINGS)
def test_every_whole_number_of_the_settings_has_an_upper_end(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key} = {2**63 if key == 'seed' else 2**62}: Input should be less than"):
        validate(nested(key, 2**62)) if key != "seed" else validate({"seed": 2**63})
    with pytest.raises(ConfigError, match="at most 64 bits are read"):
        resolve(overrides=[f"{key}={10**20}"])


def nested(key: str, value: int) -> dict[str, Any]:
    """``{"a": {"b": value}}`` of ``a.b``."""
    for part in reversed(key.split(".")):
        value = {part: value}  # type: ignore[assignment]
    return value  # type: ignore[return-value]


def test_whole_numbers_of_the_settings_are_all_listed() -> None:
    def numbers(values: dict[str, object], prefix: str = "") -> set[str]:
        out = set()
        for key, value in values.items():
            if isinstance(value, dict):
                out |= numbers(value, f"{prefix}{key}.")
            elif isinstance(value, int) and not isinstance(value, bool):
                out.add(prefix + key)
        return out

    assert numbers(validate({"micro_batch": 1}).model_dump()) == set(SETTINGS)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--steps", "1000000000"], ["steps = 1000000000", "at most 1024"]),
        (["--hand-made-steps", "4,1000000000"], ["steps = 1000000000", "at most 1024"]),
        (["--search-steps", "1000000000"], ["steps = 1000000000", "at most 1024"]),
        (["--num", HUGE], ["images = 1000000000000", "less than or equal to 10000000"]),
        (["--candidates", HUGE], ["candidates = 1000000000000", "less than or equal to"]),
        (["--trajectories", "99999999999999"], ["trajectories = 99999999999999", "less than or equal to"]),
        (["--trajectories", "9999999999"], ["a search over 32 schedules with", "more images than"]),
        (["--seeds", "1000001"], ["seed 1000001", "use small numbers"]),
        (["--evaluate-every", HUGE], ["evaluate_every = 1000000000000"]),
        (["--steps", ",".join(map(str, range(1, 999))), "--seeds", ",".join(map(str, range(999)))], ["cells", "fewer"]),
    ],
)
def test_of_a_comparison(arguments: list[str], parts: list[str], images: Path, tmp_path: Path) -> None:
    tracemalloc.start()
    result = adanat("compare", "--dry-run", "--data", images, "--out", tmp_path / "out", *arguments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    refused(result, *parts)
    assert peak < 300e6


def test_the_plan_of_a_comparison_does_not_count_its_readings_one_by_one(images: Path, tmp_path: Path) -> None:
    command = ["compare", "--dry-run", "--data", images, "--out", tmp_path / "out", "--candidates", "0", "--seeds", "0"]
    more = ["--policy", "shared", "--trajectories", "9999999998", "--batch", "2", "--evaluate-every", "2"]
    result = adanat(*command, *more)
    assert result.exit_code == 0
    assert (
        '"images_for_held_out_readings": 1280000000512' in result.stdout
    )  # 512 of the first, every second, and the last


def test_seeds_fit_into_63_bits() -> None:
    assert seed_range(MOST_SEED - 1, 2).tolist() == [MOST_SEED - 1, MOST_SEED]
    assert Noise(seed_range(MOST_SEED, 1)).uniform(1, 0, (2,)).isfinite().all()
    for first, count in ((MOST_SEED, 2), (-1, 1), (0, 0), (0, MOST_IMAGES + 1), (2**64, 1)):
        with pytest.raises(ConfigError):
            seed_range(first, count)


def test_settings_of_a_report_are_checked() -> None:
    with pytest.raises(ConfigError, match="below 2\\^63"):
        Settings(seed=MOST_SEED - 100).check()  # its pictures take 128 seeds
    Settings(seed=MOST_SEED - 1000).check()


def test_steps_of_a_schedule_made_in_python() -> None:
    generator = MaskGIT.create(None, {}, device=torch.device("cpu"), dtype=torch.float32, offline=True)
    with pytest.raises(ConfigError, match="steps is 1025; an image takes at most 1024"):
        load_policy("fixed:cosine", generator, 1025)


def test_processes_on_a_cpu_are_bounded() -> None:
    check_devices(8, "cpu")
    with pytest.raises(ConfigError, match=r"--gpus 1000 --device cpu .* at most"):
        check_devices(1000, "cpu")


def test_time_limits_of_plug_ins_are_bounded() -> None:
    for limit in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=r"0\.1 to 3600"):
            plugin_report(limit)


class Numbers(PluginOptions):
    whole: int = 1
    real: float = 1.0


@pytest.mark.parametrize("values", [{"real": float("nan")}, {"real": float("inf")}, {"whole": 10**20}])
def test_numbers_of_plug_ins_are_finite_and_fit_into_64_bits(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="options of it: "):
        parse_options("it", Numbers, values)


def test_names_of_folders_stay_short() -> None:
    """A mixture of many rewards names the run's folder."""
    terms = ",".join(f"clip-score:0.{i}" for i in range(1, 40))
    config = resolve(flags={"reward": {"name": terms}})
    assert len(run_name(config)) <= 200 and run_name(config) != run_name(
        resolve(flags={"reward": {"name": terms + "1"}})
    )
    first, second = (Cell("adaptive", name, 4, 0).name for name in (terms, terms + "1"))
    assert first != second and max(len(first), len(second)) <= 200
    assert Cell("adaptive", "adversarial", 4, 0).name == "adaptive-adversarial-T4-s0"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "--policy", ""], ["sample", "--out="], ["train", "--out", ""], ["evaluate", "--data", ""],
        ["publish", "runs/first", ""], ["report", ""],
    ],
)  # fmt: skip
def test_an_empty_argument_is_no_default(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--out "$RUNS"`` with a variable that is not set would write into the current folder."""
    monkeypatch.chdir(tmp_path)
    refused(adanat(*arguments), "is given an empty text", "leave it out")
    assert not list(tmp_path.iterdir())
