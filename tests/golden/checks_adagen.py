"""AdaGen's sampling: actions under smoothing, and whole runs of MaskGIT, DiT and SiT for given raw outputs.

The committed copies of the runs do without features and intermediate latents, for their size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import adanat_toolkit.core as core
from adanat_plugins.generators.dit import LatentGenerator
from adanat_plugins.generators.dpm_solver import Diffusion, Flow
from adanat_plugins.generators.maskgit import UViTClassGenerator
from adanat_plugins.generators.uvit import UViT
from adanat_plugins.released_policy import ADAGEN, Recipe
from adanat_plugins.tokenizers.autoencoder_kl import AutoencoderKL, AutoencoderKLConfig
from adanat_toolkit.core import GUIDANCE, TIME, TOKEN_KNOBS, ActionSpace, Noise
from adanat_toolkit.decoding.draws import whole_top_k
from adanat_toolkit.interfaces import Context
from adanat_toolkit.registry import create_generator

from .checks_core import Codes
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
"""A case's model: variant, knobs, path."""


class Knobs:
    """Stands where a generator would: knobs, and as many decisions as rows."""

    def __init__(self, knobs: Any, rows: int) -> None:
        self.action_space, self.rows = ActionSpace(knobs), rows

    def decisions(self, steps: int) -> int:
        return self.rows


def limits(fixture: Fixture, what: str) -> dict[str, float]:
    """The manifest lists tolerances under names that several arrays share."""
    return next(t for names, t in fixture.manifest["tolerance"].items() if what in names.split(", "))


def recipe_of(name: str, config: dict[str, Any]) -> Recipe:
    """The shipped recipe of a model, with the fixture's smoothing and guidance (which are the recipe's, where it has both)."""
    return replace(ADAGEN[name].changed(f"smoothing={config['action_smooth']}"), steps=config["gen_steps"])


def trajectory(space: ActionSpace, raw: Tensor) -> Tensor:
    """(B, C, A) raw outputs -> (B, C, K) physical values."""
    smoothed, rows = None, []
    for step in range(space.decisions):
        smoothed = space.smoothed(raw[:, step], step, smoothed)
        rows.append(space.transformed(smoothed, step))
    return torch.stack(rows, 1)


# --- actions ----------------------------------------------------------------------------------------------------------


def check_actions(fixture: Fixture, report: Report) -> None:
    io = fixture.io
    for case, config in fixture.config["cases"].items():
        family = config["model_family"]
        if family == "var":
            name, knobs, path = case.replace("_", ":"), core.next_scale_knobs(4096), None
        else:
            name, knobs, path = MODELS[family]
        shared = fixture.manifest["tolerance"]["dit, sit" if path is not None else family]
        exact, inverse = next(v for k, v in shared.items() if "zero_physical" in k), shared["residual"]
        recipe = recipe_of(name, config)
        report.holds(f"{case} is the shipped recipe", recipe == ADAGEN[name])
        raw, order = io[f"{case}/raw"], [WORDS[key] for key in config["action_keys"]]
        own = Knobs(knobs, raw.shape[1])
        space = recipe.bind(own, config["gen_steps"], len(knobs))  # type: ignore[arg-type]
        report.holds(f"{case} order of the knobs", list(space.acted) == order)
        assert space.schedule is not None
        columns = [i for i, name in enumerate(order) if name != "top_k"]

        def compare(
            what: str,
            value: Tensor,
            key: str,
            wide: dict[str, float] | None = None,
            case: str = case,
            order: list[str] = order,
            columns: list[int] = columns,
            exact: dict[str, float] = exact,
            shared: dict[str, dict[str, float]] = shared,
        ) -> None:
            expected, tight = io[f"{case}/{key}"], exact
            chosen = columns if "top_k" in order else list(range(len(order)))
            report.close(f"{case} {what}", value[..., chosen], expected[..., chosen], **(wide or tight))
            if "top_k" in order and wide is None:
                k = order.index("top_k")
                report.close(f"{case} {what}, top_k", value[..., k], expected[..., k], **shared["top_k column"])

        compare("schedule", space.schedule.float(), "schedule")
        report.close(f"{case} residual", space.base(), io[f"{case}/residual"], **inverse)
        physical = trajectory(space, raw)
        compare("physical", physical, "physical")
        fresh = trajectory(space, torch.zeros_like(raw[:1]))[0]
        compare("fresh policy", fresh, "zero_physical")
        if "top_k" in order:
            k = order.index("top_k")
            away = (physical[..., k] - physical[..., k].round()).abs() > 0.01
            report.equal(f"{case} kept tokens", whole_top_k(physical[..., k]), io[f"{case}/top_k_int"], where=away)
            report.equal(f"{case} kept tokens, fresh", whole_top_k(fresh[..., k]), io[f"{case}/zero_top_k_int"])
        if path is not None:
            current, times = None, []
            for proposed in physical[..., order.index("time")].unbind(1):
                current = path.move(proposed, current)
                times.append(current)
            report.close(f"{case} times", torch.stack(times, 1), io[f"{case}/times"], **exact)
            now, proposed = io[f"clamp_{family}/current"], io[f"clamp_{family}/proposed"]
            report.close(f"{case} clamps", path.move(proposed, now), io[f"clamp_{family}/next"], **exact)
            report.close(f"{case} first clamp", path.move(proposed, None), io[f"clamp_{family}/first"], **exact)


