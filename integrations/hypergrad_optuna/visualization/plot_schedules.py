"""`plot_schedules`: the learned schedules of a study, leaf by leaf."""

import functools
from typing import Any

import jax
import numpy as np
import optuna

from hypergrad_optuna.best import best_trial
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.sampler import store_of
from hypergrad_optuna.visualization.arguments import check_names, check_objective, check_study
from hypergrad_optuna.visualization.drawing import BLACK, COLOURS, plain, plotly, with_titles
from hypergrad_search import Float, Optimizer, TrainingProblem, fit_warmup_cosine, warmup_cosine
from hypergrad_search.optimizers import leaves_of
from hypergrad_search.parameters import initial
from hypergrad_search.schedule_summary import is_rate, schedules_of, used_at


def plot_schedules(study: optuna.Study, objective: Objective, *, artifact_store: Any | None = None) -> Any:
    """Plot the schedules that a study has found: a panel for each setting, a line for each leaf of the parameters.

    The trial is that of `best_trial`. A learning rate also has a dashed line, the warm-up and cosine nearest to all its
    rows (`hypergrad_search.fit_warmup_cosine`); `summarize_schedules` says how good that one is.

    Args:
        study: the study.
        objective: the study's objective, which knows the steps and the names of the leaves.
        artifact_store: the store that holds the arrays, if the study's sampler was given one; by default that one.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial is complete, the best one has no schedule that a setting of the optimizer uses, the study
            has several objectives, or `objective` is that of another study.

    Example:
        >>> from hypergrad_optuna.visualization import plot_schedules
        >>> figure = plot_schedules(study, objective)
        >>> [line.name for line in figure.data]
        ['all', 'nearest warm-up and cosine']
    """
    go, subplots = plotly("plot_schedules")
    check_study("plot_schedules", study)
    check_objective("plot_schedules", objective)
    trial = best_trial(study)
    found = hyperparameters_of(trial, artifact_store=store_of(study, artifact_store))
    check_names("plot_schedules", objective, found)
    schedules = _schedules(objective, found)
    if not schedules:
        raise ValueError(
            "plot_schedules: no setting of the optimizer uses a hyperparameter that is a schedule; one that names "
            "a number, as adamw('rate') does, gets a schedule where valid_loss returns the losses of examples"
        )
    figure = subplots.make_subplots(rows=len(schedules), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    of_leaf: dict[str, str] = {}
    for place, (name, (setting, leaves)) in enumerate(schedules.items(), 1):
        rows = np.atleast_2d(found[name])
        steps = list(range(rows.shape[1]))
        for leaf, row in zip(leaves, rows, strict=True):
            first = leaf not in of_leaf
            colour = of_leaf.setdefault(leaf, COLOURS[len(of_leaf) % len(COLOURS)])
            line = go.Scatter(
                x=steps,
                y=plain(row),
                name=leaf,
                legendgroup=leaf,
                showlegend=first,
                line={"color": colour},
                hovertemplate=f"{leaf}<br>step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
            )
            figure.add_trace(line, place, 1)
        if is_rate(setting):
            smooth = jax.vmap(warmup_cosine(**fit_warmup_cosine(rows), steps=len(steps)))(np.asarray(steps))
            line = go.Scatter(
                x=steps,
                y=plain(smooth),
                name="nearest warm-up and cosine",
                line={"dash": "dash", "color": BLACK},
                hovertemplate=f"warm-up and cosine<br>step %{{x}}<br>{name} %{{y:.4g}}<extra></extra>",
            )
            figure.add_trace(line, place, 1)
        parameter = objective.hosted.space[name]
        logarithmic = isinstance(parameter, Float) and parameter.log
        figure.update_yaxes(title=name, type="log" if logarithmic else "linear", row=place, col=1)
    figure.update_xaxes(title_text="step of training", row=len(schedules), col=1)
    figure.update_layout(height=180 + 200 * len(schedules))
    return with_titles(figure, f"Schedules of trial {trial.number}", "a line for each leaf of the parameters")


def _schedules(objective: Objective, found: dict[str, Any]) -> dict[str, tuple[tuple[str, Any], list[str]]]:
    """Return by the name of each schedule the setting that uses it, and the names of the leaves of its rows."""
    problem = objective.hosted.problem
    optimizer = problem.optimizer if isinstance(problem, TrainingProblem) else None
    if not isinstance(optimizer, Optimizer):
        return {}
    problem = problem.at(found)
    params, _ = jax.eval_shape(lambda: initial(problem, found, objective.hosted.key))
    paths = [jax.tree_util.keystr(path) or "all" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    leaves_by_name = leaves_of(optimizer, params, functools.partial(used_at, hyperparameters=found))
    schedules = {}
    for name, setting in schedules_of(problem, found).items():
        rows = len(np.atleast_2d(found[name]))
        leaves = [paths[i] for i in leaves_by_name[name]]
        schedules[name] = setting, leaves if len(leaves) == rows else ["all"] * rows
    return schedules
