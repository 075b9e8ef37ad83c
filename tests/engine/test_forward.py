"""`Forward` held against float64 unrolling; what it costs, and that its memory does not grow with the steps."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Evaluation, Fold, Forward, Status, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_search.hypergradient import forward
from hypergrad_search.hypergradient.in_floats import trained
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import left_out

KEY = jax.random.key(0)


def slopes(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK
    assert result.gradient is not None
    return result.gradient


def assert_near(found: Evaluation, expected: Evaluation, tolerance: float) -> None:
    assert found.value == pytest.approx(expected.value, rel=tolerance)
    assert slopes(found).keys() == slopes(expected).keys()
    for name, slope in slopes(expected).items():
        assert np.linalg.norm(slopes(found)[name] - slope) <= tolerance * np.linalg.norm(slope)


def test_it_is_the_closed_form(closed_form: Any) -> None:
    result = evaluate(closed_form.problem(), {"penalty": closed_form.penalty}, key=KEY, method=Forward())
    expected = closed_form.gradient()
    assert np.linalg.norm(slopes(result)["penalty"] - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("at_once", [None, 1, 4])
def test_it_is_unrolling_in_float64(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any], at_once: int | None
) -> None:
    """Six numbers of every kind; four at once leave two, in a batch of their own."""
    with jax.enable_x64(True):
        problem = make_problem(20, dtype=jnp.float64)
        doubles = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), hyperparameters)
        found = evaluate(problem, doubles, key=KEY, method=Forward(at_once=at_once))
        assert_near(found, evaluate(problem, doubles, key=KEY, method=Unrolled()), 1e-10)
    runs = {None: 1, 1: 6, 4: 2}[at_once]
    assert found.cost.gradient_evaluations == 20 * (1 + runs + 2 * 6)


def test_rates_are_shared_over_stretches_of_steps_by_their_shape(closed_form: Any) -> None:
    def rate(h: Any, step: jax.Array) -> jax.Array:
        return jnp.asarray(h["rates"])[step * 3 // 60]

    problem = closed_form.problem(optimizer=sgd(rate, 0.5), steps=60)
    h = {"penalty": closed_form.penalty, "rates": np.array([0.1, 0.05, 0.02])}
    forwards, unrolled = (evaluate(problem, h, key=KEY, method=method) for method in (Forward(), Unrolled()))
    assert slopes(forwards)["rates"].shape == (3,)
    assert_near(forwards, unrolled, 1e-4)


def test_cost_laziness_and_folds(closed_form: Any) -> None:
    problem, h = closed_form.problem(steps=40), {"penalty": closed_form.penalty}
    result = evaluate(problem, h, key=KEY, method=Forward())
    assert result.cost.gradient_evaluations == 40 * (2 + 2 * 6)
    lazy = evaluate(problem, h, key=KEY, method=Forward(), gradient_below=result.value)
    assert (lazy.gradient, lazy.cost.gradient_evaluations, lazy.value) == (None, 40, result.value)
    assert_near(
        evaluate(problem, h, key=KEY, method=Forward(), fold=Fold(1, of=4)),
        evaluate(problem, h, key=KEY, method=Unrolled(), fold=Fold(1, of=4)),
        1e-5,
    )
    diverged = evaluate(closed_form.problem(optimizer=sgd(50.0, 0.5)), h, key=KEY, method=Forward())
    assert diverged.status in (Status.NAN, Status.DIVERGED)
    assert (diverged.value, diverged.gradient) == (math.inf, None)


def test_statistics_have_tangents_too() -> None:
    problem = TrainingProblem(
        init=lambda key, h: (jnp.full(3, h["start"]), {"mean": jnp.zeros(3), "count": jnp.int32(0)}),
        train_loss=lambda p, s, h, b, k: (
            jnp.sum((p - 1) ** 2),
            {"mean": h["decay"] * s["mean"] + (1 - h["decay"]) * p, "count": s["count"] + 1},
        ),
        valid_loss=lambda p, s, h: jnp.sum((s["mean"] - 0.2) ** 2),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.5),
        steps=10,
    )
    h = {"start": 0.3, "decay": 0.9, "rate": 0.05}
    forwards, unrolled = (evaluate(problem, h, key=KEY, method=method) for method in (Forward(), Unrolled()))
    assert_near(forwards, unrolled, 1e-5)


@pytest.mark.slow
def test_its_memory_grows_with_the_numbers_and_not_with_the_steps() -> None:
    """XLA's own account of temporary memory, in copies of the weights; settings are small beside them."""
    dynamic, static = split({"rate": 0.1, "momentum": 0.9, "targets": np.linspace(-1.0, 1.0, 4)})

    def temporary(steps: int, at_once: int | None) -> float:
        problem = TrainingProblem(
            init=lambda key, h: jnp.zeros((4, 20_000)),
            train_loss=lambda p, h, batch, key: jnp.mean((jnp.tanh(p) - h["targets"][:, None]) ** 2),
            valid_loss=lambda p, h: jnp.mean(p**2),
            batches=lambda step: None,
            optimizer=sgd("rate", "momentum"),
            steps=steps,
        )
        model, _ = jax.eval_shape(functools.partial(trained, problem, static), dynamic, KEY)
        gradient = jax.jit(functools.partial(forward._gradient, problem, static, at_once))
        analysis = gradient.lower(dynamic, model, KEY, left_out(None)).compile().memory_analysis()
        assert analysis is not None
        weights = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(model))
        return float(analysis.temp_size_in_bytes / weights)

    few, many = temporary(200, None), temporary(2000, None)
    assert many < 1.1 * few
    assert temporary(200, 1) < 0.5 * few
