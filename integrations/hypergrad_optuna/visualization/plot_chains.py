"""`plot_chains`: the value of each trial, with the chains of steps along gradients as connected lines."""

import math
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from hypergrad_optuna import attributes
from hypergrad_optuna.visualization.arguments import check_study
from hypergrad_optuna.visualization.drawing import COLOURS, axis_type, plotly, with_titles
from hypergrad_optuna.visualization.steps import COLOUR_OF, Kind, hover_of, kinds_of

_SYMBOLS = {Kind.EXPLORED: "circle", Kind.KEPT: "circle", Kind.REFUSED: "x", Kind.AGAIN: "diamond"}


def plot_chains(study: optuna.Study) -> Any:
    """Plot the value of each trial, with the chains of the search as connected lines.

    A point that the explorer, the user or another sampler chose stands by itself. A line goes from such a point through
    the steps along the gradient that were kept. Steps that were refused have another mark: those that are no better,
    and those that fit the held-back part no better ("overfitted"), whose value may be low nevertheless. Trials without
    a finite value are counted below the title.

    Args:
        study: the study.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial has a finite value, or the study has several objectives.

    Example:
        >>> import optuna
        >>> from hypergrad_optuna import HypergradSampler, report_gradient
        >>> from hypergrad_optuna.visualization import plot_chains
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -10.0, 10.0)
        ...     report_gradient(trial, {"x": 2 * (x - 2)})
        ...     return (x - 2) ** 2
        >>> study = optuna.create_study(sampler=HypergradSampler(seed=0))
        >>> study.optimize(objective, n_trials=10)
        >>> figure = plot_chains(study)
        >>> sum(len(points.x) for points in figure.data if points.mode == "markers")
        10
    """
    go, _ = plotly("plot_chains")
    check_study("plot_chains", study)
    finished = kinds_of(study)
    drawn = [(trial, kind) for trial, kind in finished if trial.value is not None and math.isfinite(trial.value)]
    if not drawn:
        raise ValueError("plot_chains: no trial has a finite value; run study.optimize(objective, n_trials=...) first")
    figure = go.Figure()
    for number, (root, chain) in enumerate(_chains(drawn).items()):
        line = go.Scatter(
            x=[trial.number for trial in chain],
            y=[trial.value for trial in chain],
            mode="lines",
            name=f"chain from trial {root}",
            line={"color": COLOURS[number % len(COLOURS)]},
            showlegend=False,
            hoverinfo="skip",
        )
        figure.add_trace(line)
    for kind in Kind:
        of_kind = [trial for trial, one in drawn if one == kind]
        if of_kind:
            points = go.Scatter(
                x=[trial.number for trial in of_kind],
                y=[trial.value for trial in of_kind],
                mode="markers",
                name=str(kind),
                marker={"color": COLOUR_OF[kind], "symbol": _SYMBOLS[kind], "size": 8},
                text=[hover_of(trial, kind) for trial in of_kind],
                hovertemplate="%{text}<extra></extra>",
            )
            figure.add_trace(points)
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="value of the objective", type=axis_type([float(t.value or 0.0) for t, _ in drawn]))
    missing = len(finished) - len(drawn)
    return with_titles(
        figure,
        "Chains of the search",
        "lines join the steps that were kept",
        f"{missing} trials without a finite value are not drawn" if missing else "",
    )


def _chains(drawn: list[tuple[FrozenTrial, Kind]]) -> dict[int, list[FrozenTrial]]:
    """Return by the trial where each chain began that trial and the steps from it that were kept, in their order."""
    by_number = {trial.number: trial for trial, _ in drawn}
    roots: dict[int, int] = {}
    chains: dict[int, list[FrozenTrial]] = {}
    for trial, kind in drawn:
        parent = attributes.wanted(trial).parent
        if kind in (Kind.KEPT, Kind.AGAIN) and parent is not None and int(parent) in by_number:
            root = roots[trial.number] = roots.get(int(parent), int(parent))
            if kind == Kind.KEPT:
                chains.setdefault(root, [by_number[root]]).append(trial)
    return chains
