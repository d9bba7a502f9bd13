"""Tables of a comparison as Markdown, CSV and text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from ..metrics import FIGURES
from .result import HAND_MADE
from .table import Figure, Row, Saved, Table


def columns(table: Table) -> list[str]:
    """Figures that the table shows: those that any row has."""
    return [name for name in FIGURES if any(name in row.figures for row in table.rows)]


def cells_of(row: Row, names: Sequence[str], *, intervals: bool = True) -> list[str]:
    """The texts of a row: what it is, then the figures (with their intervals or without), the ratio, notes and alarms."""
    shown = [_show(row.figures.get(name), intervals) for name in names]
    notes = ["partial"] if row.partial else []
    notes += [f"{name} partial" for name in row.told]
    notes += [f"{name} ({count}/{len(row.seeds) + len(row.failed)})" for name, count in row.alarms.items()]
    notes += [f"FAILED (seed {seed})" for seed in row.failed]
    notes += row.devices
    return [
        row.title,
        row.reward or "",
        str(row.steps),
        str(len(row.seeds)),
        *shown,
        _show(row.ratio),
        ", ".join(notes),
    ]


HEADS = ("policy", "reward", "T", "seeds")


TAILS = ("ratio", "notes")


def _show(figure: Figure | None, interval: bool = True) -> str:
    if figure is None:
        return ""
    if figure.interval is None or not interval:
        return _number(figure.mean)
    return f"{_number(figure.mean)} [{_number(figure.interval[0])}, {_number(figure.interval[1])}]"


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"


def saved_text(saved: Saved) -> str:
    """One sentence."""
    name = saved.policy if saved.reward is None else f"{saved.policy} ({saved.reward})"
    if saved.equal_at is None:
        return f"{name} at T={saved.steps}: no hand-made schedule up to T={saved.longest} is as good."
    if saved.equal_at <= saved.steps:
        return (
            f"{name} at T={saved.steps}: a hand-made schedule is as good at T={saved.equal_at:.1f}; no steps are saved."
        )
    return (
        f"{name} at T={saved.steps}: as good as hand-made schedules at T={saved.equal_at:.1f}, which saves "
        f"{saved.equal_at - saved.steps:.1f} steps."
    )


def failures(table: Table) -> list[str]:
    """What failed and why, a line a row of the table and reason."""
    out = []
    for row in table.rows:
        reasons: dict[str, list[str]] = {}
        for seed, text in row.failed.items():
            reasons.setdefault(text, []).append(str(seed))
        out += [f"{row.label}, T={row.steps}, seed {', '.join(seeds)}: {text}" for text, seeds in reasons.items()]
    return out


def caption(table: Table) -> list[str]:
    """What a reader must know beside the numbers, a line each."""
    facts = table.facts
    several = len({seed for row in table.rows for seed in [*row.seeds, *row.failed]}) > 1
    device = "devices in the notes" if any(row.devices for row in table.rows) else facts["device"]
    over = "Student's 95 % interval over seeds" if several else "95 % bootstrap interval over images"
    return [
        f"{facts['generator']} (weights {facts['generator_fingerprint']}), {facts['images']:,} images a seed, seeds "
        f"{', '.join(map(str, facts['seeds']))}, adanat-toolkit {facts['toolkit']}, {device}, {facts['dtype']}.",
        f"Features {facts['protocol']}, real images {facts['data']} ({facts['real_images']}).",
        f"Mean over seeds, in brackets {over}. Frechet and kernel distance: lower is better.",
        f"ratio: Frechet distance over that of `{HAND_MADE}` at the same T, seed by seed; below 1 is better.",
        "partial: optimised on the very features that judge it here, so that its figures flatter it; FIGURE partial: that "
        "figure's alone.",
        f"Budget of learned policies and of the search: {facts['budget']:,} generated images a seed.",
    ]


def markdown(table: Table, *, pictures: Sequence[str] = (), command: str | None = None) -> str:
    """The table as a page: numbers, alarms with their remedies, steps saved, failures, pictures (relative paths)."""
    names = columns(table)
    heads = [*HEADS, *names, *TAILS]
    lines = [f"# {table.facts['generator']}: policies compared", ""]
    lines += [f"- {line}" for line in caption(table)]
    if command:
        lines += ["", "```bash", command, "```"]
    lines += ["", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in cells_of(row, names)) + " |" for row in table.rows]
    if table.adapted:
        lines += ["", "## Did it adapt?", "", *(f"- {line}" for line in table.adapted)]
    if table.saved:
        lines += ["", "## Steps saved", "", *(f"- {saved_text(saved)}" for saved in table.saved)]
    schedules = [(row, dict.fromkeys(row.schedules)) for row in table.rows if row.schedules]
    if schedules:
        lines += ["", "## Schedules", ""]
        lines += [
            f"- {row.policy}, T={row.steps}: " + "; ".join(f"`{plain(s).replace('`', '')}`" for s in found)
            for row, found in schedules
        ]
    if table.facts.get("alarms"):
        lines += ["", "## Alarms", ""]
        lines += [
            f"- {a['cell']}, from iteration {a['since']}: **{a['name']}**: {plain(a['message'])}"
            for a in table.facts["alarms"]
        ]
    failed = failures(table)
    if failed:
        lines += ["", "## Failed", "", *(f"- {plain(line)}" for line in failed)]
    for name in pictures:
        lines += ["", f"![{name.removesuffix('.png').replace('-', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """A text of others for a page: one line without HTML, links or pictures."""
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("[", "&#91;"), ("]", "&#93;")):
        text = text.replace(sign, written)
    return " ".join(text.split())


def to_csv(table: Table) -> str:
    """One line a row; mean, low and high of every figure in columns of their own, and protocol and N in each line."""
    names = columns(table)
    heads = ["policy", "reward", "steps", "seeds", "images", "protocol", "data", "budget", "devices"]
    for name in [*names, "ratio"]:
        heads += [name, f"{name}_low", f"{name}_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*heads, "partial", "alarms", "failed"])
    for row in table.rows:
        line: list[Any] = [
            row.title,
            row.reward or "",
            row.steps,
            " ".join(map(str, row.seeds)),
            table.facts["images"],
        ]
        line += [table.facts["protocol"], table.facts["data"], row.budget]
        line.append(" ".join(row.devices or [table.facts["device"]]))
        for figure in [*(row.figures.get(name) for name in names), row.ratio]:
            low, high = (figure.interval if figure is not None else None) or ("", "")
            line += ["" if figure is None else figure.mean, low, high]
        writer.writerow([*line, int(row.partial), " ".join(row.alarms), " ".join(map(str, row.failed))])
    return out.getvalue()
