"""Each idea that was tried does what it claims, so that what came of it is due to the idea."""

import math
from collections.abc import Callable

import jax
import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hypergrad_optuna import HypergradSampler, Objective, attributes
from hypergrad_search import evaluate
from hypergrad_studies import optuna_backend
from hypergrad_studies.problems import PROBLEMS, middle
from hypergrad_studies.records import Record
from hypergrad_studies.rivals import RIVALS, TRIED
from hypergrad_studies.spending import Budget
from hypergrad_studies.tried import gradient_gp, half_horizon, halving, virtual
from hypergrad_studies.tried.gradient_gp import Covariance, Explore, Rows
from hypergrad_studies.tried.seen import Seen

LENGTHS = np.array([0.4, 1.0, 2.0])


def run(problem: str, method: str, budget: int) -> list[Record]:
    seen: list[Record] = []
    optuna_backend.run(PROBLEMS[problem](), (RIVALS | TRIED)[method], 0, Budget(budget), seen.append)
    return seen


def differences(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: float) -> np.ndarray:
    """Return the derivatives of a function by each of the coordinates in which it is moved, in the first axis."""
    units = step * np.eye(len(at))
    return np.array([(function(at + unit) - function(at - unit)) / (2 * step) for unit in units])


@pytest.fixture
def rows() -> Rows:
    """Return five values and four derivatives in three dimensions."""
    rng = np.random.default_rng(0)
    slopes = np.concatenate([np.zeros((5, 3)), rng.normal(size=(4, 3))])
    return Rows(rng.random((9, 3)), np.array([1.0] * 5 + [0.0] * 4), slopes)


