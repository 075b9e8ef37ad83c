"""`plot_trust`: how the adjoint grew on its way back through a trial's training run, and what trust that leaves."""

from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from hypergrad_optuna import attributes
from hypergrad_optuna.best import best_trial
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_optuna.objective import Objective
from hypergrad_optuna.sampler import store_of
from hypergrad_optuna.visualization.arguments import check_names, check_objective, check_study
from hypergrad_optuna.visualization.drawing import BLUE, ORANGE, VERMILION, plain, plotly, with_titles
from hypergrad_search import Fold, evaluate
from hypergrad_search.from_function import FunctionProblem
from hypergrad_search.hypergradient.base import HARMLESS_GROWTH, MOST_GROWTH
from hypergrad_search.space import as_given


def plot_trust(
    study: optuna.Study,
    objective: Objective,
    *,
    trial: FrozenTrial | None = None,
    artifact_store: Any | None = None,
) -> Any:
    """Plot the growth of the adjoint, step by step, on its way back through training.

    The adjoint is the gradient of the validation loss with respect to the weights before a step. Where training is
    chaotic it grows by orders of magnitude on its way back, and the hypergradient, which is made of it, does not tell
    where the loss falls. Up to a growth of 100 a gradient is believed; from 1,000 on it is not used.

    No trial stores these norms, so the trial is evaluated once more, with its gradient, and leaves out the same part of
    the validation set. That takes as long as the trial took.

    Args:
        study: the study.
        objective: the study's objective; its method must be `Reversible`, as by default, which measures the growth.
        trial: the finished trial; by default that of `best_trial`. `study.trials[3]` is another.
        artifact_store: the store that holds the arrays, if the study's sampler was given one; by default that one.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: Plotly is missing.
        ValueError: no trial is complete, the trial's evaluation has no adjoint, the study has several objectives, or
            `objective` is that of another study.

    Example:
        >>> import jax.numpy as jnp, optuna
        >>> from hypergrad_optuna import HypergradSampler, Objective
        >>> from hypergrad_optuna.visualization import plot_trust
        >>> from hypergrad_search import Float, TrainingProblem, sgd
        >>> problem = TrainingProblem(
        ...     init=lambda key, h: jnp.ones(3),
        ...     train_loss=lambda w, h, batch, key: jnp.sum(w**2),
        ...     valid_loss=lambda w, h: jnp.sum(w**2),
        ...     batches=lambda step: None,
        ...     optimizer=sgd("rate", 0.5),
        ...     steps=10,
        ... )
        >>> objective = Objective(problem, {"rate": Float(1e-3, 0.1, log=True)})
        >>> study = optuna.create_study(sampler=HypergradSampler(seed=0))
        >>> study.optimize(objective, n_trials=3)
        >>> growth = plot_trust(study, objective).data[0]
        >>> growth.x[0], growth.x[-1], growth.y[-1]
        (0, 10, 1.0)
    """
    go, _ = plotly("plot_trust")
    check_study("plot_trust", study)
    check_objective("plot_trust", objective)
    if trial is not None and not isinstance(trial, FrozenTrial):
        raise ValueError(f"plot_trust: trial must be a finished trial such as study.trials[0], got {trial!r}")
    trial = best_trial(study) if trial is None else trial
    norms, last, trust = _norms(objective, trial, store_of(study, artifact_store))
    steps = list(range(last - len(norms) + 1, last + 1))
    growth = plain(np.divide(norms, norms[-1]) if norms[-1] else np.full(len(norms), np.nan))
    figure = go.Figure(
        go.Scatter(
            x=steps,
            y=growth,
            name="growth of the adjoint",
            line={"color": BLUE},
            hovertemplate="before step %{x}<br>growth %{y:.3g}<extra></extra>",
        )
    )
    limits = (("believed up to 100", HARMLESS_GROWTH, ORANGE), ("not used from 1,000 on", MOST_GROWTH, VERMILION))
    for name, limit, colour in limits:
        line = go.Scatter(
            x=[steps[0], steps[-1]],
            y=[limit, limit],
            mode="lines",
            name=name,
            line={"color": colour, "dash": "dash"},
            hoverinfo="skip",
        )
        figure.add_trace(line)
    figure.update_xaxes(title="step of training")
    figure.update_yaxes(title="norm of the adjoint / norm at the end", type="log")
    known = [x for x in growth if x is not None]
    beyond = f"{len(growth) - len(known)} steps are beyond float32's range" if len(known) < len(growth) else ""
    return with_titles(
        figure,
        f"Trust in trial {trial.number}",
        f"largest growth {max(known, default=0.0):.3g}, trust {trust:.2f}",
        "the way back runs from right to left",
        beyond,
    )


def _norms(objective: Objective, trial: FrozenTrial, store: Any | None) -> tuple[list[float], int, float]:
    """Return the norms of the adjoint before each step that was reversed and at the end, the steps, and the trust."""
    hosted = objective.hosted
    if isinstance(hosted.problem, FunctionProblem):
        raise ValueError("plot_trust: a function has no adjoint by steps; objective must train a TrainingProblem")
    found = hyperparameters_of(trial, artifact_store=store)
    check_names("plot_trust", objective, found)
    held_back = attributes.wanted(trial).held_back(hosted.liftable)
    evaluation = evaluate(
        hosted.problem,
        found,
        method=hosted.method,
        key=objective.key_of(trial),
        fold=None if held_back is None else Fold(held_back.index, held_back.of),
        space=as_given(hosted.liftable, found),
    )
    norms = evaluation.diagnostics.get("adjoint_norms")
    if norms is None:
        why = evaluation.diagnostics.get("fallback") or evaluation.message or "its method does not measure it"
        raise ValueError(
            f"plot_trust: the evaluation of trial {trial.number} with {type(hosted.method).__name__} has no norms of "
            f"an adjoint: {why}; take a trial that ends with a value, and Objective(..., method=Reversible())"
        )
    return norms, evaluation.diagnostics["steps"], min((evaluation.trust or {}).values(), default=0.0)
