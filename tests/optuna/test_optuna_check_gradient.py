"""`check_gradient` for objectives, with arrays, categoricals and `Objective`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optuna
import pytest

from hypergrad_optuna import Objective, check_gradient, report_gradient, suggest_array, wants_gradient
from hypergrad_search import Float, Int, Space, TrainingProblem, sgd


def objective(factor: float = 1.0) -> Any:
    def value_of(trial: optuna.Trial) -> float:
        array = suggest_array(trial, "a", (2, 2), 0.1, 10.0, log=True)
        x, power = trial.suggest_float("x", 0.0, 1.0), trial.suggest_categorical("power", [1, 2])
        trial.suggest_float("stepped", 0.0, 1.0, step=0.25)
        value = float(np.sum(np.log(array) ** 2) + x**power)
        if wants_gradient(trial, value):
            gradient = {"a": factor * 2 * np.log(array) / array, "x": power * x ** (power - 1)}
            report_gradient(trial, gradient)
        return value

    return value_of


POINT = {"a": np.array([[0.2, 0.5], [1.5, 5.0]]), "x": 0.25, "power": 2, "stepped": 0.5}


def test_a_right_gradient_agrees() -> None:
    result = check_gradient(objective(), POINT)
    assert result.agrees, str(result)
    assert {direction.name for direction in result.directions} == {"all", "a", "x"}


def test_a_wrong_one_is_named() -> None:
    result = check_gradient(objective(-1.0), POINT)
    verdicts = {direction.name: direction.verdict for direction in result.directions}
    assert verdicts["a"].startswith("WRONG SIGN")
    assert verdicts["x"].startswith("agrees")


def test_the_gradient_of_a_problem_agrees() -> None:
    problem = TrainingProblem(
        init=lambda key, h: jnp.full(h["width"], 0.5),
        train_loss=lambda w, h, batch, key: jnp.sum((w - 1) ** 2) + jnp.sum(h["l2"] * w**2),
        valid_loss=lambda w, h: jnp.mean((w - 0.7) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=5,
    )
    space: Space = {"rate": Float(1e-3, 0.1, log=True), "l2": Float(0.0, 1.0, lift=(3,)), "width": Int(1, 3)}
    assert check_gradient(Objective(problem, space), {"rate": 0.02, "l2": 0.3, "width": 3}, directions=1).agrees
    lifted = {"rate": 0.02, "l2": np.array([0.1, 0.3, 0.5]), "width": 3}
    assert check_gradient(Objective(problem, space), lifted, directions=1).agrees


def two_values(trial: Any) -> Any:
    return 1.0, 2.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_gradient(3, POINT), "objective must be a function of a trial, got 3"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: check_gradient(objective(), [0.1]), "point must be a dict"),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: check_gradient(lambda trial: 1.0, POINT), "the objective reported no gradient at this point"),
        (lambda: check_gradient(two_values, POINT), r"objective must return one number, got \(1.0, 2.0\)"),
        (lambda: check_gradient(objective(), POINT, steps=[0.1]), "steps must be at least two"),
    ],
)
def test_wrong_arguments_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
