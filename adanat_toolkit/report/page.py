"""The page: what was read and gathered, put into the template."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import torch
from torch import Tensor

from ..metrics import LOWER_IS_BETTER, direction
from ..registry import toolkit_version
from ..training import RunConfig
from . import yardstick
from .charts import colour_class, number
from .curves import knob_charts, training_charts
from .gather import PROBED, Gathered, Group, Look, Traced
from .reading import Run

PICTURE, THUMBNAIL = 192, 128
"""Longest side in pixels of the pictures of the same seeds, and of those of single steps; smaller ones keep their size."""
LOSSLESS = 128
"""Longest side up to which pictures are PNG; larger ones are JPEG."""
EXTREMES = 8
"""Samples at each end of the ranking."""
MOST_STEPS = 12
"""Steps of a sample that are shown, at most."""
MARKER = "adanat-toolkit report"
"""In every report: what tells its file from others."""


def render(runs: Sequence[Run], gathered: Gathered, *, command: str | None = None) -> str:
    """The whole HTML document."""
    from jinja2 import Environment, StrictUndefined

    folder = files(__package__)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "words": _words, "duration": _duration, "colour": colour_class}
    template = environment.from_string((folder / "report.html.j2").read_text(encoding="utf-8"))
    main, other = training_charts(runs)
    text = template.render(
        marker=MARKER,
        version=toolkit_version(),
        style=(folder / "report.css").read_text(encoding="utf-8"),
        script=(folder / "report.js").read_text(encoding="utf-8"),
        command=command,
        runs=[_run(run, i, gathered) for i, run in enumerate(runs)],
        alarms=[(run.name, alarm, alarm.name in run.active) for run in runs for alarm in run.raised],
        tables=[_table(block) for block in gathered.blocks],
        groups=[_group(group, runs) for group in gathered.groups],
        charts=main,
        others=other,
        settings=_settings(runs),
        notes=gathered.notes,
        probed=PROBED,
    )
    return text.lstrip()  # what the template's macros leave before the document


# --- pictures -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Picture:
    """``source``: a data URI; ``alt``: what is on it."""

    source: str
    alt: str
    width: int
    height: int


def picture(image: Tensor, alt: str, limit: int = PICTURE) -> Picture:
    """An image for the page: (3, H, W) uint8, made smaller where it is larger than ``limit``."""
    from PIL import Image

    shown = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    shown.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    kind = "png" if max(shown.size) <= LOSSLESS else "jpeg"
    shown.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 88}))
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(source, alt, *shown.size)


def mask_picture(mask: Tensor, alt: str) -> Picture:
    """(h, w) bool -> one pixel a cell: dark where masked, light where kept."""
    grey = torch.where(mask, 60, 225).to(torch.uint8)
    return picture(grey.expand(3, -1, -1), alt)


# --- sections -----------------------------------------------------------------------------------------------------------


def _run(run: Run, position: int, gathered: Gathered) -> dict[str, Any]:
    """A run at a glance."""
    config = run.config
    readings = [y for _, y in run.values("yardstick/frechet")]
    lines = [line for block in gathered.blocks for line in block.lines if line.learned and line.label == run.name]
    return {
        "name": run.name,
        "colour": colour_class(position),
        "generator": config.generator.name if run.card is None else run.card["generator"]["name"],
        "policy": config.policy.name,
        "reward": config.reward.name,
        "steps": config.steps,
        "seed": config.seed,
        "engine": config.engine,
        "iterations": run.rows[-1]["iteration"],
        "planned_iterations": config.iterations,
        "trajectories": run.rows[-1]["trajectories"],
        "planned": config.iterations * config.batch,
        "seconds": sum(value for name in ("seconds", "seconds_yardstick") for _, value in run.values(name)),
        "first_reward": run.rows[0]["reward/mean"],
        "last_reward": run.last("reward/mean"),
        "readings": (readings[0], min(readings), readings[-1]) if readings else None,
        "images": config.evaluate_images,
        "line": lines[0] if lines else None,
        "alarms": [alarm.name for alarm in run.raised],
        "active": sorted(run.active),
    }


def _table(block: yardstick.Block) -> dict[str, Any]:
    facts = block.facts
    best = {}
    for name in block.figures:
        values = [line.evaluation.figures[name] for line in block.lines if name in line.evaluation.figures]
        best[name] = min(values) if name in LOWER_IS_BETTER else max(values)
    return {
        "facts": facts,
        "stored": block.stored,
        "apart": block.apart,
        "columns": [(name, yardstick.title(name), direction(name)) for name in block.figures],
        "lines": block.lines,
        "best": best,
        "flattered": any(line.flattered for line in block.lines),
        "intervals": any(line.evaluation.intervals for line in block.lines),
    }


def _group(group: Group, runs: Sequence[Run]) -> dict[str, Any]:
    names = [run.name for run in runs]
    spreads = {look.run.name: look.probe.spread() for look in group.looks}
    seeds = []
    for i, (seed, label) in enumerate(zip(group.hand_made.seeds, group.hand_made.labels, strict=True)):
        about = _about(seed, label)
        row = [("hand-made", picture(group.hand_made.images[i], f"hand-made schedule, {about}"))]
        row += [(look.run.name, picture(look.probe.images[i], f"{look.run.name}, {about}")) for look in group.looks]
        seeds.append({"seed": seed, "label": label, "row": row})
    return {
        "generator": group.generator,
        "steps": group.steps,
        "schedule": group.schedule,
        "seeds": seeds,
        "knobs": knob_charts([(names.index(name), name, s) for name, s in spreads.items()], group.hand_made.spread()),
        "spreads": spreads,
        "hand_made": group.hand_made.spread(),
        "looks": [_look(look, names.index(look.run.name)) for look in group.looks],
    }


def _look(look: Look, position: int) -> dict[str, Any]:
    ranking, found = look.ranking, look.probe
    ends = []
    if ranking.order:
        count = min(EXTREMES, len(ranking.order) // 2)
        for words, order in (("Most simple", ranking.order[:count]), ("Least simple", ranking.order[::-1][:count])):
            samples = []
            for i in order:
                shown = picture(found.images[i], f"{words.lower()}: {_about(found.seeds[i], found.labels[i])}")
                samples.append((shown, found.seeds[i], found.labels[i], ranking.values[i]))
            ends.append((words, samples))
    values = sorted(ranking.values)
    return {
        "name": look.run.name,
        "colour": colour_class(position),
        "measure": ranking.measure,
        "range": (values[0], values[len(values) // 2], values[-1]) if values else None,
        "ends": ends,
        "acted": look.acted,
        "names": found.names,
        "traced": [_traced(traced, found.names) for traced in look.traced],
    }


def _traced(traced: Traced, names: Sequence[str]) -> dict[str, Any]:
    about = _about(traced.seed, traced.label)
    rows = []
    for who, steps in (("learned", traced.learned), ("hand-made", traced.hand_made)):
        cells = []
        for t in _some(len(steps), MOST_STEPS):
            step, text = steps[t], f"{who}, {about}, after step {t + 1}"
            pictures = [("drawn", picture(step.image, f"{text}: what was drawn", THUMBNAIL))]
            share = None
            if step.mask is not None and step.kept is not None:
                share = float(step.mask.float().mean())
                words = f"{text}: {share:.0%} of the cells masked again"
                pictures.append(("kept", picture(step.kept, f"{words}, covered with grey", THUMBNAIL)))
                pictures.append(("mask", mask_picture(step.mask, f"{words}, dark")))
            knobs = list(zip(names, step.knobs, strict=True))
            cells.append({"step": t + 1, "share": share, "pictures": pictures, "knobs": knobs})
        rows.append((who, cells))
    return {"why": traced.why, "seed": traced.seed, "label": traced.label, "value": traced.value, "rows": rows}


def _some(count: int, most: int) -> list[int]:
    """Positions 0 .. count - 1, or ``most`` of them, first and last included."""
    if count <= most:
        return list(range(count))
    return sorted({round(i * (count - 1) / (most - 1)) for i in range(most)})


def _words(text: str) -> str:
    return text.replace("_", " ")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def _about(seed: int, label: str) -> str:
    return f"seed {seed}, {label}" if label else f"seed {seed}"


# --- settings -----------------------------------------------------------------------------------------------------------


def _settings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every setting with its value in each run: those that the runs do not share first, then those that are not the
    default, then the rest."""
    flat = [_flat(run.stored) for run in runs]
    default = _flat(RunConfig().model_dump(mode="json"))
    rows = []
    for key in dict.fromkeys(key for values in flat for key in values):
        values = [_text(each.get(key)) for each in flat]
        differs, changed = len(set(values)) > 1, any(value != _text(default.get(key)) for value in values)
        rank = 0 if differs else 1 if changed else 2
        rows.append({"key": key, "values": values, "default": _text(default.get(key)), "rank": rank})
    return sorted(rows, key=lambda row: row["rank"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return out


def _text(value: Any) -> str:
    if value is None or value in ({}, [], ()):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
