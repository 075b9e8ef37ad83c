"""Pictures of what a study has found, as Plotly figures, in the manner of `optuna.visualization`."""

import functools
from typing import Any

import jax
import numpy as np
import optuna

from hypergrad_optuna.best import best_trial
from hypergrad_optuna.hyperparameters import by_name
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.sampler import sampler_of
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
        ValueError: no trial is complete, or the best one has no schedule that a setting of the optimizer uses.

    Example:
        >>> plot_schedules(study, objective).show()
    """
    go, subplots = _plotly()
    if not isinstance(objective, Objective):
        raise ValueError(f"plot_schedules: objective must be an Objective, got {objective!r}")
    trial, sampler = best_trial(study), sampler_of(study)
    store = sampler.artifact_store if artifact_store is None and sampler is not None else artifact_store
    found = by_name(trial, store)
    schedules = _schedules(objective, found)
    if not schedules:
        raise ValueError("plot_schedules: no setting of the optimizer uses a hyperparameter that is a schedule")
    figure = subplots.make_subplots(rows=len(schedules), cols=1, shared_xaxes=True, subplot_titles=list(schedules))
    for place, (name, (setting, leaves)) in enumerate(schedules.items(), 1):
        rows = np.atleast_2d(found[name])
        steps = np.arange(rows.shape[1])
        for leaf, row in zip(leaves, rows, strict=True):
            figure.add_trace(go.Scatter(x=steps, y=row, name=leaf, legendgroup=leaf, showlegend=place == 1), place, 1)
        if is_rate(setting):
            smooth = jax.vmap(warmup_cosine(**fit_warmup_cosine(rows), steps=len(steps)))(steps)
            line = {"dash": "dash", "color": "black"}
            figure.add_trace(go.Scatter(x=steps, y=np.asarray(smooth), name="warm-up and cosine", line=line), place, 1)
        parameter = objective.hosted.space[name]
        logarithmic = isinstance(parameter, Float) and parameter.log
        figure.update_yaxes(type="log" if logarithmic else "linear", row=place, col=1)
    figure.update_xaxes(title_text="step", row=len(schedules), col=1)
    figure.update_layout(title=f"Schedules of trial {trial.number}")
    return figure


def _plotly() -> tuple[Any, Any]:
    try:
        from plotly import graph_objects, subplots
    except ImportError as error:
        raise ImportError("plot_schedules needs Plotly: pip install 'hypergrad-search[visualization]'") from error
    return graph_objects, subplots


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
