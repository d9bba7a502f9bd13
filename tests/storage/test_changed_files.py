"""Whatever is changed in a file of ours: it is read, or one clear error says what is wrong, within bounds of time and memory.

``ADANAT_EXAMPLES=2000 pytest tests/storage/test_changed_files.py -s`` looks more thoroughly and prints how many it tried.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from adanat_toolkit.commands.headroom import reward_for
from adanat_toolkit.commands.sample_folder import sample_to_folder
from adanat_toolkit.compare import Comparison, configure, write_report
from adanat_toolkit.compare.cells import CellFiles, read_report
from adanat_toolkit.compare.plots import knobs_over_steps, quality_against_steps
from adanat_toolkit.compare.render import markdown, to_csv
from adanat_toolkit.compare.table import build_table
from adanat_toolkit.metrics import FeatureStatistics, frechet_distance
from adanat_toolkit.policies import load_policy
from adanat_toolkit.registry import parse_override
from adanat_toolkit.report import Settings, make_report
from adanat_toolkit.sampling import seed_range
from adanat_toolkit.storage import RunFolder, card_digest, load_checkpoint, sealed
from adanat_toolkit.training import load_judge, resolve, validate
from adanat_toolkit.training.checkpoint import open_run

from ..helpers.mutations import (
    EXAMPLES,
    changed_bytes,
    changed_json,
    changed_lines,
    changed_safetensors,
    places,
    png_with,
    settings,
    survives,
    text_of_png,
    tried,
)
from ..helpers.report_runs import plugins, trained
from ..helpers.tiny_plugins import TinyWithData
from ..report.test_report import store_evaluation

__all__ = ["plugins", "trained"]  # fixtures


@pytest.fixture(scope="module", autouse=True)
def tally() -> Iterator[None]:
    yield
    if "ADANAT_EXAMPLES" in os.environ:
        for (reader, ending), count in sorted(tried.items()):
            print(f"\n{reader}: {count:,} {ending}", end="")
        print(f"\ninputs in all: {sum(tried.values()):,}")


@pytest.fixture(scope="module")
def run(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything in it."""
    folder = tmp_path_factory.mktemp("changed") / "run"
    shutil.copytree(trained / "shared", folder)
    store_evaluation(folder, 16)
    return folder


class Changed:
    """A file in place of another, for a block."""

    def __init__(self, file: Path, data: bytes | str) -> None:
        self.file, self.whole = file, file.read_bytes()
        self.data = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data

    def __enter__(self) -> None:
        self.file.write_bytes(self.data)

    def __exit__(self, *_: object) -> None:
        self.file.write_bytes(self.whole)


# --- run folders and reports ------------------------------------------------------------------------------------------

REPORTED = ("config.json", "metrics.jsonl", "policy/policy.json", "evaluation/evaluation.json")


def judged(run: Path, text: bytes | str) -> str:
    """The stored evaluation as one of the policy whose card this is; as it is where it is no card."""
    facts = json.loads((run / REPORTED[3]).read_text())
    with suppress(ValueError, RecursionError):
        card = json.loads(text)
        if isinstance(card, dict):
            facts["policies"][0]["card"] = card
    return json.dumps(sealed(facts))


STRANGE_CARDS: tuple[dict[str, Any], ...] = (
    {"training": 5},
    {"training": {"reads": 5}},
    {"training": None},
    {"generator": {"name": 3}},
    {"options": []},
)
"""By readers of the code, not by chance."""


@pytest.mark.parametrize("strange", STRANGE_CARDS)
def test_the_card_of_a_stranger_is_checked(strange: dict[str, Any], run: Path, tmp_path: Path) -> None:
    card = run / "policy" / "policy.json"
    text = signed(json.dumps(json.loads(card.read_text()) | strange))
    with Changed(card, text), Changed(run / REPORTED[3], judged(run, text)):
        told = survives("report policy.json", lambda: make_report([run], tmp_path / "r.html", Settings(pictures=False)))
    assert told is not None and str(card) in told, told


STRANGE_ROWS = (
    '"trajectories": Infinity',
    '"trajectories": NaN',
    '"trajectories": -1',
    '"trajectories": 1e300',
    '"trajectories": null',
    '"reward/std": null',
)
"""By readers of the code, not by chance."""


