"""`OnePass`: its slope against closed forms and unrolling, what it tunes, and stretches that go on from one another."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad_search import Evaluation, Float, OnePass, Status, TrainingProblem, Unrolled, adam, evaluate, sgd
from hypergrad_search.hypergradient import on_the_way, one_pass
from hypergrad_search.losses import left_out

KEY = jax.random.key(0)
BOX = {"penalty": Float(1e-3, 10.0, log=True, shape=(6,))}
STILL = optax.sgd(0.0)
NETWORK = {
    "rate": Float(1e-2, 10.0, log=True),
    "momentum": Float(0.5, 0.99),
    "l2": Float(1e-6, 1e-1, log=True, shape=(2,)),
}


def slope(method: OnePass, problem: TrainingProblem, h: dict[str, Any], space: Any) -> Any:
    """The slope in the unit box that the method takes after the last step, had it not moved before."""
    run, point, fixed = method._set_up(problem, space, h)
    state = one_pass._start(run, point, fixed, KEY)
    state = one_pass._advance(run, state, fixed, KEY, left_out(None), problem.steps - 1)
    after = on_the_way.update(problem, run.box.hyperparameters(point, fixed), state.training, KEY, state.step)
    return one_pass._slope(run, state, after, fixed, KEY, left_out(None))


def test_a_long_look_back_from_the_minimum_is_the_closed_form(closed_form: Any) -> None:
    """There all steps are like the last, so the series is the implicit function theorem's inverse."""
    h = {"penalty": closed_form.penalty}
    of_log = closed_form.gradient() * closed_form.penalty * math.log(1e4)
    errors = []
    for lookback in (5, 20, 80, 320):
        method = OnePass(lookback=lookback, optimizer=STILL)
        found = slope(method, closed_form.problem(), h, BOX)
        errors.append(float(np.linalg.norm(found - of_log) / np.linalg.norm(of_log)))
    assert errors[-1] < 1e-4
    assert sorted(errors, reverse=True) == errors
    assert errors[0] > 0.03


