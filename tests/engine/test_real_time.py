"""`RealTime`: its tangents are those of `Forward` while nothing moves, where it settles, and stretches that go on."""

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Evaluation, Float, Forward, RealTime, Status, TrainingProblem, Unrolled, evaluate, sgd
from hypergrad_search.hosting import host
from hypergrad_search.hypergradient import real_time
from hypergrad_search.hypergradient.on_the_way import start_of
from hypergrad_search.losses import left_out
from hypergrad_search.search.ask_tell import Wanted
from hypergrad_search.space import gradient_to_unit, to_unit

KEY = jax.random.key(0)
STILL = optax.sgd(0.0)
NETWORK = {
    "rate": Float(1e-2, 10.0, log=True),
    "momentum": Float(0.5, 0.99),
    "l2": Float(1e-6, 1e-1, log=True, shape=(2,)),
}


def slope_after_all_steps(problem: TrainingProblem, h: dict[str, Any], space: Any) -> Any:
    """The slope in the unit box, in the type of the point, where nothing has moved."""
    box, _, fixed = start_of(space, h)
    run = real_time._Run(problem, box, STILL, every=7)
    state = real_time._start(run, jnp.asarray(to_unit(space, h)), fixed, KEY)
    state = real_time._advance(run, state, fixed, KEY, left_out(None), problem.steps)
    return real_time._slope(run, state, fixed, left_out(None))


@pytest.mark.parametrize("start", [{}, {"rate": 10.0, "momentum": 0.5}], ids=["within", "on the faces"])
def test_without_moves_it_is_forward_in_float64(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any], start: dict[str, Any]
) -> None:
    """Those of `init` have tangents too, where a method may ask for them."""
    space = {**NETWORK, "scale": Float(0.01, 1.0, log=True, shape=(2,))}
    with jax.enable_x64(True):
        plain = make_problem(20, dtype=jnp.float64)
        problem = replace(plain, valid_loss=lambda p, h: h["momentum"] * plain.valid_loss(p, h))  # it acts directly too
        doubles = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), {**hyperparameters, **start})
        exact = evaluate(problem, doubles, key=KEY, method=Forward()).gradient
        assert exact is not None
        expected = gradient_to_unit(space, doubles, exact)
        found = slope_after_all_steps(problem, doubles, space)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10 * float(np.linalg.norm(expected)))


