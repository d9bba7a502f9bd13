"""Figures of a comparison, drawn without a display (matplotlib's Agg canvas, no global state)."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images import figure_png, png_bytes, read_png, side_by_side
from ..metrics import title
from ..storage import write_file
from .result import Result
from .table import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEVERAL = 12
"""Cells side by side in one picture: more cannot be told apart."""


def draw_all(results: Sequence[Result], table: Table, folder: Path, *, sheets: Path) -> list[Path]:
    """Every picture that the results give rise to.

    Args:
        sheets: folder with a PNG of the first images of each cell, ``NAME.png``.

    Returns:
        The files: ``same-seeds-T*.png``, ``knobs-T*.png``, ``quality-against-steps.png``,
        ``reward-against-yardstick.png``.
    """
    done = [r for r in results if r.evaluation is not None and r.cell.control is None]
    out = []
    for steps in sorted({r.cell.steps for r in done}):
        of_steps = [r for r in done if r.cell.steps == steps]
        chosen = _one_seed(of_steps)
        if any(r.cell.learned for r in chosen) or len(chosen) > 2:
            drawn = _one_seed([r for r in of_steps if _sheet(r, sheets).is_file()])  # what is taken over may have none
            if drawn:
                out += [_same_seeds(drawn, folder / f"same-seeds-T{steps}.png", sheets)]
            out += [_save(knobs_over_steps(chosen), folder / f"knobs-T{steps}.png")]
    if len({r.cell.steps for r in done}) > 1:
        out.append(_save(quality_against_steps(table), folder / "quality-against-steps.png"))
    watched = [r for r in done if any(row.get("frechet") is not None for row in r.training)]
    if watched:
        out.append(_save(reward_against_yardstick(watched), folder / "reward-against-yardstick.png"))
    return out


def knobs_over_steps(results: Sequence[Result]) -> Figure:
    """A panel a knob: mean over steps, with the band that holds 80 % of the images of each policy."""
    names = results[0].knobs["names"]
    results = [result for result in results if result.knobs["names"] == names]  # what is taken over may have others
    figure, axes = _panels(len(names))
    for column, (name, axis) in enumerate(zip(names, axes, strict=True)):
        for position, result in enumerate(results):
            mean, low, high = ([step[column] for step in result.knobs[key]] for key in ("mean", "low", "high"))
            steps = range(1, len(mean) + 1)
            colour = f"C{position % 10}"
            axis.plot(
                steps, mean, "o-" if result.cell.learned else "s--", color=colour, label=_label(result), markersize=4
            )
            if result.cell.learned:
                axis.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axis.set_title(name.replace("_", " "), parse_math=False)
        axis.set_ylim(0, max(1.0, 1.05 * max(max(step[column] for step in r.knobs["high"]) for r in results)))
        axis.set_xlabel("step")
        axis.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axes[0], "mean; bands: 10 to 90 % of the images")
    return figure


def quality_against_steps(table: Table) -> Figure:
    """Frechet distance against T, a line a policy, with the intervals of the table."""
    figure, (axis,) = _panels(1)
    lines: dict[str, list[Any]] = {}
    for row in table.rows:
        if "frechet" in row.figures and row.control is None:
            lines.setdefault(row.label, []).append(row)
    for position, (label, rows) in enumerate(lines.items()):
        means = [row.figures["frechet"].mean for row in rows]
        intervals = [row.figures["frechet"].interval or (m, m) for row, m in zip(rows, means, strict=True)]
        # A bootstrap interval need not hold the figure itself, nor Student's stay above 0 on the logarithmic axis.
        down = [min(max(m - low, 0), 0.95 * m) for m, (low, _) in zip(means, intervals, strict=True)]
        up = [max(high - m, 0) for m, (_, high) in zip(means, intervals, strict=True)]
        style = "s--" if rows[0].reward is None else "o-"
        axis.errorbar(
            [row.steps for row in rows], means, [down, up], fmt=style, color=f"C{position % 10}", label=label, capsize=3
        )
    axis.set_xlabel("steps T")
    axis.set_ylabel(title("frechet"))
    axis.set_yscale("log")
    # Plain numbers: distances seldom span more than a decade, and powers of ten of a single digit are hard to read.
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("{x:g}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    _legend(figure, axis, "95 % intervals")
    return figure


def reward_against_yardstick(results: Sequence[Result]) -> Figure:
    """A panel a row of the table: reward (left, all iterations) and held-out Frechet distance (right), a line a seed."""
    groups: dict[tuple[str, str | None, int, str | None], list[Result]] = {}
    for result in results:
        groups.setdefault(result.cell.row, []).append(result)
    figure, axes = _panels(len(groups))
    for axis, ((policy, reward, steps, _), members) in zip(axes, groups.items(), strict=True):
        other = axis.twinx()
        for result in members:
            rows = [row for row in result.training if row["reward"] is not None]
            axis.plot(
                [r["trajectories"] for r in rows], [r["reward"] for r in rows], color="C0", alpha=0.6, linewidth=1
            )
            read = [row for row in result.training if row.get("frechet") is not None]
            other.plot([r["trajectories"] for r in read], [r["frechet"] for r in read], "o-", color="C3", markersize=3)
        axis.set_title(f"{policy}, {reward}, T={steps}", fontsize=9)
        axis.set_xlabel("trajectories")
        axis.set_ylabel("reward", color="C0")
        other.set_ylabel(f"held-out {title('frechet')}", color="C3")
    return figure


def _same_seeds(results: Sequence[Result], file: Path, sheets: Path) -> Path:
    titles = [
        f"{_label(r)}, {r.evaluation.figures['frechet']:.2f}" for r in results[:SEVERAL] if r.evaluation is not None
    ]
    picture = side_by_side([read_png(_sheet(r, sheets)) for r in results[:SEVERAL]], titles)
    return _write(file, png_bytes(picture))


def _sheet(result: Result, sheets: Path) -> Path:
    return sheets / f"{result.cell.name}.png"


def _one_seed(results: Sequence[Result]) -> list[Result]:
    """The results of one seed: the first of those that most rows have."""
    count = Counter(result.cell.seed for result in results)
    return [result for result in results if result.cell.seed == max(count, key=lambda seed: count[seed])]


def _label(result: Result) -> str:
    return result.cell.policy if result.cell.reward is None else f"{result.cell.policy}, {result.cell.reward}"


def _panels(count: int) -> tuple[Figure, list[Any]]:
    """A figure with ``count`` panels, at most four side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(count, 4)
    down = -(-count // across)
    width = 7.0 if count == 1 else 3.6 * across
    figure = Figure(figsize=(width, 3.4 * down), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def _legend(figure: Figure, axis: Any, note: str) -> None:
    handles, labels = axis.get_legend_handles_labels()
    across = max(1, int(figure.get_figwidth() // 2.2))
    options: dict[str, Any] = {"ncols": across, "fontsize": 8, "title": note, "title_fontsize": 8}
    figure.legend(handles, labels, loc="outside lower center", **options)


def _save(figure: Figure, file: Path) -> Path:
    return _write(file, figure_png(figure))


def _write(file: Path, png: bytes) -> Path:
    """The picture in a palette of 256 colours, which takes a quarter of the bytes: reports are mailed and committed."""
    from PIL import Image

    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png)) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    write_file(file, buffer.getvalue())
    return file
