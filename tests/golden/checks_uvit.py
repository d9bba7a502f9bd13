"""The AdaNAT token generator (U-ViT), class- and text-conditional, loaded from the published container."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from adanat_plugins.generators.adanat import uvit_sizes
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.weights import build, read_state

from .harness import Fixture, Report


def arguments(fixture: Fixture) -> dict[str, Any]:
    config = fixture.config
    return {
        "tokens": config["img_size"] ** 2,
        "codebook_size": config["codebook_size"],
        "embed_dim": config["embed_dim"],
        "depth": config["depth"],
        "num_heads": config["num_heads"],
        "mlp_ratio": config["mlp_ratio"],
        "qkv_bias": config["qkv_bias"],
        "skip": config["skip"],
        "num_classes": config.get("num_classes"),
        "clip_dim": config.get("clip_dim"),
    }


def check(fixture: Fixture, report: Report) -> None:
    sizes = arguments(fixture)
    with torch.device("meta"):
        report.names_and_shapes(UViT(**sizes).state_dict(), fixture)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    with torch.device("meta"):  # the network, not the numbers: a depth of 5 has the blocks of 4
        read = UViT(**uvit_sizes(shapes, heads=sizes["num_heads"])).state_dict()
    same = {name: value.shape for name, value in read.items()} == {name: value.shape for name, value in shapes.items()}
    report.holds("sizes read from the file", same)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "nnet_ema.pth"
        torch.save({f"module.{name}": value for name, value in fixture.state().items()}, file)
        network = build(lambda: UViT(**sizes), read_state(file), source=file.name)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    with torch.no_grad():
        logits, features = network(io["masked_ids"], io["context"])
    report.close("logits", logits, io["logits"], **tolerance)
    report.close("features", features, io["feat"], **tolerance)


CHECKS = {"adanat_uvit": check}
