"""Proximal steps held against scikit-learn, and the gradients of penalties against closed forms and differences."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import make_regression
from sklearn.linear_model import ElasticNet, MultiTaskElasticNet

from hypergrad_search import (
    Evaluation,
    Forward,
    Implicit,
    Method,
    Status,
    TrainingProblem,
    Unrolled,
    evaluate,
    proximal_sgd,
    sgd,
)
from hypergrad_search.hypergradient import ConjugateGradients, Solution, Solver
from hypergrad_search.training import train_in_floats

Array = np.ndarray[Any, Any]

KEY = jax.random.key(0)
ROWS, FEATURES, TASKS = 80, 40, 3
EXACT = Implicit(solver=ConjugateGradients(tolerance=1e-13))


class Data(NamedTuple):
    x: Array
    y: Array


def regression(tasks: int = 1) -> tuple[Data, Data]:
    """Training data and validation data, of which 12 features of 40 matter."""
    x, y = make_regression(120, FEATURES, n_informative=12, n_targets=tasks, noise=40.0, bias=50.0, random_state=0)
    y = y / np.std(y)
    return Data(x[:ROWS], y[:ROWS]), Data(x[ROWS:], y[ROWS:])


TRAINING, VALIDATION = regression()
OF_TASKS, VALIDATION_OF_TASKS = regression(TASKS)


def loss(params: dict[str, jax.Array], data: Data) -> jax.Array:
    """Half of the squared error of each row, as scikit-learn has it, in the type of the parameters."""
    x, y = (jnp.asarray(part, params["w"].dtype) for part in data)
    error = x @ params["w"] + params["b"] - y if y.ndim == 1 else x @ params["w"] + params["b"][None] - y
    return 0.5 * jnp.sum(error.reshape(len(y), -1) ** 2, axis=1)


def problem(optimizer: Any, tasks: int = 1, **changes: Any) -> TrainingProblem:
    """Return a problem that its steps bring to its minimum, to the last digits."""
    training, validation = (TRAINING, VALIDATION) if tasks == 1 else (OF_TASKS, VALIDATION_OF_TASKS)
    shape = () if tasks == 1 else (tasks,)
    parts: dict[str, Any] = {
        "init": lambda key, h: {
            "w": jnp.zeros((FEATURES, *shape), h["l2"].dtype),
            "b": jnp.zeros(shape, h["l2"].dtype),
        },
        "train_loss": lambda p, h, batch, key: jnp.mean(loss(p, training)),
        "valid_loss": lambda p, h: loss(p, validation),
        "batches": lambda step: None,
        "steps": 700,
    }
    return TrainingProblem(optimizer=optimizer, **{**parts, **changes})


def of_weights(name: str) -> dict[str, Any]:
    return {"w": name, "b": 0.0}


NET = problem(proximal_sgd(0.3, of_weights("l1"), of_weights("l2"), momentum=0.8))
GROUPS = problem(proximal_sgd(0.3, of_weights("l1"), of_weights("l2"), of_weights("group"), momentum=0.8), tasks=TASKS)

LASSO = {"l1": 0.06, "l2": 0.0}
ELASTIC_NET = {"l1": 0.05, "l2": 0.05}
GROUP_LASSO = {"l1": 0.0, "l2": 0.0, "group": 0.15}
SPARSE_GROUPS = {"l1": 0.1, "l2": 0.02, "group": 0.04}


def doubles(h: dict[str, float]) -> dict[str, Any]:
    return {name: jnp.asarray(value, jnp.float64) for name, value in h.items()}


def trained(problem: TrainingProblem, h: dict[str, float]) -> dict[str, Array]:
    with jax.enable_x64(True):
        return {name: np.asarray(x) for name, x in train_in_floats(problem, doubles(h), KEY).items()}


def evaluated(problem: TrainingProblem, h: dict[str, Any], method: Method = EXACT) -> Evaluation:
    with jax.enable_x64(True):
        return evaluate(problem, doubles(h), key=KEY, method=method)


def slopes(result: Evaluation) -> dict[str, Any]:
    assert result.status == Status.OK, result.message
    assert result.gradient is not None
    return {name: slope.item() if slope.ndim == 0 else slope for name, slope in result.gradient.items()}


def scikit_learn(l1: float, l2: float) -> ElasticNet:
    return ElasticNet(alpha=l1 + l2, l1_ratio=l1 / (l1 + l2), tol=1e-14, max_iter=100_000).fit(*TRAINING)


def scikit_learn_of_tasks(l1: float, l2: float, group: float) -> MultiTaskElasticNet:
    assert l1 == 0, "it has no such penalty"
    strength = group + l2
    return MultiTaskElasticNet(alpha=strength, l1_ratio=group / strength, tol=1e-14, max_iter=100_000).fit(*OF_TASKS)


def differences(value: Callable[..., float], h: dict[str, float], step: float = 1e-5) -> dict[str, float]:
    """Return central differences for each hyperparameter that is not 0, the end of its range."""
    return {
        name: (value(**{**h, name: x + step}) - value(**{**h, name: x - step})) / (2 * step)
        for name, x in h.items()
        if x
    }


@pytest.mark.parametrize(("h", "zeros"), [(LASSO, 28), (ELASTIC_NET, 27)])
def test_weights_and_zeros_are_those_of_scikit_learn(h: dict[str, float], zeros: int) -> None:
    found, expected = trained(NET, h), scikit_learn(**h)
    assert np.sum(found["w"] == 0) == zeros
    np.testing.assert_array_equal(found["w"] == 0, expected.coef_ == 0)
    np.testing.assert_allclose(found["w"], expected.coef_, atol=1e-9)
    assert found["b"] == pytest.approx(expected.intercept_, abs=1e-9)


def test_zeros_are_the_same_in_float32() -> None:
    found = train_in_floats(NET, {name: jnp.float32(x) for name, x in ELASTIC_NET.items()}, KEY)
    np.testing.assert_array_equal(found["w"] == 0, trained(NET, ELASTIC_NET)["w"] == 0)


def test_rows_of_zeros_are_those_of_scikit_learn() -> None:
    found, expected = trained(GROUPS, GROUP_LASSO), scikit_learn_of_tasks(**GROUP_LASSO)
    rows = np.all(found["w"] == 0, axis=1)
    assert 10 <= np.sum(rows) <= 30
    np.testing.assert_array_equal(found["w"] == 0, np.broadcast_to(rows[:, None], found["w"].shape))
    np.testing.assert_array_equal(rows, np.all(expected.coef_ == 0, axis=0))
    np.testing.assert_allclose(found["w"], expected.coef_.T, atol=1e-9)


def test_sparse_groups_meet_the_conditions_of_a_minimum() -> None:
    h, found = SPARSE_GROUPS, trained(GROUPS, SPARSE_GROUPS)
    w = found["w"]
    error = OF_TASKS.x @ w + found["b"] - OF_TASKS.y
    slope = OF_TASKS.x.T @ error / ROWS
    norms = np.linalg.norm(w, axis=1, keepdims=True)
    of_group = h["group"] * w / np.where(norms == 0, 1, norms)
    smooth, in_zero_row = slope + h["l2"] * w + of_group, np.broadcast_to(norms == 0, w.shape)
    np.testing.assert_allclose((smooth + h["l1"] * np.sign(w))[w != 0], 0, atol=1e-9)
    alone = (w == 0) & ~in_zero_row
    assert min(np.sum(alone), np.sum(norms == 0)) >= 3  # zeros of both kinds
    assert np.all(np.abs(smooth[alone]) <= h["l1"])
    left = np.sign(slope) * np.maximum(np.abs(slope) - h["l1"], 0)
    assert np.all(np.linalg.norm(left, axis=1)[norms[:, 0] == 0] <= h["group"])
    np.testing.assert_allclose(np.mean(error, axis=0), 0, atol=1e-9)


def closed_form(h: dict[str, float]) -> dict[str, float]:
    """Return the gradient of the validation loss, with scikit-learn's zeros held and all others by their equations."""
    net = scikit_learn(**h)
    support = np.flatnonzero(net.coef_)
    w = net.coef_[support]

    def with_ones(x: Array) -> Array:
        return np.column_stack([x[:, support], np.ones(len(x))])

    design, design_valid = with_ones(TRAINING.x), with_ones(VALIDATION.x)
    hessian = design.T @ design / ROWS + h["l2"] * np.diag([1.0] * len(w) + [0.0])
    slope = design_valid.T @ (net.predict(VALIDATION.x) - VALIDATION.y) / len(VALIDATION.y)
    adjoint = np.linalg.solve(hessian, slope)[:-1]
    return {"l1": -np.sign(w) @ adjoint, "l2": -w @ adjoint}


