"""The core: policy network, actions, the decoding step (exact, and its law under noise), PPO under the paper's settings."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from adanat_plugins.generators.maskgit import UViTClassGenerator
from adanat_plugins.generators.uvit import UViT
from adanat_toolkit.core import REMASK, TOKEN, TOKEN_KNOBS, ActionSpace, Noise, adanat_heuristic
from adanat_toolkit.decoding import StepKnobs, StepNoise, masked_decoding_step
from adanat_toolkit.decoding.masked_decoding import remask_count
from adanat_toolkit.interfaces import Context, TokenState
from adanat_toolkit.policies.networks import AdaptiveNetwork
from adanat_toolkit.sampling import gaussian_log_prob
from adanat_toolkit.training import PPOConfig, targets
from adanat_toolkit.training.ppo import Batch, gae, ppo_loss, ppo_update

from .harness import Fixture, Report

TIE = 5e-5
"""Samples whose outcome hangs on a smaller difference than this are not compared, as the fixtures allow."""
WORDS = {
    "re-mask ratio": "mask_ratio",
    "confidence temperature": "mask_temperature",
    "sampling temperature": "token_temperature",
    "guidance scale": "guidance",
}
OWN_DRAWS = 40_000
DRAWS_AT_ONCE = 4_000


def network(specs: dict[str, tuple[list[int], str]], grid: tuple[int, int]) -> AdaptiveNetwork:
    """A policy network with the sizes of the tensors."""
    hidden = specs["dw_conv.weight"][0][0]
    # The embedder is absent where the widths are equal.
    return AdaptiveNetwork(
        specs["x_embedder.weight"][0][1] if "x_embedder.weight" in specs else hidden,
        specs["linear3.weight"][0][0],
        grid,
        hidden,
        specs["pw_conv.weight"][0][0],
        (specs["linear1.weight"][0][0], specs["linear2.weight"][0][0]),
    )


def grid_of(config: dict[str, Any], cells: int) -> tuple[int, int]:
    grid = config.get("grid", math.isqrt(cells))
    return (grid, grid) if isinstance(grid, int) else (grid[0], grid[1])


# --- policy and actions -----------------------------------------------------------------------------------------------


@torch.no_grad()
def check_policy(fixture: Fixture, report: Report) -> None:
    cells = fixture.io["feat"].shape[1] if fixture.io else 256
    own = network(fixture.specs, grid_of(fixture.config, cells))
    report.names_and_shapes(own.state_dict(), fixture)
    if not fixture.io:
        return
    io, tolerance = fixture.io, fixture.manifest["tolerance"]
    own.load_state_dict(fixture.state())
    report.close("step embedding", own.t_embedder(io["timestep"]), io["t_embed"], **tolerance)
    report.close("raw actions", own(io["feat"], io["timestep"]), io["out"], **tolerance)


def check_actions(fixture: Fixture, report: Report) -> None:
    """Any order of any of the knobs: it selects columns."""
    io, config, tolerance = fixture.io, fixture.config, fixture.manifest["tolerance"]
    order = tuple(WORDS[word] for word in config["order"])
    plain, shifted = tolerance["heu=0 outputs"], tolerance["heu=1 outputs and heuristic"]

    def bound(steps: int, acted: tuple[str, ...], heuristic: int) -> ActionSpace:
        schedule = adanat_heuristic(TOKEN_KNOBS, steps)
        return ActionSpace(TOKEN_KNOBS).bind(schedule, acted=acted, residual=bool(heuristic))

    def physical(space: ActionSpace, raw: Tensor, step: int | Tensor) -> Tensor:
        return space.to_physical(raw, step)[:, [space.names.index(name) for name in space.acted]]

    for steps in config["gen_steps"]:
        for heuristic in config["heu"]:
            case, limits = f"T{steps}_heu{heuristic}", shifted if heuristic else plain
            space = bound(steps, order, heuristic)
            report.close(case, physical(space, io["raw"], io[f"{case}/timestep"]), io[f"{case}/physical"], **limits)
            raw = io[f"{case}/raw_trajectory"]
            own = torch.stack([physical(space, raw[..., t], t) for t in range(steps)], dim=-1)
            report.close(f"{case} trajectories", own, io[f"{case}/physical_trajectory"], **limits)
        if f"T{steps}_residual" not in io:
            continue
        space, every = bound(steps, order, 1), torch.arange(steps)
        report.close(f"T{steps} residual", space.base(), io[f"T{steps}_residual"], **tolerance["residual"])
        own = physical(space, torch.zeros(steps, len(order)), every)
        report.close(f"T{steps} heuristic", own, io[f"T{steps}_heuristic"], **shifted)
    if "subset_cfg_ratio" in io:
        steps = max(config["gen_steps"])
        space = bound(steps, ("guidance", "mask_ratio"), 1)
        own = physical(space, io["raw"][:, :2], io[f"T{steps}_heu1/timestep"])
        report.close("a subset in another order", own, io["subset_cfg_ratio"], **shifted)


# --- the step ---------------------------------------------------------------------------------------------------------


class Codes:
    """Stands where a tokenizer would: the fixture has none, and what is decoded is compared as codes."""

    def decode(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        return codes


def check_env_step(fixture: Fixture, report: Report) -> None:
    io, config, tolerance = fixture.io, fixture.config, fixture.manifest["tolerance"]
    side = config["uvit"]["img_size"]
    known = inspect.signature(UViT).parameters
    sizes = {key: value for key, value in config["uvit"].items() if key in known}
    uvit = UViT(tokens=side**2, **sizes)
    report.names_and_shapes(uvit.state_dict(), fixture)
    uvit.load_state_dict(fixture.state())
    generator = UViTClassGenerator(
        "maskgit:golden", uvit, Codes(), grid=(side, side), image_size=(side, side), class_names=None,
        device=torch.device("cpu"), dtype=torch.float32,
    )  # fmt: skip
    ids = (generator.cells, generator.mask_id, generator.null_class)
    report.holds("cells, mask id, null class", ids == (config["seq_len"], config["mask_id"], config["null_class"]))
    classes = io["context"].flatten()
    for case in sorted({key.split("/")[0] for key in io if key.endswith("/masked_ids")}):
        tokens = io[f"{case}/masked_ids"]
        context = Context(len(tokens), classes=classes[: len(tokens)])
        noise = Noise(torch.arange(len(tokens)))
        blank = bool((tokens == config["mask_id"]).all())  # the path that computes first states once per context
        state = generator.reset(context, noise, 1) if blank else TokenState(context, 2, tokens, tokens, step=1)
        after = generator.step(state, io[f"{case}/actions"], noise)
        sure = (io[f"{case}/gap"].amin(1) >= TIE) & (io[f"{case}/cut_gap"] >= TIE)
        where = sure[:, None].expand_as(tokens)
        report.equal(f"{case}: proposal", after.proposal, io[f"{case}/sampled_ids"], where)
        report.equal(f"{case}: next state", after.tokens, io[f"{case}/next_masked_ids"], where)
        report.equal(f"{case}: cells masked", (after.tokens == generator.mask_id).sum(1), io[f"{case}/n_masked"], sure)
        if f"{case}/next_feat" in io:
            expected = io[f"{case}/next_feat"]
            rows = len(expected)
            own = generator.observe(TokenState(context, 2, io[f"{case}/next_masked_ids"], after.proposal, step=1))[
                :rows
            ]
            report.close(f"{case}: features of the next state", own, expected, **tolerance["next_feat"])
    if "rollout/actions" not in io:
        return
    actions = io["rollout/actions"]
    steps, size = actions.shape[:2]
    noise = Noise(torch.arange(size))
    state = generator.reset(Context(size, classes=classes[:size]), noise, steps)
    sure = torch.ones(size, dtype=torch.bool)
    for t in range(steps):
        state = generator.step(state, actions[t], noise)
        sure = sure & (io["rollout/gap"][t].amin(1) >= TIE) & (io["rollout/cut_gap"][t] >= TIE)
        where = sure[:, None].expand_as(state.tokens)
        report.equal(f"rollout step {t}: proposal", state.proposal, io["rollout/sampled_ids"][t], where)
        report.equal(f"rollout step {t}: next state", state.tokens, io["rollout/next_masked_ids"][t], where)
    report.holds("rollouts that can be compared to the end", bool(sure.any()))
    report.equal("what is decoded", generator.decode(state), io["rollout/final_ids"], sure[:, None].expand(-1, ids[0]))


def check_step_logits(fixture: Fixture, report: Report) -> None:
    io, config = fixture.io, fixture.config
    tokens, mask_id = io["masked_ids"], config["mask_id"]
    noise = Noise(torch.arange(len(tokens)))
    drawn = StepNoise(noise.uniform(TOKEN, 0, tokens.shape[1:]), noise.gumbel(REMASK, 0, tokens.shape[1:]))
    knobs = StepKnobs(*io["actions"].unbind(1))
    result = masked_decoding_step(tokens, io["logits_cond"], io["logits_uncond"], knobs, drawn, mask_id)
    report.equal("proposal", result.proposal, io["sampled_ids"])
    report.equal("next state", result.tokens, io["next_masked_ids"])
    report.equal("requested cells", remask_count(knobs.mask_ratio, tokens.shape[1]), io["requested"])
    report.close("log-probability", result.log_prob, io["log_prob"], **fixture.manifest["tolerance"]["log_prob"])


def check_step_law(fixture: Fixture, report: Report) -> None:
    """Frequencies over our own draws with our own noise: within 5 standard errors of the difference, plus 1e-4."""
    io, config = fixture.io, fixture.config
    tokens, mask_id = io["masked_ids"], config["mask_id"]
    cells, words = io["logits_cond"].shape[1:]
    counts = torch.zeros(cells, words)
    masked, masked_mode, right_number = torch.zeros(cells), torch.zeros(cells), 0
    for start in range(0, OWN_DRAWS, DRAWS_AT_ONCE):
        noise = Noise(torch.arange(start, start + DRAWS_AT_ONCE))
        drawn = StepNoise(noise.uniform(TOKEN, 0, (cells,)), noise.gumbel(REMASK, 0, (cells,)))
        result = masked_decoding_step(
            tokens.expand(DRAWS_AT_ONCE, -1),
            io["logits_cond"].expand(DRAWS_AT_ONCE, -1, -1),
            io["logits_uncond"].expand(DRAWS_AT_ONCE, -1, -1),
            StepKnobs(*io["actions"][:, None].expand(-1, DRAWS_AT_ONCE)),
            drawn,
            mask_id,
        )
        again = result.tokens == mask_id
        counts += torch.stack([torch.bincount(column, minlength=words) for column in result.proposal.unbind(1)])
        masked += again.sum(0)
        masked_mode += (again & (result.proposal == io["mode_token"])).sum(0)
        right_number += int((again.sum(1) == io["n_masked"]).sum())

    def frequency(what: str, own: Tensor, expected: Tensor) -> None:
        # The stored frequencies are float32, their variance must not be negative.
        p = expected.double().clamp(0, 1)
        bound = 5 * (p * (1 - p) * (1 / OWN_DRAWS + 1 / config["draws"])).sqrt() + 1e-4
        error = (own.double() / OWN_DRAWS - p).abs()
        report.holds(f"{what} ({OWN_DRAWS} draws)", bool((error <= bound).all()), float((error / bound).max()),
                     "1 times the bound of 5 standard errors + 1e-4")  # fmt: skip

    frequency("token frequencies", counts.gather(1, io["top5_token"]), io["top5_freq"])
    frequency("cells masked again", masked, io["remask_freq"])
    frequency("masked again and the mode", masked_mode, io["remask_and_mode_freq"])
    wrong = OWN_DRAWS - right_number
    report.holds("draws with another number of masked cells", wrong <= 1e-3 * OWN_DRAWS, wrong, "ties, below 1 in 1000")


# --- PPO --------------------------------------------------------------------------------------------------------------


def check_ppo(fixture: Fixture, report: Report) -> None:
    io, config, tolerance = fixture.io, fixture.config, fixture.manifest["tolerance"]
    features, step, actions = io["feat"].float(), io["timestep"], io["actions"]
    rollouts, steps, batch = config["rollouts"], config["steps"], config["batch"]
    sigma, total = config["action_std"], rollouts * steps * batch
    paper = PPOConfig.paper().model_copy(
        update={
            "learning_rate": config["lr"],
            "epochs": config["K_epochs"],
            "clip": config["eps_clip"],
            "gamma": config["gamma"],
            "value_coefficient": config["value_coef"],
        }
    )
    parts = nn.ModuleDict()
    for part in ("actor", "critic"):
        prefix = f"policy.{part}."
        specs = {key.removeprefix(prefix): spec for key, spec in fixture.specs.items() if key.startswith(prefix)}
        parts[part] = network(specs, grid_of(config, features.shape[1]))
    both = {f"{copy}.{key}": value for copy in ("policy", "policy_old") for key, value in parts.state_dict().items()}
    report.names_and_shapes(both, fixture)
    start = {key: fixture.state([f"policy.{key}"])[f"policy.{key}"] for key in parts.state_dict()}
    actor, critic, order = parts["actor"], parts["critic"], fixture.manifest["parameter_order"]
    parameters = dict(parts.named_parameters())

    def fresh() -> torch.optim.Optimizer:
        parts.load_state_dict(start)
        parts.zero_grad(set_to_none=True)
        return torch.optim.Adam(
            [parameters[name] for name in order], lr=paper.learning_rate, betas=tuple(config["adam_betas"]),
            eps=config["adam_eps"],
        )  # fmt: skip

    def gradient_norms() -> Tensor:
        return torch.stack(
            [g.norm() if (g := parameters[name].grad) is not None else torch.zeros(()) for name in order]
        )

    def by_sample(flat: Tensor) -> Tensor:
        """(rollout, step, batch) flattened -> (samples, steps)."""
        return flat.view(rollouts, steps, batch).transpose(1, 2).reshape(-1, steps)

    def flattened(value: Tensor) -> Tensor:
        return value.view(rollouts, batch, steps).transpose(1, 2).flatten()

    # Collection.
    optimiser = fresh()
    close = tolerance["logprobs, values, returns"]
    with torch.no_grad():
        mean, values = actor(features, step), critic(features, step).squeeze(-1)
    report.close("action means", mean, io["action_mean"], **close)
    report.close("values", values, io["values"], **close)
    report.close("log-probabilities", gaussian_log_prob(actions, mean, sigma), io["logprobs"], **close)

    # Returns (what the estimates are where all values are 0 and lambda is 1) and advantages.
    terminal = by_sample(io["rewards"])
    returns = gae(terminal, torch.zeros_like(terminal), config["gamma"], 1.0)
    report.close("returns", flattened(returns), io["returns"], **close)
    goal, advantages = targets(terminal[:, -1], by_sample(io["values"]), paper)
    report.close("value targets", flattened(goal), io["returns_normalised"], **close)
    report.close("advantages", flattened(advantages), io["advantages"], **close)
    for key in sorted(io):
        if key.startswith("discount/returns_gamma"):
            gamma = float(key.removeprefix("discount/returns_gamma"))
            ends = io["discount/dones"].clone()
            ends[-1] = 1  # an episode that the recording cut short
            lengths = torch.diff(torch.cat([torch.tensor([-1]), ends.nonzero()[:, 0]])).tolist()
            episodes = [part.T for part in io["discount/rewards"][: sum(lengths)].split(lengths)]
            own = torch.cat([gae(part, torch.zeros_like(part), gamma, 1.0).T for part in episodes])
            report.close(f"returns for gamma {gamma:g}", own, io[key], **close)

    # One loss whose ratios are far from one: the clip at work.
    rows = torch.arange(total)
    stale = Batch(features, step, actions, io["stale/logprobs"], io["stale/targets"], io["stale/advantages"], rows)
    loss, _ = ppo_loss(actor(features, step), critic(features, step).squeeze(-1), stale, sigma, paper, total)
    loss.backward()
    constant = config["entropy_coef"] * io["entropy"].flatten()[0]  # the published loss subtracts it; it has no gradient
    report.close("stale loss", loss[None] - constant, io["stale/loss"], **tolerance["losses"])
    report.close("stale gradients", gradient_norms(), io["stale/grad_norm"], atol=1e-7, **tolerance["grad norms"])

    # The update as the trainer calls it.
    data = Batch(features, step, actions, io["logprobs"], io["returns_normalised"], io["advantages"], rows)
    norms: list[Tensor] = []
    optimiser = fresh()
    ppo_update(
        actor, critic, optimiser, data, sigma=sigma, config=paper, total=total, seed=0,
        on_step=lambda: norms.append(gradient_norms()),
    )  # fmt: skip
    report.holds("one step an epoch", len(norms) == config["K_epochs"])
    for key in sorted(io):
        if key.startswith("update/grad_norm_epoch"):
            epoch = int(key.removeprefix("update/grad_norm_epoch"))
            report.close(f"gradients of epoch {epoch}", norms[epoch - 1], io[key], atol=1e-7, **tolerance["grad norms"])
    change = torch.stack([(parameters[name].detach() - start[name]).norm() for name in order])
    report.close("change of the parameters", change, io["update/param_change"], atol=1e-9, **tolerance["param_change"])
    with torch.no_grad():
        mean, values = actor(features, step), critic(features, step).squeeze(-1)
    report.close("action means after", mean, io["update/action_mean_after"], **tolerance["after-update outputs"])
    report.close("values after", values, io["update/values_after"], **tolerance["after-update outputs"])

    # The same, epoch by epoch, for the losses on the way.
    optimiser, losses = fresh(), []
    once = paper.model_copy(update={"epochs": 1})
    for _ in range(config["K_epochs"]):
        row = ppo_update(actor, critic, optimiser, data, sigma=sigma, config=once, total=total, seed=0)
        losses.append(row["policy_loss"] + paper.value_coefficient * row["value_loss"] - constant)
    report.close("losses", torch.tensor(losses), io["update/losses"], **tolerance["losses"])

    # Sigma in force after the update of iteration i is that of rollout i + 1. The second schedule drops at 1, 500 and 1000.
    iterations = io["std/global_step"].tolist()
    last = max(iterations) + 2
    own = [PPOConfig.paper().sigma_at(i + 1, last) for i in iterations]
    report.close("sigma", torch.tensor(own), io["std/default"], atol=1e-6)
    three = paper.model_copy(update={"sigma_drop_at": (1, 500, 1000)})
    own = [three.sigma_at(i + 1, last) for i in iterations]
    report.close("sigma with three drops", torch.tensor(own), io["std/three_drops"], atol=1e-6)


CHECKS = {
    "adanat_policy": check_policy,
    "adanat_actions": check_actions,
    "adanat_env_step": check_env_step,
    "adanat_env_step_logits": check_step_logits,
    "adanat_env_step_stats": check_step_law,
    "adanat_ppo": check_ppo,
}
