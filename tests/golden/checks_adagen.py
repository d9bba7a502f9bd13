"""AdaGen's sampling: actions under smoothing, and whole runs of MaskGIT, DiT and SiT for given raw outputs.

The committed copies of the runs do without features and intermediate latents, for their size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from adanat_plugins.generators.dit import LatentGenerator
from adanat_plugins.generators.dpm_solver import Diffusion, Flow
from adanat_plugins.generators.dpm_solver import Path as NoisePath
from adanat_plugins.generators.maskgit import UViTClassGenerator
from adanat_plugins.released_policy import ADAGEN, Recipe, published_policy
from adanat_plugins.tokenizers.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from adanat_plugins.tokenizers.vqgan import VQGAN, VQGANConfig
from adanat_toolkit.core import GUIDANCE, TIME, TOKEN_KNOBS, ActionSpace, Noise, next_scale_knobs
from adanat_toolkit.decoding.draws import whole_top_k
from adanat_toolkit.interfaces import Context
from adanat_toolkit.registry import create_generator

from .checks_core import grid_of
from .harness import Fixture, Report

CPU = torch.device("cpu")
WORDS = {
    "manual_gen_ratios": "mask_ratio",
    "manual_temp": "mask_temperature",
    "manual_samp_temp": "token_temperature",
    "manual_cfg": "guidance",
    "timesteps": "time",
    "cfg": "guidance",
    "top_k": "top_k",
    "top_p": "top_p",
}
MODELS = {
    "maskgit": ("maskgit:adanat-imagenet-l", TOKEN_KNOBS, None),
    "dit": ("dit:xl-2-256", (TIME, GUIDANCE), Diffusion()),
    "sit": ("sit:xl-2-256", (TIME, GUIDANCE), Flow()),
}
"""By family, but VAR: variant, knobs, path."""


class Knobs:
    """Stands where a generator would: knobs, and as many decisions as rows."""

    def __init__(self, knobs: Any, rows: int) -> None:
        self.action_space, self.rows = ActionSpace(knobs), rows

    def decisions(self, steps: int) -> int:
        return self.rows


def limits(fixture: Fixture, what: str) -> dict[str, float]:
    """The manifest lists tolerances under names that several arrays share."""
    return next(t for names, t in fixture.manifest["tolerance"].items() if what in names.split(", "))


def released(name: str) -> Recipe:
    """A model's recipe; one of its family where AdaGen released none for it (VAR of another depth)."""
    family = name.partition(":")[0]
    return ADAGEN.get(name) or next(recipe for known, recipe in ADAGEN.items() if known.startswith(f"{family}:"))


def recipe_of(name: str, config: dict[str, Any]) -> Recipe:
    """The shipped recipe of a model with the fixture's own settings, as ``--policy FILE,NAME=VALUE`` gives them."""
    steps, guidance = config["gen_steps"], config["cfg_init"]
    changes = {"smoothing": config["action_smooth"], "guidance": guidance}
    if name.startswith("maskgit"):
        shares = [(i + 0.001) / steps for i in range(steps)]
        changes["guidance"] = "/".join(str(guidance * share) for share in shares)
        falling = (1 - (i + 1 - 0.001) / steps for i in range(steps))
        changes["mask_temperature"] = "/".join(str(config["temp_init"] * share) for share in falling)
    if name.startswith("var"):
        changes |= {"top_k": config["topk"], "top_p": config["topp"]}
    if "manual_samp_temp_init" in config:
        changes["token_temperature"] = config["manual_samp_temp_init"]
    text = ",".join(f"{key}={value}" for key, value in changes.items())
    return replace(released(name).changed(text), steps=steps)


def trajectory(space: ActionSpace, raw: Tensor) -> Tensor:
    """(B, C, A) raw outputs -> (B, C, K) physical values."""
    smoothed, rows = None, []
    for step in range(space.decisions):
        smoothed = space.smoothed(raw[:, step], step, smoothed)
        rows.append(space.transformed(smoothed, step))
    return torch.stack(rows, 1)


