"""AdaGen's DiT and SiT and their autoencoder, loaded from the published containers."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from adanat_plugins.generators.dit_net import DiT, dit_sizes, position_table
from adanat_plugins.tokenizers.autoencoder_kl import SCALE, AutoencoderKL, AutoencoderKLConfig, KLTokenizer
from adanat_plugins.weights import build, read_state

from .harness import Fixture, Report


def sizes(config: dict[str, Any]) -> dict[str, Any]:
    """The network's arguments in a fixture's ``config``."""
    return {
        "side": config["input_size"],
        "patch": config["patch_size"],
        "channels": config["in_channels"],
        "outputs": config["in_channels"] * (2 if config["learn_sigma"] else 1),
        "width": config["hidden_size"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "hidden": int(config["hidden_size"] * config["mlp_ratio"]),
        "classes": config["num_classes"],
    }


def check_network(fixture: Fixture, report: Report) -> None:
    own = sizes(fixture.config)
    with torch.device("meta"):
        report.names_and_shapes(DiT(**own).state_dict(), fixture)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    report.holds("sizes read from the file", dit_sizes(shapes, heads=own["heads"]) == own)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "DiT-XL-2-256x256.pt"
        torch.save(fixture.state(), file)
        network = build(lambda: DiT(**own), read_state(file), source=file.name)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    with torch.no_grad():
        out, features = network(io["x"], io["t"], io["y"].flatten())
    report.close("prediction", out[:, : io["out"].shape[1]], io["out"], **tolerance["out"])
    report.close("features", features, io["feat"], **tolerance["feat"])
    table = position_table(own["width"], own["side"] // own["patch"])
    report.close("position table", table, io["pos_embed_sincos"], **tolerance["pos_embed_sincos"])


def check_autoencoder(fixture: Fixture, report: Report) -> None:
    details = fixture.config["ddconfig"]
    config = AutoencoderKLConfig(
        fixture.config["embed_dim"], details["ch"], tuple(details["ch_mult"]), details["num_res_blocks"]
    )
    with torch.device("meta"):
        report.names_and_shapes(AutoencoderKL(config).state_dict(), fixture)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    report.holds("sizes read from the file", AutoencoderKLConfig.from_state(shapes) == config)
    report.holds("scale of the latents", fixture.config["scale_factor"] == SCALE)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "autoencoder_kl.pth"
        torch.save(fixture.state(), file)
        tokenizer = KLTokenizer.from_state(
            read_state(file), source=file.name, device=torch.device("cpu"), dtype=torch.float32
        )
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    with torch.no_grad():
        decoded, moments = tokenizer.model.decode(io["z"]), tokenizer.model.moments(io["image_in"])
    report.close("decoded", decoded, io["decoded"], **tolerance["decoded, image"])
    report.close("moments", moments, io["moments"], **tolerance["moments"])
    report.close("image", tokenizer.decode(io["z"]), io["image"], **tolerance["decoded, image"])
    mean = SCALE * io["moments"][:, : tokenizer.channels]
    report.close("mean latent", tokenizer.encode(io["image_in"].add(1).div(2)), mean, **tolerance["moments"])


CHECKS = {
    "adagen_dit_model": check_network,
    "adagen_dit_full": check_network,
    "adagen_sit_model": check_network,
    "adagen_sit_full": check_network,
    "adagen_autoencoder_kl": check_autoencoder,
}