@pytest.mark.parametrize("strange", STRANGE_ROWS)
def test_the_rows_of_a_stranger_are_checked(strange: str, run: Path, tmp_path: Path) -> None:
    file = run / "metrics.jsonl"
    first, *rest = file.read_text().splitlines()
    row = {key: value for key, value in json.loads(first).items() if f'"{key}"' not in strange}
    with Changed(file, "\n".join([json.dumps(row)[:-1] + f", {strange}}}", *rest]) + "\n"):
        told = survives("report metrics.jsonl", lambda: make_report([run], tmp_path / "r.html", Settings(pictures=False)))
    assert told is not None and f"row 1 of {file}" in told, told


@pytest.mark.parametrize("name", REPORTED)
def test_report(name: str, run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("out") / "out.html"
    whole = (run / name).read_text()

    @settings
    @given(st.data())
    def check(data: st.DataObject) -> None:
        change = changed_lines(whole) if name.endswith("l") else changed_json(whole)
        text: bytes | str = data.draw(st.one_of(change, change, changed_bytes(whole.encode())))
        if name in ("policy/policy.json", "evaluation/evaluation.json") and isinstance(text, str):
            text = signed(text)
        more = judged(run, text) if name == "policy/policy.json" and data.draw(st.booleans()) else None
        with Changed(run / name, text), nullcontext() if more is None else Changed(run / REPORTED[3], more):
            told = survives(f"report {name}", lambda: make_report([run], out, Settings(pictures=False)))
        assert told is None or str(run) in told, told

    check()


def signed(text: str) -> str:
    """A card whose checksum fits what was changed, as an attacker would write it; as it is where it is no card."""
    try:
        card = json.loads(text)
        card["digest"] = card_digest(card)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return text
    return json.dumps(card)


@settings
@given(st.data())
def _policy(run: Path, data: st.DataObject) -> None:
    card, tensors = run / "policy" / "policy.json", run / "policy" / "policy.safetensors"
    generator = TinyWithData()
    if data.draw(st.booleans()):
        text: bytes | str = data.draw(st.one_of(changed_json(card.read_text()), changed_bytes(card.read_bytes())))
        file = card
        if isinstance(text, str) and data.draw(st.booleans()):
            text = signed(text)
    else:
        whole, file = tensors.read_bytes(), tensors
        text = data.draw(st.one_of(changed_safetensors(whole), changed_bytes(whole)))
    with Changed(file, text):
        survives(f"policy {file.name}", lambda: load_policy(str(run), generator))


def test_policy_folder(run: Path) -> None:
    _policy(run)


def test_checkpoint(run: Path) -> None:
    folder = RunFolder(run).checkpoint(RunFolder(run).checkpoints()[-1])

    @settings
    @given(st.sampled_from(("state.json", "state.safetensors")), st.data())
    def check(name: str, data: st.DataObject) -> None:
        whole = (folder / name).read_bytes()
        special = changed_json(whole.decode()) if name.endswith("json") else changed_safetensors(whole)
        text: bytes | str = data.draw(st.one_of(special, changed_bytes(whole)))
        if isinstance(text, str) and data.draw(st.booleans()):
            text = signed(text)
        with Changed(folder / name, text):
            survives(f"checkpoint {name}", lambda: load_checkpoint(folder))

    check()


def _readers_of_settings(run: Path) -> dict[str, Callable[[], Any]]:
    generator = TinyWithData()
    config = validate(json.loads((run / "config.json").read_text()))
    return {
        "judge": lambda: load_judge(run, generator),
        "headroom": lambda: reward_for(None, str(run), generator=generator, real=generator.real_images()),
        "resume": lambda: open_run(RunFolder(run), config, {}),
    }


def test_settings_of_a_run(run: Path) -> None:
    file, readers = run / "config.json", _readers_of_settings(run)
    whole = file.read_text()

    @settings
    @given(st.sampled_from(sorted(readers)), st.data())
    def check(reader: str, data: st.DataObject) -> None:
        text = data.draw(st.one_of(changed_json(whole), changed_json(whole), changed_bytes(whole.encode())))
        with Changed(file, text):
            survives(f"{reader} config.json", readers[reader])

    check()


STRANGE_SETTINGS: tuple[dict[str, Any], ...] = (
    {"reward": None},
    {"reward": 3},
    {"reward": {"name": "contrast", "options": [1]}},
    {"reward": {"name": 3, "options": {}}},
    {"ppo": 3},
    {"ppo": {"adam_epsilon": None}},
    {"ppo": {"adam_epsilon": "x"}},
)
"""By readers of the code, not by chance."""


@pytest.mark.parametrize("strange", STRANGE_SETTINGS)
def test_settings_of_a_stranger_are_checked(strange: dict[str, Any], run: Path) -> None:
    readers = _readers_of_settings(run)
    with Changed(run / "config.json", json.dumps(json.loads((run / "config.json").read_text()) | strange)):
        for name, read in readers.items():
            told = survives(f"{name} config.json", read)
            assert told is not None and str(run) in told, (name, told)


# --- settings ---------------------------------------------------------------------------------------------------------

LAUGHS = "a: &a [x, x, x, x, x, x, x, x]\n"
for before, after in itertools.pairwise("abcdefghi"):
    LAUGHS += f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n"
YAML = (
    "2021-99-99", "2021-12-31", "!!int x", "!!float x", "!!bool x", "!!timestamp x", "!!binary x", "!!set {a}", "!!map x",
    "!!python/name:os.system", "!!python/object/apply:os.system [ls]", "&a [*a]", "*nothing", "{<<: 3}", "? [1]\n: 2",
    '"\\ud800"', "[" * 100_000, "{a: " * 20_000, "- " * 20_000, "9" * 5000, "0x" + "f" * 5000, "1:60:60", ".nan", "-.inf",
    "1e999", "~", "[1", "'", "%TAG", "@x", "\t- a", "a: b: c", "<<", "!", "!x", "|\n a", "\u2028", "null", "0o7", "+1_0",
)  # fmt: skip
KEYS = (
    "seed",
    "steps",
    "ppo",
    "ppo.clip",
    "policy.options",
    "policy.knobs",
    "generator.name",
    "tracker",
    "data.path",
    "x",
    "",
)


@settings
@given(st.sampled_from(KEYS), st.one_of(st.sampled_from(YAML), st.text(max_size=20)))
@example("seed", "2021-99-99")
@example("seed", "!!int x")
@example("seed", "9" * 5000)
@example("seed", "[" * 100_000)
@example(".".join("a" * 50_000), "1")
def test_overrides(key: str, value: str) -> None:
    text = f"{key}={value}"
    survives("--set", lambda: resolve(overrides=[text]))
    survives("--generator-option", lambda: json.dumps(parse_override(text, flag="--generator-option")))


def test_settings_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("yaml") / "run.yaml"
    stored = json.loads((run / "config.json").read_text())
    whole = yaml.safe_dump(stored)

    @settings
    @given(st.data())
    @example(None)
    def check(data: st.DataObject | None) -> None:
        text: bytes | str = LAUGHS
        if data is not None:
            kind = data.draw(st.sampled_from(("value", "json", "bytes")))
            if kind == "value":
                place = data.draw(st.sampled_from([p for p in places(stored) if p]))
                value = data.draw(st.sampled_from(YAML))
                text = "".join(
                    f"{' ' * i}{key}: " + ("\n" if i < len(place) - 1 else value) for i, key in enumerate(place)
                )
            else:
                text = data.draw(changed_json(json.dumps(stored)) if kind == "json" else changed_bytes(whole.encode()))
        file.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
        survives("--config", lambda: resolve(file=file))

    check()


# --- samples ----------------------------------------------------------------------------------------------------------


def test_samples(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, generator = tmp_path_factory.mktemp("samples") / "samples", TinyWithData()
    policy = load_policy("fixed", generator)

    def make() -> dict[str, Any]:
        return sample_to_folder(generator, policy, folder, seeds=seed_range(0, 2), batch=2)

    make()
    listing, image = folder / "samples.json", folder / "000000.png"
    expected = listing.read_text()

    @settings
    @given(st.data())
    def check(data: st.DataObject) -> None:
        file = data.draw(st.sampled_from((listing, image)))
        whole = file.read_bytes()
        text: bytes | str = data.draw(changed_bytes(whole))
        if file == listing and data.draw(st.booleans()):
            text = data.draw(changed_json(whole.decode()))
        elif file == image and data.draw(st.booleans()):
            facts = data.draw(changed_json(text_of_png(whole)))
            text = png_with(whole, facts, compressed=data.draw(st.booleans()))
        with Changed(file, text):
            survives(f"samples {file.suffix}", make)
        listing.write_text(expected)

    check()


# --- statistics -------------------------------------------------------------------------------------------------------


def test_statistics(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("statistics")
    features = torch.rand(20, 5, generator=torch.Generator().manual_seed(0))
    own = FeatureStatistics.of(features, "pixels", "data")
    FeatureStatistics.of(features + 1, "pixels", "data").save(folder / "s.safetensors")
    np.savez(folder / "s.npz", mu=np.zeros(5), sigma=np.eye(5))
    np.savez_compressed(folder / "c.npz", mu=np.zeros(5), sigma=np.eye(5))

    @settings
    @given(st.sampled_from(("s.safetensors", "s.npz", "c.npz")), st.data())
    def check(name: str, data: st.DataObject) -> None:
        whole = (folder / name).read_bytes()
        change = changed_bytes(whole)
        text = data.draw(st.one_of(change, changed_safetensors(whole)) if name.startswith("s.s") else change)
        with Changed(folder / name, text):
            told = survives(
                f"statistics {name}", lambda: frechet_distance(own, FeatureStatistics.load(folder / name, "pixels"))
            )
        assert told is None or name in told or "features" in told or "protocol" in told or "samples" in told, told

    check()


ARRAYS = {
    "numbers that are no numbers": np.full((2, 2), np.nan),
    "large numbers": np.full((2, 2), 1e200),
    "texts": np.full((2, 2), "x"),
    "objects": np.full((2, 2), None),
    "complex numbers": np.eye(2) * 1j,
    "no numbers": np.zeros((0, 0)),
    "many sides": np.zeros((1,) * 8),
    "many of them": np.zeros((1, 100_000)),
    "records": np.zeros(2, [("a", "f8")]),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_are_no_statistics(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=ARRAYS[name])
    assert survives("statistics .npz", lambda: FeatureStatistics.load(tmp_path / "s.npz")) is not None


def test_an_array_larger_than_its_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", mu=np.zeros(2), sigma=np.zeros((2, 2)))
    whole = (tmp_path / "s.npz").read_bytes()
    for shape in ("(8000, 8000)", "(2**40,)", "(99999999999, )"):
        text = whole.replace(b"(2, 2), }" + b" " * (len(shape) - 6), shape.encode() + b", }")
        (tmp_path / "s.npz").write_bytes(text)
        assert survives("statistics .npz", lambda: FeatureStatistics.load(tmp_path / "s.npz")) is not None


# --- comparisons ------------------------------------------------------------------------------------------------------


STRANGE_KNOBS: tuple[dict[str, Any], ...] = (
    {"names": [], "mean": [[]], "low": [[]], "high": [[]]},
    {"names": ["guidance"], "mean": [], "low": [], "high": []},
    {"names": ["guidance"], "mean": [[]], "low": [[]], "high": [[]]},
    {},
)


def test_comparisons(plugins: None, tmp_path_factory: pytest.TempPathFactory) -> None:
    out = tmp_path_factory.mktemp("compare")
    base = {"generator": {"name": "tiny"}, "batch": 16, "trajectories": 32, "device": "cpu", "evaluate_every": 1}
    base |= {"evaluate_images": 16}
    config = configure(
        base=validate(base),
        policies=("shared",),
        rewards=("contrast",),
        candidates=0,
        images=32,
        seeds=(0,),
        steps=(2,),
    )
    comparison = Comparison(config, out)
    results = comparison.run()
    table = comparison.table(results)
    write_report(results, table, out, sheets=out / "cells")
    report, learned = out / "compare.json", results[-1]
    assert len(read_report(out)) == 2 and learned.cell.learned
    file = comparison.files.file(learned.cell)

    def own() -> None:
        files = CellFiles(out / "cells", comparison.files.key)
        found = files.load(learned.cell)
        if found is not None:
            table = build_table([results[0], found], comparison._facts([results[0], found]))
            assert markdown(table) and to_csv(table)
            if EXAMPLES > 100:
                knobs_over_steps([results[0], found])
                quality_against_steps(table)

    @settings
    @given(st.data())
    def check(data: st.DataObject) -> None:
        if data.draw(st.booleans()):
            stored = json.loads(file.read_text())
            key = json.dumps(stored["key"])
            text: bytes | str = f'{{"key": {key}, "result": {data.draw(changed_json(json.dumps(stored["result"])))}}}'
            if data.draw(st.integers(0, 3)) == 0:
                text = data.draw(changed_bytes(file.read_bytes()))
            with Changed(file, text):
                told = survives("compare cell", own)  # a damaged one counts as not finished
            assert told is None or "not comparable" in told, told
        else:
            whole = report.read_text()
            text = data.draw(st.one_of(changed_json(whole), changed_json(whole), changed_bytes(whole.encode())))
            with Changed(report, text):
                told = survives("compare --reuse", lambda: read_report(out))
            assert told is None or told.startswith("cannot reuse"), told

    check()
    facts = json.loads(report.read_text())
    for strange in STRANGE_KNOBS:  # by readers of the code, not by chance
        cells = [{**cell, "knobs": strange} for cell in facts["cells"]]
        with Changed(report, json.dumps({**facts, "cells": cells})):
            told = survives("compare --reuse", lambda: read_report(out))
        assert told is not None and told.startswith("cannot reuse"), (strange, told)