@pytest.mark.parametrize("h", [LASSO, ELASTIC_NET])
def test_implicit_is_the_closed_form_on_the_active_set(h: dict[str, float]) -> None:
    result = evaluated(NET, h)
    for name, expected in closed_form(h).items():
        assert slopes(result)[name] == pytest.approx(expected, rel=1e-9)
    assert result.diagnostics["residual"] < 1e-12
    assert result.diagnostics["training_gradient"] < 1e-12


def test_implicit_is_central_differences_of_scikit_learn() -> None:
    def value(l1: float, l2: float) -> float:
        return float(0.5 * np.mean((scikit_learn(l1, l2).predict(VALIDATION.x) - VALIDATION.y) ** 2))

    result = evaluated(NET, ELASTIC_NET)
    assert result.value == pytest.approx(value(**ELASTIC_NET), rel=1e-10)
    assert slopes(result) == pytest.approx(differences(value, ELASTIC_NET), rel=1e-6)


def test_implicit_is_central_differences_of_scikit_learn_for_groups() -> None:
    h = {**GROUP_LASSO, "l2": 0.05}

    def value(**h: float) -> float:
        error = scikit_learn_of_tasks(**h).predict(VALIDATION_OF_TASKS.x) - VALIDATION_OF_TASKS.y
        return float(0.5 * np.mean(np.sum(error**2, axis=1)))

    found, expected = slopes(evaluated(GROUPS, h)), differences(value, h)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_implicit_is_central_differences_of_training_for_sparse_groups() -> None:
    def value(**h: float) -> float:
        return evaluated(GROUPS, h).value

    assert slopes(evaluated(GROUPS, SPARSE_GROUPS)) == pytest.approx(differences(value, SPARSE_GROUPS), rel=1e-6)


