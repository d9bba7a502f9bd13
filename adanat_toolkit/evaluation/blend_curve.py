"""The curve between two policies: their blends at a list of weights, judged on the same seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..core import PolicySpec, PolicyTerm
from ..errors import ConfigError
from ..images import figure_png
from ..metrics import title
from ..storage import write_file
from .evaluate import Comparison

CURVE = "blend.png"
DRAWN = ("frechet", "precision", "recall", "diversity", "clip_score")


def blend_specs(first: str, second: str, weights: Sequence[float]) -> list[str]:
    """Specs of the blends of two policies, ``weights`` being those of the first; at 0 and 1 the policies themselves.

    Raises:
        ConfigError: a weight outside [0, 1], no weight, or a policy that is a blend itself.
    """
    if not weights:
        raise ConfigError("--blend names no weight; give some from 0 to 1, such as 0,0.25,0.5,0.75,1.")
    parts = [PolicySpec.parse(first), PolicySpec.parse(second)]
    for part in parts:
        if part.blend:
            raise ConfigError(f"--blend mixes two policies, and {str(part)!r} is a blend itself; give single policies.")
    terms = tuple(PolicyTerm(part.terms[0].text) for part in parts)
    out = []
    for weight in weights:
        if not 0 <= weight <= 1:
            raise ConfigError(f"--blend has the weight {weight:g}; it must lie in [0, 1].")
        if weight in (0, 1):
            out.append(terms[int(weight == 0)].text)
        else:
            out.append(str(PolicySpec(terms, (weight, round(1 - weight, 12)))))  # 0.1, not 0.09999999999999998
    return out


def draw_curve(comparison: Comparison, weights: Sequence[float], first: str, second: str, file: Path) -> None:
    """The figures of the blends against the weight of ``first``, a panel each, with their intervals.

    Args:
        comparison: one row a weight, in their order.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row.judged.evaluation for row in comparison.rows]
    names = [name for name in DRAWN if all(name in row.figures for row in rows)]
    figure = Figure(figsize=(3.4 * len(names), 3.2), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    order = sorted(range(len(weights)), key=lambda i: weights[i])
    across = [weights[i] for i in order]
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axis.plot(across, [rows[i].figures[name] for i in order], "o-", markersize=4)
        intervals = [rows[i].intervals.get(name) for i in order]
        if all(interval is not None for interval in intervals):
            low, high = zip(*(interval for interval in intervals if interval is not None), strict=True)
            axis.fill_between(across, low, high, alpha=0.2, linewidth=0)
        axis.set_title(title(name), parse_math=False)
        axis.set_xlabel("weight")
    figure.suptitle(f"0: {Path(second).name}    1: {Path(first).name}", fontsize=9, parse_math=False)
    write_file(file, figure_png(figure))