# --- policy -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def check_policy(fixture: Fixture, report: Report) -> None:
    """The bare actor of a released file, as an adaptive policy."""
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    known = {knob.name: knob for knob in (*next_scale_knobs(4096), *TOKEN_KNOBS, TIME)}
    knobs = tuple(known[WORDS[key]] for key in fixture.manifest["action_keys"])
    space = ActionSpace(knobs).bind(torch.full((int(io["timestep"].max()) + 1, len(knobs)), 0.5))
    with TemporaryDirectory() as folder:
        file = Path(folder) / "maskgit_policy.pth"
        torch.save(fixture.state(), file)
        cells, width = io["feat"].shape[1:]
        policy, facts = published_policy(
            file, space=space, grid=grid_of(fixture.config, cells), feature_dim=width
        )
    report.holds("the file is AdaGen's", facts.bare)
    network = policy.actor.network
    report.names_and_shapes(network.state_dict(), fixture)
    report.close("step embedding", network.t_embedder(io["timestep"]), io["t_embed"], **tolerance)
    report.close("raw actions", policy(io["feat"], io["timestep"]), io["out"], **tolerance)


# --- actions ----------------------------------------------------------------------------------------------------------


def check_actions(fixture: Fixture, report: Report) -> None:
    for case, config in fixture.config["cases"].items():
        check_case(fixture, report, case, config)


def model_of(config: dict[str, Any]) -> tuple[str, Any, NoisePath | None]:
    """A case's model: variant, knobs, path."""
    family = config["model_family"]
    return (f"var:d{config['model_depth']}", next_scale_knobs(4096), None) if family == "var" else MODELS[family]


def check_shipped(fixture: Fixture, report: Report) -> None:
    """The recipes that ship are the cases of the fixture of the released configurations."""
    for case, config in fixture.config["cases"].items():
        model, knobs, _ = model_of(config)
        own: Any = Knobs(knobs, fixture.io[f"{case}/raw"].shape[1])
        shipped = ADAGEN[model].bind(own, ADAGEN[model].steps, len(knobs))
        space = recipe_of(model, config).bind(own, config["gen_steps"], len(knobs))
        report.holds(f"{case} has the shipped smoothing and steps",
                     (shipped.smoothing, shipped.steps) == (space.smoothing, space.steps))  # fmt: skip
        assert shipped.schedule is not None and space.schedule is not None
        report.close(f"{case} shipped schedule", shipped.schedule, space.schedule, atol=1e-9)
        if "top_k" in shipped.acted:
            fresh = trajectory(shipped, torch.zeros(1, shipped.decisions, shipped.size))[0]
            kept = whole_top_k(fresh[:, shipped.names.index("top_k")])
            report.equal(f"{case} tokens that an untrained policy keeps", kept, fixture.io[f"{case}/zero_top_k_int"])


def check_case(fixture: Fixture, report: Report, case: str, config: dict[str, Any]) -> None:
    family, (model, knobs, path) = config["model_family"], model_of(config)
    io = {key.removeprefix(f"{case}/"): value for key, value in fixture.io.items() if key.startswith(f"{case}/")}
    allowed = fixture.manifest["tolerance"]["dit, sit" if path is not None else family]
    exact = next(limit for names, limit in allowed.items() if "zero_physical" in names)
    own: Any = Knobs(knobs, io["raw"].shape[1])
    space = recipe_of(model, config).bind(own, config["gen_steps"], len(knobs))
    order = [WORDS[key] for key in config["action_keys"]]
    report.holds(f"{case} order of the knobs", list(space.acted) == order)
    assert space.schedule is not None
    physical = trajectory(space, io["raw"])
    fresh = trajectory(space, torch.zeros_like(io["raw"][:1]))[0]
    for what, value in {"schedule": space.schedule.float(), "physical": physical, "zero_physical": fresh}.items():
        for column, name in enumerate(order):
            limit = allowed["top_k column"] if name == "top_k" else exact
            report.close(f"{case} {what} {name}", value[..., column], io[what][..., column], **limit)
    if "top_k" in order:
        k = order.index("top_k")
        for what, value in {"top_k_int": physical[..., k], "zero_top_k_int": fresh[..., k]}.items():
            away = (value - value.round()).abs() > 0.01  # elsewhere the rounding decides between two neighbours
            report.equal(f"{case} {what}", whole_top_k(value), io[what], where=away)
            report.close(f"{case} {what}, within one", whole_top_k(value), io[what], atol=1)
    report.close(f"{case} residual", space.base(), io["residual"], **allowed["residual"])
    if path is None:
        return
    current, times = None, []
    for proposed in physical[..., order.index("time")].unbind(1):
        current = path.move(proposed, current)
        times.append(current)
    report.close(f"{case} times", torch.stack(times, 1), io["times"], **exact)
    clamps = {key: fixture.io[f"clamp_{family}/{key}"] for key in ("current", "proposed", "next", "first")}
    report.close(f"{case} clamps", path.move(clamps["proposed"], clamps["current"]), clamps["next"], **exact)
    report.close(f"{case} first clamp", path.move(clamps["proposed"], None), clamps["first"], **exact)