@pytest.mark.parametrize("method", [Unrolled(), Forward()])
@pytest.mark.parametrize(("training", "h"), [(NET, ELASTIC_NET), (GROUPS, SPARSE_GROUPS)], ids=["net", "groups"])
def test_differentiated_steps_end_at_the_implicit_gradient(
    training: TrainingProblem, h: dict[str, float], method: Method
) -> None:
    assert slopes(evaluated(training, h, method)) == pytest.approx(slopes(evaluated(training, h)), rel=1e-8)


def test_a_solver_of_ones_own_may_invert_the_whole_matrix() -> None:
    """The held weights have a 1 on the diagonal, and not a 0."""

    class Dense(Solver):
        def solve(self, product: Callable[[jax.Array], jax.Array], right: jax.Array) -> Solution:
            matrix = np.stack([product(row) for row in jnp.eye(right.size, dtype=right.dtype)])
            return Solution(jnp.asarray(np.linalg.solve(matrix, right)))

    found = slopes(evaluated(NET, ELASTIC_NET, Implicit(solver=Dense())))
    assert found == pytest.approx(slopes(evaluated(NET, ELASTIC_NET)), rel=1e-9)


def test_where_all_weights_are_zero_the_penalties_have_no_slope() -> None:
    result = evaluated(NET, {"l1": 100.0, "l2": 0.1})
    assert slopes(result) == {"l1": 0.0, "l2": 0.0}
    assert not np.any(trained(NET, {"l1": 100.0, "l2": 0.1})["w"])


def test_a_zero_without_a_kink_is_free() -> None:
    """Chance has brought the bias to 0, and no penalty keeps it there."""
    by_chance = problem(
        proximal_sgd(0.5, of_weights("l1")),
        init=lambda key, h: {"w": jnp.ones((), h["l2"].dtype), "b": jnp.zeros((), h["l2"].dtype)},
        train_loss=lambda p, h, batch, key: 0.5 * (p["w"] - 1) ** 2 + 0.5 * (p["b"] - h["l2"]) ** 2,
        valid_loss=lambda p, h: (p["b"] - 1) ** 2 + p["w"] ** 2,
    )
    assert slopes(evaluated(by_chance, {"l1": 0.25, "l2": 0.0})) == pytest.approx({"l1": -1.5, "l2": -2.0})


