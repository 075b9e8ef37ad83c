"""`plot_cost_shares`: what a study has spent on exploring and on descending."""

import itertools
from collections.abc import Iterable
from typing import Any

import optuna

from hypergrad_optuna.visualization.arguments import check_study
from hypergrad_optuna.visualization.drawing import BLUE, VERMILION, plotly, with_titles
from hypergrad_optuna.visualization.steps import Kind, cost_of_trial, kinds_of


def plot_cost_shares(study: optuna.Study) -> Any:
    """Plot the cost of all trials so far, split into exploring and descending, and the share of each.

    Explored points are those that the explorer, the user or another sampler chose. Steps along a gradient descend, and
    so do trials that evaluate the head of a chain again. A cost is what the trial reported, which `Objective` counts in
    gradient evaluations of a minibatch. A trial that reported none counts as 4 where it has a gradient, and as 1
    otherwise.

    Args:
        study: the study.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial has finished, or the study has several objectives.

    Example:
        >>> import optuna
        >>> from hypergrad_optuna import HypergradSampler, report_gradient
        >>> from hypergrad_optuna.visualization import plot_cost_shares
        >>> def objective(trial):
        ...     x = trial.suggest_float("x", -10.0, 10.0)
        ...     report_gradient(trial, {"x": 2 * (x - 2)}, cost=30)
        ...     return (x - 2) ** 2
        >>> study = optuna.create_study(sampler=HypergradSampler(seed=0))
        >>> study.optimize(objective, n_trials=10)
        >>> sum(line.y[-1] for line in plot_cost_shares(study).data[:2])
        300.0
    """
    go, subplots = plotly("plot_cost_shares")
    check_study("plot_cost_shares", study)
    finished = kinds_of(study)
    if not finished:
        raise ValueError("plot_cost_shares: no trial has finished; run study.optimize(objective, n_trials=...) first")
    numbers = [trial.number for trial, _ in finished]
    costs = [cost_of_trial(trial) for trial, _ in finished]
    totals = _so_far(costs)
    figure = subplots.make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.08)
    explores = [kind == Kind.EXPLORED for _, kind in finished]
    spent = {
        "exploring": _so_far(cost if own else 0.0 for cost, own in zip(costs, explores, strict=True)),
        "descending": _so_far(0.0 if own else cost for cost, own in zip(costs, explores, strict=True)),
    }
    shares = {
        name: [100 * x / total if total else 0.0 for x, total in zip(own, totals, strict=True)]
        for name, own in spent.items()
    }
    colours = {"exploring": BLUE, "descending": VERMILION}
    for row, by_name, unit in ((1, spent, "%{y:,.0f} gradient evaluations"), (2, shares, "%{y:.1f} % of the cost")):
        for name, values in by_name.items():
            line = go.Scatter(
                x=numbers,
                y=values,
                mode="lines",
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                line={"color": colours[name], "shape": "hv"},
                hovertemplate=f"{name}, up to trial %{{x}}<br>{unit}<extra></extra>",
            )
            figure.add_trace(line, row, 1)
    figure.update_yaxes(title="gradient evaluations", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title="share in %", range=[0, 100], row=2, col=1)
    figure.update_xaxes(title="trial", row=2, col=1)
    parts = [f"{name} {own[-1]:,.0f} ({shares[name][-1]:.0f} %)" for name, own in spent.items()]
    figure.update_layout(height=520)
    return with_titles(figure, "Exploring and descending", *parts)


def _so_far(costs: Iterable[float]) -> list[float]:
    return list(itertools.accumulate(costs))
