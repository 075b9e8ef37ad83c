"""Each way to the gradient searches in Optuna by one argument of the objective."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optuna
import pytest
from sklearn.linear_model import ElasticNet

from hypergrad_optuna import HypergradSampler, Objective, attributes, best_hyperparameters
from hypergrad_search import (
    DrMAD,
    Float,
    Forward,
    Implicit,
    Method,
    OnePass,
    Persistent,
    RealTime,
    Smoothed,
    Space,
    TrainingProblem,
    proximal_sgd,
    sgd,
)
from hypergrad_search.hypergradient import Identity, Neumann
from hypergrad_search.training import train_in_floats

RNG = np.random.default_rng(0)
X, X_VALID = np.float32(RNG.normal(size=(20, 5))), np.float32(RNG.normal(size=(30, 5)))
TRUTH = np.array([1.0, 0.0, -1.0, 0.0, 0.5], np.float32)
Y, Y_VALID = X @ TRUTH + np.float32(RNG.normal(size=20)), X_VALID @ TRUTH
SPACE: Space = {"penalty": Float(1e-3, 10.0, log=True, shape=(5,))}
WITH_RATE: Space = {**SPACE, "rate": Float(1e-3, 0.3, log=True)}


def problem(rate: Any) -> TrainingProblem:
    return TrainingProblem(
        init=lambda key, h: jnp.zeros(5),
        train_loss=lambda p, h, b, k: jnp.mean((X @ p - Y) ** 2) + jnp.sum(h["penalty"] * p**2),
        valid_loss=lambda p, h: (X_VALID @ p - Y_VALID) ** 2,
        batches=lambda step: None,
        optimizer=sgd(rate, 0.5),
        steps=30,
    )


@pytest.mark.parametrize(
    ("method", "space"),
    [
        (Implicit(), SPACE),
        (Implicit(solver=Neumann(rate=0.05)), SPACE),
        (Implicit(solver=Identity()), SPACE),
        (Forward(), WITH_RATE),
        (DrMAD(), WITH_RATE),
        (OnePass(), WITH_RATE),
        (RealTime(), WITH_RATE),
        (Persistent(optimizer=optax.adam(0.05)), WITH_RATE),
        (Smoothed(), WITH_RATE),
    ],
    ids=["implicit", "neumann", "identity", "forward", "drmad", "one-pass", "real-time", "persistent", "smoothed"],
)
def test_it_searches_by_each_method(method: Method, space: Space) -> None:
    objective = Objective(problem("rate" if "rate" in space else 0.1), space, method=method)
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=10)
    trials = study.get_trials()
    assert {trial.user_attrs[attributes.STATUS] for trial in trials} <= {"ok", "overfitted"}
    steps = [trial for trial in trials if attributes.wanted(trial).parent]
    assert steps  # along a gradient, or from what a trial refined
    assert min(trial.value or np.inf for trial in steps) == study.best_value < (trials[0].value or 0.0)
    assert best_hyperparameters(study).keys() == space.keys()


def test_it_tunes_an_elastic_net() -> None:
    net = TrainingProblem(
        init=lambda key, h: jnp.zeros(5),
        train_loss=lambda p, h, b, k: 0.5 * jnp.mean((X @ p - Y) ** 2),
        valid_loss=lambda p, h: (X_VALID @ p - Y_VALID) ** 2,
        batches=lambda step: None,
        optimizer=proximal_sgd(0.2, "l1", "l2", momentum=0.5),
        steps=200,
    )
    space: Space = {"l1": Float(1e-3, 1.0, log=True), "l2": Float(1e-3, 1.0, log=True)}
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(Objective(net, space, method=Implicit()), n_trials=10)
    trials = study.get_trials()
    steps = [trial for trial in trials if attributes.wanted(trial).parent]
    assert {trial.user_attrs[attributes.STATUS] for trial in trials} <= {"ok", "overfitted"}
    assert min(trial.value or np.inf for trial in steps) == study.best_value < (trials[0].value or 0.0)
    best = best_hyperparameters(study)
    found = train_in_floats(net, best, jax.random.key(0))
    strength = best["l1"] + best["l2"]
    expected = ElasticNet(alpha=strength, l1_ratio=best["l1"] / strength, fit_intercept=False)
    np.testing.assert_allclose(found, expected.fit(np.float64(X), np.float64(Y)).coef_, atol=1e-3)