@pytest.mark.parametrize("optimizer", [sgd("rate", "momentum"), adam("rate", "momentum", eps=1e-3)])
def test_the_slope_after_one_step_is_that_of_unrolling(closed_form: Any, optimizer: Any) -> None:
    h = {"penalty": closed_form.penalty, "rate": 0.1, "momentum": 0.5}
    space = {**BOX, "rate": Float(0.0, 1.0), "momentum": Float(0.0, 1.0)}
    problem = closed_form.problem(optimizer=optimizer, steps=1, init=lambda key, h: jnp.full(6, 0.3))
    exact = evaluate(problem, h, key=KEY, method=Unrolled()).gradient
    assert exact is not None
    found = slope(OnePass(lookback=0, optimizer=STILL), problem, h, space)
    expected = [*exact["penalty"] * closed_form.penalty * math.log(1e4), exact["rate"], exact["momentum"]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def tuned(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK
    assert result.refined is not None
    return result.refined


def test_it_tunes_a_rate_and_a_momentum_within_one_run(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, h = make_problem(100), {**hyperparameters, "rate": 0.1}
    plain = evaluate(problem, h, key=KEY, method=Unrolled(), gradient_below=-math.inf)
    result = evaluate(problem, h, key=KEY, method=OnePass(), space=NETWORK)
    assert result.value < 0.6 * plain.value
    assert tuned(result)["rate"] > 0.3
    assert result.gradient is None
    assert result.cost.gradient_evaluations == 100 + 10 * (1 + 2 * 6) == OnePass().cost(problem, 100)
    again = evaluate(problem, tuned(result), key=KEY, method=Unrolled(), gradient_below=-math.inf)
    assert again.value < 0.6 * plain.value


def test_without_moves_it_is_plain_training(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, still = make_problem(20), OnePass(optimizer=STILL)
    plain = evaluate(problem, hyperparameters, key=KEY, method=Unrolled(), gradient_below=-math.inf)
    result = evaluate(problem, hyperparameters, key=KEY, method=still, space=NETWORK)
    assert result.value == pytest.approx(plain.value, rel=1e-5)
    assert tuned(result)["rate"] == pytest.approx(1.0, rel=1e-5)


def test_a_stretch_goes_on_from_a_checkpoint(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    """Two of 15 steps are one of 30, in hyperparameters, weights and cost, wherever the moves fall."""
    problem = make_problem(30)
    half, whole = OnePass(steps=15, every=10), OnePass(every=10)
    first = evaluate(problem, hyperparameters, key=KEY, method=half, space=NETWORK)
    second = evaluate(problem, tuned(first), key=KEY, method=half, space=NETWORK, checkpoint=first.checkpoint)
    one = evaluate(problem, hyperparameters, key=KEY, method=whole, space=NETWORK)
    assert second.value == pytest.approx(one.value, rel=1e-4)
    for name in NETWORK:
        np.testing.assert_allclose(tuned(second)[name], tuned(one)[name], rtol=1e-4)
    costs = [result.cost.gradient_evaluations for result in (first, second, one)]
    assert costs[0] + costs[1] == costs[2]
    beyond = evaluate(problem, tuned(second), key=KEY, method=whole, space=NETWORK, checkpoint=second.checkpoint)
    assert beyond.value < second.value  # it trains on, beyond the problem's steps
    with pytest.raises(ValueError, match="checkpoint is of another problem, space or OnePass"):
        evaluate(
            problem, hyperparameters, key=KEY, method=half, space={"rate": NETWORK["rate"]}, checkpoint=first.checkpoint
        )


def test_params_and_value_are_those_of_the_checkpoint(
    make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]
) -> None:
    problem, method = make_problem(20), OnePass()
    result = evaluate(problem, hyperparameters, key=KEY, method=method, space=NETWORK)
    assert result.checkpoint is not None
    params = method.params(problem, tuned(result), key=KEY, space=NETWORK, checkpoint=result.checkpoint)
    assert float(jnp.mean(problem.valid_loss(params, tuned(result)))) == pytest.approx(result.value, rel=1e-6)
    assert method.value(problem, tuned(result), key=KEY, space=NETWORK, left=result.checkpoint) == result.value
    with pytest.raises(ValueError, match=r"OnePass.params: give the space and the checkpoint"):
        method.params(problem, tuned(result), key=KEY)


def test_it_reports_on_its_way(make_problem: Callable[..., TrainingProblem], hyperparameters: dict[str, Any]) -> None:
    seen: list[tuple[int, float]] = []
    problem, method = make_problem(20), OnePass()
    result = evaluate(
        problem,
        hyperparameters,
        key=KEY,
        method=method,
        space=NETWORK,
        report=lambda now: seen.append((now.step, now.loss)),
        report_every=8,
    )
    assert [step for step, _ in seen] == [8, 16]
    assert result.value < seen[-1][1] < seen[0][1]
    assert result.checkpoint == evaluate(problem, hyperparameters, key=KEY, method=method, space=NETWORK).checkpoint


def test_a_schedule_stays_at_its_end_beyond_the_steps(closed_form: Any) -> None:
    """The last of five rates is 0, so that a second stretch changes nothing."""
    rates = np.array([0.1, 0.1, 0.1, 0.1, 0.0])
    problem, method = closed_form.problem(optimizer=sgd(rates, 0.0), steps=5), OnePass(optimizer=STILL)
    h = {"penalty": closed_form.penalty}
    first = evaluate(problem, h, key=KEY, method=method, space=BOX)
    second = evaluate(problem, tuned(first), key=KEY, method=method, space=BOX, checkpoint=first.checkpoint)
    assert second.value == pytest.approx(first.value, rel=1e-5)


def test_it_refuses_what_init_alone_reads(closed_form: Any) -> None:
    problem = closed_form.problem(init=lambda key, h: jnp.full(6, h["start"]), optimizer=sgd("rate", 0.5))
    h = {"penalty": closed_form.penalty, "start": 0.1, "rate": 0.1}
    space = {"rate": Float(0.01, 1.0), "start": Float(0.0, 1.0)}
    with pytest.raises(ValueError, match=r"OnePass cannot tune start: .*init alone.*Reversible\(\)"):
        evaluate(problem, h, key=KEY, method=OnePass(), space=space)


def test_diverged_training_has_no_checkpoint(closed_form: Any) -> None:
    problem = closed_form.problem(optimizer=sgd(50.0, 0.5))
    result = evaluate(problem, {"penalty": closed_form.penalty}, key=KEY, method=OnePass(), space=BOX)
    assert result.status in (Status.NAN, Status.DIVERGED)
    assert (result.value, result.refined, result.checkpoint) == (math.inf, None, None)