# --- MaskGIT ----------------------------------------------------------------------------------------------------------


def load_maskgit(fixture: Fixture, folder: Path) -> UViTClassGenerator:
    """The registered plug-in, from files as they are published (a small tokenizer with random weights)."""
    torch.save({f"module.{name}": value for name, value in fixture.state().items()}, folder / "imagenet-l.pth")
    tokenizer = VQGAN(VQGANConfig(fixture.config["uvit"]["codebook_size"], 32, 32, (1, 1), 1))
    torch.save({"state_dict": tokenizer.state_dict()}, folder / "vqgan_jax_strongaug.ckpt")
    options = {"weights": str(folder), "heads": fixture.config["uvit"]["num_heads"]}
    made = create_generator("maskgit:adanat-imagenet-l", options, device=CPU, dtype=torch.float32, offline=True)
    assert isinstance(made, UViTClassGenerator)
    return made


def check_maskgit(fixture: Fixture, report: Report) -> None:
    io, config = fixture.io, fixture.config
    with TemporaryDirectory() as folder:
        generator = load_maskgit(fixture, Path(folder))
    report.names_and_shapes(generator.network.state_dict(), fixture)
    ids = (generator.cells, generator.mask_id, generator.null_class)
    report.holds("cells, mask id, null class", ids == (config["seq_len"], config["mask_id"], config["null_class"]))
    recipe = recipe_of(generator.name, config)
    space = recipe.bind(generator, config["gen_steps"], len(config["action_keys"]))
    report.holds("order of the knobs", [WORDS[key] for key in config["action_keys"]] == list(space.acted))
    context = Context(len(io["context"]), classes=io["context"].flatten())
    noise = Noise(torch.arange(len(context)))
    state, physical = generator.reset(context, noise, space.steps), trajectory(space, io["raw"]).unbind(1)
    report.close("physical", torch.stack(physical), io["physical"], **limits(fixture, "physical"))
    for t in range(space.decisions):
        features = generator.observe(state)
        if t in config["feat_calls"] and "feat" in io:
            expected = io["feat"][config["feat_calls"].index(t)]
            report.close(f"features of call {t}", features[: len(expected)], expected, **limits(fixture, "feat"))
        state = generator.step(state, physical[t], noise)
        report.equal(f"step {t}: proposal", state.proposal, io["sampled_ids"][t])
        if t + 1 < space.decisions:  # what the last step would mask again does not matter for the image
            report.equal(f"step {t}: next state", state.tokens, io["next_masked_ids"][t])
    report.equal("what is decoded", state.proposal, io["final_ids"])


# --- DiT and SiT ------------------------------------------------------------------------------------------------------


