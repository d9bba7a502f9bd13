"""Configuration: sources and their order, validation, differences."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from adanat_toolkit.errors import ConfigError
from adanat_toolkit.registry import load, parse_override
from adanat_toolkit.storage import write_file
from adanat_toolkit.training import (
    PRESETS,
    PPOConfig,
    RunConfig,
    create_trainer,
    differences,
    merge,
    resolve,
    validate,
)
from adanat_toolkit.training.settings_read import refuse_unread

from ..helpers.tiny import TinyGenerator


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("batch: 64\nsteps: 6\nppo:\n  clip: 0.3\n  epochs: 7\n")
    flags = {"steps": 8, "ppo": {"epochs": 9}}
    config = resolve(preset="gpu", file=file, flags=flags, overrides=["ppo.epochs=2", "seed=5"])
    assert config.trajectories == PRESETS["gpu"]["trajectories"]  # preset
    assert (config.batch, config.ppo.clip) == (64, 0.3)  # file over preset
    assert config.steps == 8  # flag over file
    assert (config.ppo.epochs, config.seed) == (2, 5)  # --set over all
    assert config.ppo.gamma == 1.0  # default


def test_defaults_are_valid_and_presets_are_too() -> None:
    assert resolve() == RunConfig()
    for preset in PRESETS:
        resolve(preset=preset)
    assert resolve(preset="paper").ppo == PPOConfig.paper()


def test_a_preset_suits_the_policy() -> None:
    """``demo`` trains a small policy with its own rate; what is given wins, and another policy keeps the preset's."""
    small = resolve(preset="demo")
    assert (small.policy.name, small.ppo.learning_rate, small.ppo.sigma_drop) == ("lean", 1e-2, 0)
    assert small.ppo.learning_rate_decay == "linear" and small.policy.average == 0.9
    assert resolve(preset="demo", overrides=["ppo.learning_rate=0.002"]).ppo.learning_rate == 0.002
    large = resolve(preset="demo", flags={"policy": {"name": "adaptive"}})
    assert (large.ppo.learning_rate, large.ppo.sigma_drop) == (1.5e-3, RunConfig().ppo.sigma_drop)
    assert resolve(flags={"policy": {"name": "lean"}}).ppo == RunConfig().ppo
    assert resolve(preset="demo", by_policy=False).ppo == large.ppo  # in a comparison all kinds are trained alike


def test_iterations_round_up() -> None:
    assert resolve(overrides=["trajectories=100", "batch=32"]).iterations == 4
    assert resolve(overrides=["trajectories=96", "batch=32"]).iterations == 3
    assert resolve(overrides=["trajectories=1", "batch=32"]).iterations == 1


@pytest.mark.parametrize("preset", PRESETS)
def test_what_is_printed_can_be_read_back(preset: str, tmp_path: Path) -> None:
    config = resolve(preset=preset, overrides=["ppo.learning_rate=1e-4", "reward.options.width=32"])
    dumped = config.model_dump(mode="json")
    assert differences(json.loads(json.dumps(dumped)), dumped) == []
    file = tmp_path / "again.yaml"
    file.write_text(yaml.safe_dump(dumped))
    assert resolve(file=file) == config


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=1", {"a": 1}),
        ("a.b.c=0.5", {"a": {"b": {"c": 0.5}}}),
        ("a=1e-4", {"a": 1e-4}),  # YAML 1.1 alone reads this as text
        ("a=true", {"a": True}),
        ("a=null", {"a": None}),
        ("a=", {"a": None}),
        ("a=[x, y]", {"a": ["x", "y"]}),
        ("a=cosine,guidance=0:3", {"a": "cosine,guidance=0:3"}),
        ("a=some text", {"a": "some text"}),
    ],
)
def test_overrides(text: str, expected: dict) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppoo.clip=1", r"unknown key 'ppoo'; did you mean 'ppo'\?"),
        ("ppo.learning_rat=1", r"'ppo\.learning_rat'; did you mean 'learning_rate'"),
        ("zzz=1", r"unknown key 'zzz'\. Known: generator, reward"),
        ("policy..x=1", "unknown key 'policy.'"),
        ("steps=0", r"steps = 0: .*greater than or equal to 1"),
        ("steps=2.5", r"steps = 2\.5"),
        ("trajectories=-3", "trajectories = -3"),
        ("batch=1", "batch = 1"),
        ("ppo.clip=nan", "ppo.clip"),
        ("ppo.clip=.inf", r"ppo\.clip=\.inf' is not usable: the value must be a finite number"),
        ("ppo.gamma=1.5", r"ppo\.gamma = 1\.5"),
        ("ppo=3", "ppo = 3"),
        ("policy.average=1", r"policy\.average = 1"),
        ("seed=-1", "seed = -1"),
        ("seed=9223372036854775808", "seed = 9223372036854775808"),
        ("ppo.clip", "must be written KEY=VALUE"),
        ("=3", "must be written KEY=VALUE"),
        ("ppo.clip=[1", "not valid YAML"),
    ],
)
def test_bad_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(overrides=[override])


