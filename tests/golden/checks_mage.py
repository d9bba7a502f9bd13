"""MAGE, loaded from the published container: names, shapes, encoder states and logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adanat_plugins.generators.mage_net import MAGEConfig, MAGENet, unused_shapes
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig
from adanat_plugins.weights import build, read_state, select, without

from .harness import Fixture, Report


def all_tensors(config: MAGEConfig, patch_size: int, vqgan: VQGANConfig | None) -> dict[str, torch.Tensor]:
    """Everything a published file holds, on the meta device: what is used and what is known to be unused."""
    with torch.device("meta"):
        own = dict(MAGENet(config).state_dict())
        for name, shape in unused_shapes(config, patch_size=patch_size).items():
            own[name] = torch.empty(shape, dtype=torch.int64 if name.endswith("position_ids") else torch.float32)
        if vqgan is not None:
            own |= {f"vqgan.{name}": value for name, value in VQGAN(vqgan).state_dict().items()}
    return own


def sizes(fixture: Fixture) -> tuple[MAGEConfig, int]:
    config = fixture.config
    patch = config.get("patch_size", 16)
    tokens = (config.get("img_size", 256) // patch) ** 2
    return (
        MAGEConfig(
            config["embed_dim"], config["depth"], config["num_heads"],
            config["decoder_embed_dim"], config["decoder_depth"], config["decoder_num_heads"],
            tokens,
            config.get("codebook_size", 1024),
            config.get("vocab_size", 2025),
            config.get("mask_token", 2024),
            config.get("fake_class_token", 1100),
            config.get("mlp_ratio", 4.0),
        ),
        patch,
    )


def check(fixture: Fixture, report: Report) -> None:
    """With or without the tokenizer; numbers where the fixture has some."""
    config, patch = sizes(fixture)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    tokenizer = select(shapes, "vqgan.")
    vqgan = VQGANConfig.from_state(tokenizer) if tokenizer else None
    report.names_and_shapes(all_tensors(config, patch, vqgan), fixture)
    read = MAGEConfig.from_state(shapes, heads=config.heads, decoder_heads=config.decoder_heads)
    own = {"codebook_size": config.codebook_size, "class_id": config.class_id}  # no tensor tells these
    report.holds("sizes read from the file", replace(read, **own) == config)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "mage.pth"
        torch.save({"model": {f"module.{name}": value for name, value in fixture.state().items()}}, file)
        unused = unused_shapes(config, patch_size=patch)
        state = without(read_state(file), "vqgan.")
        network = build(lambda: MAGENet(config), state, source=file.name, unused=unused)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    with torch.no_grad():
        sequence, encoded = network.encode(io["ids"])
        decoded = network.decode(sequence, encoded)
        report.close("encoder", encoded, io["encoder"], **tolerance)
        report.close("class row", network.logits(decoded)[:, 0], io["logits_class_row"], **tolerance)
        report.close("logits", network(io["ids"])[0], io["logits"], **tolerance)


CHECKS = {"mage": check}
