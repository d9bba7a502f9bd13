"""Fixtures of the same kinds with other parameters run through the same checks.

Each is a committed fixture, rearranged so that the published numbers still say what is expected.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .conftest import DEFAULT, fixtures_in
from .harness import Fixture, Report, check_of


def committed(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    folder = DEFAULT / name
    return json.loads((folder / "manifest.json").read_text()), load_file(folder / "io.safetensors")


def written(folder: Path, manifest: dict[str, Any], io: dict[str, Tensor]) -> Fixture:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save_file({key: value.contiguous() for key, value in io.items()}, folder / "io.safetensors")
    return Fixture(folder)


def assert_passes(fixture: Fixture) -> None:
    report, check = Report(), check_of(fixture)
    assert check is not None
    check(fixture, report)
    report.assert_within()


@pytest.mark.parametrize("columns", [[3, 0, 2, 1], [1]])
def test_actions_of_any_order_and_number(tmp_path: Path, columns: list[int]) -> None:
    manifest, io = committed("adanat_actions")
    manifest["config"]["order"] = [manifest["config"]["order"][i] for i in columns]
    del io["subset_cfg_ratio"]
    for key, value in io.items():
        if not key.endswith("timestep"):
            io[key] = value.index_select(1, torch.tensor(columns))
    assert_passes(written(tmp_path / "adanat_actions_b", manifest, io))


def test_actions_of_a_depth_without_a_released_policy(tmp_path: Path) -> None:
    manifest, io = committed("adagen_actions")
    case = manifest["config"]["cases"]["var_d16"] | {"model_depth": 24}
    manifest["config"]["cases"] = {"var_d24": case}
    own = {key.replace("var_d16/", "var_d24/"): value for key, value in io.items() if key.startswith("var_d16/")}
    assert_passes(written(tmp_path / "adagen_actions_b", manifest, own))


def test_policy_of_another_family_under_another_folder_name(tmp_path: Path) -> None:
    manifest, io = committed("adanat_policy_in64")  # AdaGen's network is the same
    keys = ["cfg", "top_k", "top_p", "manual_samp_temp"]
    assert_passes(written(tmp_path / "renamed", manifest | {"fixture": "adagen_policy_in64", "action_keys": keys}, io))


def test_one_image_of_a_next_scale_generator(tmp_path: Path) -> None:
    manifest, io = committed("adagen_var_model")
    size = len(io["label"])
    one = {}
    for key, value in io.items():
        axis = 1 if key in ("f_hat", "feat") else 0
        rows = [0, size] if value.shape[axis] == 2 * size else [0]
        one[key] = value.index_select(axis, torch.tensor(rows))
    assert_passes(written(tmp_path / "adagen_var_model_b", manifest, one))


def test_sizes_of_a_token_generator_of_odd_depth(tmp_path: Path) -> None:
    manifest, io = committed("adanat_uvit_cls")
    manifest["config"]["depth"] += 1  # half of it, rounded down, are blocks on each side
    assert_passes(written(tmp_path / "adanat_uvit_cls_b", manifest, io))


def test_half_precision_arrays_are_read_as_float32(tmp_path: Path) -> None:
    fixture = written(tmp_path / "any", {}, {"feat": torch.ones(2, dtype=torch.float16), "ids": torch.ones(2).int()})
    assert (fixture.io["feat"].dtype, fixture.io["ids"].dtype) == (torch.float32, torch.int64)


def test_a_folder_without_fixtures_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(pytest.UsageError, match="holds no"):
        fixtures_in(tmp_path)


@pytest.mark.parametrize(("below", "passes"), [(1, True), (2, False)])
def test_rounding_decides_between_two_numbers_of_kept_tokens(tmp_path: Path, below: int, passes: bool) -> None:
    manifest, io = committed("adagen_actions")
    manifest["config"]["cases"] = {"var_d16": manifest["config"]["cases"]["var_d16"]}
    io["var_d16/zero_top_k_int"] -= below  # 1000 is 999.9999 in float32, and the published code then keeps 999
    fixture, report = written(tmp_path / "adagen_actions_b", manifest, io), Report()
    check = check_of(fixture)
    assert check is not None
    check(fixture, report)
    assert all(comparison.ok for comparison in report.comparisons) == passes
