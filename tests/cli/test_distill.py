"""``adanat distill``, and the decoder that ``adanat train`` is given."""

from __future__ import annotations

import json
from pathlib import Path

from ..helpers.cli import adanat, contents, refused, train_arguments
from ..helpers.train_process import write_images


def test_a_decoder_is_taught_and_a_run_uses_it(tmp_path: Path) -> None:
    images, file = tmp_path / "images", tmp_path / "small.safetensors"
    write_images(images)
    some = ("--data", images, "--images", "32", "--steps", "2", "--width", "8", "--device", "cpu", "--dtype", "float32")
    result = adanat("distill", "--out", file, *some, "--json")
    found = json.loads(result.stdout)
    assert found["file"] == str(file) and found["psnr"] > 5 and found["frechet"] > 0 and found["held_out"] == 2
    assert "PSNR" in result.stderr
    plan = adanat(*train_arguments(images, tmp_path / "run", "--decoder", file, "--dry-run"))
    assert f"decoder: {file}" in plan.stdout and "as given" in plan.stdout
    run = adanat(*train_arguments(images, tmp_path / "run", "--decoder", file, "--quiet"))
    assert run.exit_code == 0, run.stderr
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored["decoder"] == str(file)
    own = adanat(*train_arguments(images, tmp_path / "own", "--quiet"))
    assert own.exit_code == 0
    policy = "policy/policy.safetensors"
    assert contents(tmp_path / "run")[policy] != contents(tmp_path / "own")[policy]
    refused(adanat(*train_arguments(images, tmp_path / "own", "--decoder", file)), "another decoder")
    refused(adanat(*train_arguments(images, tmp_path / "x", "--decoder", images / "no.safetensors")), "no.safetensors")
    refused(adanat("distill", "--out", tmp_path / "small.bin", *some), "small.bin", ".safetensors")
