"""`Persistent`: unbiased where truncated evolution strategies are not, where training is chaotic, and what it costs."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import (
    Evaluation,
    Float,
    Forward,
    Persistent,
    Reversible,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    sgd,
)
from hypergrad_search.hypergradient import persistent
from hypergrad_search.hypergradient.on_the_way import start_of
from hypergrad_search.space import gradient_to_unit

KEY = jax.random.key(0)
STILL = optax.sgd(0.0)
#: It moves nothing, and keeps the sum of the slopes that it was given.
SUM = optax.GradientTransformation(jnp.zeros_like, lambda slope, total, _: (jnp.zeros_like(slope), total + slope))
NETWORK = {
    "rate": Float(1e-2, 10.0, log=True),
    "momentum": Float(0.5, 0.99),
    "l2": Float(1e-6, 1e-1, log=True, shape=(2,)),
}

#: The last loss is quadratic in the hyperparameters of all parts, so that smoothing leaves its gradient as it is.
QUADRATIC = TrainingProblem(
    init=lambda key, h: 2 * h["start"] * jnp.array([1.0, -1.0]),
    train_loss=lambda p, h, b, k: p[0] * p[1] / 2 + jnp.sum(jnp.array([0.5, 1.0]) * (p - h["target"]) ** 2),
    valid_loss=lambda p, h: jnp.sum((p - jnp.array([0.3, -0.2])) ** 2) + h["start"] ** 2,
    batches=lambda step: None,
    optimizer=sgd(0.03, 0.5),
    steps=20,
)
SPACE = {"target": Float(-1.0, 1.0, shape=(2,)), "start": Float(-2.0, 2.0)}
POINT = {"target": np.array([0.5, 0.4]), "start": 0.2}

#: A rate far too high, in a well whose bottom is a hyperparameter: weights never settle, and their mean follows.
CHAOTIC = TrainingProblem(
    init=lambda key, h: jnp.linspace(-1, 1, 5000),
    train_loss=lambda p, h, b, k: jnp.sum(jnp.log(jnp.cosh(4 * (p - h["bottom"])))),
    valid_loss=lambda p, h: (p - 0.9) ** 2,
    batches=lambda step: None,
    optimizer=sgd(lambda h, step: 0.3 + 0.2 * jnp.sin(step.astype(jnp.float32)), 0.9),
    steps=150,
)
BOTTOM = {"bottom": Float(-1.0, 1.0)}


def slope_of_a_run(problem: TrainingProblem, h: dict[str, Any], space: Any, method: Persistent) -> Any:
    """The sum of the slopes in the unit box of all parts of a run, where nothing moves."""
    stretch = method.stretch(problem, h, KEY, space)
    state = stretch.advance(stretch.start(), problem.steps, problem.steps)
    return np.asarray(state.slots, np.float64)


def errors_of_seeds() -> tuple[Any, float]:
    """Of 40 seeds, how far their mean is from the exact gradient, and the standard error of that."""
    exact = evaluate(QUADRATIC, POINT, key=KEY, method=Forward()).gradient
    assert exact is not None
    expected = gradient_to_unit(SPACE, POINT, exact)
    methods = [Persistent(sigma=0.05, pairs=200, every=6, seed=seed, optimizer=SUM) for seed in range(40)]
    errors = np.array([slope_of_a_run(QUADRATIC, POINT, SPACE, method) - expected for method in methods])
    return np.linalg.norm(errors.mean(axis=0)), math.sqrt(np.sum(errors.var(axis=0, ddof=1)) / len(errors))


def test_a_run_is_unbiased_within_its_standard_error() -> None:
    """Parts of 6, 6, 6 and 2 steps; hyperparameters act on the first weights, on training, and on the loss."""
    error, standard_error = errors_of_seeds()
    assert error < 2.5 * standard_error


def test_truncated_evolution_strategies_are_biased_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """They multiply with the shifts of a part alone, so they miss what it does to later parts."""
    drawn = persistent._redrawn

    def redrawn(*arguments: Any) -> Any:
        after = drawn(*arguments)
        return after._replace(shifted=after.shifts)

    monkeypatch.setattr(persistent, "_redrawn", redrawn)
    error, standard_error = errors_of_seeds()
    assert error > 5 * standard_error


def test_it_has_a_slope_where_training_is_chaotic() -> None:
    h = {"bottom": 0.1}
    assert evaluate(CHAOTIC, h, key=KEY, method=Reversible(), space=BOTTOM).status == Status.EXPLODED
    method = Persistent(sigma=0.1, pairs=100, every=50, optimizer=SUM)
    # The mean of the weights is near the bottom, so the slope of (bottom - 0.9)^2 is what is left of chaos.
    (slope,) = slope_of_a_run(CHAOTIC, h, BOTTOM, method)
    assert slope / 2 == pytest.approx(2 * (0.1 - 0.9), rel=0.5)


def tuned(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK
    assert result.refined is not None
    return result.refined


def test_it_moves_where_the_loss_falls_where_training_is_chaotic() -> None:
    """Over 20 runs, each of which begins anew; of three seeds the nearest came from 0.1 to 0.27."""
    method = Persistent(sigma=0.1, pairs=50, every=75, steps=20 * 150)
    result = evaluate(CHAOTIC, {"bottom": 0.1}, key=KEY, method=method, space=BOTTOM)
    assert 0.2 < tuned(result)["bottom"] < 0.9


def test_the_same_seed_has_the_same_directions_and_others_have_others() -> None:
    first, again, other = (
        slope_of_a_run(QUADRATIC, POINT, SPACE, Persistent(optimizer=SUM, seed=seed)) for seed in (0, 0, 1)
    )
    assert first.tolist() == again.tolist()
    assert not np.allclose(first, other, rtol=1e-2)


def test_it_tunes_within_some_runs(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, h = make_problem(50), {**hyperparameters, "rate": 0.03}
    plain = evaluate(problem, h, key=KEY, method=Unrolled(), gradient_below=-math.inf)
    method = Persistent(steps=150)
    result = evaluate(problem, h, key=KEY, method=method, space=NETWORK)
    assert tuned(result)["rate"] > 0.1
    assert result.gradient is None
    assert result.cost.gradient_evaluations == 150 * 21 == method.cost(problem, 150)
    again = evaluate(problem, tuned(result), key=KEY, method=Unrolled(), gradient_below=-math.inf)
    assert again.value < 0.6 * plain.value


def test_runs_begin_anew_after_their_last_step() -> None:
    plain = evaluate(QUADRATIC, POINT, key=KEY, method=Unrolled(), gradient_below=-math.inf)
    still = Persistent(optimizer=STILL, steps=3 * QUADRATIC.steps)
    result = evaluate(QUADRATIC, POINT, key=KEY, method=still, space=SPACE)
    assert result.value == pytest.approx(plain.value, rel=1e-5)


def test_a_stretch_goes_on_from_a_checkpoint() -> None:
    """Four of 15 steps are one of 60, three runs in parts of 6, 6, 6 and 2 steps, but for the rounding of `refined`."""
    short, long = Persistent(steps=15, every=6), Persistent(steps=60, every=6)
    h: dict[str, Any] = POINT
    left = None
    for _ in range(4):
        result = evaluate(QUADRATIC, h, key=KEY, method=short, space=SPACE, checkpoint=left)
        h, left = tuned(result), result.checkpoint
    one = evaluate(QUADRATIC, POINT, key=KEY, method=long, space=SPACE)
    assert result.value == pytest.approx(one.value, rel=1e-4)
    for name in SPACE:
        np.testing.assert_allclose(h[name], tuned(one)[name], rtol=1e-4)


def test_runs_that_fail_around_the_point_are_told(closed_form: Any) -> None:
    problem = closed_form.problem(optimizer=sgd("rate", 0.5))
    h = {"penalty": closed_form.penalty, "rate": 0.1}
    method = Persistent(sigma=0.5, every=300)
    result = evaluate(problem, h, key=KEY, method=method, space={"rate": Float(0.0, 100.0)})
    assert (result.status, result.value, result.refined, result.checkpoint) == (Status.NAN, math.inf, None, None)


def test_its_memory_does_not_grow_with_the_steps(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    def temporary(steps: int, pairs: int) -> int:
        problem = make_problem(steps, sizes=(64, 1000, 10), batch=10)
        box, point, fixed = start_of(NETWORK, hyperparameters)
        run = persistent._Run(problem, box, STILL, 0.03, pairs, 10)
        state = jax.eval_shape(functools.partial(persistent._begun, run), point, (), jnp.int32(0), fixed, KEY, KEY)
        program = jax.jit(functools.partial(persistent._trained, run))
        analysis = program.lower(state, fixed, KEY, 10).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    few = temporary(200, 4)
    assert temporary(2000, 4) < 1.1 * few
    assert temporary(200, 1) < 0.6 * few
