"""The figures of a report, as SVG text that has the text colour of the page around it."""

import io
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
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

_FONT = 11  # so that figures can be read where a narrow page shrinks them
_DOTS_AN_INCH = 72  # of a figure's coordinates as SVG

# For a light page and for a dark one; each can be told from its paper.
_VERMILION, _BLUE, _GREY = ("#c85200", "#ff8c42"), ("#0072b2", "#4da6e0"), ("#757575", "#a3a3a3")
_COLOURS = {
    "hypergrad": _VERMILION,
    "hypergrad-unlifted": ("#882255", "#e0578f"),
    "tpe": _BLUE,
    "tpe-2x": _BLUE,
    "tpe-tied": _BLUE,
    "gp": ("#008a65", "#3ccf9f"),
    "cmaes": ("#b0609a", "#dcaede"),
    "cmaes-tied": ("#b0609a", "#dcaede"),
    "hyperband": ("#a86f00", "#f0b429"),
    "random": _GREY,
    "random-2x": _GREY,
    "random-tied": _GREY,
    "optuna": _BLUE,
}
_SPARE = (("#0e7f9f", "#66d0ee"), ("#aa4499", "#d17fc7"), ("#7d7d1f", "#c4c455"), ("#2f8577", "#6cc9b8"))
_DASHES = {"2x": "--", "tied": ":"}  # by the end of a method's name; its colour is the plain method's


# Which multiples of a power of ten have a number, by how much larger the end of an axis is than its start.
_SUBS = {50: (1.0, 2.0, 3.0, 5.0), 200: (1.0, 2.0, 5.0), 1000: (1.0, 3.0), math.inf: (1.0,)}


@dataclass(frozen=True)
class Style:
    """How a method looks in every figure; `dark` is its colour on a dark page."""

    colour: str
    dark: str
    dashes: str

    @property
    def css(self) -> str:
        """The colour as CSS has it, for light and dark pages."""
        return f"light-dark({self.colour}, {self.dark})"


@dataclass(frozen=True)
class Axis:
    """Where an axis lies in a figure, as shares of its width or height from the top left, and its limits there."""

    ends: tuple[float, float]
    limits: tuple[float, float]
    log: bool


@dataclass(frozen=True)
class Panel:
    """The curves of all methods against one cost: as an SVG element, and as the numbers that it shows.

    - `cost`: what the curves are drawn against.
    - `bands`: the quartiles by method, the lowest final median first.
    - `axes`: "x" and "y".
    """

    cost: str
    svg: str
    bands: dict[str, Band]
    axes: dict[str, Axis]


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Return a style for each method.

    The methods of `_COLOURS` always look the same; others are dashed or dotted and take the spare colours in turn.
    """
    names = sorted(set(methods))
    others = [name for name in names if name not in _COLOURS]
    spare = {name: Style(*_SPARE[i % len(_SPARE)], "--" if i < len(_SPARE) else ":") for i, name in enumerate(others)}
    known = {
        name: Style(*_COLOURS[name], _DASHES.get(name.rpartition("-")[2], "-")) for name in names if name in _COLOURS
    }
    return known | spare


def curves(runs: Sequence[History], look: Mapping[str, Style], identifier: str) -> list[Panel]:
    """Draw the best validation loss of one problem against seconds and, where they are known, gradient evaluations.

    Lines are medians over seeds, bands reach from quartile to quartile. `identifier` keeps the ids inside the
    figures apart from those of other figures on the same page.
    """
    by_method: dict[str, list[History]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.key):
        by_method[run.key[1]].append(run)
    # The best comes first, as in the table.
    methods = sorted(by_method, key=lambda m: quartiles([final(run) for run in by_method[m]]).median)
    costs = [(by_gradient_evaluations, GRADIENT_EVALUATIONS)] if all(run.counted for run in runs) else []
    costs += [(by_seconds, "seconds of work")]
    return [
        _panel({method: band([curve(run) for run in by_method[method]]) for method in methods}, cost, look, identifier)
        for curve, cost in costs
    ]


def _panel(bands: dict[str, Band], cost: str, look: Mapping[str, Style], identifier: str) -> Panel:
    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    with matplotlib.rc_context({"font.size": _FONT}):
        axes = figure.subplots()
        _draw_bands(axes, bands, look)
        axes.set_xlabel(cost)
        axes.set_ylabel("best validation loss so far")
        says = f"The best validation loss so far against {cost}, a line for each of {len(bands)} methods."
        svg = _svg(figure, f"{identifier}{cost[0]}", look, f"{says} The numbers are in the table below the figure.")
    place = axes.get_position()
    x = Axis((place.x0, place.x1), axes.get_xlim(), axes.get_xscale() == "log")
    y = Axis((1 - place.y0, 1 - place.y1), axes.get_ylim(), axes.get_yscale() == "log")
    return Panel(cost, svg, bands, {"x": x, "y": y})


def final_losses(
    test: Mapping[str, Mapping[int, float]],
    validation: Mapping[str, Mapping[int, float]],
    look: Mapping[str, Style],
    identifier: str,
) -> str:
    """Draw the test loss at each run's chosen trial, and return an SVG element.

    Each method has a row, the one with the best median on top. A box reaches from quartile to quartile; a diamond
    marks the median validation loss. The losses are as `statistics.final_tests` and `statistics.finals` return them.
    Each dot says what it is where the pointer rests on it, and has its method and seed as data.
    """
    order = sorted(test, key=lambda method: (quartiles(list(test[method].values())).median, method))
    figure = Figure(figsize=(8.4, 1.2 + 0.44 * len(order)), layout="constrained")
    with matplotlib.rc_context({"font.size": _FONT, "text.parse_math": False}):  # a "$" in a name is no formula
        axes = figure.subplots()
        dots, shown = [], list[float]()
        for row, method in enumerate(order):
            losses = dict(sorted(test[method].items()))
            # Seeds are spread over the row's height so that equal losses stay visible.
            heights = row + np.linspace(-0.22, 0.22, len(losses) + 2)[1:-1]
            mine = [
                _Dot(loss, y, method, seed) for y, (seed, loss) in zip(heights, sorted(losses.items()), strict=True)
            ]
            _draw_row(axes, row, list(losses.values()), look[method].colour)
            validated = quartiles(list(validation[method].values())).median
            if math.isfinite(validated):
                axes.scatter([validated], [row], marker="D", s=30, facecolor="none", edgecolor=_INK, zorder=5)
            dots += [dot for dot in mine if math.isfinite(dot.loss)]
            shown += [*losses.values(), validated]
        axes.set_yticks(range(len(order)), [_row_label(method, test[method]) for method in order])
        axes.set_ylim(len(order) - 0.45, -0.55)
        axes.set_xlabel("test loss at the chosen trial (diamond: median validation loss)")
        if dots:  # they are not drawn here, but must fit
            axes.update_datalim([(dot.loss, dot.y) for dot in dots])
            axes.autoscale_view(scaley=False)
        if _log_helps(shown):
            _log_axis(axes, "x")
        _dress(axes, "x")
        says = f"The test losses of {len(order)} methods, a dot for each seed. Medians and quartiles are in the table."
        text = _svg(figure, identifier, look, says)
    return text.replace("</svg>", f"{_hits(figure, axes, dots, look)}</svg>")


@dataclass(frozen=True)
class _Dot:
    loss: float
    y: float
    method: str
    seed: int


def _hits(figure: Figure, axes: Axes, dots: Sequence[_Dot], look: Mapping[str, Style]) -> str:
    """Return the dots as circles that have a text and data, in the coordinates of the figure's SVG."""
    places = axes.transData.transform([(dot.loss, dot.y) for dot in dots]) if dots else np.zeros((0, 2))
    width, height = figure.get_size_inches() * _DOTS_AN_INCH
    shares = figure.transFigure.inverted().transform(places) if dots else places
    return "".join(
        f'<circle class="dot" cx="{x * width:.1f}" cy="{(1 - y) * height:.1f}" r="4" '
        f'style="fill: {look[dot.method].css}" data-method="{escape(dot.method)}" data-seed="{dot.seed}">'
        f"<title>{escape(dot.method)}, seed {dot.seed}: {dot.loss:.3g}</title></circle>"
        for dot, (x, y) in zip(dots, shares, strict=True)
    )


