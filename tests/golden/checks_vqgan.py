"""The MaskGIT/MAGE/AdaNAT VQGAN, loaded from the published container: names, shapes, pixels and codes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adanat_plugins.tokenizers.vqgan import VQGANConfig, VQGANTokenizer
from adanat_plugins.weights import read_state

from .harness import Fixture, Report


def expected_config(fixture: Fixture) -> VQGANConfig:
    sizes = fixture.config["ddconfig"]
    return VQGANConfig(
        fixture.config["n_embed"], fixture.config["embed_dim"], sizes["ch"], tuple(sizes["ch_mult"]),
        sizes["num_res_blocks"],
    )


def check(fixture: Fixture, report: Report) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vqgan_jax_strongaug.ckpt"
        torch.save({"state_dict": fixture.state()}, file)
        state = read_state(file)
        tokenizer = VQGANTokenizer.from_state(
            state, source=file.name, device=torch.device("cpu"), dtype=torch.float32
        )
    network = tokenizer.model
    report.names_and_shapes(network.state_dict(), fixture)
    report.holds("sizes read from the file", network.config == expected_config(fixture))
    if not fixture.io:
        return
    tolerance = fixture.manifest["tolerance"]
    io = fixture.io
    codes = io["codes"]
    grid = (codes.shape[1], codes.shape[2])
    with torch.no_grad():
        report.close("raw image", network.raw_images(codes.flatten(1), grid), io["image_raw"], **tolerance)
        image = io.get("image", io["image_raw"].clamp(0, 1))  # the committed copy keeps only the raw one
        report.close("image", tokenizer.decode(codes.flatten(1), grid), image, **tolerance)
        images = io["pixels"].float() / 255
        report.close("latent", network.latent(images), io["latent"], **tolerance)
    clear = io["code_margin"] >= 1e-3
    report.equal("codes", tokenizer.encode(images).flatten(), io["encoded"], where=clear)


CHECKS = {"adanat_vqgan": check}
