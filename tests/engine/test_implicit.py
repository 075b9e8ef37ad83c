"""`Implicit` held against the closed form of ridge regression, solver by solver, and what it refuses."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hypergrad_search import Evaluation, Float, Fold, Implicit, Status, TrainingProblem, Unrolled, adamw, evaluate, sgd
from hypergrad_search.hypergradient import ConjugateGradients, Identity, Neumann, Solution, Solver, implicit, in_floats
from hypergrad_search.hyperparameters import split

KEY = jax.random.key(0)


def relative(found: Any, expected: Any) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def in_doubles(ridge: Any, solver: Solver, **changes: Any) -> Evaluation:
    with jax.enable_x64(True):
        h = {"penalty": jnp.asarray(ridge.penalty, jnp.float64)}
        return evaluate(ridge.problem(**changes), h, key=KEY, method=Implicit(solver=solver))


def slope_of(result: Evaluation) -> Any:
    assert result.status == Status.OK
    assert result.gradient is not None
    return result.gradient["penalty"]


def test_it_is_the_closed_form(closed_form: Any) -> None:
    exact = Implicit(solver=ConjugateGradients(tolerance=1e-7))
    result = evaluate(closed_form.problem(), {"penalty": closed_form.penalty}, key=KEY, method=exact)
    assert relative(slope_of(result), closed_form.gradient()) < 1e-5
    assert result.diagnostics["residual"] < 1e-6
    assert result.diagnostics["training_gradient"] < 1e-5
    in_double = in_doubles(closed_form, ConjugateGradients(tolerance=1e-13))
    assert relative(slope_of(in_double), closed_form.gradient()) < 1e-11


def test_conjugate_gradients_follow_their_tolerance(closed_form: Any) -> None:
    condition = np.linalg.cond(closed_form.hessian)
    errors, products = [], []
    for tolerance in (0.3, 0.1, 1e-2, 1e-3, 1e-13):
        result = in_doubles(closed_form, ConjugateGradients(tolerance=tolerance))
        assert result.diagnostics["residual"] <= tolerance * 1.001
        errors.append(relative(slope_of(result), closed_form.gradient()))
        products.append(result.diagnostics["products"])
        assert errors[-1] <= 10 * condition * tolerance
    assert sorted(errors, reverse=True) == errors
    assert errors[0] > 1e-2
    assert sorted(products) == products
    assert products[-1] <= closed_form.features + 1  # and one that tells the residual


def test_iterations_end_it_early_and_the_residual_says_so(closed_form: Any) -> None:
    result = in_doubles(closed_form, ConjugateGradients(tolerance=1e-10, iterations=2))
    assert result.diagnostics["products"] == 3
    assert 1e-3 < result.diagnostics["residual"] < 1


def test_damping_is_a_diagonal(closed_form: Any) -> None:
    result = in_doubles(closed_form, ConjugateGradients(tolerance=1e-13, damping=0.5))
    damped = np.linalg.inv(closed_form.hessian + 0.5 * np.eye(closed_form.features))
    assert relative(slope_of(result), closed_form.gradient(damped)) < 1e-10


def test_the_error_of_a_neumann_series_falls_geometrically(closed_form: Any) -> None:
    rate, unit = 0.2, np.eye(closed_form.features)
    step = unit - rate * closed_form.hessian
    shrinks = np.max(np.abs(np.linalg.eigvalsh(step)))
    errors = []
    for terms in (0, 5, 10, 20, 40):
        result = in_doubles(closed_form, Neumann(terms=terms, rate=rate))
        series = rate * sum((np.linalg.matrix_power(step, j) for j in range(terms + 1)), np.zeros_like(unit))
        assert relative(slope_of(result), closed_form.gradient(series)) < 1e-10
        errors.append(relative(slope_of(result), closed_form.gradient()))
        assert errors[-1] <= 10 * shrinks ** (terms + 1)
        assert result.diagnostics["products"] == terms
    assert errors[-1] / errors[-2] == pytest.approx(shrinks**20, rel=0.3)


def test_the_identity_takes_no_product(closed_form: Any) -> None:
    result = in_doubles(closed_form, Identity())
    assert relative(slope_of(result), closed_form.gradient(np.eye(closed_form.features))) < 1e-10
    assert result.diagnostics["products"] == 0
    assert result.diagnostics["residual"] is None


def test_a_solver_of_ones_own(closed_form: Any) -> None:
    class Scaled(Solver):
        def solve(self, product: Callable[[jax.Array], jax.Array], right: jax.Array) -> Solution:
            return Solution(right * (right @ right) / (right @ product(right)))

    result = in_doubles(closed_form, Scaled())
    slope, hessian = closed_form.slope, closed_form.hessian
    share = slope @ slope / (slope @ hessian @ slope)
    assert relative(slope_of(result), closed_form.gradient(share * np.eye(len(slope)))) < 1e-10


def test_a_series_that_diverges_is_no_gradient(closed_form: Any) -> None:
    result = in_doubles(closed_form, Neumann(terms=10, rate=1.0))
    assert result.status == Status.EXPLODED
    assert "Neumann series diverges" in result.message
    assert result.usable_gradient is None
    assert math.isfinite(result.value)


def test_negative_curvature_is_no_minimum(closed_form: Any) -> None:
    """Gradient ascent along one weight: it is where it began, at a maximum."""
    problem = closed_form.problem(
        train_loss=lambda p, h, b, k: jnp.sum(h["penalty"] * p**2 * jnp.array([-1.0, *[1.0] * 5], p.dtype)),
    )
    h = {"penalty": closed_form.penalty}
    result = evaluate(problem, h, key=KEY, method=Implicit())
    assert result.status == Status.EXPLODED
    assert "no minimum" in result.message
    damped = evaluate(problem, h, key=KEY, method=Implicit(solver=ConjugateGradients(damping=1.0)))
    assert damped.status == Status.OK


def test_minibatches_are_as_many_as_asked_for(closed_form: Any) -> None:
    """The rows of three batches are all rows, so that an epoch has the closed form; training is as good as done."""
    x, y = closed_form.x.reshape(3, 10, -1), closed_form.y.reshape(3, 10)

    def train_loss(p: jax.Array, h: Any, batch: jax.Array, key: jax.Array) -> jax.Array:
        predicted = jnp.asarray(x, p.dtype)[batch] @ p
        return jnp.mean((predicted - jnp.asarray(y, p.dtype)[batch]) ** 2) + jnp.sum(h["penalty"] * p**2)

    problem = closed_form.problem(
        train_loss=train_loss, batches=lambda step: step % 3, optimizer=sgd(0.001, 0.5), steps=6000
    )
    solver = ConjugateGradients(tolerance=1e-7)
    h = {"penalty": closed_form.penalty}
    epoch = evaluate(problem, h, key=KEY, method=Implicit(solver=solver, batches=3))
    assert relative(slope_of(epoch), closed_form.gradient()) < 5e-3
    one = evaluate(problem, h, key=KEY, method=Implicit(solver=solver, batches=1))
    assert relative(slope_of(one), closed_form.gradient()) > 0.1
    products = one.diagnostics["products"] + 1
    assert one.cost.gradient_evaluations == 6000 + 1 + 2 * products


def test_cost_laziness_and_folds(closed_form: Any) -> None:
    problem, h = closed_form.problem(), {"penalty": closed_form.penalty}
    method = Implicit(solver=Neumann(terms=7, rate=0.2))
    result = evaluate(problem, h, key=KEY, method=method)
    assert result.cost.gradient_evaluations == 300 + 1 + 2 * 8
    lazy = evaluate(problem, h, key=KEY, method=method, gradient_below=result.value)
    assert (lazy.gradient, lazy.cost.gradient_evaluations, lazy.value) == (None, 300, result.value)
    assert lazy.value == evaluate(problem, h, key=KEY, method=Unrolled(), gradient_below=-math.inf).value
    fold = evaluate(problem, h, key=KEY, method=method, fold=Fold(1, of=4))
    assert fold.held_back is not None
    assert relative(slope_of(fold), slope_of(result)) > 1e-2
    unbeaten = evaluate(problem, h, key=KEY, method=method, fold=Fold(1, of=4, below=0.0))
    assert (unbeaten.status, unbeaten.gradient) == (Status.OVERFITTED, None)


def test_diverged_training(closed_form: Any) -> None:
    problem = closed_form.problem(optimizer=sgd(50.0, 0.5))
    result = evaluate(problem, {"penalty": closed_form.penalty}, key=KEY, method=Implicit())
    assert result.status in (Status.NAN, Status.DIVERGED)
    assert (result.value, result.gradient) == (math.inf, None)


def test_a_direct_effect_on_the_validation_loss(closed_form: Any) -> None:
    plain = closed_form.problem()
    problem = replace(plain, valid_loss=lambda p, h: plain.valid_loss(p, h) * h["size"])
    h = {"penalty": closed_form.penalty, "size": 2.0}
    result = evaluate(problem, h, key=KEY, method=Implicit(solver=ConjugateGradients(tolerance=1e-7)))
    assert relative(slope_of(result), 2 * closed_form.gradient()) < 1e-5
    assert result.gradient is not None
    assert result.gradient["size"] == pytest.approx(result.value / 2, rel=1e-5)


def test_statistics_follow_the_weights() -> None:
    """The validation loss sees the weights by a running mean of them alone, whose slope is that of where it settles."""
    target = jnp.array([1.0, -2.0, 0.5])
    problem = TrainingProblem(
        init=lambda key, h: (jnp.zeros(3), {"mean": jnp.zeros(3), "count": jnp.int32(0)}),
        train_loss=lambda p, s, h, b, k: (
            jnp.sum((p - target) ** 2) + h["l2"] * jnp.sum(p**2),
            {"mean": 0.9 * s["mean"] + 0.1 * p, "count": s["count"] + 1},
        ),
        valid_loss=lambda p, s, h: jnp.sum((s["mean"] - 0.2) ** 2),
        batches=lambda step: None,
        optimizer=sgd(0.1, 0.5),
        steps=300,
    )
    h = {"l2": 0.5}
    exact = evaluate(problem, h, key=KEY, method=Unrolled())
    result = evaluate(problem, h, key=KEY, method=Implicit(solver=ConjugateGradients(tolerance=1e-7)))
    assert result.value == exact.value
    assert exact.gradient is not None
    assert result.gradient is not None
    assert result.gradient["l2"] == pytest.approx(float(exact.gradient["l2"]), rel=1e-4)


@pytest.mark.parametrize(
    ("optimizer", "more"),
    [(sgd("rate", "momentum"), {"rate": 0.1, "momentum": 0.5}), (adamw(0.1, weight_decay="decay"), {"decay": 0.1})],
)
def test_it_refuses_what_acts_on_the_way_alone(closed_form: Any, optimizer: Any, more: dict[str, float]) -> None:
    problem = closed_form.problem(optimizer=optimizer, init=lambda key, h: jnp.full(6, h["start"]))
    h = {"penalty": closed_form.penalty, "start": 0.1, **more}
    names = ", ".join(["start", *more])
    with pytest.raises(ValueError, match=rf"Implicit cannot tune {names}: .*Reversible\(\), or OnePass\(\)"):
        evaluate(problem, h, key=KEY, method=Implicit())
    space = {"penalty": Float(1e-3, 10.0, log=True, shape=(6,))}
    result = evaluate(problem, h, key=KEY, method=Implicit(), space=space)
    assert result.gradient is not None
    assert set(result.gradient) == {"penalty"}  # no zeros for what it does not see


def test_its_memory_does_not_grow_with_the_steps(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """Beyond training, whose memory does not either: what a product takes, and the derivative by hyperparameters."""
    dynamic, static = split(hyperparameters)

    def temporary(steps: int) -> list[int]:
        problem = make_problem(steps, sizes=(64, 1000, 10), batch=10)
        model, _ = jax.eval_shape(functools.partial(in_floats.trained, problem, static), dynamic, KEY)
        vector = jax.eval_shape(lambda params: ravel_pytree(params)[0], model)
        found = []
        for program in (implicit._hessian_product, implicit._mixed_product):
            lowered = jax.jit(functools.partial(program, problem, static, 10)).lower(dynamic, model, KEY, vector)
            analysis = lowered.compile().memory_analysis()
            assert analysis is not None
            found.append(int(analysis.temp_size_in_bytes))
        return found

    for short, long in zip(temporary(200), temporary(2000), strict=True):
        assert 0 < long < 1.1 * short