def _draw_row(axes: Axes, row: int, losses: Sequence[float], colour: str) -> None:
    box = quartiles(losses)
    if math.isfinite(box.upper):
        axes.barh(row, box.upper - box.lower, left=box.lower, height=0.62, color=colour, alpha=0.18)
    if math.isfinite(box.median):
        axes.vlines(box.median, row - 0.31, row + 0.31, color=colour, linewidth=2.2, zorder=4)


def _row_label(method: str, losses: Mapping[int, float]) -> str:
    lost = sum(not math.isfinite(loss) for loss in losses.values())
    return f"{method} (n = {len(losses)}" + (f", {lost} infinite)" if lost else ")")


def _draw_bands(axes: Axes, bands: Mapping[str, Band], look: Mapping[str, Style]) -> None:
    known = [band for band in bands.values() if np.isfinite(band.median).any()]
    # The axes hold every median; the bands of early trials, which may reach far above, are cut.
    finite = np.concatenate([_finite(row) for b in known for row in (b.lower, b.median)] or [np.ones(1)])
    top = finite.max()
    end = max((b.x[-1] for b in known), default=0.0)
    for method, rows in bands.items():
        style = look[method]
        median = np.where(np.isfinite(rows.median), rows.median, np.nan)
        axes.step(
            rows.x,
            median,
            where="post",
            color=style.colour,
            linestyle=style.dashes,
            linewidth=1.9,
        )
        if median.size:  # a run's value holds after its last trial
            axes.plot([rows.x[-1], end], [median[-1]] * 2, color=style.colour, linestyle=style.dashes, linewidth=0.9)
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
    subs = next(subs for span, subs in _SUBS.items() if high <= span * low)
    axis.set_major_locator(LogLocator(subs=subs))
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


def _svg(figure: Figure, identifier: str, look: Mapping[str, Style], says: str) -> str:
    """Return the figure as an <svg> element, which `says` describes to those who do not see it.

    Its text stays text, its ids begin with `identifier`, and the same data give the same element.
    """
    out = io.StringIO()
    # SVG text and ids can be set in rcParams alone; the context puts them back.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": identifier}):
        figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{identifier}-", text)
    for style in look.values():
        text = text.replace(f": {style.colour}", f": {style.css}")
    text = text.replace("<svg", f'<svg role="img" aria-label="{escape(says)}"', 1)
    return text.replace(_INK, "currentColor")
