"""ImageReward: names, features and scores."""

from __future__ import annotations

import dataclasses

import torch

from adanat_plugins.rewards.imagereward_net import SCORE_MEAN, SCORE_STD, ImageRewardConfig, ImageRewardNet
from adanat_plugins.weights import load_into

from .harness import Fixture, Report


def check(fixture: Fixture, report: Report) -> None:
    known = {field.name for field in dataclasses.fields(ImageRewardConfig)}
    config = ImageRewardConfig(**{key: value for key, value in fixture.config.items() if key in known})
    with torch.device("meta"):
        net = ImageRewardNet(config)
    report.names_and_shapes(net.state_dict(), fixture)
    if not fixture.io:
        return
    # One tensor at a time: the full-size network takes 1.8 GB, which must not be held twice.
    weights = {key: fixture.state([key])[key] for key in fixture.specs}
    load_into(net, weights, source=fixture.name)
    net.eval()
    tolerance = fixture.manifest["tolerance"]
    io = fixture.io
    ids, mask = io["input_ids"], io["attention_mask"]
    with torch.no_grad():
        images = io["image"].float()
        states = net.image_states(images)
        feature = net.text_feature(states, ids, mask)
        raw = net.mlp(feature)
        score = net(images, ids, mask)
    expected = io["image_embeds"]
    report.close("image_embeds", states[:, : expected.shape[1]], expected, **tolerance)
    report.close("text_feature", feature, io["text_feature"], **tolerance)
    report.close("raw", raw, io["raw"], **tolerance)
    report.close("score", score, io["score"], **tolerance)
    report.close("standardisation", (raw - SCORE_MEAN) / SCORE_STD, io["score"], **tolerance)


CHECKS = {"imagereward": check}
