"""The published discriminator: names, features, logits, reward, crops, losses, gradients, spectral-norm vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from adanat_plugins.rewards.adversarial_losses import discriminator_loss
from adanat_plugins.rewards.backbones import TimmViT, load_timm
from adanat_plugins.rewards.paper_discriminator import PaperDiscriminator, load_heads, published_state
from adanat_toolkit.interfaces import Context

from .harness import Fixture, Report

MODEL = "vit_small_patch16_224.dino"


def build(config: dict) -> tuple[TimmViT, PaperDiscriminator]:
    """Our backbone and heads with a fixture's sizes, uninitialised."""
    with torch.device("meta"):
        layers = len(TimmViT(MODEL).read) + 1
    backbone = TimmViT(MODEL)
    is_class = config["class_conditional"]
    discriminator = PaperDiscriminator(
        layers,
        backbone.channels,
        classes=config["n_classes"] if is_class else None,
        text_dim=None if is_class else config["c_dim"],
        class_width=config["c_dim"],
    )
    return backbone, discriminator


def make_context(fixture: Fixture) -> Context:
    value = fixture.io["context"]
    if fixture.config["class_conditional"]:
        return Context(len(value), classes=value[:, 0])
    return Context(len(value), pooled=value)


def check(fixture: Fixture, report: Report) -> None:
    backbone, discriminator = build(fixture.config)
    report.names_and_shapes(published_state(backbone, discriminator), fixture)
    if not fixture.io:
        return
    state = fixture.state()
    load_timm(backbone, state, source=fixture.name)
    load_heads(discriminator, state)
    backbone.eval().requires_grad_(False)
    discriminator.eval()
    io, context = fixture.io, make_context(fixture)
    tolerance = fixture.manifest["tolerance"]["logits, features, cond_vector, reward"]
    images = io["images224"].float() / 255
    large = io["images256"].float() / 255
    with torch.no_grad():
        features = backbone(images)
        for k in range(backbone.layers):
            expected = io[f"features/{k}"]
            own = features[: expected.shape[0], k, : expected.shape[2]].transpose(1, 2)
            report.close(f"features of layer {k}", own, expected, **tolerance)
        condition = discriminator.condition(context)
        assert condition is not None
        report.close("condition", condition, io["cond_vector"], **tolerance)
        logits = discriminator(features, context)
        report.close("logits", logits, io["logits224"], **tolerance)
        report.close("reward", logits.mean(1).sigmoid(), io["reward224"], **tolerance)
        half = io["logits224_half_batch"]
        part = context.select(slice(0, len(half)))
        report.close("logits of part of the batch", discriminator(features[: len(half)], part), half, **tolerance)
        resized = discriminator(backbone(large), context)
        report.close("logits of resized images", resized, io["logits256_resize"], **tolerance)
        top, left = io["crop_offset"].tolist()
        cropped = large[..., top : top + backbone.size, left : left + backbone.size]
        report.close("logits of a crop", discriminator(backbone(cropped), context), io["logits256_crop"], **tolerance)
        order = io["train/fake_order"]
        fake_features = backbone(images.flip(3)[order])
    check_training(fixture, report, discriminator, features, fake_features, context)


def check_training(
    fixture: Fixture,
    report: Report,
    discriminator: PaperDiscriminator,
    real: Tensor,
    fake: Tensor,
    context: Context,
) -> None:
    """One pass of real and generated images in training mode, and the gradients of both losses."""
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    discriminator.train()
    trained = dict(discriminator.named_parameters())
    report.holds("order of the trained parameters", list(trained) == fixture.manifest["trainable_order"])
    on_real = discriminator(real, context)
    on_fake = discriminator(fake, context.select(io["train/fake_order"]))
    logits_tolerance = tolerance["logits, features, cond_vector, reward"]
    report.close("mean logits of real images", on_real.mean(1), io["train/real_logits_mean"], **logits_tolerance)
    report.close("mean logits of generated images", on_fake.mean(1), io["train/fake_logits_mean"], **logits_tolerance)
    counts = torch.tensor([float(len(real)), float(len(fake))])
    for kind in ("bce", "hinge"):
        loss = discriminator_loss(kind, on_real, on_fake, counts)
        report.close(f"{kind} loss", loss[None], io[f"train/{kind}_loss"], **tolerance["losses"])
        gradients = torch.autograd.grad(loss, list(trained.values()), retain_graph=kind == "bce")
        norms = torch.stack([g.norm() for g in gradients])
        report.close(f"{kind} gradient norms", norms, io[f"train/{kind}_grad_norm"], **tolerance["grad norms"])
    state = discriminator.state_dict()
    for name in (key for key in io if key.startswith("train/after/")):
        own = state[name.removeprefix("train/after/")]
        report.close(f"{name} (spectral-norm vector)", own, io[name], **tolerance["train/after/*"])


CHECKS = {"adanat_discriminator": check}