def tuned(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK
    assert result.refined is not None
    return result.refined


@pytest.mark.slow
def test_its_first_move_is_along_the_gradient_of_forward(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem = make_problem(20)
    exact = evaluate(problem, hyperparameters, key=KEY, method=Forward()).gradient
    assert exact is not None
    method = RealTime(every=20, optimizer=optax.sgd(0.02))
    refined = tuned(evaluate(problem, hyperparameters, key=KEY, method=method, space=NETWORK))
    moved = to_unit(NETWORK, refined) - to_unit(NETWORK, hyperparameters)
    np.testing.assert_allclose(moved, -0.02 * gradient_to_unit(NETWORK, hyperparameters, exact), rtol=1e-3, atol=1e-6)


def test_a_penalty_settles_where_the_closed_form_has_no_slope() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=6)
    x, x_valid = rng.normal(size=(12, 6)), rng.normal(size=(100, 6))
    y, y_valid = x @ truth + rng.normal(size=12), x_valid @ truth

    def slope(penalty: float) -> float:
        hessian = x.T @ x / len(x) + penalty * np.eye(6)
        weights = np.linalg.solve(hessian, x.T @ y / len(x))
        of_weights = x_valid.T @ (x_valid @ weights - y_valid)
        return float(-of_weights @ np.linalg.solve(hessian, weights))

    problem = TrainingProblem(
        init=lambda key, h: jnp.zeros(6),
        train_loss=lambda p, h, b, k: jnp.mean((x.astype("f4") @ p - y.astype("f4")) ** 2) + h["penalty"] * p @ p,
        valid_loss=lambda p, h: (x_valid.astype("f4") @ p - y_valid.astype("f4")) ** 2,
        batches=lambda step: None,
        optimizer=sgd(0.2, 0.5),
        steps=4000,
    )
    space = {"penalty": Float(1e-3, 10.0, log=True)}
    method = RealTime(optimizer=optax.sgd(0.02))
    for start in (0.003, 3.0):
        found = tuned(evaluate(problem, {"penalty": start}, key=KEY, method=method, space=space))["penalty"]
        assert slope(0.003) < slope(found * 0.99) < 0 < slope(found * 1.01) < slope(3.0)


def test_it_tunes_rates_and_penalties_within_one_run(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, h = make_problem(100), {**hyperparameters, "rate": 0.1}
    plain = evaluate(problem, h, key=KEY, method=Unrolled(), gradient_below=-math.inf)
    result = evaluate(problem, h, key=KEY, method=RealTime(), space=NETWORK)
    assert result.value < 0.6 * plain.value
    assert tuned(result)["rate"] > 0.3
    assert result.gradient is None
    assert result.cost.gradient_evaluations == 100 * (1 + 2 * 4) + 10 == RealTime().cost(problem, 100, NETWORK)
    again = evaluate(problem, tuned(result), key=KEY, method=Unrolled(), gradient_below=-math.inf)
    assert again.value < 0.6 * plain.value


def test_a_stretch_goes_on_from_a_checkpoint_with_its_tangents(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """Two of 15 steps are one of 30, in hyperparameters, weights and cost, wherever the moves fall."""
    problem = make_problem(30)
    half, whole = RealTime(steps=15), RealTime()
    first = evaluate(problem, hyperparameters, key=KEY, method=half, space=NETWORK)
    second = evaluate(problem, tuned(first), key=KEY, method=half, space=NETWORK, checkpoint=first.checkpoint)
    one = evaluate(problem, hyperparameters, key=KEY, method=whole, space=NETWORK)
    assert second.value == pytest.approx(one.value, rel=1e-4)
    for name in NETWORK:
        np.testing.assert_allclose(tuned(second)[name], tuned(one)[name], rtol=1e-4)
    costs = [result.cost.gradient_evaluations for result in (first, second, one)]
    assert costs[0] + costs[1] == costs[2]
    with pytest.raises(ValueError, match="checkpoint is of another problem, space or RealTime"):
        evaluate(
            problem, hyperparameters, key=KEY, method=half, space={"rate": NETWORK["rate"]}, checkpoint=first.checkpoint
        )


def test_params_and_value_are_those_of_the_checkpoint(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, method = make_problem(20), RealTime()
    result = evaluate(problem, hyperparameters, key=KEY, method=method, space=NETWORK)
    assert result.checkpoint is not None
    params = method.params(problem, tuned(result), key=KEY, space=NETWORK, checkpoint=result.checkpoint)
    assert float(jnp.mean(problem.valid_loss(params, tuned(result)))) == pytest.approx(result.value, rel=1e-6)
    assert method.value(problem, tuned(result), key=KEY, space=NETWORK, left=result.checkpoint) == result.value


def test_tangents_that_overflow_are_no_success() -> None:
    """The weights stay bounded, but their derivative by the rate grows by a factor each step."""
    problem = TrainingProblem(
        init=lambda key, h: jnp.linspace(0.1, 1, 3),
        train_loss=lambda p, h, b, k: -jnp.sum(jnp.cos(100 * p)),
        valid_loss=lambda p, h: jnp.cos(p),
        batches=lambda step: None,
        optimizer=sgd("rate", 0.0),
        steps=100,
    )
    method = RealTime(every=100, optimizer=optax.sgd(0.1))
    result = evaluate(problem, {"rate": 0.5}, key=KEY, method=method, space={"rate": Float(0.0, 1.0)})
    assert (result.status, result.value, result.refined, result.checkpoint) == (Status.NAN, math.inf, None, None)


def test_its_memory_grows_with_the_numbers_and_not_with_the_steps(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """XLA's own account of all memory, in copies of the state: one for each of three more numbers."""

    def copies(steps: int, space: Any) -> float:
        problem = make_problem(steps, sizes=(64, 1000, 10), batch=10)
        box, point, fixed = start_of(space, hyperparameters)
        run = real_time._Run(problem, box, STILL, every=10)
        state = jax.eval_shape(functools.partial(real_time._start, run), point, fixed, KEY)
        program = jax.jit(functools.partial(real_time._advance, run))
        analysis = program.lower(state, fixed, KEY, left_out(None), steps).compile().memory_analysis()
        assert analysis is not None
        size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.training))
        return float((analysis.temp_size_in_bytes + analysis.output_size_in_bytes) / size)

    few, many = copies(200, NETWORK), copies(2000, NETWORK)
    assert many < 1.1 * few
    assert few - copies(200, {"rate": NETWORK["rate"]}) == pytest.approx(3, abs=0.1)


def test_a_host_is_told_what_it_costs_on_the_way(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """A step takes one gradient, and two for each of two numbers that are searched; a move takes one."""
    space = {name: NETWORK[name] for name in ("rate", "momentum")}
    hosted = host("test", make_problem(20), space, RealTime(), KEY, 8)
    told: list[tuple[int, float]] = []
    result = hosted.evaluate(
        hyperparameters, Wanted(), on_the_way=lambda now, cost: told.append((now.step, cost)), checkpoint=lambda: None
    )
    assert told == [(8, 40), (16, 81)]
    assert result.cost.gradient_evaluations == 102