@pytest.mark.parametrize("method", [Unrolled(), Forward()])
def test_no_penalty_leaves_the_slope_of_a_weight_at_zero(method: Method) -> None:
    """The weight and its gradient are 0 at all steps, where a soft threshold of 0 has a slope of 1."""
    still = problem(
        proximal_sgd(0.1, "l1", "l2", "group"),
        init=lambda key, h: h["start"],
        train_loss=lambda p, h, batch, key: 0.5 * p**2,
        valid_loss=lambda p, h: (p - 1) ** 2,
        steps=5,
    )
    found = slopes(evaluated(still, {"start": 0.0, "l1": 0.0, "l2": 0.0, "group": 0.0}, method))
    assert found == pytest.approx({"start": -2 * 0.9**5, "l1": 0.0, "l2": 0.0, "group": 0.0})


def test_without_penalties_it_is_sgd() -> None:
    found, expected = (
        trained(problem(optimizer, steps=20), LASSO) for optimizer in (proximal_sgd(0.1, momentum=0.8), sgd(0.1, 0.8))
    )
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)


def test_a_group_of_one_number_is_an_absolute_value() -> None:
    by_groups = problem(proximal_sgd(0.3, group=of_weights("l1"), l2=of_weights("l2"), momentum=0.8))
    found, expected = trained(by_groups, ELASTIC_NET)["w"], trained(NET, ELASTIC_NET)["w"]
    np.testing.assert_array_equal(found == 0, expected == 0)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert slopes(evaluated(by_groups, ELASTIC_NET)) == pytest.approx(slopes(evaluated(NET, ELASTIC_NET)), rel=1e-9)


def test_a_schedule_of_a_penalty_counts_as_it_is_at_the_end() -> None:
    def falling(h: Any, step: jax.Array) -> jax.Array:
        return jnp.where(step < 100, 2 * h["l1"], h["l1"])

    schedule = problem(proximal_sgd(0.3, {"w": falling, "b": 0.0}, of_weights("l2"), momentum=0.8))
    expected = slopes(evaluated(NET, ELASTIC_NET))
    assert slopes(evaluated(schedule, ELASTIC_NET)) == pytest.approx(expected, rel=1e-9)
    by_step = slopes(evaluated(NET, {**ELASTIC_NET, "l1": np.full(700, ELASTIC_NET["l1"])}))["l1"]
    assert by_step[-1] == pytest.approx(expected["l1"], rel=1e-9)
    assert not np.any(by_step[:-1])


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_a_strength_below_zero_is_never_ok(name: str) -> None:
    for method in (Unrolled(), EXACT):
        found = evaluate(NET, {**ELASTIC_NET, name: -0.01}, key=KEY, method=method)
        assert (found.status, found.gradient) == (Status.NAN, None)


def test_the_mean_of_many_steps_has_the_penalty_once() -> None:
    by_step = problem(
        NET.optimizer,
        train_loss=lambda p, h, batch, key: jnp.mean(loss(p, TRAINING)) + batch,
        batches=lambda step: jnp.asarray(step, jnp.result_type(float)),
    )
    found = evaluated(by_step, ELASTIC_NET, Implicit(solver=ConjugateGradients(tolerance=1e-13), batches=7))
    assert found.cost.gradient_evaluations > evaluated(NET, ELASTIC_NET).cost.gradient_evaluations
    assert slopes(found) == pytest.approx(slopes(evaluated(NET, ELASTIC_NET)), rel=1e-9)


def test_implicit_sees_the_penalties_and_nothing_else_of_the_optimizer() -> None:
    training = problem(proximal_sgd("rate", of_weights("l1"), of_weights("l2"), momentum="momentum"))
    h = {**ELASTIC_NET, "rate": 0.3, "momentum": 0.8}
    message = r"Implicit cannot tune rate, momentum: .*hyperparameters of the optimizer.*Unrolled\(\)"
    with pytest.raises(ValueError, match=message):
        evaluate(training, h, key=KEY, method=Implicit())
