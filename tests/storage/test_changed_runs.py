"""Whatever is changed in a run's own files: it goes on to the result of the unbroken run, or one clear error says why not.

``ADANAT_EXAMPLES=2000 pytest tests/storage/test_changed_runs.py`` looks more thoroughly.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adanat_toolkit.errors import CheckpointError
from adanat_toolkit.storage import RunFolder, card_digest
from adanat_toolkit.storage.files import load_tensors
from adanat_toolkit.training import as_begun, create_trainer, merge, validate

from ..helpers.mutations import changed_bytes, changed_json, changed_lines, settings, survives
from ..helpers.tiny import install_tiny

SETTINGS: dict[str, Any] = {
    "generator": {"name": "tiny"}, "reward": {"name": "dark"}, "policy": {"name": "shared"}, "steps": 2,
    "trajectories": 32, "batch": 8, "checkpoint_every": 2, "keep_checkpoints": 9, "device": "cpu",
}  # fmt: skip


class Stop(Exception):
    pass


def stop_after_three(row: dict[str, Any]) -> None:
    if row["iteration"] == 3:
        raise Stop


def go_on(folder: Path) -> None:
    """As ``adanat train`` does: ``dtype`` is auto, which is what the run was begun with."""
    create_trainer(as_begun(validate(SETTINGS), RunFolder(folder))).run(folder)


def steady(folder: Path) -> list[dict[str, Any]]:
    """What the rows say that no clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("seconds") and "per_second" not in k} for row in rows]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``whole``, and ``cut`` which was stopped with a row beyond its newest checkpoint."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        install_tiny(folder / "site", patch)
        begun = validate({**SETTINGS, "dtype": "float32"})
        create_trainer(begun).run(folder / "whole")
        with pytest.raises(Stop):
            create_trainer(begun).run(folder / "cut", on_iteration=stop_after_three)
        assert [row["iteration"] for row in steady(folder / "cut")] == [1, 2, 3]
        yield folder


def resumed(runs: Path, name: str, data: bytes | str) -> str | None:
    """The message where the run ``cut`` with other content of a file is refused; None where it went on as it should."""
    folder = runs / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs / "cut", folder)
    (folder / name).write_bytes(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    told = survives(f"resume {name}", lambda: go_on(folder))
    if told is None:
        assert steady(folder) == steady(runs / "whole")
        one, other = (load_tensors(RunFolder(run).checkpoint(4), "state")[0] for run in (folder, runs / "whole"))
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    return told


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_any_change(name: str, runs: Path) -> None:
    whole = (runs / "cut" / name).read_text()
    change = changed_lines(whole) if name.endswith("l") else changed_json(whole)

    @settings
    @given(st.one_of(change, change, changed_bytes(whole.encode())))
    def check(data: bytes | str) -> None:
        resumed(runs, name, data)

    check()


@pytest.mark.parametrize("places", ["0012", "1012", "02", "0212", "0"])
def test_rows_that_a_checkpoint_counts_stand_in_their_places(places: str, runs: Path) -> None:
    told = resumed(runs, "metrics.jsonl", of_places(runs, places))
    assert told is not None and ("rows are not those it counts" in told or "has 1 rows" in told), told


@pytest.mark.parametrize("places", ["0122", "01222", "0121", "0120", "01"])
def test_rows_beyond_a_checkpoint_do_not_matter(places: str, runs: Path) -> None:
    """Also where they say that they are of an iteration before it."""
    assert resumed(runs, "metrics.jsonl", of_places(runs, places)) is None


def of_places(runs: Path, places: str) -> str:
    lines = (runs / "cut" / "metrics.jsonl").read_text().splitlines(keepends=True)
    return "".join(lines[int(place)] for place in places)


def test_a_carriage_return_ends_no_row(runs: Path) -> None:
    text = (runs / "cut" / "metrics.jsonl").read_text()
    told = resumed(runs, "metrics.jsonl", text.replace(", ", ",\r", 1))
    assert told is not None and "was changed or damaged" in told
    assert resumed(runs, "metrics.jsonl", ",\r".join(text.rsplit(", ", 1))) is None  # of a row that is made again


@pytest.mark.parametrize(
    ("group", "key", "value", "message"),
    [
        ("ppo", "adam_epsilon", 1e-3, "was made with adam_epsilon = 1e-05, and now it is 0.001"),
        ("ppo", "adam_epsilon", True, "ppo.adam_epsilon is True, no number above 0"),
        (None, "dtype", "bfloat16", "was made with dtype = float32, and now it is bfloat16"),
        ("ppo", "surplus", "x" * 9999, "ppo.surplus: 'xxx"),
        (None, "ppo", None, "ppo.adam_epsilon is None"),
    ],
)
def test_what_a_run_takes_from_its_configuration_is_what_its_checkpoint_was_made_with(
    group: str | None, key: str, value: Any, message: str, runs: Path
) -> None:
    """Nobody gives these again, so no comparison with the command would show a change."""
    stored = json.loads((runs / "cut" / "config.json").read_text())
    (stored if group is None else stored[group])[key] = value
    told = resumed(runs, "config.json", json.dumps(stored))
    assert told is not None and message in told, told


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 5}, "was made with seed = 0, and now it is 5"),
        ({"ppo": {"clip": 0.25, "learning_rate": 1e-4}}, "(ppo.clip: 0.2 -> 0.25; ppo.learning_rate: 0.0005 -> 0.0001)"),
        ({"reward": {"warmup": 1}}, "was made with other settings (reward.warmup: 0 -> 1)"),
        ({"ppo": {"sigma_drop_at": [0]}}, "was made with other settings (sigma: [[0, 0.6]] -> [[0, 0.6], [1, 0."),
    ],
)
def test_a_changed_configuration_is_not_gone_by_where_the_command_says_the_same(
    changed: dict[str, Any], message: str, runs: Path
) -> None:
    folder = runs / "both"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runs / "cut", folder)
    stored = merge(json.loads((folder / "config.json").read_text()), changed)
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(CheckpointError, match=re.escape(message)):
        create_trainer(validate(stored)).run(folder)


def test_checkpoints_that_do_not_record_their_settings_go_on(runs: Path) -> None:
    folder = runs / "older"
    shutil.copytree(runs / "cut", folder)
    file = folder / "checkpoints" / "000002" / "state.json"
    card = {k: v for k, v in json.loads(file.read_text()).items() if k not in ("course", "settings", "sources")}
    file.write_text(json.dumps(card | {"digest": card_digest(card)}))
    go_on(folder)
    assert steady(folder) == steady(runs / "whole")


def test_an_empty_configuration_is_told_in_few_words(runs: Path) -> None:
    told = resumed(runs, "config.json", "{}")
    assert told is not None and re.search(r"; and \d\d more\)", told) and len(told) < 1000, told


def test_a_report_shows_no_row_twice(runs: Path) -> None:
    folder = runs / "doubled"
    shutil.copytree(runs / "cut", folder)
    (folder / "metrics.jsonl").write_text(of_places(runs, "0122"))
    with pytest.raises(CheckpointError, match=r"line 4 of .*iteration 3 comes after iteration 3"):
        RunFolder(folder).metrics()
