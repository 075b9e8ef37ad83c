import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad_search import Categorical, Float, Int
from hypergrad_search.hypergradient.box import Box
from hypergrad_search.hyperparameters import split
from hypergrad_search.space import (
    Space,
    check_space,
    dimension,
    from_unit,
    gradient_to_unit,
    lifted,
    scaled,
    to_unit,
    unlifted,
    unscaled,
)

Array = np.ndarray[Any, Any]

SPACE: Space = {
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

    def loss(v: Array) -> float:
        h = from_unit(SPACE, v)
        return float(math.sin(h["rate"]) + h["momentum"] ** 2 + np.sum(h["l2"] ** 2 * np.arange(6).reshape(2, 3)))

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


@pytest.mark.parametrize("p", [SPACE["rate"], SPACE["momentum"], SPACE["l2"], Float(2.0, 2.0)], ids=repr)
def test_numpy_and_jax_have_one_map_of_the_unit_box(p: Float) -> None:
    """In 64 bits they agree to the last bits, and in 32 bits to theirs; and each way undoes the other."""
    unit = np.random.default_rng(2).uniform(size=p.shape)
    values = unscaled(p, unit)
    assert values.shape == p.shape
    back = scaled(p, values)
    assert back.shape == (p.size,)
    np.testing.assert_allclose(back, unit.ravel() if p.low < p.high else 0, atol=1e-14)
    with jax.enable_x64(True):
        np.testing.assert_allclose(unscaled(p, jnp.asarray(unit), jnp), values, rtol=1e-14)
        np.testing.assert_allclose(scaled(p, jnp.asarray(values), jnp), back, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(unscaled(p, jnp.float32(unit), jnp), values, rtol=1e-5)
    np.testing.assert_allclose(scaled(p, jnp.float32(values), jnp), back, rtol=1e-5, atol=1e-6)


def test_a_program_sees_the_unit_box_as_the_search_does() -> None:
    box = Box(tuple((name, p) for name, p in SPACE.items() if isinstance(p, Float)), split({"width": 3}, SPACE)[1])
    vector = np.random.default_rng(3).uniform(size=8)
    seen, known = box.hyperparameters(jnp.float32(vector), {}), from_unit(SPACE, vector)
    assert seen.keys() == known.keys() | {"width"}
    for name, value in known.items():
        np.testing.assert_allclose(seen[name], value, rtol=1e-5)
    np.testing.assert_allclose(box.point(known), to_unit(SPACE, known), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Float(2.0, 1.0), "low must not be above high, got low=2.0, high=1.0"),
        (lambda: Float(0.0, 1.0, log=True), "log=True needs low above 0, got low=0.0"),
        (lambda: Float(-1.0, 1.0, log=True), "log=True needs low above 0"),
        (lambda: Float(0.0, math.inf), "must be finite"),
        (lambda: Float(math.nan, 1.0), "low must be a number, got nan"),
        (
            lambda: Float("low", 1.0),  # type: ignore[arg-type]  # wrong on purpose
            "low must be a number, got 'low'",
        ),
        (lambda: Float(1e-200, 1e200, log=True), "must not be so far apart"),
        (lambda: Float(-1e308, 1e308), "must not be so far apart"),
        (lambda: Float(0.0, 1.0, shape=(0,)), "every length in shape"),
        (lambda: Int(5, 1), "low must not be above high"),
        (
            lambda: Int(0.5, 1),  # type: ignore[arg-type]  # wrong on purpose
            "low must be a whole number",
        ),
        (lambda: Int(0, 9, log=True), "log=True needs low above 0"),
        (lambda: Categorical([]), "at least one value"),
        (lambda: Categorical("tanh"), "must be a list"),
        (lambda: check_space({}), "at least one name"),
        (
            lambda: check_space({"x": (0, 1)}),  # type: ignore[dict-item]  # wrong on purpose
            "must be a Float, Int or Categorical",
        ),
        (lambda: to_unit(SPACE, {"rate": 1.0}), "'momentum' is missing"),
        (lambda: to_unit({"x": Float(0, 1, shape=(2,))}, {"x": 1.0}), "must have shape \\(2,\\)"),
    ],
)
def test_bad_input_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_lifting_makes_numbers_arrays() -> None:
    space: Space = {"rate": Float(1e-3, 1.0, log=True, lift=(100,)), "scale": Float(0.0, 1.0), "width": Int(1, 4)}
    assert lifted(space) == {**space, "rate": Float(1e-3, 1.0, log=True, shape=(100,))}
    numbers = {"rate": Float(1e-3, 1.0, log=True, lift=False), "scale": Float(0.0, 1.0, lift=False)}
    assert unlifted(space) == {**space, **numbers}
    assert lifted(unlifted(space)) == unlifted(space)
    with pytest.raises(ValueError, match=r"lift is for a single number, got shape=\(3,\) too"):
        Float(0.0, 1.0, shape=(3,), lift=(3, 4))
    with pytest.raises(ValueError, match="every length in lift must be a whole number from 1, got 0"):
        Float(0.0, 1.0, lift=0)  # type: ignore[arg-type]  # wrong on purpose
