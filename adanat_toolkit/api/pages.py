"""What a notebook shows: pictures, a table, a curve, each a piece of HTML that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from torch import Tensor

from ..images import png_bytes
from ..report.charts import Chart, Series

CURVE_STYLE = (
    "max-width:420px;--l:#2a78d6;--g:#8884",
    ".adanat-curve text{font:10.5px system-ui,sans-serif;fill:currentColor;opacity:.75}"
    ".adanat-curve .grid,.adanat-curve .axis{stroke:var(--g)}"
    ".adanat-curve .line{fill:none;stroke:var(--l);stroke-width:1.7}.adanat-curve .dot{fill:var(--l)}",
)


def pictures(images: Tensor, titles: Sequence[str], *, left_out: int = 0) -> str:
    """(B, 3, H, W) images in rows, each with a text that shows under the pointer."""
    cells = []
    for image, title in zip(images, titles, strict=True):
        source = base64.b64encode(png_bytes(image)).decode()
        text = escape(title, quote=True)
        cells.append(f'<img width="96" alt="{text}" title="{text}" src="data:image/png;base64,{source}">')
    more = f"<p>and {left_out} more</p>" if left_out > 0 else ""
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px">{"".join(cells)}</div>{more}'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> str:
    """A table of texts; the first column names the rows. One that is wider than its place scrolls in it."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    inside = f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody>"
    return f'<div style="overflow-x:auto"><table>{inside}</table></div>'


def curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    """A line over the number of trajectories."""
    box, rules = CURVE_STYLE
    drawing = Chart(title, [Series(title, points)]).svg()
    return f'<div class="adanat-curve" style="{box}"><style>{rules}</style><b>{escape(title)}</b>{drawing}</div>'
