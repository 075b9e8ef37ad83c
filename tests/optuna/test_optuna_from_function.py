"""A training function of the user's own as an objective: gradients where they are wanted, and values to the bit."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from hypergrad_optuna import HypergradSampler, Objective, attributes, best_hyperparameters, check_gradient
from hypergrad_optuna.hyperparameters import hyperparameters_of
from hypergrad_search import Categorical, Float, Int, Space, evaluate, from_function

STEPS = 6
DRAWN = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
SPACE: Space = {
    "rate": Float(0.01, 0.3, log=True, lift=(STEPS,)),
    "target": Float(-1.0, 1.0, shape=(3,)),
    "width": Int(1, 2),
    "kind": Categorical(["plain", None]),
}


@jax.jit
def step(weights: Any, rate: Any, batch: Any, target: Any) -> Any:
    return weights - rate * jax.grad(lambda w: jnp.mean((batch @ (w - target)) ** 2))(weights)


def train(h: dict[str, Any]) -> Any:
    """A Python loop over NumPy batches, with one rate or one for each step; it ends best at 0.5."""
    assert isinstance(h["rate"], jax.Array)
    assert (type(h["width"]), h["kind"] in ("plain", None)) == (int, True)
    weights, rates = jnp.zeros(3), jnp.broadcast_to(h["rate"], (STEPS,))
    for i in range(STEPS):
        weights = step(weights, rates[i], DRAWN[10 * i : 10 * i + 10], h["target"])
    return (DRAWN @ (weights - 0.5)) ** 2 + 0.01 * h["width"]


def searched(space: Space, sampler: Any = None, trials: int = 30) -> tuple[optuna.Study, Objective]:
    study = optuna.create_study(sampler=sampler or HypergradSampler(seed=0))
    objective = Objective(from_function(train), space)
    study.optimize(objective, n_trials=trials)
    return study, objective


def test_a_search_descends_lifts_and_gives_values_again() -> None:
    study, objective = searched(SPACE)
    with_gradient = [t for t in study.trials if attributes.GRADIENT in t.user_attrs]
    assert with_gradient
    assert any(attributes.wanted(t).parent for t in with_gradient)
    assert all(set(t.user_attrs[attributes.GRADIENT]) == {"rate", "target"} for t in with_gradient)
    assert all(len(t.user_attrs[attributes.HELD_BACK]) == 4 for t in study.trials)
    found = best_hyperparameters(study)
    assert list(found) == list(SPACE)
    assert (found["rate"].shape, found["target"].shape) == ((STEPS,), (3,))
    assert evaluate(objective.hosted.problem, found, space=objective.hosted.searched(by_gradients=True)).value == min(
        t.value for t in study.trials if t.value is not None and t.user_attrs[attributes.STATUS] == "ok"
    )
    for trial in study.trials:
        assert objective(trial) == trial.value
        assert objective(FixedTrial(hyperparameters_of(trial))) == trial.value


def test_a_value_costs_1_and_a_gradient_what_it_takes() -> None:
    study, _ = searched(
        {
            "target": Float(-1.0, 1.0, shape=(3,)),
            "rate": Float(0.01, 0.3, log=True),
            "width": Int(1, 1),
            "kind": Categorical([None]),
        }
    )
    costs = {attributes.GRADIENT in t.user_attrs: set[float]() for t in study.trials}
    for trial in study.trials:
        costs[attributes.GRADIENT in trial.user_attrs].add(trial.user_attrs[attributes.COST])
    assert costs[False] == {1}
    assert min(costs[True]) > 1
    assert len(costs[True]) > 1  # the first is assumed, and later ones are measured
    assert study.best_value < 0.1


def test_other_samplers_never_differentiate() -> None:
    def function(h: dict[str, Any]) -> Any:
        assert not isinstance(h["rate"], jax.core.Tracer)
        return train(h)

    study = optuna.create_study(sampler=RandomSampler(seed=0))
    study.optimize(Objective(from_function(function), SPACE), n_trials=5)
    assert {t.user_attrs[attributes.COST] for t in study.trials} == {1}
    assert all(isinstance(t.params["rate"], float) for t in study.trials)


def test_values_may_be_refused_but_a_function_may_not() -> None:
    """A function that works, and cannot be differentiated, ends the study at the first gradient."""

    def picky(h: dict[str, Any]) -> Any:
        if h["x"] > 0.5:
            raise ValueError("x is too large")
        return h["x"] ** 2 + 1

    space = {"x": Float(0.0, 1.0)}
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    for x in (0.9, 0.1):
        study.enqueue_trial({"x": x})
    with pytest.warns(UserWarning, match="an error refused these values: ValueError: x is too large"):
        study.optimize(Objective(from_function(picky), space), n_trials=8)
    assert {(t.value == math.inf, t.user_attrs[attributes.STATUS]) for t in study.trials} == {
        (True, "refused"),
        (False, "ok"),
    }
    assert study.trials[0].user_attrs[attributes.COST] == 1

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    with pytest.raises(ValueError, match=r"<lambda> makes a Python number .* the loss must stay a JAX array"):
        study.optimize(Objective(from_function(lambda h: h["x"] * float(h["x"])), space), n_trials=8)


def test_the_check_of_objectives_takes_it() -> None:
    objective = Objective(from_function(train), SPACE)
    result = check_gradient(objective, {"rate": 0.1, "target": np.zeros(3), "width": 1, "kind": None})
    assert result.agrees, str(result)
