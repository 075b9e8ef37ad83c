"""What all pictures have in common: Plotly, its colours, and how axes, numbers and titles are set."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

#: Colours that people with any kind of colour vision can tell apart (Okabe and Ito 2008), in the order of their use.
BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#56B4E9", "#CC79A7"
COLOURS = (BLUE, VERMILION, GREEN, ORANGE, SKY, PURPLE)
GREY, BLACK = "#8C8C8C", "#000000"
#: The colours of images; they look alike to people with any kind of colour vision (Nunez et al. 2018).
IMAGE_COLOURS = "Cividis"

#: Figures of this package have this as their layout's `meta`, which Plotly keeps and does not draw.
OWN = "hypergrad_optuna.visualization"

#: Positive values whose largest is at least this many times the smallest are drawn on a logarithmic axis.
_WIDE = 10.0


def plotly(owner: str) -> tuple[Any, Any]:
    """Return Plotly's modules `graph_objects` and `subplots`; raise `ImportError` where Plotly is missing."""
    try:
        from plotly import graph_objects, subplots
    except ImportError as error:
        raise ImportError(f"{owner} needs Plotly: pip install 'hypergrad-search[visualization]'") from error
    return graph_objects, subplots


def axis_type(values: Iterable[float]) -> str:
    """Return the kind of axis that suits finite values: "log" or "linear"."""
    known = list(values)
    low, high = min(known, default=0.0), max(known, default=0.0)
    return "log" if low > 0 and high >= _WIDE * low else "linear"


def plain(values: Any) -> list[Any]:
    """Return numbers as nested lists, with None where one is not finite.

    Plotly would write arrays in a form that older viewers, such as that of Optuna Dashboard, do not read.
    """
    array = np.asarray(values, np.float64)
    numbers = array.astype(object)
    numbers[~np.isfinite(array)] = None
    result: list[Any] = numbers.tolist()
    return result


def ticks(low: float, high: float) -> list[float]:
    """Return two to seven round numbers on a logarithmic axis from `low` to `high`, or the ends where none fit."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    every = math.ceil(len(decades) / 7)
    for chosen in ([10.0**k for k in decades[::every]], [m * 10.0**k for k in decades for m in (1, 2, 5)]):
        inside = [tick for tick in chosen if low <= tick <= high]
        if len(inside) > 2:
            return inside
    return [low, high] if high > low else [low]


def with_titles(figure: Any, title: str, *lines: str) -> Any:
    """Return the figure with its title, smaller lines below it, and the legend below the picture."""
    small = [f'<span style="font-size:12px">{line}</span>' for line in lines if line]
    figure.update_layout(
        title={"text": "<br>".join([title, *small]), "x": 0, "xref": "paper", "font": {"size": 16}},
        colorway=COLOURS,
        meta=OWN,
        legend={"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0},
        margin={"l": 60, "r": 20, "t": 60 + 16 * len(small), "b": 110},
    )
    return figure


def hover(lines: Sequence[str]) -> str:
    """Return the text that appears over a point."""
    return "<br>".join(line for line in lines if line)
