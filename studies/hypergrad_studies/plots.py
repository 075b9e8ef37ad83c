"""The figures of a report, as SVG text that has the text colour of the page around it."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from hypergrad_studies.spending import GRADIENT_EVALUATIONS
from hypergrad_studies.statistics import (
    Array,
    Band,
    History,
    band,
    by_gradient_evaluations,
    by_seconds,
    final,
    quartiles,
)

# Figures are drawn in this colour. The page's own text colour replaces it, so that one figure suits all pages.
_INK = "#123456"

# Okabe and Ito's palette, less the two that vanish on white or on black, and four of Paul Tol's.
_COLOURS = {
    "hypergrad": "#d55e00",
    "hypergrad-unlifted": "#882255",
    "tpe": "#0072b2",
    "tpe-2x": "#0072b2",
    "tpe-tied": "#0072b2",
    "gp": "#009e73",
    "cmaes": "#cc79a7",
    "cmaes-tied": "#cc79a7",
    "hyperband": "#e69f00",
    "random": "#8c8c8c",
    "random-2x": "#8c8c8c",
    "random-tied": "#8c8c8c",
    # Ray's names for the nearest of Optuna's methods; the two hosts never share a figure.
    "asha": "#e69f00",
    "optuna": "#0072b2",
}
_SPARE = ("#56b4e9", "#aa4499", "#999933", "#44aa99")
_DASHES = {"2x": "--", "tied": ":"}  # by the end of a method's name; its colour is the plain method's


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure."""

    colour: str
    dashes: str


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style for each method.

    The methods of `_COLOURS` always look the same; others are dashed or dotted and take the spare colours in turn.
    """
    names = sorted(set(methods))
    others = [name for name in names if name not in _COLOURS]
    spare = {name: Style(_SPARE[i % len(_SPARE)], "--" if i < len(_SPARE) else ":") for i, name in enumerate(others)}
    known = {
        name: Style(_COLOURS[name], _DASHES.get(name.rpartition("-")[2], "-")) for name in names if name in _COLOURS
    }
    return known | spare


def curves(runs: Sequence[History], look: Mapping[str, Style], identifier: str) -> str:
    """Draw the best validation loss against both costs, for one problem; return an SVG element.

    Lines are medians over seeds, bands reach from quartile to quartile. `identifier` keeps the ids inside the
    figure apart from those of other figures on the same page.
    """
    by_method: dict[str, list[History]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.key):
        by_method[run.key[1]].append(run)
    # The legend lists the best first, as the table does.
    methods = sorted(by_method, key=lambda m: quartiles([final(run) for run in by_method[m]]).median)
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    costs = [(by_gradient_evaluations, GRADIENT_EVALUATIONS)] if all(run.counted for run in runs) else []
    costs += [(by_seconds, "work: evaluating, asking, telling (s)")]
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (curve, label) in zip(panels, costs, strict=True):
        bands = {method: band([curve(run) for run in by_method[method]]) for method in methods}
        _draw_bands(axes, bands, look)
        axes.set_xlabel(label)
    panels[0].set_ylabel("best validation loss so far")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 5), frameon=False, labelcolor=_INK
    )
    return _svg(figure, identifier)


def final_losses(
    test: Mapping[str, Mapping[int, float]],
    validation: Mapping[str, Mapping[int, float]],
    look: Mapping[str, Style],
    identifier: str,
) -> str:
    """Draw the test loss at each run's chosen trial, and return an SVG element.

    Each method has a row, the one with the best median on top. A box reaches from quartile to quartile; a diamond
    marks the median validation loss. The losses are as `statistics.final_tests` and `statistics.finals` return them.
    """
    order = sorted(test, key=lambda method: (quartiles(list(test[method].values())).median, method))
    figure = Figure(figsize=(10.5, 1.1 + 0.42 * len(order)), layout="constrained")
    axes = figure.subplots()
    shown: list[float] = []
    for row, method in enumerate(order):
        losses = [loss for _, loss in sorted(test[method].items())]
        finite = [loss for loss in losses if math.isfinite(loss)]
        colour = look[method].colour
        # Seeds are spread over the row's height so that equal losses stay visible.
        heights = row + np.linspace(-0.22, 0.22, len(losses) + 2)[1:-1]
        axes.scatter(finite, heights[np.isfinite(losses)], s=20, color=colour, alpha=0.75, linewidths=0, zorder=3)
        box, validated = quartiles(losses), quartiles(list(validation[method].values())).median
        if math.isfinite(box.upper):
            axes.barh(row, box.upper - box.lower, left=box.lower, height=0.62, color=colour, alpha=0.18)
        if math.isfinite(box.median):
            axes.vlines(box.median, row - 0.31, row + 0.31, color=colour, linewidth=2.2, zorder=4)
        if math.isfinite(validated):
            axes.scatter([validated], [row], marker="D", s=30, facecolor="none", edgecolor=_INK, zorder=5)
        shown += [*finite, validated]
    axes.set_yticks(range(len(order)), [_row_label(method, test[method]) for method in order])
    axes.set_ylim(len(order) - 0.45, -0.55)
    axes.set_xlabel("test loss at the chosen trial (diamond: median validation loss)")
    if _log_helps(shown):
        _log_axis(axes, "x")
    _dress(axes, "x")
    return _svg(figure, identifier)


def _row_label(method: str, losses: Mapping[int, float]) -> str:
    lost = sum(not math.isfinite(loss) for loss in losses.values())
    return f"{method} (n = {len(losses)}" + (f", {lost} infinite)" if lost else ")")


def _draw_bands(axes: Axes, bands: Mapping[str, Band], look: Mapping[str, Style]) -> None:
    known = [band for band in bands.values() if np.isfinite(band.median).any()]
    # The axes hold every median; the bands of early trials, which may reach far above, are cut.
    finite = np.concatenate([_finite(row) for b in known for row in (b.lower, b.median)] or [np.ones(1)])
    top = finite.max()
    for method, rows in bands.items():
        style = look[method]
        label = f"{method} (n = {rows.n})"
        median = np.where(np.isfinite(rows.median), rows.median, np.nan)
        axes.step(
            rows.x,
            median,
            where="post",
            color=style.colour,
            linestyle=style.dashes,
            linewidth=1.9,
            label=label,
        )
        # An upper quartile that is still infinite fills the axes to their top.
        axes.fill_between(
            rows.x,
            np.minimum(rows.lower, top),
            np.where(np.isfinite(rows.upper), rows.upper, top * 10 if top > 0 else 0.0),
            where=np.isfinite(rows.median).tolist(),
            step="post",
            color=style.colour,
            alpha=0.13,
            linewidth=0,
        )
    if _log_helps(finite):
        _log_axis(axes, "y")
        axes.set_ylim(finite.min() / 1.1, top * 1.1)
    else:
        room = 0.05 * (top - finite.min()) or 0.5
        axes.set_ylim(finite.min() - room, top + room)
    if _log_helps([b.x[-1] for b in known]):
        _log_axis(axes, "x")
    _dress(axes, "both")


def _finite(values: Array) -> Array:
    return values[np.isfinite(values)]


def _log_helps(values: Iterable[float]) -> bool:
    """Return whether the finite values, all positive, span more than a factor of 5."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > 5 * min(finite)


def _log_axis(axes: Axes, which: str) -> None:
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high > 50 * low else (1.0, 2.0, 3.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _dress(axes: Axes, grid: Literal["x", "y", "both"]) -> None:
    """Give the axes a plain look, in the text colour of the page."""
    axes.set_facecolor("none")
    axes.grid(axis=grid, color=_INK, alpha=0.14, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(which="both", color=_INK, labelcolor=_INK)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)


def _svg(figure: Figure, identifier: str) -> str:
    """Return the figure as an <svg> element.

    Its text stays text, its ids begin with `identifier`, and the same data give the same element.
    """
    out = io.StringIO()
    # SVG text and ids can be set in rcParams alone; the context puts them back.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{identifier}-", text)
    return text.replace(_INK, "currentColor")
