"""Weights that never have a gradient take no part in training, and must not spoil the hypergradient of those that do.

Adam divides by the size of a gradient. At its usual eps the slope of a weight without gradient is so steep that it is
infinite after a few steps of the way back.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import (
    Evaluation,
    Method,
    Optimizer,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    adabelief,
    adam,
    adamw,
    evaluate,
    muon,
    rmsprop,
)

KEY = jax.random.key(0)
ROWS, FEATURES, UNITS = 24, 6, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2 * ROWS, FEATURES))
X[:ROWS, [1, 4]] = 0  # features that are 0 in every row for training, and matter later
Y = np.sin(2 * X[:, 0]) + X[:, 2]
INTO = RNG.normal(size=(FEATURES, UNITS))

Params = dict[str, jax.Array]


def init(key: jax.Array, h: Any) -> Params:
    """Weights of dead inputs, of masked parts and of dead units begin at 0, so that the penalty moves none of them."""
    dtype = h["penalty"].dtype
    alive = jnp.arange(UNITS) % 2 == 0
    return {
        "linear": jnp.zeros(FEATURES, dtype),
        "masked": jnp.zeros(FEATURES, dtype),
        "into": jnp.where(alive[None, :], jnp.asarray(INTO, dtype), 0),
        "bias": jnp.where(alive, 0.1, -1e3).astype(dtype),  # below 0 for every row, and so without gradient
        "out": jnp.where(alive, 0.5, 0).astype(dtype),
        "frozen": jnp.full((), 0.1, dtype),
    }


def predict(p: Params, rows: slice) -> jax.Array:
    x = jnp.asarray(X[rows], p["linear"].dtype)
    mask = (jnp.arange(FEATURES) % 2).astype(x.dtype)
    hidden = jax.nn.relu(x @ p["into"] + p["bias"][None, :])
    predicted: jax.Array = x @ p["linear"] + jnp.sin(x) @ (p["masked"] * mask) + hidden @ p["out"] + p["frozen"]
    return predicted


def error(p: Params, rows: slice) -> jax.Array:
    return (predict(p, rows) - jnp.asarray(Y[rows], p["linear"].dtype)) ** 2


def train_loss(p: Params, h: Any, batch: Any, key: jax.Array) -> jax.Array:
    """The penalty gives even a dead weight a second derivative. The frozen leaf has no part in it."""
    p = {**p, "frozen": jnp.zeros_like(p["frozen"])}
    penalties = jnp.stack([jnp.sum(p[name] ** 2) for name in ("linear", "masked", "into", "out")])
    loss: jax.Array = jnp.mean(h["weight"] * error(p, slice(ROWS))) + h["penalty"] * jnp.sum(penalties)
    return loss


H = {"rate": 0.02, "decay": 1e-3, "penalty": 1e-3, "weight": np.linspace(0.5, 1.5, ROWS)}
METHODS: list[Method] = [Reversible(), Unrolled()]
# Unrolling in float64, which every test here holds against differences, is all that is fast of unrolling.
each_method = pytest.mark.parametrize(
    "method", [METHODS[0], pytest.param(METHODS[1], marks=pytest.mark.slow)], ids=["Reversible", "Unrolled"]
)


def in_float64(problem: TrainingProblem, h: dict[str, Any]) -> Evaluation:
    with jax.enable_x64(True):
        return evaluate(problem, {k: np.asarray(x, np.float64) for k, x in h.items()}, key=KEY, method=Unrolled())


def slope(problem: TrainingProblem, h: dict[str, Any], name: str) -> float:
    """The central difference in float64 along one hyperparameter, of all its coordinates by the same factor."""
    size = 1e-6
    ends = [in_float64(problem, {**h, name: h[name] * (1 + sign * size)}).value for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * size)


def check(problem: TrainingProblem, h: dict[str, Any], method: Method) -> None:
    exact = in_float64(problem, h)
    assert exact.gradient is not None
    for name, gradient in exact.gradient.items():
        assert np.sum(gradient * np.asarray(h[name])) == pytest.approx(slope(problem, h, name), rel=1e-5), name
    found = evaluate(problem, h, key=KEY, method=method)
    assert found.status is Status.OK
    assert found.value == pytest.approx(exact.value, rel=1e-5)
    assert found.gradient is not None
    for name, gradient in exact.gradient.items():
        assert np.linalg.norm(found.gradient[name] - gradient) < 1e-3 * np.linalg.norm(gradient), name


OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": adamw("rate", weight_decay="decay"),
    "adabelief": adabelief("rate", eps=1e-8),
    "rmsprop": rmsprop(lambda h, t: 0.1 * h["rate"], momentum=0.8),
    "muon": muon("rate", weight_decay="decay"),
}


SLOW = ("adabelief", "adamw", "muon", "rmsprop")


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in OPTIMIZERS]
)
@each_method
def test_dead_weights_leave_the_hypergradient_alone(optimizer: str, method: Method) -> None:
    problem = TrainingProblem(
        init=init,
        train_loss=train_loss,
        valid_loss=lambda p, h: jnp.mean(error(p, slice(ROWS, None))),
        batches=lambda step: None,
        optimizer=OPTIMIZERS[optimizer],
        steps=50,
    )
    h = H if optimizer in ("adamw", "muon") else {name: x for name, x in H.items() if name != "decay"}
    check(problem, h, method)


@each_method
def test_a_weight_that_had_a_gradient_keeps_its_slope(method: Method) -> None:
    """A gradient in the first step alone is remembered: the weight's later steps depend on it."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(2, h["pull"].dtype),
        train_loss=lambda p, h, first, key: first.astype(p.dtype) * h["pull"] * (p[0] - 1) ** 2,
        valid_loss=lambda p, h: jnp.sum((p - 1) ** 2),
        batches=lambda step: step == 0,
        optimizer=adam(0.1, eps=0.3),
        steps=5,
    )
    check(problem, {"pull": 0.7}, method)


def test_nan_is_not_hidden() -> None:
    """A rate that is NaN is NaN for weights without gradient too."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.ones(2),
        train_loss=lambda p, h, batch, key: jnp.sum(0 * p),
        valid_loss=lambda p, h: jnp.sum(p**2),
        batches=lambda step: None,
        optimizer=adam("rate"),
        steps=3,
    )
    for method in METHODS:
        assert evaluate(problem, {"rate": np.nan}, key=KEY, method=method).status is Status.NAN
