"""`Smoothed`: unbiased within its standard error, useful where training is chaotic, and what it costs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Evaluation, Float, Fold, Reversible, Smoothed, Status, TrainingProblem, evaluate, sgd
from hypergrad_search.hypergradient import smoothed
from hypergrad_search.hypergradient.box import box_of
from hypergrad_search.losses import left_out
from hypergrad_search.space import gradient_from_unit, gradient_to_unit

KEY = jax.random.key(0)
SPACE = {"x": Float(-1.0, 1.0, shape=(2,)), "y": Float(0.1, 10.0, log=True)}
POINT = {"x": np.array([0.2, -0.4]), "y": 0.7}


def waves(p: Any, xp: Any) -> Any:
    return xp.sum(xp.cos(6 * p))


#: Its loss is a sum of waves of the hyperparameters themselves, smoothed in closed form.
WAVES = TrainingProblem(
    init=lambda key, h: jnp.concatenate([h["x"], jnp.log(h["y"])[None]]),
    train_loss=lambda p, h, b, k: jnp.sum(p),
    valid_loss=lambda p, h: waves(p, jnp),
    batches=lambda step: None,
    optimizer=sgd(0.0, 0.5),
    steps=1,
)
WIDTHS = np.array([2.0, 2.0, math.log(100)])  # of the box, in x, x, and log y
AT = np.array([0.2, -0.4, math.log(0.7)])


def slope_of(result: Evaluation, space: Any = SPACE, point: Any = POINT) -> Any:
    assert result.status == Status.OK
    assert result.gradient is not None
    return gradient_to_unit(space, point, result.gradient)


def smoothed_slope(sigma: float) -> Any:
    return -6 * np.sin(6 * AT) * WIDTHS * np.exp(-((6 * WIDTHS * sigma) ** 2) / 2)


@pytest.mark.parametrize("sigma", [0.01, 0.05])
def test_it_is_unbiased_within_its_standard_error(sigma: float) -> None:
    """Of 60 seeds, in units of the standard error that each states: a mean of 0, and a deviation of 1."""
    found, stated = [], []
    for seed in range(60):
        result = evaluate(WAVES, POINT, key=KEY, method=Smoothed(sigma=sigma, pairs=64, seed=seed), space=SPACE)
        found.append(slope_of(result))
        stated.append(result.diagnostics["slope_error"])
        assert result.diagnostics["slope"] == pytest.approx(np.linalg.norm(found[-1]), rel=1e-6)
    assert result.value == pytest.approx(waves(AT, np), rel=1e-5)  # the true value, smoothed by nothing
    errors = np.array(found) - smoothed_slope(sigma)
    size = math.sqrt(np.mean(np.sum(errors**2, axis=1)))
    assert np.linalg.norm(errors.mean(axis=0)) < 2.5 * size / math.sqrt(60)
    assert size == pytest.approx(np.mean(stated), rel=0.2)
    if sigma == 0.05:  # the smoothed loss has another slope than the loss, and the estimate tells them apart
        plain = np.array(found).mean(axis=0) + 6 * np.sin(6 * AT) * WIDTHS
        assert np.linalg.norm(plain) > 5 * size / math.sqrt(60)


def test_its_standard_error_falls_with_the_root_of_the_pairs() -> None:
    errors = [
        evaluate(WAVES, POINT, key=KEY, method=Smoothed(pairs=pairs), space=SPACE).diagnostics["slope_error"]
        for pairs in (50, 5000)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.3)


def test_a_penalty_on_ridge_regression(closed_form: Any) -> None:
    space = {"penalty": Float(1e-3, 10.0, log=True, shape=(6,))}
    h = {"penalty": closed_form.penalty}
    result = evaluate(closed_form.problem(), h, key=KEY, method=Smoothed(sigma=0.01, pairs=400), space=space)
    exact = gradient_to_unit(space, h, {"penalty": closed_form.gradient()})
    assert np.linalg.norm(slope_of(result, space, h) - exact) < 2.5 * result.diagnostics["slope_error"]
    assert result.diagnostics["slope_error"] < 0.2 * np.linalg.norm(exact)


def test_it_has_a_slope_where_training_is_chaotic() -> None:
    """A rate far too high, in a well whose bottom is a hyperparameter: weights never settle, and their mean follows."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.linspace(-1, 1, 5000),
        train_loss=lambda p, h, b, k: jnp.sum(jnp.log(jnp.cosh(4 * (p - h["bottom"])))),
        valid_loss=lambda p, h: (p - 0.9) ** 2,
        batches=lambda step: None,
        optimizer=sgd(lambda h, step: 0.3 + 0.2 * jnp.sin(step.astype(jnp.float32)), 0.9),
        steps=150,
    )
    space, h = {"bottom": Float(-1.0, 1.0)}, {"bottom": 0.1}
    assert evaluate(problem, h, key=KEY, method=Reversible(), space=space).status == Status.EXPLODED
    result = evaluate(problem, h, key=KEY, method=Smoothed(sigma=0.1, pairs=200), space=space)
    assert result.status == Status.OK
    assert result.usable_gradient is not None
    # The mean of the weights is near the bottom, so the slope of (bottom - 0.9)^2 is what is left of chaos.
    assert result.usable_gradient["bottom"] == pytest.approx(2 * (0.1 - 0.9), rel=0.4)


