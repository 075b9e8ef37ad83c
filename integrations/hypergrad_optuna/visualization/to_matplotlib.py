"""`to_matplotlib`: a picture where Plotly does not run, such as a paper or a code host's view of a notebook."""

import re
from typing import Any, NamedTuple

import numpy as np

from hypergrad_optuna.visualization.drawing import OWN
from hypergrad_search.checks import shown

#: Inches for a pixel of Plotly, in the picture and in its lower margin, and the width of a picture in inches.
_INCH, _MARGIN, _WIDTH = 0.0095, 0.0068, 7.0
_DASHES = {"dash": "--"}
_STEPS = {"hv": "steps-post"}
_MARKERS = {"circle": "o", "x": "X", "diamond": "D"}


def to_matplotlib(figure: Any) -> Any:
    """Draw a picture of this package with Matplotlib, from the same data.

    It is for places that do not run Plotly: a paper (`savefig("chains.pdf")`), or a code host's view of a notebook.
    It draws the lines, points and images that the functions of this package make, and nothing else of Plotly.

    Args:
        figure: what a function of this package has returned.

    Returns:
        A `matplotlib.figure.Figure`, without the texts over points. Notebooks show it after `%matplotlib inline`.

    Raises:
        ImportError: Matplotlib is missing.
        ValueError: `figure` is none of this package's figures, or has a trace that is neither lines, points nor an
            image.

    Example:
        >>> from hypergrad_optuna.visualization import plot_chains, to_matplotlib
        >>> to_matplotlib(plot_chains(study)).savefig("chains.pdf")
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("to_matplotlib needs Matplotlib: pip install matplotlib") from error
    if getattr(getattr(figure, "layout", None), "meta", None) != OWN:
        raise ValueError(f"to_matplotlib: figure must be what plot_chains and its like return, got {shown(figure)}")
    layout = figure.layout
    title, *small = [re.sub("<[^>]+>", "", line) for line in layout.title.text.split("<br>")]
    height = (layout.height or 450) * _INCH
    result = Figure(figsize=(_WIDTH, height), dpi=120)
    images = layout.coloraxis.cmin is not None
    frame = _Frame(
        0.1, _MARGIN * layout.margin.b / height, 0.86 if images else 0.98, 1 - (0.6 + 0.16 * len(small)) / height
    )
    result.text(0.02, 1 - 0.1 / height, title, size=12, va="top")
    result.text(0.02, 1 - 0.34 / height, "\n".join(small), size=8, va="top")
    axes: dict[str, Any] = {}
    for trace in figure.data:
        if trace.type not in ("scatter", "heatmap"):
            raise ValueError(f"to_matplotlib: figure must have lines, points and images alone, got a {trace.type}")
        name = trace.yaxis or "y"
        if name not in axes:
            axes[name] = _axes(result, frame, _axis(layout, trace.xaxis or "x"), _axis(layout, name))
        if trace.type == "scatter":
            _draw_points(axes[name], trace)
        else:
            image = _draw_image(axes[name], trace, layout.coloraxis, square=_axis(layout, name).scaleanchor is not None)
    for note in layout.annotations:  # the titles of panels
        result.text(*frame.place(note.x, note.y), note.text, size=8, ha="center", va="bottom")
    if images:
        _draw_colours(result, frame, image, layout.coloraxis.colorbar)
    entries = {line.get_label(): line for one in axes.values() for line in one.get_lines()}
    named = {label: line for label, line in entries.items() if not label.startswith("_")}
    result.legend(list(named.values()), list(named), loc="lower left", ncols=4, fontsize=8, frameon=False)
    return result


class _Frame(NamedTuple):
    """The part of a picture that has its axes, in shares of the picture."""

    left: float
    bottom: float
    right: float
    top: float

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return where a place is whose coordinates go from 0 to 1 in the frame."""
        return self.left + x * (self.right - self.left), self.bottom + y * (self.top - self.bottom)


def _axis(layout: Any, name: str) -> Any:
    """Return an axis, which a trace calls x2, and the layout xaxis2."""
    return layout[f"{name[0]}axis{name[1:]}"]


def _axes(result: Any, frame: _Frame, x: Any, y: Any) -> Any:
    (left, right), (bottom, top) = x.domain or (0.0, 1.0), y.domain or (0.0, 1.0)
    start, end = frame.place(left, bottom), frame.place(right, top)
    axes = result.add_axes((*start, end[0] - start[0], end[1] - start[1]))
    for axis, set_scale, drawn in ((x, axes.set_xscale, axes.xaxis), (y, axes.set_yscale, axes.yaxis)):
        set_scale("log" if axis.type == "log" else "linear")
        drawn.set_label_text(axis.title.text or "", size=9)
        drawn.set_tick_params(which="both", labelsize=8)
        if axis.showticklabels is False:
            drawn.set_tick_params(which="both", length=0, label1On=False)
    if y.range is not None:
        axes.set_ylim(y.range)
    return axes


def _draw_points(axes: Any, trace: Any) -> None:
    """Draw a trace of lines or points; what is None is a gap."""
    numbers = [np.array(values, np.float64) for values in (trace.x, trace.y)]
    label = trace.name if trace.showlegend is not False else None
    if trace.mode == "markers":
        symbol, size = trace.marker.symbol or "circle", trace.marker.size
        if not isinstance(symbol, str) or symbol not in _MARKERS or not isinstance(size, int | float):
            raise ValueError(
                "to_matplotlib: figure must have the points that plot_chains and its like draw, got the symbol "
                f"{symbol!r} and the size {size!r}"
            )
        style = {"marker": _MARKERS[symbol], "linestyle": "", "color": trace.marker.color}
        axes.plot(*numbers, label=label, markersize=0.7 * size, **style)
    else:
        line = trace.line
        style = {"linestyle": _DASHES.get(line.dash, "-"), "drawstyle": _STEPS.get(line.shape, "default")}
        axes.plot(*numbers, label=label, color=line.color, linewidth=1.2, zorder=1.5, **style)


def _draw_image(axes: Any, trace: Any, colours: Any, *, square: bool) -> Any:
    pixels = np.array(trace.z, np.float64)
    axes.yaxis.get_major_locator().set_params(integer=True)
    aspect = "equal" if square else "auto"
    return axes.imshow(pixels, cmap="cividis", vmin=colours.cmin, vmax=colours.cmax, aspect=aspect)


def _draw_colours(result: Any, frame: _Frame, image: Any, bar: Any) -> None:
    """Draw the colours of images and their numbers beside the frame."""
    axes = result.add_axes((frame.right + 0.03, frame.bottom, 0.02, frame.top - frame.bottom))
    drawn = result.colorbar(image, cax=axes, ticks=None if bar.tickvals is None else list(bar.tickvals))
    if bar.ticktext is not None:
        axes.set_yticklabels(bar.ticktext)
    drawn.set_label(bar.title.text, size=9)
    axes.tick_params(labelsize=8)
