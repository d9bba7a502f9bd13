"""Line charts as inline SVG: sharp at any size, coloured by the page's style sheet, readable without scripts.

The numbers are attached to each chart, so that the page's script can show those under the pointer.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 34
COLOURS = 8
"""Colours in the style sheet; further series repeat them with another dash."""
MOST_POINTS = 400
"""Points of a line: more cannot be told apart on a screen; each then stands for the mean of its neighbours."""


@dataclass(frozen=True)
class Series:
    """One line.

    Attributes:
        points: (x, y), finite, by x. band: (low, high) at each point, drawn behind the line.
        colour: number of the colour, negative for a neutral one; dash: 0 is a full line.
        markers: whether the points are marked.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    dash: int = 0
    band: Sequence[tuple[float, float]] | None = None
    markers: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis.

    Attributes:
        note: what a reader should know, in one sentence. zero: the y axis begins at 0 where all values are positive.
        whole: the x values are counts, so that ticks between them would mean nothing.
        legend: (text, colour, dash); None: one entry a line, where there are several.
    """

    title: str
    series: Sequence[Series]
    x_label: str = "trajectories"
    note: str = ""
    zero: bool = False
    whole: bool = False
    legend: Sequence[tuple[str, int, int]] | None = None

    @property
    def keys(self) -> list[tuple[str, str, int]]:
        """(text, class of the colour, dash) of the legend."""
        found = self.legend
        if found is None:
            found = [(s.label, s.colour, s.dash) for s in self.series] if len(self.series) > 1 else []
        return [(text, colour_class(colour), dash_of(colour, dash)) for text, colour, dash in found]

    @property
    def thinned(self) -> int:
        """How many values a point stands for, at most."""
        return max((-(-len(s.points) // MOST_POINTS) for s in self.series), default=1)

    def svg(self) -> Markup:
        """The drawing, with its numbers in ``data-series``."""
        return _draw(self)


def colour_class(colour: int) -> str:
    """Class of the style sheet: ``c0`` .. ``c7``; ``cn``, neutral, for a negative number."""
    return f"c{colour % COLOURS}" if colour >= 0 else "cn"


def dash_of(colour: int, dash: int) -> int:
    """Dash of a line, 0 to 3: another one where the colours repeat."""
    return (dash + max(colour, 0) // COLOURS) % 4


def thin(series: Series) -> Series:
    """At most :data:`MOST_POINTS` points: means of neighbours, band included."""
    every = -(-len(series.points) // MOST_POINTS)
    if every <= 1:
        return series

    def means(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        chunks = [pairs[i : i + every] for i in range(0, len(pairs), every)]
        return [(sum(a for a, _ in c) / len(c), sum(b for _, b in c) / len(c)) for c in chunks]

    band = None if series.band is None else means(series.band)
    return Series(series.label, means(series.points), series.colour, series.dash, band, series.markers)


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round numbers from ``low`` to ``high``, about ``count`` of them, 1, 2 or 5 times a power of ten apart."""
    if not high > low:
        return [low]
    rough = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A figure for people: four digits that matter, thousands and millions shortened."""
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M"
    if size >= 1e4 or (size >= 1e3 and value % 1e3 == 0):
        return f"{value / 1e3:.4g}k"
    if size and size < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-")
    return f"{value:.4g}"


def limits(chart: Chart) -> tuple[float, float, float, float]:
    """x and y range of everything drawn, with room above and below."""
    xs = [x for s in chart.series for x, _ in s.points]
    ys = [y for s in chart.series for _, y in s.points]
    ys += [edge for s in chart.series for pair in s.band or () for edge in pair]
    low, high = min(ys), max(ys)
    if chart.zero and low >= 0:
        low = 0.0
    room = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    return x_low, x_high, low if chart.zero and low == 0 else low - room, high + room


def _draw(chart: Chart) -> Markup:
    series = [thin(s) for s in chart.series if s.points]
    if not series:
        return Markup("")
    x_low, x_high, y_low, y_high = limits(Chart(chart.title, series, zero=chart.zero))

    def px(x: float) -> str:
        return f"{LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT):.1f}"

    def py(y: float) -> str:
        return f"{TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = []
    for value in ticks(y_low, y_high, 5):
        at = py(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at}" dy="3.5" text-anchor="end">{number(value)}</text>')
    base = HEIGHT - BOTTOM
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    for value in ticks(x_low, x_high, 5, whole=chart.whole):
        parts.append(f'<text class="tick" x="{px(value)}" y="{base + 14}" text-anchor="middle">{number(value)}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{HEIGHT - 4}" text-anchor="middle">{escape(chart.x_label)}</text>'
    )
    for s in series:
        if s.band:
            there = [f"{px(x)},{py(high)}" for (x, _), (_, high) in zip(s.points, s.band, strict=True)]
            back = [f"{px(x)},{py(low)}" for (x, _), (low, _) in zip(s.points, s.band, strict=True)]
            parts.append(f'<polygon class="band {colour_class(s.colour)}" points="{" ".join(there + back[::-1])}"/>')
    for s in series:
        style = f"{colour_class(s.colour)} d{dash_of(s.colour, s.dash)}"
        points = " ".join(f"{px(x)},{py(y)}" for x, y in s.points)
        parts.append(f'<polyline class="line {style}" points="{points}"/>')
        if s.markers or len(s.points) == 1:
            parts += [f'<circle class="dot {style}" cx="{px(x)}" cy="{py(y)}" r="2.6"/>' for x, y in s.points]
    data = [
        {
            "label": s.label,
            "colour": colour_class(s.colour),
            "x": [_short(x) for x, _ in s.points],
            "y": [_short(y) for _, y in s.points],
            **({} if s.band is None else {"band": [[_short(a), _short(b)] for a, b in s.band]}),
        }
        for s in series
    ]
    scale = {"x": [x_low, x_high], "px": [LEFT, WIDTH - RIGHT], "top": TOP, "base": base, "unit": chart.x_label}
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}" data-scale="{}" data-series="{}">{}</svg>'
    ).format(WIDTH, HEIGHT, summary(chart), _json(scale), _json(data), Markup("".join(parts)))


def summary(chart: Chart) -> str:
    """A chart in one sentence, for those who do not see it."""
    lines = []
    for s in chart.series:
        if s.points:
            ys = [y for _, y in s.points]
            lines.append(
                f"{s.label}: {number(ys[0])} at first, {number(ys[-1])} at last, between {number(min(ys))} and "
                f"{number(max(ys))}"
            )
    return f"{chart.title} over {chart.x_label}. " + "; ".join(lines) + "."


def _short(value: float) -> float:
    return float(f"{value:.5g}") if abs(value) < 1e5 else round(value, 1)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))