# --- MaskGIT ----------------------------------------------------------------------------------------------------------


def check_maskgit(fixture: Fixture, report: Report) -> None:
    io, config = fixture.io, fixture.config
    sizes = {key: value for key, value in config["uvit"].items() if key != "img_size"}
    side = config["uvit"]["img_size"]
    uvit = UViT(tokens=side**2, **sizes)
    report.names_and_shapes(uvit.state_dict(), fixture)
    uvit.load_state_dict(fixture.state())
    generator = UViTClassGenerator(
        "maskgit:golden", uvit, Codes(), grid=(side, side), image_size=(side, side), class_names=None, device=CPU,
        dtype=torch.float32,
    )  # fmt: skip
    recipe = recipe_of("maskgit:adanat-imagenet-l", config)
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
    report.equal("what is decoded", generator.decode(state), io["final_ids"])


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
    torch.save(AutoencoderKL(AutoencoderKLConfig(width=32, multipliers=(1, 1), blocks=1)).state_dict(), folder / "kl.pth")
    options = {
        "weights": str(folder / "network.pt"),
        "tokenizer": str(folder / "kl.pth"),
        "heads": fixture.config["net"]["num_heads"],
    }
    made = create_generator(f"{family}:xl-2-256", options, device=CPU, dtype=torch.float32, offline=True)
    assert isinstance(made, LatentGenerator)
    return made


def check_rollout(fixture: Fixture, report: Report) -> None:
    io, family = fixture.io, fixture.name.split("_")[1]
    with TemporaryDirectory() as folder:
        generator = load(fixture, family, Path(folder))
    report.names_and_shapes(generator.network.state_dict(), fixture)
    path, context = generator.path, Context(len(io["context"]), classes=io["context"])
    for case, config in fixture.config["cases"].items():
        get = {key.removeprefix(f"{case}/"): value for key, value in io.items() if key.startswith(f"{case}/")}
        recipe = recipe_of(generator.name, config).changed(f"guidance={config['cfg_init']}")
        space = recipe.bind(generator, config["gen_steps"], 2)
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
            state = generator.step(state, physical, noise)
            own, exact = torch.stack([state.time, physical[:, 1]], 1), limits(fixture, "physical")
            report.close(f"{case}: action {t}", own, get["physical"][:, t], **exact)
            if t == 0:
                continue
            data = state.data
            alpha, sigma = (
                value.exp()[:, None, None, None].float() for value in path.log_alpha_sigma(before.time.double())
            )
            for what, value in {
                "x": before.latents, "time": before.time, "x0": data, "noise": (before.latents - alpha * data) / sigma
            }.items():  # fmt: skip
                if what in get:
                    report.close(f"{case}: {what} of call {t}", value, get[what][t - 1], **limits(fixture, what))
        generator.decode(state)
        hook.remove()
        report.holds(f"{case}: one forward a call, of both halves", forwards == [2 * len(context)] * calls)
        report.close(f"{case}: final", generator.latents(state), get["final"], **limits(fixture, "final"))
        report.close(f"{case}: final time", state.time, get["final_time"], **limits(fixture, "final_time"))


CHECKS = {
    "adagen_actions": check_actions,
    "adagen_maskgit_rollout": check_maskgit,
    "adagen_dit_rollout": check_rollout,
    "adagen_sit_rollout": check_rollout,
}