class Given(Noise):
    """The fixture's starting noise, where the generator would draw its own."""

    def __init__(self, start: Tensor) -> None:
        super().__init__(torch.arange(len(start)))
        object.__setattr__(self, "start", start)

    def normal(self, stream: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.start  # type: ignore[attr-defined]


def load(fixture: Fixture, family: str, folder: Path) -> LatentGenerator:
    """The registered plug-in, from files as they are published (a small autoencoder with random weights)."""
    torch.save(fixture.state(), folder / "network.pt")
    autoencoder = AutoencoderKLConfig(fixture.config["net"]["in_channels"], width=32, multipliers=(1, 1), blocks=1)
    torch.save(AutoencoderKL(autoencoder).state_dict(), folder / "kl.pth")
    options = {
        "weights": str(folder / "network.pt"),
        "tokenizer": str(folder / "kl.pth"),
        "heads": fixture.config["net"]["num_heads"],
    }
    made = create_generator(f"{family}:xl-2-256", options, device=CPU, dtype=torch.float32, offline=True)
    assert isinstance(made, LatentGenerator)
    return made


@contextmanager
def outputs_of(path: Any) -> Iterator[list[Tensor]]:
    """What a path is asked to make data predictions of, inside."""
    seen: list[Tensor] = []

    def data(latents: Tensor, output: Tensor, time: Tensor) -> Tensor:
        seen.append(output)
        return type(path).data(path, latents, output, time)  # type: ignore[no-any-return]

    path.data = data
    try:
        yield seen
    finally:
        del path.data


def check_rollout(family: str, fixture: Fixture, report: Report) -> None:
    io = fixture.io
    with TemporaryDirectory() as folder:
        generator = load(fixture, family, Path(folder))
    report.names_and_shapes(generator.network.state_dict(), fixture)
    path, context = generator.path, Context(len(io["context"]), classes=io["context"])
    for case, config in fixture.config["cases"].items():
        get = {key.removeprefix(f"{case}/"): value for key, value in io.items() if key.startswith(f"{case}/")}
        space = recipe_of(generator.name, config).bind(generator, config["gen_steps"], 2)
        calls = 2 * (config["gen_steps"] // 2)
        report.holds(f"{case}: actions", space.decisions == calls + 1)
        noise, forwards = Given(get["z_init"]), []
        hook = generator.network.register_forward_hook(lambda m, x, y, seen=forwards: seen.append(len(x[0])))
        state, smoothed = generator.reset(context, noise, space.steps), None
        for t in range(space.decisions):
            features, before = generator.observe(state), state
            if t == 0:
                report.holds(f"{case}: features before the first forward", not features.any())
            elif t in (1, calls) and "feat" in get:
                expected = get["feat"][0 if t == 1 else 1]
                report.close(f"{case}: features of action {t}", features[0], expected, **limits(fixture, "feat"))
            smoothed = space.smoothed(get["raw"][:, t], t, smoothed)
            physical = space.transformed(smoothed, t)
            with outputs_of(path) as outputs:
                state = generator.step(state, physical, noise)
            own, exact = torch.stack([state.time, physical[:, 1]], 1), limits(fixture, "physical")
            report.close(f"{case}: action {t}", own, get["physical"][:, t], **exact)
            if t == 0:
                continue
            # The noise from the network's own output: from latents and data it would lose digits where little noise is left.
            (output,) = outputs
            if family == "sit":  # a velocity
                output = before.latents - before.time[:, None, None, None] * output
            for what, value in {"x": before.latents, "time": before.time, "x0": state.data, "noise": output}.items():
                if what in get:
                    report.close(f"{case}: {what} of call {t}", value, get[what][t - 1], **limits(fixture, what))
        generator.decode(state)
        hook.remove()
        report.holds(f"{case}: one forward a call, of both halves", forwards == [2 * len(context)] * calls)
        report.close(f"{case}: final", generator.latents(state), get["final"], **limits(fixture, "final"))
        report.close(f"{case}: final time", state.time, get["final_time"], **limits(fixture, "final_time"))


CHECKS = {
    "adagen_policy": check_policy,
    "adagen_actions": check_actions,
    "adagen_maskgit_rollout": check_maskgit,
    "adagen_dit_rollout": partial(check_rollout, "dit"),
    "adagen_sit_rollout": partial(check_rollout, "sit"),
}
