"""Tables of a comparison as Markdown, CSV and text."""

from __future__ import annotations

import csv
import io
import re
import shlex
import textwrap
from collections.abc import Sequence
from typing import Any

from ..errors import printable
from ..metrics import FIGURES, TABLE, direction, title
from .result import HAND_MADE
from .table import Figure, Row, Saved, Table


def columns(table: Table) -> list[str]:
    """Figures that the table shows: those that any row has; after the yardstick's the scores under rewards."""
    found = dict.fromkeys(name for row in table.rows for name in row.figures)
    return [*(name for name in FIGURES if name in found), *(name for name in found if name not in FIGURES)]


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

WIDTH = 120
"""Longest line of a page, where no single word is longer."""


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
    scored = any(name not in FIGURES for name in columns(table))
    fewer = " and ".join(title(name) for name, figure in TABLE.items() if figure.less_is_better)
    return [
        f"{facts['generator']} (weights {facts['generator_fingerprint']}), {facts['images']:,} images a seed, seeds "
        f"{', '.join(map(str, facts['seeds']))}, adanat-toolkit {facts['toolkit']}, {device}, {facts['dtype']}.",
        f"Features {facts['protocol']}, real images {facts['data']} ({facts['real_images']}).",
        f"Mean over seeds, in brackets {over}. {fewer}: {direction('frechet')}.",
        f"ratio: Frechet distance over that of `{HAND_MADE}` at the same T, seed by seed; below 1 is better.",
        "partial: optimised on the very features that judge it here, so that its figures flatter it; FIGURE partial: that "
        "figure's alone.",
        *(["reward NAME: mean score of the images under that reward; higher is better."] if scored else []),
        *(f"reward {plain(name)}: no scores. {plain(why)}" for name, why in facts.get("without_scores", {}).items()),
        f"Budget of learned policies and of the search: {facts['budget']:,} generated images a seed.",
    ]


def markdown(table: Table, *, pictures: Sequence[str] = (), command: str | None = None) -> str:
    """The table as a page: numbers, alarms with their remedies, steps saved, failures, pictures (relative paths).

    Figures stand in as many tables as it takes to keep lines short; what the console's table has as notes is a list.
    """
    lines = [f"# {table.facts['generator']}: policies compared", ""]
    lines += [line for text in caption(table) for line in _item(text)]
    if command:
        lines += ["", "```bash", *_continued(command), "```"]
    lines += _tables(table)
    notes = [(row, cells_of(row, ())[-1]) for row in table.rows]
    if any(text for _, text in notes):
        lines += ["", "## Notes", ""]
        lines += [x for row, text in notes if text for x in _item(f"{row.label}, T={row.steps}: {plain(text)}")]
    if table.adapted:
        lines += ["", "## Did it adapt?", "", *(line for text in table.adapted for line in _item(text))]
    if table.against_shared:
        lines += ["", "## Against shared", "", *(line for text in table.against_shared for line in _item(text))]
    if table.saved:
        lines += ["", "## Steps saved", "", *(line for saved in table.saved for line in _item(saved_text(saved)))]
    schedules = [(row, dict.fromkeys(row.schedules)) for row in table.rows if row.schedules]
    if schedules:
        lines += ["", "## Schedules", ""]
        for row, found in schedules:
            texts = [f"`{plain(text).replace('`', '')}`" for text in found]
            head = f"- {row.policy}, T={row.steps}:"
            lines += [f"{head} {texts[0]}"] if len(texts) == 1 else [head, *(f"    - {text}" for text in texts)]
    if table.facts.get("alarms"):
        lines += ["", "## Alarms", ""]
        for a in table.facts["alarms"]:
            lines += _item(f"{a['cell']}, from iteration {a['since']}: **{a['name']}**: {plain(a['message'])}")
    failed = failures(table)
    if failed:
        lines += ["", "## Failed", "", *(part for line in failed for part in _item(plain(line)))]
    for name in pictures:
        lines += ["", f"![{name.removesuffix('.png').replace('-', ' ')}]({name})"]
    return "\n".join(lines) + "\n"


def _tables(table: Table) -> list[str]:
    """Tables of at most :data:`WIDTH` characters a line, each with as many figures as fit beside what a row is."""
    names = [name for name in columns(table) if name != "frechet"]
    labels = list(zip(HEADS, *(map(plain, cells_of(row, ())[: len(HEADS)]) for row in table.rows), strict=True))
    figures = [("frechet", *(_show(row.figures.get("frechet")) for row in table.rows))]
    figures += [("ratio", *(_show(row.ratio) for row in table.rows))]
    figures += [(plain(name), *(_show(row.figures.get(name)) for row in table.rows)) for name in names]
    width = {column: max(map(len, column)) + len("|  ") for column in {*labels, *figures}}
    tables: list[list[tuple[str, ...]]] = []
    for column in figures:
        if not tables or sum(width[c] for c in [*tables[-1], column]) + len("|") > WIDTH:
            tables.append(list(labels))
        tables[-1].append(column)
    lines = []
    for heads, *rows in (zip(*columns_, strict=True) for columns_ in tables):
        lines += ["", _line(heads), "|" + "---|" * len(heads), *map(_line, rows)]
    return lines


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _item(text: str) -> list[str]:
    """An item of a list, in lines that begin with a letter: nothing in a text of others becomes a mark of Markdown."""
    text = re.sub(r" (?![A-Za-z(])", "\0", text)
    filled = textwrap.wrap(
        text, WIDTH, initial_indent="- ", subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\0", " ") for line in filled]


def _continued(command: str) -> list[str]:
    """A command in lines that are continued, each but the first beginning with an option."""
    options: list[str] = []
    for word in map(shlex.quote, shlex.split(command)):
        if not options or word.startswith("-"):
            options.append(word)
        else:
            options[-1] += f" {word}"
    lines = [options[0]]
    for option in options[1:]:
        if len(lines[-1]) + len(option) + len("  \\") > WIDTH:
            lines[-1] += " \\"
            lines.append(f"  {option}")
        else:
            lines[-1] += f" {option}"
    return lines


def plain(text: str) -> str:
    """A text of others for a page: one line without HTML, links or pictures, what does not show as an escape."""
    text = printable(" ".join(text.split()))
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("[", "&#91;"), ("]", "&#93;")):
        text = text.replace(sign, written)
    return text


def to_csv(table: Table) -> str:
    """One line a row; mean, low and high of every figure in columns of their own, and protocol and N in each line."""
    names = columns(table)
    heads = ["policy", "reward", "steps", "seeds", "images", "protocol", "data", "budget", "devices"]
    for name in [*names, "ratio"]:
        heads += [name, f"{name}_low", f"{name}_high"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*map(printable, heads), "partial", "alarms", "failed"])
    for row in table.rows:
        line: list[Any] = [
            printable(row.title),
            printable(row.reward or ""),
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
