"""One table: every public method with every public optimizer on every problem, held against what is known.

What is missing from the table fails the test. A combination that does not work must be refused by name.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hypergrad_search
from hypergrad_search import (
    AdditiveOptimizer,
    Categorical,
    DrMAD,
    Float,
    Forward,
    Hypernet,
    Implicit,
    Int,
    Method,
    OnePass,
    Optimizer,
    Persistent,
    RealTime,
    Reversible,
    Smoothed,
    Space,
    Status,
    TrainingProblem,
    Unrolled,
    adabelief,
    adam,
    adamw,
    ema,
    evaluate,
    muon,
    proximal_sgd,
    rmsprop,
    sgd,
)
from hypergrad_search.hypergradient import ConjugateGradients, Linear, Local
from hypergrad_search.optimizers import ProximalOptimizer

Array = np.ndarray[Any, Any]

KEY = jax.random.key(0)
STEPS = 25
FEATURES = 4
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(12, FEATURES)), RNG.normal(size=12)
X_VALID, Y_VALID = RNG.normal(size=(9, FEATURES)), RNG.normal(size=9)

METHODS: dict[str, Method] = {
    "Reversible": Reversible(),
    "Unrolled": Unrolled(),
    "DrMAD": DrMAD(),
    "Forward": Forward(),
    "Hypernet": Hypernet(network=Linear(), algorithm=Local(hyper_steps=1), steps=3000),
    "Implicit": Implicit(solver=ConjugateGradients(tolerance=1e-7)),
    "OnePass": OnePass(),
    "Persistent": Persistent(pairs=2),
    "RealTime": RealTime(),
    "Smoothed": Smoothed(pairs=2),
}
#: Those that differentiate training runs exactly, those that approximate that, those that look at their end alone,
#: and those that refine the settings of the optimizer on the way.
EXACT = ("Reversible", "Unrolled", "Forward")
APPROXIMATE = ("DrMAD", "Smoothed")
OF_THE_END = ("Hypernet", "Implicit")
ON_THE_WAY = ("OnePass", "Persistent", "RealTime")

ADAM = {"rate": 0.05, "decay": 0.8, "b2": 0.95, "eps": 1e-2, "root": 1e-3}
# Each optimizer with its settings as hyperparameters, and their values.
OPTIMIZERS: dict[str, dict[str, tuple[Optimizer, dict[str, Any]]]] = {
    "sgd": {
        "sgd": (sgd("rate", "decay"), {"rate": 0.05, "decay": 0.8}),
        "sgd, nesterov": (sgd("rate", "decay", nesterov=True), {"rate": 0.05, "decay": 0.8}),
    },
    "adam": {"adam": (adam("rate", "decay", "b2", "eps", "root"), ADAM)},
    "adamw": {"adamw": (adamw("rate", "decay", "b2", "eps", "root", weight_decay="shrink"), {**ADAM, "shrink": 0.3})},
    "adabelief": {"adabelief": (adabelief("rate", "decay", "b2", "eps", "root"), ADAM)},
    "rmsprop": {
        "rmsprop": (
            rmsprop("rate", "decay", "eps", momentum="momentum"),
            {"rate": 0.02, "decay": 0.9, "eps": 0.3, "momentum": 0.5},
        )
    },
    "muon": {
        "muon": (
            muon(
                "rate",
                3,
                "beta",
                "eps",
                "shrink",
                adam_b1="decay",
                adam_b2="b2",
                adam_eps_root="root",
                adam_weight_decay="shrink2",
                adam_learning_rate="rate2",
            ),
            {**ADAM, "beta": 0.9, "shrink": 0.3, "shrink2": 1.0, "rate2": 0.03},
        )
    },
    "proximal_sgd": {
        "proximal_sgd": (
            proximal_sgd("rate", "l1", "l2", "group", momentum="momentum"),
            {"rate": 0.05, "momentum": 0.5, "l1": 0.02, "l2": 0.1, "group": 0.03},
        )
    },
    "ema": {
        "ema of sgd": (ema(sgd("rate", "decay"), "average"), {"rate": 0.05, "decay": 0.8, "average": 0.9}),
        "ema of adamw": (
            ema(adamw("rate", "decay", "b2", "eps", "root", weight_decay="shrink"), "average"),
            {**ADAM, "shrink": 0.3, "average": 0.95},
        ),
        "ema of nesterov": (
            ema(sgd("rate", "decay", nesterov=True), "average"),
            {"rate": 0.05, "decay": 0.8, "average": 0.9},
        ),
    },
}
CASES = {name: case for variants in OPTIMIZERS.values() for name, case in variants.items()}


@dataclass(frozen=True, eq=False)
class Case:
    """A problem but for its optimizer, whose functions compute in the type of the hyperparameters."""

    init: Callable[[jax.Array, Any], Any]
    train_loss: Callable[[Any, Any, Any, jax.Array], jax.Array]
    valid_loss: Callable[[Any, Any], jax.Array]
    hyperparameters: dict[str, Any]

    def problem(self, optimizer: Optimizer) -> TrainingProblem:
        return TrainingProblem(self.init, self.train_loss, self.valid_loss, lambda step: step % 3, optimizer, STEPS)


def error(predicted: jax.Array, targets: Array) -> jax.Array:
    return (predicted - jnp.asarray(targets, predicted.dtype)) ** 2


def ridge_init(key: jax.Array, h: Any) -> jax.Array:
    return jnp.full(FEATURES, h["start"])


def ridge_train_loss(p: jax.Array, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
    return jnp.mean(error(jnp.asarray(X, p.dtype) @ p, Y)) + jnp.sum(h["penalty"] * p**2)


def ridge_valid_loss(p: jax.Array, h: Any) -> jax.Array:
    return error(jnp.asarray(X_VALID, p.dtype) @ p, Y_VALID)


def network_init(key: jax.Array, h: Any) -> Any:
    into = jnp.linspace(-1.0, 1.0, 3 * FEATURES, dtype=h["start"].dtype).reshape(FEATURES, 3)
    return {"into": h["start"] * jnp.cos(5 * into), "out": [h["start"] * into[0]]}


def network(p: Any, x: Array) -> jax.Array:
    hidden = jnp.tanh(jnp.asarray(x, p["into"].dtype) @ p["into"])
    return jnp.matmul(hidden, p["out"][0])


def network_train_loss(p: Any, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
    """Minibatches, and data among the hyperparameters."""
    rows = 4 * batch + jnp.arange(4, dtype=jnp.int32)
    predicted = jnp.tanh(h["data"][rows] @ p["into"]) @ p["out"][0]
    return jnp.mean((predicted - jnp.asarray(Y, predicted.dtype)[rows]) ** 2)


def network_valid_loss(p: Any, h: Any) -> jax.Array:
    """A scalar, on which a hyperparameter acts directly."""
    return jnp.mean(error(network(p, X_VALID), Y_VALID)) + jnp.sum(h["start"] * h["data"][0] ** 2)


PROBLEMS = {
    "ridge": Case(
        ridge_init, ridge_train_loss, ridge_valid_loss, {"start": 0.3, "penalty": np.array([0.05, 0.1, 0.2, 0.4])}
    ),
    "network": Case(network_init, network_train_loss, network_valid_loss, {"start": 0.5, "data": X}),
}


@functools.cache  # so that all methods share what is compiled
def training_of(problem: str, optimizer: str) -> TrainingProblem:
    return PROBLEMS[problem].problem(CASES[optimizer][0])


def public_methods() -> set[str]:
    names = {name: getattr(hypergrad_search, name) for name in hypergrad_search.__all__}
    return {name for name, x in names.items() if inspect.isclass(x) and issubclass(x, Method) and x is not Method}


def public_optimizers() -> set[str]:
    """The public functions that return an optimizer."""
    names = {name: getattr(hypergrad_search, name) for name in hypergrad_search.__all__}
    returned = {name: get_type_hints(x).get("return") for name, x in names.items() if inspect.isfunction(x)}
    return {name for name, kind in returned.items() if inspect.isclass(kind) and issubclass(kind, Optimizer)}


def test_the_table_is_complete() -> None:
    assert {kind for kind, cases in OPTIMIZERS.items() if any(o in cases for o, _ in FAST)} == OPTIMIZERS.keys()
    assert METHODS.keys() == public_methods()
    assert sorted(METHODS) == sorted(EXACT + APPROXIMATE + OF_THE_END + ON_THE_WAY)
    assert OPTIMIZERS.keys() == public_optimizers()
    assert all(type(method).__name__ == name for name, method in METHODS.items())
    assert all(optimizer.name.startswith(name) for name, cases in OPTIMIZERS.items() for optimizer, _ in cases.values())


@pytest.fixture(scope="module")
def references() -> dict[tuple[str, str], Any]:
    """By problem and optimizer what float64 unrolling has found, once it was asked."""
    return {}


def reference(found: dict[tuple[str, str], Any], problem: str, optimizer: str, h: dict[str, Any]) -> Any:
    if (problem, optimizer) not in found:
        with jax.enable_x64(True):
            # what reaches the methods are float32 numbers
            doubles = {name: jnp.asarray(np.asarray(x, np.float32), jnp.float64) for name, x in h.items()}
            found[problem, optimizer] = evaluate(training_of(problem, optimizer), doubles, key=KEY, method=Unrolled())
    return found[problem, optimizer]


# Each kind of optimizer on one of the problems, and the simplest on both. Muon is one of its own for matrices alone.
FAST = {
    ("sgd", "ridge"),
    ("sgd", "network"),
    ("sgd, nesterov", "ridge"),
    ("adam", "ridge"),
    ("adamw", "ridge"),
    ("adabelief", "ridge"),
    ("rmsprop", "ridge"),
    ("muon", "network"),
    ("proximal_sgd", "ridge"),
    ("ema of sgd", "ridge"),
}
each_problem = pytest.mark.parametrize("problem", PROBLEMS)
each_optimizer = pytest.mark.parametrize("optimizer", CASES)
each_training = pytest.mark.parametrize(
    ("optimizer", "problem"),
    [pytest.param(o, p, marks=() if (o, p) in FAST else pytest.mark.slow) for o in CASES for p in PROBLEMS],
)


@each_training
@pytest.mark.parametrize("method", EXACT)
def test_gradients_of_training_runs(
    method: str, optimizer: str, problem: str, references: dict[tuple[str, str], Any]
) -> None:
    rule, settings = CASES[optimizer]
    h = {**PROBLEMS[problem].hyperparameters, **settings}
    training = training_of(problem, optimizer)
    if method == "Reversible" and not isinstance(rule, AdditiveOptimizer):
        with pytest.raises(ValueError, match=rf"{re.escape(rule.name)} loses bits .*; use method=Unrolled\(\)"):
            evaluate(training, h, key=KEY, method=METHODS[method])
        return
    expected = reference(references, problem, optimizer, h)
    result = evaluate(training, h, key=KEY, method=METHODS[method])
    assert (result.status, expected.status) == (Status.OK, Status.OK)
    assert result.value == pytest.approx(expected.value, rel=1e-5)
    if expected.standard_error is not None:
        assert result.standard_error == pytest.approx(expected.standard_error, rel=1e-4)
    assert result.gradient is not None
    assert result.gradient.keys() == expected.gradient.keys() == h.keys()
    for name, slope in expected.gradient.items():
        assert result.gradient[name].shape == np.shape(h[name])
        distance, size = np.linalg.norm(result.gradient[name] - slope), np.linalg.norm(slope)
        # The largest is 2.8e-5, of float32 itself: both methods have it. Some settings are for matrices alone.
        assert distance <= 5e-5 * size, (name, distance / size)


@each_training
@pytest.mark.parametrize("method", APPROXIMATE)
def test_approximate_methods_train_and_see_all(method: str, optimizer: str, problem: str) -> None:
    _, settings = CASES[optimizer]
    h = {**PROBLEMS[problem].hyperparameters, **settings}
    space = {
        name: Float(np.min(x) - 0.01 * abs(np.min(x)), np.max(x) + 0.01 * abs(np.max(x)), shape=np.shape(x))
        for name, x in h.items()
    }
    training = training_of(problem, optimizer)
    result = evaluate(training, h, key=KEY, method=METHODS[method], space=space)
    assert result.status == Status.OK
    assert result.value == evaluate(training, h, key=KEY, method=Unrolled(), gradient_below=-math.inf).value
    assert result.gradient is not None
    assert {name: np.shape(slope) for name, slope in result.gradient.items()} == {n: np.shape(x) for n, x in h.items()}
    assert any(np.any(result.gradient[name]) for name in settings)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_plain_values_are_part_of_the_program(method: str) -> None:
    """A number of steps, a width and a choice: by name, as Python has them."""
    seen: set[tuple[int, str]] = set()

    def init(key: jax.Array, h: Any) -> jax.Array:
        seen.add((h["width"], h["kind"]))
        return jnp.full(h["width"], h["start"])

    problem = TrainingProblem(
        init,
        lambda p, h, batch, key: jnp.mean((p - 1) ** 2) + h["penalty"] * jnp.mean(jnp.abs(p) if h["kind"] else p**2),
        lambda p, h: (p - 0.5) ** 2,
        lambda step: None,
        sgd(0.3, 0.5),
        "steps",
    )
    values = {"start": 0.3, "penalty": 0.1}
    space: Space = {
        "penalty": Float(0.01, 1.0),
        "steps": Int(10, 20),
        "width": Int(1, 9),
        "kind": Categorical(["", "absolute"]),
    }
    results = [
        evaluate(problem, {**values, **plain}, key=KEY, method=METHODS[method], space=space)
        for plain in ({"steps": 10, "width": 3, "kind": ""}, {"steps": 20, "width": 5, "kind": "absolute"})
    ]
    assert {(3, ""), (5, "absolute")} <= seen
    if not isinstance(METHODS[method], Hypernet):
        assert [result.diagnostics["steps"] for result in results] == [10, 20]
    for result in results:
        slope = result.refined if METHODS[method].continues else result.gradient
        assert slope is not None
        assert np.isfinite(slope["penalty"])


@pytest.mark.parametrize(
    "optimizer", [o if o in {o for o, _ in FAST} else pytest.param(o, marks=pytest.mark.slow) for o in CASES]
)
@pytest.mark.parametrize("method", ON_THE_WAY)
def test_settings_are_refined_on_the_way(method: str, optimizer: str) -> None:
    rule, settings = CASES[optimizer]
    h = {**PROBLEMS["network"].hyperparameters, **settings}
    space = {
        name: Float(value / 2, (value + 1) / 2 if value < 1 else 2.0, log=True) for name, value in settings.items()
    }
    training = PROBLEMS["network"].problem(rule)
    result = evaluate(training, h, key=KEY, method=METHODS[method], space=space)
    assert result.status == Status.OK
    assert result.refined is not None
    moved = [name for name, value in settings.items() if abs(result.refined[name] - value) > 1e-4 * value]
    assert sorted(moved) == sorted(settings)
    assert result.refined["data"] is h["data"]


@each_optimizer
@pytest.mark.parametrize("method", ["OnePass", "RealTime"])
def test_what_init_alone_reads_is_refused_on_the_way(method: str, optimizer: str) -> None:
    rule, settings = CASES[optimizer]
    ridge = PROBLEMS["ridge"]
    with pytest.raises(ValueError, match=f"{method} cannot tune start: .* use Reversible"):
        evaluate(
            ridge.problem(rule),
            {**ridge.hyperparameters, **settings},
            key=KEY,
            method=METHODS[method],
            space={"start": Float(0.0, 1.0)},
        )


@each_problem
@each_optimizer
@pytest.mark.parametrize("method", OF_THE_END)
def test_what_needs_training_runs_is_refused(method: str, optimizer: str, problem: str) -> None:
    rule, settings = CASES[optimizer]
    h = {**PROBLEMS[problem].hyperparameters, **settings}
    space = {name: Float(0.0, 100.0, shape=np.shape(value)) for name, value in settings.items()}
    seen = rule.penalties if isinstance(rule, ProximalOptimizer) and method == "Implicit" else ()
    unseen = ", ".join(name for name in settings if name not in seen)
    exact = "Unrolled" if seen else "Reversible"
    with pytest.raises(ValueError, match=f"{method} cannot tune {unseen}: .* use {exact}"):
        evaluate(PROBLEMS[problem].problem(rule), h, key=KEY, method=METHODS[method], space=space)


def test_hypernet_on_a_penalty() -> None:
    """By the implicit function theorem, the derivative of the best weights is -inverse(hessian) @ diag(weights).

    The problem's own optimizer plays no part, so one is enough.
    """
    method = METHODS["Hypernet"]
    rule, settings = CASES["adamw"]
    ridge = PROBLEMS["ridge"].problem(rule)
    fixed = {"start": 0.3, **settings}
    penalty = PROBLEMS["ridge"].hyperparameters["penalty"]
    space = {"penalty": Float(1e-3, 10.0, log=True, shape=(FEATURES,))}
    result = evaluate(ridge, {"penalty": penalty, **fixed}, key=KEY, method=method, space=space)
    assert result.status == Status.OK

    def value(penalty: jax.Array) -> jax.Array:
        h = {"penalty": penalty, **fixed}
        params = method.params(ridge, h, key=KEY, space=space, checkpoint=result.checkpoint)
        return jnp.mean(ridge.valid_loss(params, h))

    found = jax.grad(value)(jnp.float32(penalty))
    hessian = X.T @ X / len(X) + np.diag(penalty)
    weights = np.linalg.solve(hessian, X.T @ Y / len(X))
    for_weights = 2 * X_VALID.T @ (X_VALID @ weights - Y_VALID) / len(X_VALID)
    expected = -np.diag(weights) @ np.linalg.solve(hessian, for_weights)
    assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
    assert math.isfinite(result.value)
