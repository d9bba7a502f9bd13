"""Which logged figures make up which chart; ``docs/logged-names.md`` explains the names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..metrics import direction, title
from .charts import Chart, Series
from .probing import KnobSpread
from .reading import Run

SHOWN_STEPS = 6
"""Steps of a knob that are drawn over the course of training, at most."""

NAMED_RUNS = 3
"""So many runs are named at every chart; the names of more stand above all charts."""
NEUTRAL = -1
"""Colour of what is compared with."""
BAND = "Band: one standard deviation over the batch."


@dataclass(frozen=True)
class Panel:
    """A chart of logged figures: (label, name) each; see :class:`charts.Chart` for the rest."""

    title: str
    lines: tuple[tuple[str, str], ...]
    note: str = ""
    zero: bool = False


FIXED = (
    Panel("Exploration sigma", (("sigma", "sigma"),), "Standard deviation in raw coordinates.", True),
    Panel("KL divergence of the update", (("KL", "ppo/approx_kl"),), "In nats; healthy: 0.01 to 0.1.", True),
    Panel("Clip fraction", (("clip fraction", "ppo/clip_fraction"),), "Healthy: below 0.3.", True),
    Panel(
        "Explained variance",
        (("explained variance", "ppo/explained_variance"), ("by the context", "ppo/context_explained")),
        "1: a perfect critic; 0: no better than the mean.",
    ),
)
YARDSTICK = (
    *(
        Panel(f"{title(name)}, held out", ((title(name), f"yardstick/{name}"),), f"{direction(name).capitalize()}.")
        for name in ("frechet", "kid")
    ),
    Panel(
        "Precision and recall, held out",
        (("precision", "yardstick/precision"), ("recall", "yardstick/recall")),
        "More is better.",
    ),
    Panel(
        "Density and coverage, held out",
        (("density", "yardstick/density"), ("coverage", "yardstick/coverage")),
        "More is better.",
    ),
    Panel("Diversity, held out", (("diversity", "yardstick/diversity"),), "1: as diverse as the data."),
)
LATER = (
    Panel(
        "Shares of the reward's variance",
        (("context", "share/context"), ("slopes common to all", "share/slope")),
        "Each batch's estimate has a wide error and no bias: look at the mean.",
        True,
    ),
    Panel("Diversity of the batch", (("diversity", "diversity"),), "No unit; compare within a run only."),
    Panel("Policy loss", (("policy loss", "ppo/policy_loss"),)),
    Panel("Value loss", (("value loss", "ppo/value_loss"),), "In units of the standardised reward.", True),
    Panel("Gradient norm", (("gradient norm", "ppo/gradient_norm"),), "Before clipping.", True),
    Panel("Learning rate", (("learning rate", "learning_rate"),), "", True),
    Panel("Trajectories per second", (("trajectories per second", "trajectories_per_second"),), "", True),
)
HIDDEN = re.compile(r"(knob|statistic)(_spread)?/|seconds|iteration$|trajectories$|reward/std$|reward/.*/std$|ppo/epochs$")


def training_charts(runs: Sequence[Run]) -> tuple[list[Chart], list[Chart]]:
    """The charts of the course of training that matter, and those of every other logged figure."""
    logged = list(dict.fromkeys(name for run in runs for row in run.rows for name in row if name != "alarms"))
    panels = [*_reward_panels(logged), *FIXED, *YARDSTICK]
    main = [chart for panel in panels for chart in _by_reward(panel, runs)]
    if len(runs) == 1:
        main += _charts_by_step(runs[0], logged, "knob") + _charts_by_step(runs[0], logged, "statistic")
    drawn = {name for panel in (*panels, *LATER) for _, name in panel.lines}
    rest = [Panel(name, ((name, name),)) for name in logged if name not in drawn and not HIDDEN.match(name)]
    other = [_chart(panel, runs) for panel in (*LATER, *rest)]
    return [c for c in main if c.series], [c for c in other if c.series]


def knob_charts(spreads: Sequence[tuple[int, str, list[KnobSpread]]], hand_made: list[KnobSpread]) -> list[Chart]:
    """A chart a knob: mean over the steps with the band that holds 80 % of the samples, a line a run; hand-made dashed.

    Args:
        spreads: number of the run's colour, its name, and its knobs, which are those of ``hand_made``.
    """
    charts = []
    for k, knob in enumerate(hand_made):
        series = []
        for colour, name, spread in spreads:
            own = spread[k]
            steps = range(1, len(own.mean) + 1)
            band = list(zip(own.low, own.high, strict=True))
            series.append(Series(name, list(zip(steps, own.mean, strict=True)), colour, 0, band, True))
        points = [(float(t), value) for t, value in enumerate(knob.mean, start=1)]
        series.append(Series("hand-made", points, NEUTRAL, 1, None, True))
        charts.append(Chart(knob.name.replace("_", " "), series, "step", zero=True, whole=True))
    return charts


def _reward_panels(logged: Sequence[str]) -> list[Panel]:
    real = "reward_model/reward_real"
    lines = [("generated", "reward/mean")] + ([("real images", real)] if real in logged else [])
    out = [Panel("Reward", tuple(lines), BAND)]
    for name in logged:
        term = re.fullmatch(r"reward/(.+)/mean", name)
        if term:
            out.append(Panel(f"Reward term {term[1]}", ((term[1], name),), "Before standardisation."))
    for name in logged:
        found = re.fullmatch(r"(reward_model/(?:(.+)/)?)accuracy_real", name)
        if found:
            prefix, of = found[1], f" of {found[2]}" if found[2] else ""
            pairs = (("real", f"{prefix}accuracy_real"), ("generated", f"{prefix}accuracy_fake"))
            out.append(Panel(f"Discriminator accuracy{of}", pairs, "Share on the right side; healthy: 0.6 to 0.9."))
            pairs = (("real", f"{prefix}logit_real"), ("generated", f"{prefix}logit_fake"))
            out.append(Panel(f"Discriminator logits{of}", pairs, "Healthy: not far apart."))
            out.append(Panel(f"Discriminator loss{of}", (("loss", f"{prefix}loss"),), "With its penalty."))
    return out


def _by_reward(panel: Panel, runs: Sequence[Run]) -> list[Chart]:
    """The chart of a panel; rewards of unlike kinds have no scale in common, and get a chart each."""
    names = list(dict.fromkeys(run.config.reward.name for run in runs))
    if len(names) == 1 or ("generated", "reward/mean") not in panel.lines:
        return [_chart(panel, runs)]
    return [_chart(replace(panel, title=f"Reward {name}"), runs, name) for name in names]


def _chart(panel: Panel, runs: Sequence[Run], reward: str | None = None) -> Chart:
    """Of one run: a colour a figure. Of several: a colour a run, and a dash a figure.

    Args:
        reward: only the runs with this reward, in the colours that they have among all.
    """
    several = len(runs) > 1
    series = []
    for number, run in enumerate(runs):
        for position, (label, name) in enumerate(panel.lines):
            points = run.values(name)
            if not points or reward not in (None, run.config.reward.name):
                continue
            text = label if not several else run.name if len(panel.lines) == 1 else f"{run.name}: {label}"
            band = _reward_band(run) if name == "reward/mean" and not several else None
            colour, dash = (number, position) if several else (position, 0)
            series.append(Series(text, points, colour, dash, band, name.startswith("yardstick/")))
    legend = None
    if several:
        logged = {s.colour for s in series}
        legend = [(run.name, i, 0) for i, run in enumerate(runs) if i in logged] if len(runs) <= NAMED_RUNS else []
        if len(panel.lines) > 1:
            legend += [(label, NEUTRAL, dash) for dash, (label, _) in enumerate(panel.lines)]
    note = "" if several and panel.note == BAND else panel.note
    return Chart(panel.title, series, note=note, zero=panel.zero, legend=legend)


def _reward_band(run: Run) -> list[tuple[float, float]] | None:
    means, stds = ([value for _, value in run.values(f"reward/{name}")] for name in ("mean", "std"))
    if not len(means) == len(stds) == len(run.rows):
        return None
    return [(mean - std, mean + std) for mean, std in zip(means, stds, strict=True)]


def _charts_by_step(run: Run, logged: Sequence[str], what: str) -> list[Chart]:
    """Mean of each knob (or statistic that the policy sees) over the training, a line a step (some, where there are many)."""
    found: dict[str, list[int]] = {}
    for logged_name in logged:
        parts = re.fullmatch(rf"{what}/(.+)/(\d+)", logged_name)
        if parts:
            found.setdefault(parts[1], []).append(int(parts[2]))
    charts = []
    for name, steps in found.items():
        count = min(len(steps), SHOWN_STEPS)
        chosen = sorted({steps[round(i * (len(steps) - 1) / max(count - 1, 1))] for i in range(count)})
        series = [Series(f"step {t + 1}", run.values(f"{what}/{name}/{t}"), colour) for colour, t in enumerate(chosen)]
        if len({y for s in series for _, y in s.points}) > len(series):  # what never changes says nothing
            label = "" if what == "knob" else ", seen by the policy,"
            charts.append(Chart(f"{name.replace('_', ' ')}{label} during training", series, note="Mean over the batch."))
    return charts