def _all_settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    out = []
    for name, field in model.model_fields.items():
        out.append(f"{prefix}{name}")
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            out += _all_settings(field.annotation, f"{prefix}{name}.")
    return out


WRONG = ("some text", "2024", "0.25", "yes", "null", "[]", "[some text]", "[[1]]", "[yes]", "{5: {}}", "{a: 1}", "paper")
"""Values of all types that YAML has."""


@pytest.mark.parametrize("key", _all_settings())
def test_a_value_of_another_type_is_told_with_what_to_write(key: str) -> None:
    """For every setting and every type: what is needed, what was found, and a remedy that is taken as it stands, as YAML
    and behind ``--set``."""
    refused = 0
    for value in WRONG:
        try:
            resolve(overrides=[f"{key}={value}"])
        except ConfigError as error:
            message = str(error)
        else:
            continue
        assert "Input should be a valid" not in message and "instance of" not in message
        if re.search("unknown key|(greater|less) than|must be a multiple|goes with neither|is the paper's rule", message):
            continue  # of the right type
        refused += 1
        found = re.fullmatch(
            rf"configuration: {re.escape(key)}(\.\d)? = .*: needed is .*; write (?P<yaml>.*), or --set (?P<flag>.*?)"
            r"( \(text that reads as something else stands in quotes\))?\.",
            message,
        )
        assert found is not None, message
        assert (", found" in message) or "one of" in message
        (override,) = shlex.split(found["flag"])
        assert validate(merge({}, yaml.safe_load(found["yaml"]))) == resolve(overrides=[override]), message
    assert refused


@pytest.mark.parametrize(
    ("override", "yaml_form", "flag_form"),
    [
        ("tracker=tensorboard", "tracker: [tensorboard]", "'tracker=[tensorboard]'"),
        ("policy=adaptive", "policy: {name: adaptive}", "policy.name=adaptive"),
        ("data.path=2024", 'data: {path: "2024"}', "'data.path=\"2024\"'"),
        ("data=faces", "data: {path: faces}", "data.path=faces"),
        ("ppo.sigma_drop_at=0.5", "ppo: {sigma_drop_at: [0.5]}", "'ppo.sigma_drop_at=[0.5]'"),
    ],
)
def test_what_was_probably_meant_is_what_to_write(override: str, yaml_form: str, flag_form: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"; write {yaml_form}, or --set {flag_form}")):
        resolve(overrides=[override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "is not valid YAML"),
        (b"\xff\xfe\x00x", "is not valid YAML: byte 0 is not UTF-8"),
        (b"- 1\n- 2\n", "must hold a mapping"),
        (b"", "must hold a mapping"),
        (b"1: 2\n", "unknown key '1'"),
        (b"batchs: 3\n", "did you mean 'batch'"),
    ],
)
def test_bad_files(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        resolve(file=file)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        resolve(file=tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"is a folder, not a file"):
        resolve(file=tmp_path)
    with pytest.raises(ConfigError, match="did you mean 'paper'"):
        resolve(preset="papr")


def test_options_stay_with_the_plugin_they_were_given_with(tmp_path: Path) -> None:
    assert resolve(preset="paper").reward.options == {"architecture": "paper"}
    other = resolve(preset="paper", flags={"reward": {"name": "imagereward", "options": {"batch": 4}}})
    assert other.reward.options == {"batch": 4} and other.reward.name == "imagereward"
    assert resolve(preset="paper", overrides=["policy.name=shared"]).policy.options == {}
    same = resolve(preset="paper", flags={"reward": {"name": "adversarial"}}, overrides=["reward.options.updates=3"])
    assert same.reward.options == {"architecture": "paper", "updates": 3}
    file = tmp_path / "run.yaml"
    file.write_text("reward: {name: fid, options: {group: 8}}")
    assert resolve(file=file).reward.options == {"group": 8}
    assert resolve(file=file, flags={"reward": {"name": "fid:influence"}}).reward.options == {}


@pytest.mark.parametrize(
    ("generator", "steps", "smoothing", "schedule"),
    [
        ("maskgit:adanat-imagenet-l", 16, 0.8, "adanat"),
        ("maskgit", 4, 0.8, None),
        ("dit:xl-2-256", 16, 0.4, "time=0.9:0.01,guidance=1"),
        ("sit:xl-2-256", 16, 0.8, "time=0.01:0.99,guidance=1.5"),
        ("sit", 4, 0.8, None),
        ("var:d30", 10, 0.0, "guidance=2,top_k=900,top_p=0.96,token_temperature=1"),
        ("muse", 4, 0.0, None),
    ],
)
def test_adagens_settings_are_those_of_the_generator(
    generator: str, steps: int, smoothing: float, schedule: str | None
) -> None:
    config = resolve(preset="adagen", flags={"generator": {"name": generator}})
    policy = config.policy
    assert (config.steps, policy.smoothing, policy.schedule, policy.residual) == (steps, smoothing, schedule, True)
    assert config.ppo == PPOConfig.paper() and policy.options["size"] == "paper"
    assert resolve(preset="adagen", generator=generator) == resolve(preset="adagen", generator=generator, flags={})
    # Whatever the user says wins over the family's settings too.
    own = resolve(
        preset="adagen", overrides=[f"generator.name={generator}", "steps=6", "policy.smoothing=0.1", "ppo.epochs=2"]
    )
    assert (own.steps, own.policy.smoothing, own.ppo.epochs, own.policy.schedule) == (6, 0.1, 2, schedule)
    assert resolve(preset="paper", flags={"generator": {"name": generator}}).policy.smoothing == 0


def test_groups_must_divide_the_batch() -> None:
    with pytest.raises(ConfigError, match=r"batch = 10 must be a multiple of ppo\.group = 4"):
        validate({"batch": 10, "ppo": {"group": 4}})


def test_configurations_are_frozen() -> None:
    config = resolve()
    with pytest.raises(ValidationError):
        config.steps = 3  # type: ignore[misc]
    with pytest.raises(ValidationError):
        config.ppo.clip = 0.3  # type: ignore[misc]


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 5}, "d": {"e": 1}}
    assert merge(base, over) == {"a": {"b": 5, "c": 2}, "d": {"e": 1}}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3}
    before = json.dumps(PRESETS)
    resolve(preset="paper", overrides=["reward.options.norm=none", "policy.options.size=small"])
    assert json.dumps(PRESETS) == before


