"""Halton-MaskGIT: the transformer, its LlamaGen tokenizer, the Halton order and the count schedules."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adanat_plugins.generators.halton import load_halton, load_llamagen
from adanat_plugins.generators.halton_net import HaltonConfig, HaltonTransformer
from adanat_plugins.tokenizers.llamagen_vq import LlamaGenVQ, LlamaGenVQConfig
from adanat_toolkit.decoding.released_counts import confidence_counts, halton_counts, halton_order

from .harness import Fixture, Report
from .published_files import save_halton, save_llamagen


def _transformer_config(fixture: Fixture) -> HaltonConfig:
    c = fixture.config
    return HaltonConfig(
        grid=c["input_size"], width=c["hidden_dim"], depth=c["depth"], heads=c["heads"], mlp_width=c["mlp_dim"],
        codebook_size=c["codebook_size"], num_classes=c["nclass"], registers=c["register"],
    )


def check_transformer(fixture: Fixture, report: Report) -> None:
    config = _transformer_config(fixture)
    with torch.device("meta"):
        empty = HaltonTransformer(config)
    report.names_and_shapes(empty.state_dict(), fixture)
    sizes = {key: torch.empty(shape, device="meta") for key, (shape, _) in fixture.specs.items()}
    inferred = _state_shapes(HaltonConfig.from_state(sizes, config.heads))
    same = inferred == {key: value.shape for key, value in sizes.items()}
    report.holds("the sizes read from the tensors give the same network", same)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "ImageNet_256_base.pth"
        save_halton(file, fixture.state())
        model = load_halton(file, config.heads)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    codes = io["codes"].flatten(1)
    null = torch.full_like(io["labels"], config.num_classes)
    labels = torch.where(io["drop"].bool(), null, io["labels"])
    for name, classes in {"logits": labels, "logits_dropped": null}.items():
        if name in io:
            with torch.no_grad():
                report.close(name, model(codes, classes)[0], io[name], **tolerance)


def _state_shapes(config: HaltonConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in HaltonTransformer(config).state_dict().items()}


def check_tokenizer(fixture: Fixture, report: Report) -> None:
    c = fixture.config
    config = LlamaGenVQConfig(
        codebook_size=c["codebook_size"], code_width=c["codebook_embed_dim"], latent_width=c["z_channels"],
        width=c["ch"], multipliers=tuple(c["ch_mult"]), blocks=c["num_res_blocks"],
    )
    with torch.device("meta"):
        report.names_and_shapes(LlamaGenVQ(config).state_dict(), fixture)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vq_ds16_c2i.pt"
        save_llamagen(file, fixture.state())
        tokenizer = load_llamagen(file, torch.device("cpu"), torch.float32)
    report.holds("the sizes read from the tensors", tokenizer.model.config == config)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    codes = io["codes"]
    with torch.no_grad():
        report.close("image_raw", tokenizer.model.decode(codes), io["image_raw"], **tolerance)
    # What generators use has images in [0, 1], so that errors are half as large.
    image = tokenizer.decode(codes.flatten(1), (codes.shape[1], codes.shape[2]))
    report.close("image", image * 2 - 1, io["image"], **tolerance)
    own = tokenizer.encode(io["pixels"].float() / 255).flatten()
    report.equal("encoded", own, io["encoded"].flatten(), where=io["code_margin"].flatten() >= 1e-3)


def check_schedules(fixture: Fixture, report: Report) -> None:
    points = fixture.config.get("n_points", 10_000)
    for name, expected in fixture.io.items():
        if match := re.fullmatch(r"order_(\d+)", name):
            grid = int(match[1])
            order = halton_order((grid, grid), points)
            report.equal(name, torch.stack([order // grid, order % grid], dim=1), expected)
        elif match := re.fullmatch(r"halton_counts_T(\d+)_G(\d+)", name):
            report.equal(name, halton_counts(int(match[1]), int(match[2]) ** 2), expected)
        elif match := re.fullmatch(r"confidence_counts_(clamped_)?(\w+)_T(\d+)_G(\d+)", name):
            own = confidence_counts(int(match[3]), int(match[4]) ** 2, match[2], clamp=bool(match[1]))
            report.equal(name, own, expected)
        else:
            report.holds(f"{name}: an array of an unknown kind", False)


CHECKS = {
    "halton_maskgit": check_transformer,
    "halton_vq16": check_tokenizer,
    "halton_schedules": check_schedules,
}
