"""The picture of the comparison at equal cost: on each problem, our test loss beside that of the best other method."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from hypergrad_studies.budgets import Ratio

# Colours of the drawing, and what replaces them: the picture's own variables, which follow light and dark.
_INK, _SOFT, _LINE = "#123456", "#123457", "#123458"
_BETTER, _WORSE, _OPEN = "#123459", "#12345a", "#12345b"
_NAMES = {_INK: "ink", _SOFT: "soft", _LINE: "line", _BETTER: "better", _WORSE: "worse", _OPEN: "open"}
_STYLE = """<style>
svg { --paper: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --better: #0072b2; --worse: #c23b00; --open: #7d7d7d; background: var(--paper); }
@media (prefers-color-scheme: dark) { svg { --paper: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d;
  --better: #5cb3f0; --worse: #ff8c5a; --open: #a0a0a0; } }
</style>"""

_TITLE = "On each problem, our median test loss as a multiple of that of the best other method at equal cost"

_TICKS = (0.25, 0.5, 0.7, 1.0, 1.5, 2.0, 4.0)


def write_plot(found: Mapping[str, Sequence[Ratio | None]], runs: Sequence[int], path: Path) -> Path:
    """Draw the ratios of each problem after those numbers of training runs that all of them have; return `path`.

    Where no number is common to all, each problem has its own. Problems without any ratio are left out. The one on
    which ours is ahead most comes first. The last marker of a row has its interval, and a text with the losses.
    """
    known = {
        problem: {number: ratio for number, ratio in zip(runs, ratios, strict=True) if ratio is not None}
        for problem, ratios in found.items()
        if any(ratios)
    }
    common = [number for number in runs if all(number in row for row in known.values())]
    numbers = common or [number for number in runs if any(number in row for row in known.values())]
    rows = {problem: {number: row[number] for number in numbers if number in row} for problem, row in known.items()}
    order = sorted(rows, key=lambda problem: list(rows[problem].values())[-1].ratio.median)
    figure = Figure(figsize=(8.6, 1.3 + 0.38 * len(order)), layout="constrained")
    with matplotlib.rc_context({"font.size": 10.5, "text.parse_math": False}):  # a "$" in a name is no formula
        axes = figure.subplots()
        sizes = {number: 16 + 44 * i / max(len(numbers) - 1, 1) for i, number in enumerate(numbers)}
        for y, problem in enumerate(order):
            _draw_row(axes, y, rows[problem], sizes)
        _dress(axes, order, [r for row in rows.values() for r in row.values()])
        _legend(axes, sizes)
    path.write_text(_svg(figure), encoding="utf-8")
    return path


def _colour(ratio: Ratio) -> str:
    if ratio.ratio.high < 1:
        return _BETTER
    return _WORSE if ratio.ratio.low > 1 else _OPEN


def _draw_row(axes: Axes, y: int, row: Mapping[int, Ratio], sizes: Mapping[int, float]) -> None:
    last = list(row.values())[-1]
    axes.plot([last.ratio.low, last.ratio.high], [y, y], color=_colour(last), linewidth=2.0, solid_capstyle="round")
    for number, ratio in row.items():
        face = _colour(ratio) if number == list(row)[-1] else "none"
        axes.scatter(
            [ratio.ratio.median],
            [y],
            s=sizes[number],
            facecolor=face,
            edgecolor=_colour(ratio),
            linewidth=1.4,
            zorder=3,
        )
    ours, other = last.losses
    text = f"{ours:.3g} against {other:.3g}, {last.other}"
    axes.annotate(
        text, (1.02, y), xycoords=("axes fraction", "data"), va="center", color=_SOFT, fontsize=9, annotation_clip=False
    )


def _dress(axes: Axes, order: Sequence[str], shown: Sequence[Ratio]) -> None:
    axes.set_xscale("log")
    ends = [bound for r in shown for bound in (r.ratio.low, r.ratio.high, r.ratio.median) if math.isfinite(bound)]
    axes.set_xlim(min([*ends, 0.7]) / 1.08, max([*ends, 1.4]) * 1.08)
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.axvline(1.0, color=_INK, linewidth=1.1, zorder=1)
    axes.grid(axis="x", color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(_SOFT)
    axes.tick_params(color=_SOFT, labelcolor=_INK, left=False)
    axes.set_xlabel("our median test loss / that of the best other method, at equal cost", color=_INK)
    ours = shown[0].ours if shown else "ours"
    for text, side, colour in (("better", -1, _BETTER), ("worse", 1, _WORSE)):
        axes.annotate(
            f"{ours} is {text}",
            (1.0, 1.02),
            (6 * side, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            color=colour,
            annotation_clip=False,
        )


def _legend(axes: Axes, sizes: Mapping[int, float]) -> None:
    marks = [axes.scatter([], [], size, facecolor="none", edgecolor=_SOFT, linewidth=1.4) for size in sizes.values()]
    labels = [*(f"after {number} training runs" for number in sizes), "may be equal"]
    figure = axes.get_figure()
    assert figure is not None
    (line,) = axes.plot([], [], color=_OPEN, linewidth=2.0)
    figure.legend(
        [*marks, line],
        labels,
        loc="outside lower center",
        ncols=len(labels),
        frameon=False,
        labelcolor=_SOFT,
        fontsize=9,
    )


def _svg(figure: Figure) -> str:
    """Return the figure as an SVG file that is light or dark as its reader is; the same data give the same text."""
    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "budgets"}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    for colour, name in _NAMES.items():
        text = text.replace(colour, f"var(--{name})")
    head, tag, rest = text.partition("<metadata>")
    return f"{head}<title>{_TITLE}</title>{_STYLE}{tag}{rest}"