def test_differences_name_nested_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == ["a.c: 2 -> 4", "d: 3 -> None", "e: None -> 5"]
    assert differences(old, old) == []


@pytest.mark.parametrize(
    "override",
    ["ppo.learning_rate=1e39", "ppo.adam_epsilon=1e39", "ppo.clip=1e-46", "ppo.sigma_drop_at=[1e39]", "fit.pull=1e39"],
)
def test_numbers_that_float32_does_not_have_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=r"must be of a size from 1e-30 to 1e\+30"):
        resolve(overrides=[override])


@pytest.mark.parametrize("override", ["steps=yes", "ppo.epochs=true", "ppo.gamma=on", "ppo.sigma_drop_at=[true]"])
def test_switches_are_no_numbers(override: str) -> None:
    with pytest.raises(ConfigError, match=r"needed is a (list of|whole)? ?numbers?, found .*true or false"):
        resolve(overrides=[override])


def test_whole_numbers_are_decimal() -> None:
    """YAML 1.1 reads 010 as 8, and 1:30 as 90."""
    assert resolve(overrides=["ppo.epochs=010"]).ppo.epochs == 10
    with pytest.raises(ConfigError, match=r"ppo.epochs = '1:30'"):
        resolve(overrides=["ppo.epochs=1:30"])


@pytest.mark.parametrize(
    ("engine", "setting", "message"),
    [
        ("adanat", "fit.actions=16", "of the engines 'offline' and 'slopes'.*leave it at 8, or use engine 'offline'"),
        ("sb3", "fit.actions=16", "no meaning for engine 'sb3'"),
        ("sb3", "fit.memory=0.5", "of engine 'slopes' alone"),
        ("offline", "fit.memory=0.5", "of engine 'slopes' alone.*use engine 'slopes'"),
        ("offline", "ppo.clip=0.1", "ppo.clip = 0.1 is PPO's"),
        ("offline", "ppo.value_coefficient=1", "is PPO's"),
        ("offline", "ppo.group_baseline=shrunk", "ppo.group"),
        *(
            ("slopes", setting, "is PPO's and has no meaning for engine 'slopes'")
            for setting in (
                "ppo.clip=0.1", "ppo.value_coefficient=1", "ppo.epochs=2", "ppo.minibatches=3", "ppo.learning_rate=0.5",
                "ppo.max_gradient_norm=2", "ppo.learning_rate=1e-5", "ppo.standardise=returns",
            )
        ),
    ],
)  # fmt: skip
def test_settings_that_an_engine_does_not_read_are_refused(engine: str, setting: str, message: str) -> None:
    more = ["ppo.group=2"] if "group_baseline" in setting else []
    with pytest.raises(ConfigError, match=message):
        create_trainer(resolve(flags=flags_of(engine), overrides=[setting, *more]), TinyGenerator())


def flags_of(engine: str) -> dict[str, Any]:
    return {"engine": engine, "device": "cpu", "policy": {"name": "linear" if engine == "slopes" else "lean"}}


@pytest.mark.parametrize("preset", ["default", "demo", "gpu"])
@pytest.mark.parametrize("engine", ["adanat", "sb3", "offline", "slopes"])
def test_presets_go_with_every_engine(engine: str, preset: str, tmp_path: Path) -> None:
    """What a preset says of PPO is passed over by an engine that does not read it, also where the settings are a file's."""
    config = resolve(preset=preset, flags=flags_of(engine))
    refuse_unread(config, load("engine", engine).reads)
    write_file(tmp_path / "settings.yaml", json.dumps(config.model_dump(mode="json")))
    refuse_unread(resolve(file=tmp_path / "settings.yaml"), load("engine", engine).reads)
