"""The public functions of `hypergrad_optuna`, called with wrong things: each error names the argument in one line."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest

import hypergrad_optuna
from hypergrad_optuna import (
    HypergradSampler,
    Objective,
    best_hyperparameters,
    best_model,
    best_trial,
    hyperparameters_of,
    report_gradient,
    suggest_array,
    wants_gradient,
)
from hypergrad_search import Float, Reversible, Space, TrainingProblem, from_function, sgd

Call = Callable[[], Any]
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.ones(2),
    train_loss=lambda w, h, batch, key: jnp.sum(w**2),
    valid_loss=lambda w, h: jnp.sum(w**2),
    batches=lambda step: None,
    optimizer=sgd("rate", 0.5),
    steps=2,
)
SPACE: Space = {"rate": Float(1e-3, 1.0, log=True)}


def objective(space: Any = SPACE, **settings: Any) -> Objective:
    return Objective(PROBLEM, space, **settings)


def of_function(**settings: Any) -> Objective:
    return Objective(from_function(lambda h: h["rate"]), SPACE, **settings)


def in_study(function: Callable[[optuna.Trial], Any]) -> Any:
    return function(optuna.create_study(sampler=HypergradSampler(seed=0)).ask())


def reporting(gradient: Any, **more: Any) -> Call:
    def report(trial: optuna.Trial) -> None:
        trial.suggest_float("x", 0, 1)
        suggest_array(trial, "a", 2, 0.0, 1.0)
        report_gradient(trial, gradient, **more)

    return lambda: in_study(report)


def done() -> optuna.Study:
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective(), n_trials=1)
    return study


WRONG: dict[str, list[tuple[Call, str]]] = {
    "HypergradSampler": [
        (lambda: HypergradSampler(explorer="tpe"), "HypergradSampler: explorer must be a sampler"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HypergradSampler(explorer=optuna.samplers.TPESampler), "HypergradSampler: explorer must be a sampler"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HypergradSampler(strategy=3), "strategy must be a Strategy"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HypergradSampler(seed=2.5), "HypergradSampler: seed must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HypergradSampler(seed="0"), "HypergradSampler: seed must be a whole number"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: HypergradSampler(seed=0, explorer=optuna.samplers.RandomSampler()), "give the seed to explorer"),
        (lambda: HypergradSampler(artifact_store="/tmp"), "HypergradSampler: artifact_store must be a store"),
    ],
    "Objective": [
        (lambda: Objective(3, SPACE), "problem must be a TrainingProblem"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Objective(min, SPACE), r"TrainingProblem, or from_function\(function\), got <built"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Objective(from_function(lambda h: h["rate"]), {}), "space must be a dict of at least one name"),
        (lambda: of_function(method=Reversible()), "Objective: method is for a TrainingProblem, and not for from_func"),
        (lambda: of_function(key=jax.random.key(0)), "Objective: key is for a TrainingProblem, and not for from_func"),
        (lambda: of_function(reseed=True), "Objective: reseed is for a TrainingProblem, and not for from_function"),
        (lambda: of_function(report_every=5), "Objective: report_every is for a TrainingProblem, and not for from_f"),
        (lambda: objective({}), "space must be a dict of at least one name"),
        (lambda: objective({"rate": 0.1}), r"space\['rate'\] must be a Float, Int or Categorical"),
        (lambda: objective({"l2": Float(0, 1)}), "optimizer: learning_rate names the hyperparameter 'rate'"),
        (lambda: objective(method=Reversible), "Objective: method must be a Method"),
        (lambda: objective(key=3), "Objective: key must be a key"),
        (lambda: objective(reseed="no"), "Objective: reseed must be True or False"),
        (lambda: objective(report_every=0), "Objective: report_every must be a whole number from 1"),
        (lambda: objective(artifact_store="/tmp"), "Objective: artifact_store must be a store"),
        (lambda: objective()(3), "Objective: trial must be a trial of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "best_hyperparameters": [
        (lambda: best_hyperparameters(optuna.create_study()), "No trials are completed yet|no trial"),
        (lambda: best_hyperparameters(3), "best_hyperparameters: study must be a study of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "best_model": [
        (lambda: best_model(done(), 3), "best_model: objective must be an Objective, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: best_model(done(), of_function()), r"from_function\(<lambda>\) knows no trained parameters, since"),
        (lambda: best_model(3, objective()), "best_model: study must be a study of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "best_trial": [(lambda: best_trial(3), "best_trial: study must be a study of Optuna, got 3")],  # type: ignore[arg-type]  # wrong on purpose
    "hyperparameters_of": [
        (lambda: hyperparameters_of(3), "hyperparameters_of: trial must be a trial of Optuna, got 3")  # type: ignore[arg-type]  # wrong on purpose
    ],
    "report_gradient": [
        (reporting(3), "report_gradient: gradient must be a dict from names to derivatives, got 3"),
        (reporting({"typo": 1.0}), "report_gradient: 'typo' is no parameter of this trial"),
        (reporting({"x": "steep"}), "report_gradient: every derivative must be a number, got 'steep'"),
        (reporting({"x": None}), "report_gradient: every derivative must be a number, got None"),
        (reporting({"x": np.ones(2)}), r"the derivative of 'x' must have shape \(\), got \(2,\)"),
        (reporting({"a": 1.0}), r"the derivative of 'a' must have shape \(2,\), got \(\)"),
        (reporting({"x": 1.0}, cost=math.nan), "report_gradient: cost must be a number from 0"),
        (reporting({"x": 1.0}, cost=-3), "report_gradient: cost must be a number from 0"),
        (reporting({"x": 1.0}, cost="dear"), "report_gradient: cost must be a number from 0"),
        (lambda: report_gradient(3, {}), "report_gradient: trial must be a trial of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "suggest_array": [
        (lambda: in_study(lambda t: suggest_array(t, "a", (), 0, 1)), "suggest_array: shape must have at least one"),
        (lambda: in_study(lambda t: suggest_array(t, "a", (2.5,), 0, 1)), "every length in shape"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: in_study(lambda t: suggest_array(t, "a", 2, 1, 0)), "low must not be above high"),
        (lambda: in_study(lambda t: suggest_array(t, "a", 2, 0, 1, log=True)), "log=True needs low above 0"),
        (lambda: in_study(lambda t: suggest_array(t, 3, 2, 0, 1)), "suggest_array: name must be a string, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: suggest_array(3, "a", 2, 0, 1), "suggest_array: trial must be a trial of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
    ],
    "wants_gradient": [
        (lambda: wants_gradient(3, 1.0), "wants_gradient: trial must be a trial of Optuna, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (
            lambda: in_study(lambda trial: wants_gradient(trial, "low")),  # type: ignore[arg-type]  # wrong on purpose
            "wants_gradient: value must be a number, got 'low'",
        ),
    ],
}
ELSEWHERE = {"check_gradient", "optimize_batched"}
ROWS = [pytest.param(*row, id=f"{name} {i}") for name, rows in WRONG.items() for i, row in enumerate(rows)]


def test_the_table_has_every_public_name() -> None:
    assert WRONG.keys() | ELSEWHERE == set(hypergrad_optuna.__all__)


@pytest.mark.parametrize(("call", "message"), ROWS)
def test_a_wrong_argument_is_named(call: Call, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_meant_well_works() -> None:
    HypergradSampler(seed=np.int64(3))  # type: ignore[arg-type]  # users may, types or not
    objective(reseed=np.True_, report_every=np.int64(1), key=jax.random.PRNGKey(0))
    reporting({"x": np.float32(1), "a": [1, 2]}, cost=np.int64(3))()
    assert not in_study(lambda trial: wants_gradient(trial, math.nan))
    assert in_study(lambda trial: wants_gradient(trial, np.float64(1.0))) in (True, False)
