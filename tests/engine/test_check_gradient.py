"""`check_gradient`: right gradients agree, and each kind of mistake is named with its numbers."""

import math
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Float, Method, Reversible, Space, TrainingProblem, Unrolled, adam, check_gradient
from hypergrad_search.check_gradient import STEPS, GradientCheck, check

KEY = jax.random.key(0)
DRAWN = np.random.default_rng(0)
X, Y, X_VALID, Y_VALID = (jnp.asarray(DRAWN.normal(size=s), jnp.float32) for s in ((40, 4), 40, (40, 4), 40))
SPACE: Space = {
    "rate": Float(1e-3, 1.0, log=True),
    "b1": Float(0.1, 0.99),
    "l2": Float(1e-6, 10.0, log=True, shape=(4,)),
    "unused": Float(-1.0, 1.0),
}
POINT = {"rate": 0.05, "b1": 0.8, "l2": np.full(4, 0.1), "unused": 0.5}
PROBLEM = TrainingProblem(
    init=lambda key, h: jnp.zeros(4),
    train_loss=lambda w, h, batch, key: jnp.mean((X @ w - Y) ** 2) + jnp.sum(h["l2"] * w**2),
    valid_loss=lambda w, h: (X_VALID @ w - Y_VALID) ** 2,
    batches=lambda step: None,
    optimizer=adam("rate", "b1"),
    steps=20,
)


@pytest.mark.filterwarnings("ignore:nothing in this problem reads")
@pytest.mark.parametrize("method", [Reversible(), Unrolled()])
def test_hypergradients_agree(method: Method) -> None:
    result = check_gradient(PROBLEM, POINT, SPACE, key=KEY, method=method, directions=2)
    assert result.agrees, str(result)
    assert [direction.name for direction in result.directions] == ["all", "all", *SPACE]
    assert all(direction.steps == STEPS for direction in result.directions)


def quadratic(point: dict[str, Any]) -> float:
    return float(3 * point["x"] + np.sum(np.square(point["a"])))


BOX: Space = {"x": Float(0.0, 1.0), "a": Float(-1.0, 1.0, shape=(2,))}
AT = {"x": 0.5, "a": np.array([0.5, -0.25])}
RIGHT: dict[str, Any] = {"x": 3.0, "a": np.array([1.0, -0.5])}


def checked(gradient: dict[str, Any], value_at: Any = quadratic, point: dict[str, Any] = AT) -> GradientCheck:
    return check(value_at, value_at(point), gradient, BOX, point, directions=1)


def verdicts(result: GradientCheck) -> dict[str, str]:
    return {direction.name: direction.verdict for direction in result.directions}


def test_slopes_are_those_of_the_closed_form() -> None:
    result = checked(RIGHT)
    assert result.agrees
    x = {direction.name: direction for direction in result.directions}["x"]
    assert x.predicted == pytest.approx((3.0,) * len(STEPS)) or x.predicted == pytest.approx((-3.0,) * len(STEPS))
    assert x.measured == pytest.approx(x.predicted)


@pytest.mark.parametrize(
    ("changes", "name", "verdict"),
    [
        ({"x": -3.0}, "x", "WRONG SIGN: the gradient says"),
        ({"x": 0.03}, "x", "100 times as much"),
        ({"x": 0.0}, "x", "the derivative is missing"),
        ({"a": -RIGHT["a"]}, "a", "WRONG SIGN"),
        ({"a": 2 * RIGHT["a"]}, "a", "0.5 times as much"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], name: str, verdict: str) -> None:
    result = checked({**RIGHT, **changes})
    assert not result.agrees
    assert verdict in verdicts(result)[name]
    assert verdicts(result)[({"x", "a"} - {name}).pop()].startswith("agrees")
    assert verdict in str(result)


def test_a_missing_derivative_is_zero() -> None:
    assert "the derivative is missing" in verdicts(checked({"a": RIGHT["a"]}))["x"]


def test_noise_is_not_blamed_on_the_gradient() -> None:
    drawn = np.random.default_rng(1)
    result = checked(RIGHT, lambda point: quadratic(point) + 100 * float(drawn.normal()))
    assert not result.agrees
    assert any("do not settle" in verdict for verdict in verdicts(result).values())
    assert any(math.isnan(direction.error) for direction in result.directions)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_at_an_optimum_nothing_agrees_with_nothing(dtype: Any) -> None:
    def value_at(point: dict[str, Any]) -> float:
        return float(dtype(2.0) + dtype(point["x"] - 0.5) ** 2)

    result = check(value_at, 2.0, {"x": 0.0}, {"x": Float(0.0, 1.0)}, {"x": 0.5})
    assert result.agrees, str(result)


def test_a_piecewise_constant_value_is_told() -> None:
    result = checked(RIGHT, lambda point: 0.875)
    assert not result.agrees
    assert "does not change at all: it is piecewise constant" in verdicts(result)["x"]


def test_a_gradient_of_nan_is_told() -> None:
    result = checked({**RIGHT, "x": math.nan})
    assert not result.agrees
    assert verdicts(result)["x"] == "WRONG: the gradient is NaN"


def test_at_the_bounds_one_side_is_measured() -> None:
    corner = {"x": 1.0, "a": np.array([-1.0, 1.0])}
    result = checked({"x": 3.0, "a": np.array([-2.0, 2.0])}, point=corner)
    assert verdicts(result)["x"].startswith("agrees")


@pytest.mark.parametrize("x", [-0.1, 1.5, math.nan])
def test_a_point_outside_of_the_space_is_refused(x: float) -> None:
    """Steps end at the bounds, so that the two sides would be the same point there, and any gradient would agree."""
    with pytest.raises(ValueError, match=f"'x' must be within the bounds of the space, got {x}"):
        checked(RIGHT, point={**AT, "x": x})


def test_values_that_fail_are_left_out() -> None:
    result = checked(RIGHT, lambda point: math.inf if abs(point["x"] - 0.5) > 0.02 else quadratic(point))
    assert result.agrees
    x = {direction.name: direction for direction in result.directions}["x"]
    assert math.isnan(x.measured[0])
    assert not math.isnan(x.measured[-1])


@pytest.mark.filterwarnings("ignore:nothing in this problem reads")
def test_a_point_without_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="gives no gradient at this point, and the status is 'nan'"):
        check_gradient(replace(PROBLEM, optimizer=adam("rate")), {**POINT, "rate": math.nan}, SPACE, key=KEY)
