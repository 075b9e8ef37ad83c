"""`DrMAD`: exact where it should be, biased where training curves, and no more memory for more steps."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import DrMAD, Evaluation, Status, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_search.hypergradient import drmad
from hypergrad_search.hyperparameters import split
from hypergrad_search.losses import left_out

KEY = jax.random.key(0)


def slopes(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK
    assert result.gradient is not None
    return result.gradient


def errors(problem: TrainingProblem, h: dict[str, Any]) -> dict[str, float]:
    """The errors against unrolling, as shares of it."""
    found, exact = (evaluate(problem, h, key=KEY, method=method) for method in (DrMAD(), Unrolled()))
    assert found.value == exact.value
    assert slopes(found).keys() == slopes(exact).keys()
    return {
        name: float(np.linalg.norm(slopes(found)[name] - slope) / np.linalg.norm(slope))
        for name, slope in slopes(exact).items()
    }


@pytest.mark.parametrize("optimizer", [sgd("rate", 0.0), lambda h: optax.sgd(h["rate"])], ids=["sgd", "optax"])
def test_it_is_exact_where_the_path_is_a_straight_line(optimizer: Any) -> None:
    problem = TrainingProblem(
        init=lambda key, h: jnp.full(3, h["start"]),
        train_loss=lambda p, h, b, k: jnp.sum(h["slope"] * p),
        valid_loss=lambda p, h: jnp.sum(jnp.sin(p) ** 2),
        batches=lambda step: None,
        optimizer=optimizer,
        steps=20,
    )
    found = errors(problem, {"rate": 0.05, "start": 0.3, "slope": np.array([1.0, -2.0, 0.5])})
    assert all(error < 1e-5 for error in found.values()), found


def test_it_is_exact_where_derivatives_do_not_depend_on_the_weights(closed_form: Any) -> None:
    """The path curves, but the derivatives of a quadratic loss by weights and targets are the same everywhere."""
    problem = closed_form.problem(
        init=lambda key, h: jnp.zeros(6),
        train_loss=lambda p, h, b, k: jnp.mean((jnp.float32(closed_form.x) @ p - h["targets"]) ** 2),
        steps=40,
    )
    assert errors(problem, {"targets": closed_form.y})["targets"] < 1e-5


def test_a_penalty_on_ridge_regression_is_biased(closed_form: Any) -> None:
    """As the weights settle early, the line is far from the path; the bias is that of the weights along it.

    With the adjoint of a quadratic loss, which does not depend on the weights, the bias is known in closed form.
    """
    steps, rate = 300, 0.2
    result = evaluate(
        closed_form.problem(optimizer=sgd(rate, 0.0), steps=steps),
        {"penalty": closed_form.penalty},
        key=KEY,
        method=DrMAD(),
    )
    adjoint, expected = closed_form.slope, np.zeros(6)
    for step in reversed(range(steps)):
        expected -= rate * 2 * closed_form.weights * step / steps * adjoint
        adjoint = adjoint - rate * closed_form.hessian @ adjoint
    found, exact = slopes(result)["penalty"], closed_form.gradient()
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    assert 0.005 < np.linalg.norm(found - exact) / np.linalg.norm(exact) < 0.2


@pytest.mark.slow
def test_penalties_of_a_network_are_roughly_right(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    found = errors(make_problem(100), hyperparameters)
    assert 0.05 < found["l2"] < 0.5
    assert found["rate"] > 0.1


def test_cost_and_laziness(closed_form: Any) -> None:
    problem, h = closed_form.problem(steps=40), {"penalty": closed_form.penalty}
    result = evaluate(problem, h, key=KEY, method=DrMAD())
    assert result.cost.gradient_evaluations == 3 * 40
    lazy = evaluate(problem, h, key=KEY, method=DrMAD(), gradient_below=result.value)
    assert (lazy.gradient, lazy.cost.gradient_evaluations, lazy.value) == (None, 40, result.value)
    diverged = evaluate(closed_form.problem(optimizer=sgd(50.0, 0.5)), h, key=KEY, method=DrMAD())
    assert diverged.status in (Status.NAN, Status.DIVERGED)
    assert (diverged.value, diverged.gradient) == (math.inf, None)


def test_a_gradient_that_grows_on_the_line_is_told() -> None:
    """The path jumps over a hill in one step; on the line, all steps go over it, where curvature is negative."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.full(3, -1.0),
        train_loss=lambda p, h, b, k: jnp.sum(h["height"] * jnp.exp(-(p**2))),
        valid_loss=lambda p, h: jnp.sum(p),
        batches=lambda step: None,
        optimizer=sgd(lambda h, step: jnp.where(step == 0, -5.0, 0.1), 0.0),
        steps=2000,
    )
    result = evaluate(problem, {"height": 1.0}, key=KEY, method=DrMAD())
    assert result.status == Status.EXPLODED
    assert "along the straight line" in result.message
    assert math.isfinite(result.value)
    assert evaluate(problem, {"height": 1.0}, key=KEY, method=Unrolled()).status == Status.OK


def test_what_optax_counts_is_counted_on_the_way_back() -> None:
    """A straight line with a schedule that optax computes from a whole number."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(2),
        train_loss=lambda p, h, b, k: jnp.sum(jnp.sin(p) + p),
        valid_loss=lambda p, h: jnp.sum((p + 1) ** 2),
        batches=lambda step: None,
        optimizer=lambda h: optax.sgd(lambda count: h["rate"] * (1 + jnp.sin(count.astype(jnp.float32)))),
        steps=20,
    )
    assert errors(problem, {"rate": 0.001})["rate"] < 1e-3


def test_its_memory_does_not_grow_with_the_steps(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    dynamic, static = split(hyperparameters)

    def temporary(steps: int) -> int:
        problem = make_problem(steps, sizes=(64, 1000, 10), batch=10)
        last, _ = jax.eval_shape(functools.partial(drmad._train, problem, static), dynamic, KEY)
        gradient = jax.jit(functools.partial(drmad._gradient, problem, static))
        analysis = gradient.lower(dynamic, last, KEY, left_out(None)).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    assert temporary(2000) < 1.1 * temporary(200)
