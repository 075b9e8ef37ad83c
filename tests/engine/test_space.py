import math
from collections.abc import Callable

import numpy as np
import pytest

from hypergrad_search import Categorical, Float, Int
from hypergrad_search.space import check_space, dimension, from_unit, gradient_to_unit, lifted, to_unit, unlifted

SPACE = {
    "rate": Float(1e-3, 10.0, log=True),
    "width": Int(1, 64),
    "momentum": Float(0.5, 0.99),
    "l2": Float(1e-6, 1.0, log=True, shape=(2, 3)),
    "activation": Categorical(["tanh", "relu"]),
}


def test_unit_box_holds_the_floats_alone() -> None:
    assert dimension(SPACE) == 8


def test_bounds_are_the_corners_of_the_unit_box() -> None:
    low = from_unit(SPACE, np.zeros(8))
    high = from_unit(SPACE, np.ones(8))
    assert (low["rate"], high["rate"]) == (1e-3, 10.0)
    assert (low["momentum"], high["momentum"]) == (0.5, 0.99)
    assert (low["l2"] == 1e-6).all()
    assert (high["l2"] == 1.0).all()
    assert low["l2"].shape == (2, 3)


def test_log_centre_is_the_geometric_mean() -> None:
    assert from_unit(SPACE, np.full(8, 0.5))["rate"] == pytest.approx(0.1)


def test_to_unit_inverts_from_unit() -> None:
    vector = np.random.default_rng(0).uniform(size=8)
    np.testing.assert_allclose(to_unit(SPACE, from_unit(SPACE, vector)), vector, atol=1e-12)


def test_outside_the_unit_box_is_clipped_to_the_bounds() -> None:
    assert from_unit(SPACE, np.full(8, 2.0))["rate"] == 10.0
    assert from_unit(SPACE, np.full(8, -2.0))["momentum"] == 0.5


def test_gradient_follows_the_chain_rule() -> None:
    vector = np.random.default_rng(1).uniform(0.2, 0.8, size=8)

    def loss(v: np.ndarray) -> float:
        h = from_unit(SPACE, v)
        return math.sin(h["rate"]) + h["momentum"] ** 2 + float(np.sum(h["l2"] ** 2 * np.arange(6).reshape(2, 3)))

    h = from_unit(SPACE, vector)
    gradient = {
        "rate": math.cos(h["rate"]),
        "momentum": 2 * h["momentum"],
        "l2": 2 * h["l2"] * np.arange(6).reshape(2, 3),
    }
    numeric = [(loss(vector + e) - loss(vector - e)) / 2e-6 for e in 1e-6 * np.eye(8)]
    np.testing.assert_allclose(gradient_to_unit(SPACE, h, gradient), numeric, rtol=1e-6, atol=1e-9)


def test_a_single_point_has_no_slope() -> None:
    space = {"x": Float(2.0, 2.0)}
    assert to_unit(space, {"x": 2.0}) == 0
    assert from_unit(space, np.array([0.7])) == {"x": 2.0}
    assert gradient_to_unit(space, {"x": 2.0}, {"x": 5.0}) == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(2.0, 1.0), "low must not be above high, got low=2.0, high=1.0"),
        (lambda: Float(0.0, 1.0, log=True), "log=True needs low above 0, got low=0.0"),
        (lambda: Float(-1.0, 1.0, log=True), "log=True needs low above 0"),
        (lambda: Float(0.0, math.inf), "must be finite"),
        (lambda: Float(math.nan, 1.0), "must be finite"),
        (lambda: Float(0.0, 1.0, shape=(0,)), "every length in shape"),
        (lambda: Int(5, 1), "low must not be above high"),
        (lambda: Int(0.5, 1), "low must be a whole number"),
        (lambda: Int(0, 9, log=True), "log=True needs low above 0"),
        (lambda: Categorical([]), "at least one value"),
        (lambda: Categorical("tanh"), "must be a sequence"),
        (lambda: check_space({}), "at least one name"),
        (lambda: check_space({"x": (0, 1)}), "must be a Float, Int or Categorical"),
        (lambda: to_unit(SPACE, {"rate": 1.0}), "'momentum' is missing"),
        (lambda: to_unit({"x": Float(0, 1, shape=(2,))}, {"x": 1.0}), "must have shape \\(2,\\)"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_lifting_makes_numbers_arrays() -> None:
    space = {"rate": Float(1e-3, 1.0, log=True, lift=(100,)), "scale": Float(0.0, 1.0), "width": Int(1, 4)}
    assert lifted(space) == {**space, "rate": Float(1e-3, 1.0, log=True, shape=(100,))}
    assert unlifted(space) == {**space, "rate": Float(1e-3, 1.0, log=True)}
    with pytest.raises(ValueError, match=r"lift is for a single number, got shape=\(3,\) too"):
        Float(0.0, 1.0, shape=(3,), lift=(3, 4))
    with pytest.raises(ValueError, match="every length in lift must be a whole number above 0, got 0"):
        Float(0.0, 1.0, lift=0)
