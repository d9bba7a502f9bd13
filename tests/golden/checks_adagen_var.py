"""VAR: the transformer scale by scale, its multi-scale tokenizer, and the draw under top-k, top-p and temperature."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from adanat_plugins.generators.var import NextScale, load_tokenizer
from adanat_plugins.generators.var_net import VAR, VARConfig
from adanat_plugins.tokenizers.multi_scale import (
    CONVOLUTIONS,
    SHARE,
    MultiScaleVQ,
    MultiScaleVQConfig,
    convolution_of,
)
from adanat_plugins.weights import select
from adanat_toolkit.core import Noise
from adanat_toolkit.decoding import draw_tokens, keep_likely
from adanat_toolkit.interfaces import Context

from .harness import Fixture, Report

CPU = torch.device("cpu")
CLEAR = 1e-5
"""How near to a limit an outcome of a draw may be and still be compared."""


def tolerance(fixture: Fixture, what: str) -> dict[str, float]:
    """The manifest lists tolerances under names that several arrays share."""
    return next(t for names, t in fixture.manifest["tolerance"].items() if what in names.split(", "))


def sizes_of(specs: Mapping[str, tuple[list[int], str]], levels: Tensor | None) -> dict[str, Tensor]:
    """Tensors without memory, but for the levels, whose values a loader reads."""
    sizes = {name: torch.empty(shape, device="meta") for name, (shape, _) in specs.items()}
    return sizes if levels is None else {**sizes, "lvl_1L": levels}


def check_sizes(fixture: Fixture, report: Report) -> None:
    config = VARConfig.from_state(sizes_of(fixture.specs, fixture.state(["lvl_1L"])["lvl_1L"]), source="the fixture")
    c = fixture.config
    report.holds(
        "sizes read from the tensors",
        (config.scales, config.width, config.depth, config.heads, config.num_classes, config.vocabulary)
        == (tuple(c["patch_nums"]), c["embed_dim"], c["depth"], c["num_heads"], c["num_classes"], c["vocab_size"])
        and config.mlp_width == c["mlp_ratio"] * c["embed_dim"]
        and config.code_width == c["z_channels"],
    )
    with torch.device("meta"):
        network = VAR(config)
    report.names_and_shapes(network.state_dict(), fixture)
    count = sum(p.numel() for p in network.parameters())
    report.holds("number of parameters", count == fixture.manifest["n_parameters"])


def check_model(fixture: Fixture, report: Report) -> None:
    io, state, scales = fixture.io, fixture.state(), tuple(fixture.config["patch_nums"])
    with TemporaryDirectory() as folder:
        torch.save(select(state, "var."), Path(folder) / "var_d16.pth")
        torch.save(select(state, "vae."), Path(folder) / "vae_ch160v4096z32.pth")
        generator = NextScale.create("d16", {"weights": folder}, device=CPU, dtype=torch.float32, offline=True)
    network, quantizer = generator.network, generator.tokenizer.quantizer
    own = {f"var.{name}": value for name, value in network.state_dict().items()}
    own |= {f"vae.{name}": value for name, value in generator.tokenizer.model.state_dict().items()}
    report.names_and_shapes(own, fixture)
    report.holds("scales", generator.scales == scales)

    given = list(io["ids"].split([side * side for side in scales], dim=1))
    seen: dict[str, list[Tensor]] = {"map": [], "x": [], "logits": [], "guided": []}
    embed = network.embed

    def embedded(*args: Any) -> Tensor:
        out = embed(*args)
        seen["map"].append(out[:rows])  # a batch of one is filled up
        return out

    def drawn(logits: Tensor, *args: Any, **more: Any) -> Tensor:
        seen["guided"].append(logits)
        return given[len(seen["guided"]) - 1]

    rows = 2 * len(io["label"])

    def ran(module: Any, inputs: Any, out: tuple[Tensor, ...]) -> None:
        seen["x"].append(out[0][:rows])
        seen["logits"].append(out[1][:rows])

    hook = network.register_forward_hook(ran)
    context, noise = Context(len(io["label"]), classes=io["label"]), Noise(torch.arange(len(io["label"])))
    current, names = generator.reset(context, noise, len(scales)), generator.action_space.names
    with patch.object(network, "embed", embedded), patch("adanat_plugins.generators.var.draw_tokens", drawn):
        for s in range(len(scales)):
            features = generator.observe(current)
            if "feat" in io:  # the committed copy does without, for its size
                report.close(f"feat {s}", features, io["feat"][s], **tolerance(fixture, "feat"))
            action = torch.ones(len(noise), len(names))
            action[:, names.index("guidance")] = io["cfg"][:, s]
            current = generator.step(current, action, noise)
            report.close(f"f_hat {s}", current.latents[-1], io["f_hat"][s], **tolerance(fixture, "f_hat"))
    hook.remove()
    for name, parts in seen.items():
        report.close(name, torch.cat(parts, dim=1), io[name], **tolerance(fixture, name))
    report.close("image", generator.decode(current), io["image"], **tolerance(fixture, "image"))

    inputs = [quantizer.resized(latent, s) for s, latent in enumerate(current.latents[:-1])]
    tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in inputs[1:]], dim=1)
    report.close("var_input", tokens, io["var_input"], **tolerance(fixture, "map"))
    with torch.no_grad():
        x = torch.cat([network.embed(x, s, io["label"]) for s, x in enumerate(inputs)], dim=1)
        logits = network(x, network.conditions(io["label"]), mask=network.block_mask(range(len(scales))))[1]
    report.close("teacher_logits", logits, io["teacher_logits"], **tolerance(fixture, "teacher_logits"))


def check_tokenizer(fixture: Fixture, report: Report) -> None:
    c, scales = fixture.config, tuple(fixture.config["patch_nums"])
    sizes = sizes_of(fixture.specs, None)
    config = MultiScaleVQConfig.from_state(sizes, scales, source="the fixture")
    report.holds(
        "sizes read from the tensors",
        (config.vocabulary, config.code_width, config.width) == (c["vocab_size"], c["z_channels"], c["ch"])
        and config.multipliers == tuple(c.get("ch_mult", config.multipliers)),
    )
    with torch.device("meta"):
        report.names_and_shapes(MultiScaleVQ(config).state_dict(), fixture)
    own = [convolution_of(s, len(scales)) for s in range(len(scales))]
    report.holds("scale_to_conv", own == c["scale_to_conv"])
    report.holds("convolutions", c["share_quant_resi"] == CONVOLUTIONS and c["quant_resi"] == SHARE)
    if not fixture.io:
        return
    network = VARConfig(scales, config.code_width, 8, 1, 1, 8, 1, config.vocabulary)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "vae_ch160v4096z32.pth"
        torch.save(fixture.state(), file)
        tokenizer = load_tokenizer(file, network, CPU, torch.float32)
    io, quantizer, counts = fixture.io, tokenizer.quantizer, [side * side for side in scales]
    latent, inputs = torch.zeros_like(io["f_hat"][0]), []
    for s, codes in enumerate(io["ids"].split(counts, dim=1)):
        if s:
            inputs.append(quantizer.resized(latent, s).flatten(2).transpose(1, 2))
        latent = latent + quantizer.contribution(codes, s)
        report.close(f"f_hat {s}", latent, io["f_hat"][s], **tolerance(fixture, "f_hat"))
    report.close("next", torch.cat(inputs, dim=1), io["next"], **tolerance(fixture, "next"))
    with torch.no_grad():
        model = tokenizer.model
        raw = model.decoder(model.post_quant_conv(latent))
    report.close("decoded", raw, io["decoded"], **tolerance(fixture, "decoded"))
    report.close("image", tokenizer.decode(latent), io["image"], **tolerance(fixture, "image"))

    found = tokenizer.encode((io["image_in"] + 1) / 2)
    report.close("latent", found, io["latent"], **tolerance(fixture, "latent"))
    codes, before = quantizer.encode(found)
    clear = torch.ones(len(found), 1, dtype=torch.bool)
    margins, expected = io["code_margin"].split(counts, dim=1), io["codes"].split(counts, dim=1)
    for s, (own_codes, margin) in enumerate(zip(codes, margins, strict=True)):
        clear = clear & (margin >= 1e-3).all(1, keepdim=True)
        report.equal(f"codes {s}", own_codes, expected[s], where=clear.expand_as(own_codes))
    image = tokenizer.decode(before[-1]) * 2 - 1
    same = clear[:, 0]
    limits = tolerance(fixture, "reconstruction")
    report.close("reconstruction", image[same], io["reconstruction"][same], **limits)


def check_sampling(fixture: Fixture, report: Report) -> None:
    io, limits = fixture.io, fixture.manifest["tolerance"]["probs"]
    for case in fixture.config["cases"]:
        get = {name.removeprefix(f"{case}/"): value for name, value in io.items() if name.startswith(f"{case}/")}
        logits, temperature = get["logits"], get["temperature"]
        left = keep_likely(logits, get["top_k"], get["top_p"])
        kept, clear = left.isfinite(), get["p_margin"] > CLEAR
        report.equal(f"{case} kept", kept.long(), get["kept"].long(), where=clear[..., None].expand_as(kept))
        report.equal(f"{case} n_kept", kept.sum(-1), get["n_kept"], where=clear)
        probabilities = (left / temperature[:, None, None]).softmax(-1)
        report.close(f"{case} probs", probabilities[clear], get["probs"][clear], **limits)
        drawn = draw_tokens(logits, temperature, get["uniform"], top_k=get["top_k"], top_p=get["top_p"])
        report.equal(f"{case} ids", drawn, get["ids"], where=clear & (get["u_margin"] > CLEAR))


CHECKS = {
    "adagen_var_full": check_sizes,
    "adagen_var_model": check_model,
    "adagen_var_vae": check_tokenizer,
    "adagen_var_sampling": check_sampling,
}
