"""`plot_held_back`: the loss on what was held back, against the loss on the whole validation set."""

import math
from typing import Any

import numpy as np
import optuna

from hypergrad_optuna import attributes
from hypergrad_optuna.best import best_trial
from hypergrad_optuna.visualization.arguments import check_study
from hypergrad_optuna.visualization.drawing import BLACK, axis_type, plotly, with_titles
from hypergrad_optuna.visualization.steps import COLOUR_OF, Kind, hover_of, kinds_of

#: The line where both losses are equal has so many points, so that it is right on axes of any type.
_POINTS = 50


def plot_held_back(study: optuna.Study) -> Any:
    """Plot for each trial the loss on the folds that were held back, against the loss on the whole validation set.

    The held-back loss (`hypergrad:cross_validated`) counts each example where its fold was left out of the gradient.
    At explored points the two are equal, on the dashed line. Where a chain rises above this line, a part of its gain is
    fit to the examples that its gradients have seen. Where it falls below, its steps were chosen by luck too: a step
    is kept for what it gains on the part held back, so that this loss is no test loss. A step whose status is
    "overfitted" has none.

    Args:
        study: the study.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial has a held-back loss, or the study has several objectives.

    Example:
        >>> from hypergrad_optuna.visualization import plot_held_back
        >>> figure = plot_held_back(study)  # figure.show() opens it in a browser
        >>> figure.layout.title.text.partition("<br>")[0]
        'Held-back loss'
    """
    go, _ = plotly("plot_held_back")
    check_study("plot_held_back", study)
    pairs = [(trial, kind, trial.user_attrs.get(attributes.CROSS_VALIDATED)) for trial, kind in kinds_of(study)]
    drawn = [
        (trial, kind, loss)
        for trial, kind, loss in pairs
        if trial.value is not None and math.isfinite(trial.value) and loss is not None and math.isfinite(loss)
    ]
    if not drawn:
        raise ValueError(
            "plot_held_back: no trial has a held-back loss; return the losses of examples from valid_loss, and lift a "
            "number, as in Float(1e-6, 1.0, log=True, lift=(64, 10))"
        )
    numbers = [float(number) for trial, _, loss in drawn for number in (trial.value or 0.0, loss)]
    kind_of_axis = axis_type(numbers)
    spaced = np.geomspace if kind_of_axis == "log" else np.linspace
    equal = spaced(min(numbers), max(numbers), _POINTS).tolist()
    figure = go.Figure(
        go.Scatter(
            x=equal,
            y=equal,
            mode="lines",
            name="both are equal",
            line={"color": BLACK, "dash": "dash", "width": 1},
            hoverinfo="skip",
        )
    )
    for kind in Kind:
        of_kind = [(trial, loss) for trial, one, loss in drawn if one == kind]
        if of_kind:
            points = go.Scatter(
                x=[trial.value for trial, _ in of_kind],
                y=[loss for _, loss in of_kind],
                mode="markers",
                name=str(kind),
                marker={"color": COLOUR_OF[kind], "size": 8},
                text=[hover_of(trial, kind) for trial, _ in of_kind],
                hovertemplate="%{text}<extra></extra>",
            )
            figure.add_trace(points)
    figure.update_xaxes(title="loss on the whole validation set", type=kind_of_axis)
    figure.update_yaxes(title="loss on what was held back", type=kind_of_axis)
    best = best_trial(study)
    held_back = best.user_attrs.get(attributes.CROSS_VALIDATED)
    known = f"trial {best.number}: whole {best.value:.3g}, held back {held_back:.3g}" if held_back else ""
    return with_titles(figure, "Held-back loss", known)
