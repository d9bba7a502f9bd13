"""google-research/maskgit: the transformer, the Flax tokenizer and the mask schedules."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from adanat_plugins.generators.google import load_google, load_google_tokenizer
from adanat_plugins.generators.google_net import GoogleConfig, GoogleTransformer, tokenizer_state, transformer_state
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig
from adanat_toolkit.decoding.released_counts import clamped_counts, mask_counts, mask_schedule, step_ratios

from .harness import Fixture, Report
from .published_files import save_flax


def check_transformer(fixture: Fixture, report: Report) -> None:
    c = fixture.config
    config = GoogleConfig(
        vocabulary=c["vocab_size"], positions=c["max_position_embeddings"], width=c["hidden_size"],
        depth=c["num_hidden_layers"], heads=c["num_attention_heads"], mlp_width=c["intermediate_size"],
    )
    with torch.device("meta"):
        empty = GoogleTransformer(config)
    own = {"params/" + name.replace(".", "/"): value for name, value in empty.state_dict().items()}
    report.names_and_shapes(own, fixture)
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    report.holds("the sizes read from the tensors", GoogleConfig.from_state(transformer_state(shapes)) == config)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "maskgit_imagenet256_checkpoint"
        save_flax(file, fixture.state())
        model = load_google(file)
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    with torch.no_grad():
        report.close("logits", model(io["ids"]), io["logits"], **tolerance)
        used = model.logits(model.hidden(io["ids"])[:, 1:], c["codebook_size"])
        report.close("used_logits", used, io["used_logits"], **tolerance)


def check_tokenizer(fixture: Fixture, report: Report) -> None:
    c = fixture.config
    expected = VQGANConfig(
        codebook_size=c["codebook_size"], code_width=c["embedding_dim"], width=c["filters"],
        multipliers=tuple(c["channel_multipliers"]), blocks=c["num_res_blocks"], middle=c["num_res_blocks"],
    )
    shapes = {name: torch.empty(shape, device="meta") for name, (shape, _) in fixture.specs.items()}
    converted = tokenizer_state(shapes)
    with torch.device("meta"):
        own = VQGAN(expected).state_dict()
    same = {key: value.shape for key, value in converted.items()} == {key: value.shape for key, value in own.items()}
    report.holds(f"names and shapes of {len(own)} tensors after conversion", same and len(own) == len(shapes))
    report.holds("the sizes read from the tensors", VQGANConfig.from_state(converted) == expected)
    if not fixture.io:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tokenizer_imagenet256_checkpoint"
        save_flax(file, fixture.state())
        model = load_google_tokenizer(file, torch.device("cpu"), torch.float32).model
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    grid = (io["codes"].shape[1], io["codes"].shape[2])
    with torch.no_grad():
        image = model.raw_images(io["codes"].flatten(1), grid)
        latent = model.latent(io["pixels"].permute(0, 3, 1, 2).float() / 255)
        report.close("image", image.permute(0, 2, 3, 1), io["image"], **tolerance)
        report.close("latent", latent.permute(0, 2, 3, 1), io["latent"], **tolerance)
        own_codes = model.nearest(latent).view(io["encoded"].shape)
    report.equal("encoded", own_codes, io["encoded"], where=io["code_margin"] >= 1e-3)


def check_schedules(fixture: Fixture, report: Report) -> None:
    total, atol = fixture.config["seq_len"], fixture.manifest["tolerance"]["ratios"]["atol"]
    for name, expected in fixture.io.items():
        match = re.fullmatch(r"(decode_masked|[a-z]+[\d.]*)_T(\d+)(_count)?", name)
        if match is None:
            report.holds(f"{name}: an array of an unknown kind", False)
            continue
        method, steps = match[1], int(match[2])
        if method == "decode_masked":
            report.close(name, clamped_counts(steps, total), expected, atol=1)
        elif match[3]:
            report.close(name, mask_counts(steps, total, method), expected, atol=1)
        else:
            report.close(name, mask_schedule(step_ratios(steps), method, total), expected, atol=atol)


CHECKS = {
    "google_maskgit_transformer": check_transformer,
    "google_maskgit_tokenizer": check_tokenizer,
    "google_mask_schedules": check_schedules,
}