def test_the_same_point_has_the_same_directions_and_others_have_others() -> None:
    def found(method: Smoothed, point: Any) -> Any:
        return slope_of(evaluate(WAVES, point, key=KEY, method=method, space=SPACE), SPACE, point)

    first, again = found(Smoothed(pairs=1), POINT), found(Smoothed(pairs=1), POINT)
    assert first.tolist() == again.tolist()
    others = [found(Smoothed(pairs=1, seed=1), POINT), found(Smoothed(pairs=1), {**POINT, "y": 0.7001})]
    for other in others:  # with one pair, the gradient lies along its direction
        assert abs(first @ other) < 0.999 * np.linalg.norm(first) * np.linalg.norm(other)


def test_cost_laziness_and_folds(closed_form: Any) -> None:
    space = {"penalty": Float(1e-3, 10.0, log=True, shape=(6,))}
    run = functools.partial(evaluate, closed_form.problem(steps=30), {"penalty": closed_form.penalty}, key=KEY)
    method = Smoothed(pairs=5)
    result = run(method=method, space=space)
    assert result.cost.gradient_evaluations == 30 * (1 + 2 * 5)
    few = run(method=Smoothed(pairs=5, at_once=2), space=space)
    assert result.gradient is not None
    assert few.gradient is not None
    np.testing.assert_allclose(few.gradient["penalty"], result.gradient["penalty"], rtol=1e-3)
    lazy = run(method=method, space=space, gradient_below=result.value)
    assert (lazy.gradient, lazy.cost.gradient_evaluations, lazy.value) == (None, 30, result.value)
    fold = run(method=method, space=space, fold=Fold(1, of=4))
    assert fold.gradient is not None
    assert not np.allclose(fold.gradient["penalty"], result.gradient["penalty"], rtol=1e-2)


def test_runs_that_fail_around_the_point_are_told(closed_form: Any) -> None:
    problem = closed_form.problem(optimizer=sgd("rate", 0.5))
    space = {"rate": Float(0.0, 100.0)}
    h = {"penalty": closed_form.penalty, "rate": 0.1}
    result = evaluate(problem, h, key=KEY, method=Smoothed(sigma=0.5), space=space)
    assert result.status == Status.EXPLODED
    assert "of 10 pairs; lower Smoothed(sigma=...)" in result.message
    assert math.isfinite(result.value)


def test_plain_values_and_what_is_not_in_the_space() -> None:
    result = evaluate(WAVES, {**POINT, "kind": "some"}, key=KEY, method=Smoothed(), space={"y": SPACE["y"]})
    assert result.gradient is not None
    assert set(result.gradient) == {"y"}


def test_a_box_without_width_has_no_slope() -> None:
    space = {"a": Float(2.0, 2.0), "b": Float(1.0, 3.0), "c": Float(2.0, 2.0, log=True)}
    h = {"a": 2.0, "b": 2.0, "c": 2.0}
    assert gradient_from_unit(space, h, np.array([1.0, 1.0, 1.0])) == {"a": 0.0, "b": 0.5, "c": 0.0}


def test_its_memory_does_not_grow_with_the_steps(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    space = {"rate": Float(0.1, 10.0, log=True)}
    box, point, fixed = box_of(space, hyperparameters)

    def temporary(steps: int, at_once: int) -> int:
        problem = make_problem(steps, sizes=(64, 1000, 10), batch=10)
        slopes = jax.jit(functools.partial(smoothed._slopes, problem, box, 4, at_once))
        analysis = slopes.lower(point, fixed, 0.1, KEY, KEY, left_out(None)).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    few = temporary(200, 4)
    assert temporary(2000, 4) < 1.1 * few
    assert temporary(200, 1) < 0.5 * few
