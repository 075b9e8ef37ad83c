"""`plot_array`: an array hyperparameter of a study's best trial as an image, or as several."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial

from hypergrad_optuna.best import best_trial
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.sampler import store_of
from hypergrad_optuna.visualization.arguments import check_study
from hypergrad_optuna.visualization.drawing import IMAGE_COLOURS, plain, plotly, ticks, with_titles
from hypergrad_search.checks import shown, whole_number
from hypergrad_search.hosting import is_coordinate

#: As many images fit into a picture.
MOST_IMAGES = 36
_COLUMNS = 5
#: The pixels of an image are squares unless it is so many times as long as it is wide.
_LONGEST = 8
#: Each of so few rows has its number beside it.
_FEW_ROWS = 10


def plot_array(
    study: optuna.Study, name: str, *, shape: Sequence[int] | None = None, artifact_store: Any | None = None
) -> Any:
    """Plot an array hyperparameter of a study's best trial as an image, such as a penalty for each weight.

    The trial is that of `best_trial`. The colours are logarithmic where the search moves in the logarithm. A matrix is
    one image, and so is a vector whose length is a square, such as 64; other vectors are one row. An array with more
    axes is an image of its first two for each place on the others, of which the first 36 are drawn.

    Args:
        study: the study.
        name: the name of the hyperparameter.
        shape: the height and width of an image, where the array holds images as rows of pixels: with `shape=(8, 8)` a
            penalty of shape `(64, 10)`, for each weight from a pixel to a class, is ten images of 8 x 8. The pixels are
            the array's first axis or axes, or else its last.
        artifact_store: the store that holds the arrays, if the study's sampler was given one; by default that one.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial is complete, the best one has no array of this name, no axes of the array fit `shape`, or
            the study has several objectives.

    Example:
        >>> import numpy as np, optuna
        >>> from hypergrad_optuna import HypergradSampler, report_gradient, suggest_array
        >>> from hypergrad_optuna.visualization import plot_array
        >>> def objective(trial):
        ...     x = suggest_array(trial, "x", (64, 2), 0.01, 10.0, log=True)
        ...     report_gradient(trial, {"x": 2 * (x - 0.3)})
        ...     return np.sum((x - 0.3) ** 2)
        >>> study = optuna.create_study(sampler=HypergradSampler(seed=0))
        >>> study.optimize(objective, n_trials=4)
        >>> figure = plot_array(study, "x", shape=(8, 8))
        >>> [np.shape(image.z) for image in figure.data]
        [(8, 8), (8, 8)]
    """
    go, subplots = plotly("plot_array")
    check_study("plot_array", study)
    trial = best_trial(study)
    found = hyperparameters_of(trial, artifact_store=store_of(study, artifact_store))
    if np.ndim(found.get(name, 0)) == 0:
        known = sorted(n for n, value in found.items() if np.ndim(value))
        raise ValueError(
            f"plot_array: name must be that of an array of trial {trial.number}, which has {known}, got {name!r}; "
            "a number becomes an array where it has a lift, as in Float(1e-6, 1.0, log=True, lift=(64, 10))"
        )
    array = np.asarray(found[name], np.float64)
    images = _images(array, shape)
    drawn = dict(list(images.items())[:MOST_IMAGES])
    logarithmic = _is_logarithmic(trial, name)
    columns = min(len(drawn), _COLUMNS)
    rows = math.ceil(len(drawn) / columns)
    figure = subplots.make_subplots(
        rows=rows,
        cols=columns,
        subplot_titles=[f"[{place}]" for place in drawn] if len(drawn) > 1 else None,
        horizontal_spacing=0.02,
        vertical_spacing=0.3 / rows if rows > 1 else 0.0,
    )
    for number, (place, image) in enumerate(drawn.items()):
        heatmap = go.Heatmap(
            z=plain(np.log10(image) if logarithmic else image),
            customdata=plain(image),
            coloraxis="coloraxis",
            hovertemplate=f"{name}{_at(place)}<br>row %{{y}}, column %{{x}}<br>%{{customdata:.4g}}<extra></extra>",
        )
        row, column = number // columns + 1, number % columns + 1
        figure.add_trace(heatmap, row, column)
        x = figure.data[-1].xaxis
        long = max(image.shape) > _LONGEST * min(image.shape)
        square = {} if long else {"scaleanchor": x, "constrain": "domain"}
        figure.update_yaxes(row=row, col=column, autorange="reversed", constraintoward="top", **square)
        figure.update_xaxes(row=row, col=column, constrain="domain")
    figure.update_xaxes(showticklabels=len(drawn) == 1, showgrid=False, zeroline=False)
    figure.update_yaxes(showticklabels=len(drawn) == 1, showgrid=False, zeroline=False)
    if len(drawn) == 1:
        figure.update_xaxes(title="column")
        figure.update_yaxes(title="row", dtick=1 if len(image) <= _FEW_ROWS else None)
    figure.update_layout(coloraxis=_colours(name, np.stack(list(drawn.values())), logarithmic))
    left_out = f", the first {len(drawn)} of {len(images)} images" if len(drawn) < len(images) else ""
    size = " x ".join(map(str, array.shape))
    figure.update_layout(height=440 if rows == 1 and columns < 3 else 220 + 130 * rows)
    figure.update_annotations(font={"size": 9})
    with_titles(
        figure,
        f"{name} of trial {trial.number}",
        f"{array.size:,} numbers ({size}){left_out}",
        f"{array.min():.3g} to {array.max():.3g}, median {np.median(array):.3g}",
    )
    return figure.update_layout(margin={"t": 110, "b": 60})


def _images(array: np.ndarray, shape: Sequence[int] | None) -> dict[str, np.ndarray]:
    """Return the images that an array holds, by where in it they are; "" where the array is one image."""
    if shape is not None:
        if not isinstance(shape, Sequence) or len(shape) != 2:
            raise ValueError(f"plot_array: shape must be the height and width of an image, got {shown(shape)}")
        height, width = (whole_number("plot_array: every length in shape", n, 1) for n in shape)
    elif array.ndim > 1:
        height, width = array.shape[:2]
    else:
        side = math.isqrt(array.size)
        height, width = (side, side) if side * side == array.size else (1, array.size)
    for axes in range(1, array.ndim + 1):
        if math.prod(array.shape[:axes]) == height * width:
            others = array.shape[axes:]
            whole = array.reshape(height, width, *others)
            return {_place([":"] * axes, i): whole[:, :, *i] for i in np.ndindex(*others)}
    for axes in range(1, array.ndim):
        if math.prod(array.shape[-axes:]) == height * width:
            others = array.shape[:-axes]
            whole = array.reshape(*others, height, width)
            return {_place(i, [":"] * axes): whole[i] for i in np.ndindex(*others)}
    raise ValueError(
        f"plot_array: shape must be that of {height * width} pixels along the first or last axes of the array, whose "
        f"shape is {array.shape}, got {tuple(shape or ())}"
    )


def _place(*parts: Iterable[Any]) -> str:
    """Return where in an array an image is, as one writes a slice; "" where it is the whole."""
    indices = [str(index) for part in parts for index in part]
    return ", ".join(indices) if {*indices} != {":"} else ""


def _at(place: str) -> str:
    return f"[{place}]" if place else ""


def _is_logarithmic(trial: FrozenTrial, name: str) -> bool:
    """Return whether the search moves in the logarithm of an array, whichever sampler ran the trial."""
    distributions = [d for key, d in trial.distributions.items() if key == name or _is_element(key, name)]
    return any(isinstance(d, FloatDistribution) and d.log for d in distributions)


def _is_element(key: str, name: str) -> bool:
    return is_coordinate(key) and key.rpartition("[")[0] == name


def _colours(name: str, values: np.ndarray, logarithmic: bool) -> dict[str, Any]:
    bar: dict[str, Any] = {"title": {"text": name, "side": "right"}, "thickness": 14}
    low, high = float(values.min()), float(values.max())
    if logarithmic:
        at = ticks(low, high)
        bar |= {"tickvals": np.log10(at).tolist(), "ticktext": [f"{tick:.3g}" for tick in at]}
        low, high = math.log10(low), math.log10(high)
    return {"colorscale": IMAGE_COLOURS, "colorbar": bar, "cmin": low, "cmax": high}