def test_covariances_of_derivatives_are_finite_differences_of_the_kernel() -> None:
    rng = np.random.default_rng(1)
    x, y, u, v = rng.random((4, 3))

    def kernel(at: np.ndarray) -> np.ndarray:
        """Return the kernel at `x` moved along `u`, and at `y` moved along `v`."""
        some, others = Rows.values((x + at[0] * u)[None]), Rows.values((y + at[1] * v)[None])
        covariance: np.ndarray = Covariance(some, others, LENGTHS).matrix[0, 0]
        return covariance

    both = Rows(np.stack([x, x]), np.array([1.0, 0.0]), np.stack([0 * u, u]))
    beside = Rows(np.stack([y, y]), np.array([1.0, 0.0]), np.stack([0 * v, v]))
    found = Covariance(both, beside, LENGTHS).matrix
    r = np.sqrt(5 * np.sum(((x - y) / LENGTHS) ** 2))
    slopes = differences(kernel, np.zeros(2), 1e-5)
    mixed = differences(lambda at: differences(kernel, at, 1e-4), np.zeros(2), 1e-4)[0, 1]
    expected = [[(1 + r + r**2 / 3) * math.exp(-r), slopes[1]], [slopes[0], mixed]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_gradient_of_the_fit_is_a_finite_difference(rows: Rows) -> None:
    results = np.random.default_rng(2).normal(size=9)
    at = np.array([*np.log(LENGTHS), 0.3, -3.0, -1.0])
    _, gradient = gradient_gp.unlikelihood(at, rows, results)
    expected = differences(lambda at: np.array(gradient_gp.unlikelihood(at, rows, results)[0]), at, 1e-5)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


def bowl(x: np.ndarray) -> np.ndarray:
    square: np.ndarray = np.sum((x - 0.3) ** 2, axis=-1)
    return square


def test_a_model_with_gradients_knows_more() -> None:
    rng = np.random.default_rng(3)
    points, elsewhere = rng.random((6, 4)), rng.random((50, 4))
    both = Rows(
        np.concatenate([points, np.repeat(points, 4, axis=0)]),
        np.array([1.0] * 6 + [0.0] * 24),
        np.concatenate([np.zeros((6, 4)), np.tile(np.eye(4), (6, 1))]),
    )
    results = np.concatenate([bowl(points), 2 * (points - 0.3).ravel()])
    models = gradient_gp.fit(both, results, None), gradient_gp.fit(Rows.values(points), results[:6], None)
    errors = [np.abs(model.predict(elsewhere)[0] - bowl(elsewhere)).mean() for model in models]
    assert errors[0] < errors[1] / 3


def test_the_next_point_is_downhill() -> None:
    rng = np.random.default_rng(3)
    points = rng.random((6, 4))
    seen = [Seen(x, float(bowl(x)), 2 * (x - 0.3)) for x in points]
    found = gradient_gp.next_point(gradient_gp.fit(*gradient_gp.observed(seen), None), rng)
    assert bowl(found) < bowl(points).min() / 2


def test_expected_improvement_is_that_of_draws() -> None:
    means, deviations = np.array([0.5, -0.5, 2.0]), np.array([1.0, 0.1, 0.3])
    draws = means + deviations * np.random.default_rng(4).standard_normal((400_000, 3))
    found = np.exp(gradient_gp.log_improvement(means, deviations, 0.0))
    np.testing.assert_allclose(found[:2], np.maximum(-draws, 0).mean(axis=0)[:2], rtol=0.02)
    assert 0 < found[2] < 1e-9


def trial(**gradient: float) -> FrozenTrial:
    """Return a trial of value 3 at x = 10 on a log scale from 1 to 100, and at y = 1, its upper bound."""
    distributions: dict[str, BaseDistribution] = {
        "x": FloatDistribution(1.0, 100.0, log=True),
        "y": FloatDistribution(0.0, 1.0),
    }
    return create_trial(
        params={"x": 10.0, "y": 1.0},
        distributions=distributions,
        value=3.0,
        user_attrs={attributes.GRADIENT: gradient} if gradient else {},
    )


def test_virtual_trials_lie_on_the_tangent() -> None:
    slope = 0.2 * 10 * math.log(100)  # of x in the box
    down, up = virtual.neighbours(trial(x=0.2, y=0.0), 0.1)
    moved = np.log([down.params["x"] / 10, up.params["x"] / 10]) / math.log(100)
    assert moved == pytest.approx([-0.05, 0.05])
    assert [down.value, up.value] == pytest.approx([3 - 0.05 * slope, 3 + 0.05 * slope])
    assert down.params["y"] == up.params["y"] == 1.0
    down, up = virtual.neighbours(trial(x=0.0, y=2.0), 0.1)
    assert (down.params["y"], up.params["y"]) == pytest.approx((0.95, 1.0))
    assert virtual.neighbours(trial(), 0.1) == virtual.neighbours(trial(x=0.0), 0.1) == []


def test_tpe_follows_the_slopes_that_virtual_trials_show() -> None:
    def far(sampler: optuna.samplers.BaseSampler) -> float:
        """Return the mean coordinate of what is sampled after points of one value, all of which fall to the left."""
        study = optuna.create_study(sampler=sampler)
        distributions: dict[str, BaseDistribution] = {"x": FloatDistribution(0.0, 1.0)}
        for x in np.linspace(0.05, 0.95, 12):
            slope = {attributes.GRADIENT: {"x": float(x)}}
            study.add_trial(
                create_trial(params={"x": float(x)}, distributions=distributions, value=1.0, user_attrs=slope)
            )
        return float(np.mean([study.ask(distributions).params["x"] for _ in range(20)]))

    assert far(virtual.VirtualTpe(0, 0.05)) != far(optuna.samplers.TPESampler(seed=0))


def test_halving_charges_no_step_twice() -> None:
    problem, space = PROBLEMS["digits-mlp"]().posed()
    sampler = HypergradSampler(explorer=halving.HalvingTpe(seed=0), strategy=Explore(share=0.0))
    study = optuna.create_study(sampler=sampler, pruner=halving.HalvingPruner(100))
    study.optimize(Objective(problem, space, report_every=25), n_trials=40)
    costs: dict[float, list[int]] = {}
    for t in study.trials:
        costs.setdefault(t.params["momentum"], []).append(int(t.user_attrs[attributes.COST]))
    stopped = {t.params["momentum"] for t in study.trials if t.state is TrialState.PRUNED}
    finished = {t.params["momentum"] for t in study.trials if t.state is TrialState.COMPLETE}
    assert {sum(costs[x]) for x in finished} == {100}
    assert {sum(costs[x]) for x in stopped - finished} == {25, 50}
    assert stopped & finished
    assert all(cost > 0 for each in costs.values() for cost in each)
    assert len(finished) < len(costs) / 2


def explored(losses: dict[int, float], x: float, state: TrialState) -> FrozenTrial:
    return create_trial(
        params={"x": x},
        distributions={"x": FloatDistribution(0.0, 1.0)},
        value=1.0,
        intermediate_values=losses,
        state=state,
    )


def test_a_stopped_trial_goes_on_once_it_is_among_the_best_third() -> None:
    first = explored({25: 1.0, 50: 1.0}, 0.1, TrialState.COMPLETE)
    stopped = explored({25: 2.0}, 0.2, TrialState.PRUNED)
    worse = [explored({25: 3.0}, x, TrialState.PRUNED) for x in (0.3, 0.4)]
    assert halving.to_resume([first, stopped, worse[0]]) is None
    assert halving.to_resume([first, stopped, *worse]) is stopped
    gone_on = explored({25: 2.0, 50: 0.5}, 0.2, TrialState.COMPLETE)
    assert halving.to_resume([first, stopped, *worse, gone_on]) is None


@pytest.mark.slow
def test_half_a_horizon_has_the_whole_value_and_half_of_the_gradient() -> None:
    problem, space = PROBLEMS["digits-mlp"]().posed()
    key, point = jax.random.key(0), middle(space)
    found = evaluate(problem, point, method=half_horizon.HalfHorizon(), key=key, space=space)
    whole = evaluate(problem, point, key=key, space=space, gradient_below=-math.inf)
    half = evaluate(half_horizon.shortened(problem), point, key=key, space=space)
    assert (found.value, found.test_loss) == (whole.value, whole.test_loss)
    assert found.gradient == half.gradient
    assert found.cost.gradient_evaluations == 100 + 3 * 50
    spared = evaluate(
        problem, point, method=half_horizon.HalfHorizon(), key=key, space=space, gradient_below=whole.value
    )
    assert (spared.gradient, spared.cost.gradient_evaluations) == (None, 100)


@pytest.mark.parametrize("name", TRIED)
def test_all_start_at_the_centre_and_find_something_better(name: str) -> None:
    seen = run("synthetic-quadratic", name, 60)
    assert seen[0].value == run("synthetic-quadratic", "hypergrad-unlifted", 1)[0].value
    assert min(record.value for record in seen) < seen[0].value / 2
